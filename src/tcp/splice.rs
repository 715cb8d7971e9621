//! Bytes from socket to socket without a copy into this process: through a
//! pipe, by `splice(2)`. For bulk only, and only where both ends are plain
//! sockets of a runtime that can.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most that is moved at once: what a pipe holds, unless its user has so
/// many that the kernel gives less.
pub(crate) const PIPE_BYTES: usize = 64 << 10;
/// A move of less does not pay for its two calls and the pipe.
pub(crate) const BULK_BYTES: usize = 16 << 10;
/// Empty pipes that a worker keeps.
const SPARE_MAX: usize = 32;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
    pub(crate) held: usize,
}

impl Pipe {
    /// An empty one. There may be none: no descriptors, or no such kernel.
    pub(crate) fn take() -> Option<Self> {
        let kept = SPARE.with_borrow_mut(Vec::pop);
        kept.or_else(|| Self::make().ok())
    }

    #[cfg(target_os = "linux")]
    fn make() -> io::Result<Self> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            from,
            into,
            held: 0,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn make() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn way_in(&self) -> BorrowedFd<'_> {
        self.into.as_fd()
    }

    pub(crate) fn way_out(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// For whoever needs one next; closed, if anything is in it.
    pub(crate) fn give_back(self) {
        SPARE.with_borrow_mut(|kept| {
            if self.held == 0 && kept.len() < SPARE_MAX {
                kept.push(self);
            }
        });
    }
}
