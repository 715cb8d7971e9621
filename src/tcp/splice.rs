//! Bytes from socket to socket without a copy into this process: through a
//! pipe, by `splice(2)`. For bulk only, and only where both ends are plain
//! sockets of a runtime that can.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::spare::Spares;

/// The most that is moved at once: what a pipe holds, unless its user has so
/// many that the kernel gives less.
pub(crate) const PIPE_BYTES: usize = 64 << 10;
/// A move of less does not pay for its two calls and the pipe.
pub(crate) const BULK_BYTES: usize = 16 << 10;
/// Empty pipes that a worker keeps.
const SPARE_MAX: usize = 32;
/// Pipes of a worker: each takes two descriptors, which connections need too.
/// What is above is copied.
const PIPES_MAX: usize = 256;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static SPARE: Spares<Pipe> = const { Spares::new(SPARE_MAX) };
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
    pub(crate) held: usize,
}

impl Pipe {
    /// An empty one. There may be none: no descriptors, no such kernel, or
    /// enough of them.
    pub(crate) fn take() -> Option<Self> {
        if let Some(kept) = SPARE.with(Spares::take) {
            return Some(kept);
        }
        if LIVE.get() >= PIPES_MAX {
            return None;
        }
        let made = Self::make().ok()?;
        LIVE.set(LIVE.get() + 1);
        Some(made)
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

    /// For whoever needs one next; closed, if anything is in it or there are
    /// enough.
    pub(crate) fn give_back(self) {
        if self.held == 0 {
            SPARE.with(|spare| spare.keep(self));
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // At the end of the thread there may be no count any more.
        let _counted = LIVE.try_with(|live| live.set(live.get().saturating_sub(1)));
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_so_many_pipes_and_no_more() {
        let mut held: Vec<_> = (0..PIPES_MAX).map(|_| Pipe::take().unwrap()).collect();
        assert!(Pipe::take().is_none());
        // One that is in use ends with what is in it.
        let mut full = held.pop().unwrap();
        full.held = 1;
        full.give_back();
        assert_eq!(LIVE.get(), PIPES_MAX - 1);
        held.push(Pipe::take().unwrap());
        // Some are kept, the others closed.
        held.into_iter().for_each(Pipe::give_back);
        assert_eq!(LIVE.get(), SPARE_MAX);
    }
}
