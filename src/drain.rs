//! Ending well: tell the connections of a worker to stop, wait until they
//! have.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// The connections of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stopping: Cell<bool>,
    cutting: Cell<bool>,
    /// A slot per connection; a waker in it while it waits for the stop.
    connections: RefCell<Slab<Option<Waker>>>,
    /// Those that have said all they had to say.
    finished: Cell<usize>,
    /// Whoever waits for the end, or for a connection to end.
    waiter: RefCell<Option<Waker>>,
    /// The accept loop, which waits for the stop.
    acceptor: RefCell<Option<Waker>>,
}

/// Held by every connection that must end before the worker may.
#[derive(Debug)]
pub(crate) struct Running {
    drain: Drain,
    slot: usize,
    is_finished: Cell<bool>,
}

impl Drain {
    /// One more connection.
    pub(crate) fn enter(&self) -> Running {
        Running {
            drain: self.clone(),
            slot: self.0.connections.borrow_mut().insert(None),
            is_finished: Cell::new(false),
        }
    }

    /// How many connections there are.
    #[must_use]
    pub(crate) fn running(&self) -> usize {
        self.0.connections.borrow().len()
    }

    /// The limit of the one who waits has changed.
    pub(crate) fn recheck(&self) {
        let waiter = self.0.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Waits until there are none. One waiter only.
    pub(crate) async fn done(&self) {
        self.fewer_than(&Cell::new(1)).await;
    }

    /// How many have something left to do.
    pub(crate) fn in_flight(&self) -> usize {
        self.running().saturating_sub(self.0.finished.get())
    }

    /// Tells every connection to finish what it is doing and end.
    pub(crate) fn stop(&self) {
        self.0.stopping.set(true);
        self.wake();
    }

    /// Tells every connection to end at once.
    pub(crate) fn cut(&self) {
        self.0.cutting.set(true);
        self.stop();
    }

    fn wake(&self) {
        for (_, slot) in self.0.connections.borrow_mut().iter_mut() {
            if let Some(waker) = slot.take() {
                waker.wake();
            }
        }
        let acceptor = self.0.acceptor.borrow_mut().take();
        if let Some(acceptor) = acceptor {
            acceptor.wake();
        }
    }

    /// Completes once [`stop`](Self::stop) was called. One waiter only.
    pub(crate) async fn stopped(&self) {
        poll_fn(|cx| {
            if self.0.stopping.get() {
                return Poll::Ready(());
            }
            *self.0.acceptor.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits until there are fewer than `limit` connections; if that changes,
    /// [`recheck`](Self::recheck) tells. One waiter only.
    pub(crate) async fn fewer_than(&self, limit: &Cell<usize>) {
        poll_fn(|cx| {
            if self.running() < limit.get() {
                return Poll::Ready(());
            }
            *self.0.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Running {
    /// Whether there is nothing left to do: all is said, and the other side is
    /// to hear it; or nothing was asked yet.
    pub(crate) fn set_finished(&self, is_finished: bool) {
        let all = &self.drain.0.finished;
        match (self.is_finished.replace(is_finished), is_finished) {
            (false, true) => all.set(all.get() + 1),
            (true, false) => all.set(all.get() - 1),
            _ => {}
        }
    }

    /// Whether the worker is ending.
    #[must_use]
    pub(crate) fn is_stopping(&self) -> bool {
        self.drain.0.stopping.get()
    }

    /// Ready once the worker is ending.
    pub(crate) fn poll_stopping(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll(cx, &self.drain.0.stopping)
    }

    /// Completes once there is no time left. Of the task that polls both,
    /// as there is room for one waker.
    pub(crate) async fn cut(&self) {
        poll_fn(|cx| self.poll(cx, &self.drain.0.cutting)).await;
    }

    fn poll(&self, cx: &Context<'_>, flag: &Cell<bool>) -> Poll<()> {
        if flag.get() {
            return Poll::Ready(());
        }
        let mut connections = self.drain.0.connections.borrow_mut();
        if let Some(slot) = connections.get_mut(self.slot)
            && !slot.as_ref().is_some_and(|old| old.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.0.connections.borrow_mut().try_remove(self.slot);
        self.set_finished(false);
        self.drain.recheck();
    }
}
