//! A connection as the HTTP forwarder holds it: a stream, what was read ahead
//! of it, what is to be written, and a deadline for each direction.
//!
//! The stream is in a `RefCell` so that two futures of **one** task can read
//! and write it at once, as a proxy must; it is borrowed for the length of a
//! poll, never across one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::runtime::{Runtime, Timer};

/// The size of a read. Larger heads make a buffer grow, up to their limit.
pub(crate) const READ_BYTES: usize = 16 << 10;

/// Bytes received and not yet consumed.
#[derive(Debug, Default)]
pub(crate) struct ReadBuf {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReadBuf {
    pub(crate) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room to read into; empty when `max` bytes are held already.
    fn space(&mut self, max: usize) -> &mut [u8] {
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                let size = (self.bytes.len() * 2).clamp(READ_BYTES.min(max), max);
                self.bytes.resize(size.max(self.bytes.len()), 0);
            }
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Reads once. `Ok(0)`: the other side has sent its last byte, or there
    /// is no room, which the caller sees to.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &RefCell<S>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let space = self.space(max);
        let n = ready!(Pin::new(&mut *stream.borrow_mut()).poll_read(cx, space))?;
        self.end += n;
        Poll::Ready(Ok(n))
    }
}

/// Why a transfer stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Its deadline passed.
    Timeout,
    /// The socket failed.
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads once, at the latest until `deadline`.
pub(crate) async fn fill<S: AsyncRead + Unpin, T: Timer>(
    stream: &RefCell<S>,
    buf: &mut ReadBuf,
    max: usize,
    timer: &mut T,
    deadline: Option<Instant>,
) -> Result<usize, Stop> {
    timer.set(deadline);
    let result = poll_fn(|cx| match buf.poll_fill(cx, stream, max) {
        Poll::Ready(result) => Poll::Ready(result.map_err(Stop::Io)),
        Poll::Pending => timer.poll(cx).map(|()| Err(Stop::Timeout)),
    })
    .await;
    timer.set(None);
    result
}

/// Writes and flushes all of `out`, and empties it. `limit` is the longest
/// time without progress.
pub(crate) async fn write_all<R: Runtime, S: AsyncWrite + Unpin>(
    runtime: &R,
    stream: &RefCell<S>,
    out: &mut Vec<u8>,
    timer: &mut R::Timer,
    limit: Option<Duration>,
) -> Result<(), Stop> {
    let mut written = 0;
    let mut waiting = false;
    let result = poll_fn(|cx| {
        let mut stream = stream.borrow_mut();
        loop {
            let rest = out.get(written..).unwrap_or_default();
            let polled = if rest.is_empty() {
                Pin::new(&mut *stream).poll_flush(cx).map_ok(|()| None)
            } else {
                Pin::new(&mut *stream).poll_write(cx, rest).map_ok(Some)
            };
            match polled {
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(Some(0))) => {
                    return Poll::Ready(Err(Stop::Io(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(Some(n))) => {
                    written += n;
                    waiting = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stop::Io(error))),
                Poll::Pending => {
                    if !waiting {
                        waiting = true;
                        timer.set(limit.and_then(|limit| runtime.now().checked_add(limit)));
                    }
                    return timer.poll(cx).map(|()| Err(Stop::Timeout));
                }
            }
        }
    })
    .await;
    timer.set(None);
    out.clear();
    result
}

/// One side of an exchange.
#[derive(Debug)]
pub(crate) struct Conn<S, T> {
    pub(crate) stream: RefCell<S>,
    pub(crate) inbuf: ReadBuf,
    pub(crate) out: Vec<u8>,
    pub(crate) read_timer: T,
    pub(crate) write_timer: T,
}

impl<S, T: Timer> Conn<S, T> {
    pub(crate) fn new<R: Runtime<Timer = T>>(runtime: &R, stream: S) -> Self {
        Self {
            stream: RefCell::new(stream),
            inbuf: ReadBuf::default(),
            out: Vec::new(),
            read_timer: runtime.timer(),
            write_timer: runtime.timer(),
        }
    }
}
