//! What a forwarder needs from the machine: sockets, time and tasks.
//!
//! Everything below [`Proxy`](crate::Proxy) is generic over [`Runtime`], so
//! that one forwarder runs on the epoll worker ([`epoll`], Linux), on async-io
//! ([`async_io`], everywhere) and on whatever an embedder brings.
//!
//! A runtime belongs to **one thread**: its streams and tasks need not be
//! `Send`, and the hot path has no lock and no atomic of ours.

pub mod async_io;
#[cfg(target_os = "linux")]
pub mod epoll;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};

/// Sockets, time and tasks of one thread.
pub trait Runtime: Clone + fmt::Debug + 'static {
    /// A connected TCP socket.
    type Stream: Stream;
    /// A listening TCP socket.
    type Listener: fmt::Debug + 'static;
    /// A deadline that is cheap to move.
    type Timer: Timer;

    /// Takes over a socket that already listens.
    ///
    /// # Errors
    /// The operating system's, when the socket cannot be registered.
    fn listener(&self, socket: TcpListener) -> io::Result<Self::Listener>;

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// The operating system's; the caller decides how long to wait after one.
    fn accept(
        &self,
        listener: &Self::Listener,
    ) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>>;

    /// A connection that the kernel holds for us now, if there is one. It asks
    /// the kernel, not what was last heard of it.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    fn accept_now(
        &self,
        listener: &Self::Listener,
    ) -> Option<io::Result<(Self::Stream, SocketAddr)>>;

    /// Opens a connection, without a deadline of its own.
    ///
    /// # Errors
    /// The operating system's.
    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;

    /// A timer that is not set.
    fn timer(&self) -> Self::Timer;

    /// The time, at most one turn of the event loop old.
    fn now(&self) -> Instant;

    /// Starts a task that nobody awaits. It ends with the runtime.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}

/// A stream that the kernel may connect to a pipe, so that bytes need not pass
/// through this process (`splice(2)`).
pub trait Splice {
    /// Whether it can, now. By default it never can.
    fn can_splice(&self) -> bool {
        false
    }

    /// Moves up to `max` bytes. 0 into a pipe: the other side has sent its
    /// last. Pending: the socket is not ready; the pipe has to be.
    ///
    /// # Errors
    /// The operating system's; `Unsupported` from a stream that cannot.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        way: Way<'_>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let _ = (cx, way, max);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Which way bytes go between a socket and a pipe.
#[derive(Clone, Copy, Debug)]
pub enum Way<'p> {
    /// From the socket into the pipe's write end, which is to be empty.
    Into(BorrowedFd<'p>),
    /// From the pipe's read end to the socket.
    From(BorrowedFd<'p>),
}

/// A connected socket: bytes both ways, and the descriptor for its options.
pub trait Stream: AsyncRead + AsyncWrite + Splice + Unpin + fmt::Debug + 'static {
    /// The descriptor, for socket options only.
    fn socket(&self) -> BorrowedFd<'_>;
}

/// A deadline for whatever its owner is doing now.
///
/// Moving it later, or taking it away, costs a store: the clock's own queue
/// is touched only when a deadline moves *earlier* than the queue knows.
pub trait Timer: Unpin + fmt::Debug + 'static {
    /// Sets, moves or (`None`) takes away the deadline.
    fn set(&mut self, deadline: Option<Instant>);

    /// Ready once the deadline has passed. Never, while there is none.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Waits for `duration`.
pub(crate) async fn sleep<R: Runtime>(runtime: &R, duration: Duration) {
    let mut timer = runtime.timer();
    timer.set(runtime.now().checked_add(duration));
    poll_fn(|cx| timer.poll(cx)).await;
}

/// `work`, or `None` when `limit` is over first. No limit: no deadline.
pub(crate) async fn within<R: Runtime, T>(
    runtime: &R,
    limit: Option<Duration>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut timer = runtime.timer();
    timer.set(limit.and_then(|limit| runtime.now().checked_add(limit)));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => timer.poll(cx).map(|()| None),
    })
    .await
}
