//! Our streams as the crate wants them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::dial::tls_error_type;
use crate::http::exchange::is_tls_alert;
use crate::http::wire::ReadBuf;

/// What is gathered before it is written.
const OUT_BYTES: usize = 32 << 10;
/// Reads in one turn of a connection. The crate reads for as long as there is
/// something, and a peer that always has something must not keep a worker from
/// others.
const READS_PER_TURN: u32 = 16;

/// What the owner of a connection knows of its reads and writes.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    reads: Cell<u64>,
    reads_left: Cell<u32>,
    writes: Cell<u64>,
    is_blocked: Cell<bool>,
    refused: Cell<Option<&'static str>>,
}

impl Traffic {
    /// How often something has come.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// How often something has gone.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.get()
    }

    /// Whether the peer does not take what is to be sent, here or in the crate.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    /// What TLS has said of its end, as an error type of `Proxy-Status`. The
    /// crate passes on the text of an error alone.
    pub(crate) fn refused(&self) -> Option<&'static str> {
        self.refused.get()
    }

    fn failed(&self, error: &io::Error) {
        if is_tls_alert(error) {
            self.refused.set(Some(tls_error_type(error)));
        }
    }

    /// Another turn begins.
    pub(crate) fn allow(&self) {
        self.reads_left.set(READS_PER_TURN);
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
    traffic: Rc<Traffic>,
}

impl<S> Io<S> {
    pub(crate) fn new(stream: S, ahead: ReadBuf) -> Self {
        Self {
            stream,
            ahead,
            out: Vec::new(),
            sent: 0,
            traffic: Rc::default(),
        }
    }

    pub(crate) fn traffic(&self) -> Rc<Traffic> {
        Rc::clone(&self.traffic)
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
        let left = this.traffic.reads_left.get();
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf.initialize_unfilled());
        let n = ready!(read).inspect_err(|error| this.traffic.failed(error))?;
        buf.advance(n);
        this.traffic.reads_left.set(left - 1);
        if n > 0 {
            let reads = &this.traffic.reads;
            reads.set(reads.get().wrapping_add(1));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Io<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            let written = Pin::new(&mut self.stream).poll_write(cx, rest);
            self.traffic.is_blocked.set(written.is_pending());
            let n = ready!(written).inspect_err(|error| self.traffic.failed(error))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
            let writes = &self.traffic.writes;
            writes.set(writes.get().wrapping_add(1));
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
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.traffic.is_blocked.set(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}
