//! A [`Runtime`] on async-io and any executor of one thread.
//!
//! A host whose `main` is not Rust's has to ignore `SIGPIPE`: `writev(2)` raises
//! it where a client has gone.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_io::Async;
use futures_lite::{AsyncRead, AsyncWrite};

use super::{Runtime, Splice, Stream, Timer};

/// A task for the executor to run to its end.
pub type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// Sockets and timers of async-io; tasks go where the embedder says.
///
/// # Example
/// ```
/// use std::rc::Rc;
/// use svidgate::runtime::async_io::AsyncIo;
///
/// let executor = Rc::new(async_executor::LocalExecutor::new());
/// let runtime = AsyncIo::new({
///     let executor = Rc::downgrade(&executor);
///     move |task| {
///         if let Some(executor) = executor.upgrade() {
///             executor.spawn(task).detach();
///         }
///     }
/// });
/// # let _ = runtime;
/// ```
#[derive(Clone)]
pub struct AsyncIo {
    spawn: Rc<dyn Fn(LocalTask)>,
}

impl AsyncIo {
    /// Tasks are handed to `spawn`, which must run them on this thread.
    ///
    /// `spawn` should hold its executor weakly: tasks hold the runtime.
    pub fn new(spawn: impl Fn(LocalTask) + 'static) -> Self {
        Self {
            spawn: Rc::new(spawn),
        }
    }
}

impl fmt::Debug for AsyncIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncIo")
    }
}

impl Runtime for AsyncIo {
    type Stream = Socket;
    type Listener = Async<TcpListener>;
    type Timer = Deadline;

    fn listener(&self, socket: TcpListener) -> io::Result<Self::Listener> {
        Async::new(socket)
    }

    async fn accept(&self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, peer) = listener.accept().await?;
        Ok((Socket(stream), peer))
    }

    fn accept_now(
        &self,
        listener: &Self::Listener,
    ) -> Option<io::Result<(Self::Stream, SocketAddr)>> {
        // The socket does not block.
        match listener.get_ref().accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            accepted => {
                let made =
                    accepted.and_then(|(stream, peer)| Ok((Socket(Async::new(stream)?), peer)));
                Some(made)
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream> {
        Async::<TcpStream>::connect(address).await.map(Socket)
    }

    fn timer(&self) -> Deadline {
        Deadline {
            deadline: None,
            clock: None,
        }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        (self.spawn)(Box::pin(task));
    }
}

/// A connected socket. async-io's own close only flushes; this one sends a FIN,
/// as a relay must.
#[derive(Debug)]
pub struct Socket(Async<TcpStream>);

impl Stream for Socket {
    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Splice for Socket {}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.get_ref().shutdown(Shutdown::Write))
    }
}

/// A deadline over an async-io timer that is moved only when it must be.
#[derive(Debug)]
pub struct Deadline {
    deadline: Option<Instant>,
    /// The timer as armed, and for when. It may be armed too early, which
    /// costs one look; never too late.
    clock: Option<(Instant, async_io::Timer)>,
}

impl Timer for Deadline {
    fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadline else {
                return Poll::Pending;
            };
            match &mut self.clock {
                Some((armed, clock)) if *armed <= deadline => {
                    if Pin::new(clock).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let armed = *armed;
                    self.clock = None;
                    if armed == deadline || Instant::now() >= deadline {
                        return Poll::Ready(());
                    }
                }
                _ => self.clock = Some((deadline, async_io::Timer::at(deadline))),
            }
        }
    }
}
