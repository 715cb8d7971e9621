//! What a worker keeps for the next who needs one of it, instead of making it
//! anew: buffers, heads, pipes. One list for each thread and kind.

use std::cell::RefCell;

/// Things of one kind that nobody uses now. What is in them is of no meaning.
pub(crate) struct Spares<T> {
    kept: RefCell<Vec<T>>,
    max: usize,
}

impl<T> Spares<T> {
    /// Keeps up to `max`.
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            kept: RefCell::new(Vec::new()),
            max,
        }
    }

    /// One of them, if there is one.
    pub(crate) fn take(&self) -> Option<T> {
        self.kept.borrow_mut().pop()
    }

    /// Keeps one; dropped, if there are enough.
    pub(crate) fn keep(&self, one: T) {
        // Dropped outside of the borrow: what a drop does is not our business.
        let left = {
            let mut kept = self.kept.borrow_mut();
            if kept.len() < self.max {
                kept.push(one);
                None
            } else {
                Some(one)
            }
        };
        drop(left);
    }
}
