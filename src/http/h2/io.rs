//! Our streams as the crate wants them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::http::wire::ReadBuf;

/// What is gathered before it is written.
const OUT_BYTES: usize = 32 << 10;
/// Reads in one turn of a connection. The crate reads for as long as there is
/// something, and a peer that always has something must not keep a worker from
/// others.
const READS_PER_TURN: u32 = 16;

/// What the owner of a connection knows of its reads.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    count: Cell<u64>,
    left: Cell<u32>,
}

impl Reads {
    /// How often something has come.
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Another turn begins.
    pub(crate) fn allow(&self) {
        self.left.set(READS_PER_TURN);
    }
}

/// A stream with what was read ahead of it. Frames are gathered until a flush,
/// so that a head and its content are one write, and one TLS record.
#[derive(Debug)]
pub(crate) struct Io<S> {
    stream: S,
    ahead: ReadBuf,
    out: Vec<u8>,
    sent: usize,
    reads: Rc<Reads>,
}

impl<S> Io<S> {
    pub(crate) fn new(stream: S, ahead: ReadBuf) -> Self {
        Self {
            stream,
            ahead,
            out: Vec::new(),
            sent: 0,
            reads: Rc::default(),
        }
    }

    pub(crate) fn reads(&self) -> Rc<Reads> {
        Rc::clone(&self.reads)
    }
}

impl<S: AsyncRead + Unpin> tokio::io::AsyncRead for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(this.ahead.data().get(..n).unwrap_or_default());
            this.ahead.consume(n);
            if this.ahead.is_empty() {
                this.ahead = ReadBuf::default();
            }
            return Poll::Ready(Ok(()));
        }
        let left = this.reads.left.get();
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let n = ready!(Pin::new(&mut this.stream).poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        this.reads.left.set(left - 1);
        if n > 0 {
            this.reads.count.set(this.reads.count.get().wrapping_add(1));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Io<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        // An idle connection holds nothing.
        self.out = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> tokio::io::AsyncWrite for Io<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.out.len() >= OUT_BYTES {
            ready!(this.poll_out(cx))?;
        }
        let n = buf.len().min(OUT_BYTES);
        this.out.extend_from_slice(buf.get(..n).unwrap_or_default());
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}
