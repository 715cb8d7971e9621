//! Both sides of an exchange in HTTP/1: content out of a connection's read
//! buffer, heads and content into its write buffer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncWrite};

use super::body::{Decoder, Encoder};
use super::parse::{self, Scanner};
use crate::http::exchange::side::{Answered, Answering, Asking, NoHead, Sink, Source, Watched};
use crate::http::fields::{Leaving, write_response};
use crate::http::message::head::{Head, Limits};
use crate::http::message::request::{Method, Request};
use crate::http::message::response;
use crate::http::message::{Framing, Version};
use crate::http::reply::Clock;
use crate::http::wire::{GATHER_BYTES, READ_BYTES, ReadBuf};

/// Heads of responses; they may carry many cookies.
pub(crate) const RESPONSE_HEAD: Limits = Limits {
    line_max: 8 << 10,
    bytes_max: 64 << 10,
    fields_max: 200,
};

/// What comes from a client, or from an upstream.
pub(crate) struct Incoming<'c, S> {
    stream: &'c RefCell<S>,
    inbuf: &'c mut ReadBuf,
    decoder: &'c mut Decoder,
}

impl<'c, S: AsyncRead + Unpin> Incoming<'c, S> {
    /// `decoder` is what the head said, or nothing before there is one.
    pub(crate) fn new(
        stream: &'c RefCell<S>,
        inbuf: &'c mut ReadBuf,
        decoder: &'c mut Decoder,
    ) -> Self {
        Self {
            stream,
            inbuf,
            decoder,
        }
    }
}

impl<S: AsyncRead + Unpin> Source for Incoming<'_, S> {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        while !self.decoder.is_done() && !sink.is_full() {
            let progress = self.decoder.advance(self.inbuf.data())?;
            self.inbuf.consume(progress.framing);
            let data = self.inbuf.data().get(..progress.data).unwrap_or_default();
            sink.put(data);
            self.inbuf.consume(progress.data);
            if progress.framing == 0 && progress.data == 0 {
                break;
            }
        }
        Ok(())
    }

    fn here(&self) -> &[u8] {
        self.decoder.as_it_is(self.inbuf.data())
    }

    fn took(&mut self, n: usize) {
        self.decoder.took(n);
        self.inbuf.consume(n);
    }

    fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    fn has_more(&self) -> bool {
        !self.inbuf.is_empty()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        self.inbuf.take_bulk_room();
        let n = ready!(self.inbuf.poll_fill(cx, self.stream, GATHER_BYTES))?;
        Poll::Ready(Ok((n > 0).then_some(n)))
    }

    fn may_read_ahead(&self) -> bool {
        self.inbuf.has_room() && !self.decoder.ends_within(self.inbuf.data())
    }

    fn ends_at_close(&self) -> bool {
        self.decoder.ends_at_close()
    }

    fn trailers(&self) -> Option<&Head> {
        self.decoder.trailers()
    }
}

impl<S: AsyncRead + Unpin> Asking for Incoming<'_, S> {
    /// What comes now is the next request: it waits, in the buffer as far as
    /// there is room.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Watched> {
        while self.inbuf.len() < READ_BYTES || self.inbuf.has_room() {
            match ready!(self.inbuf.poll_fill(cx, self.stream, READ_BYTES)) {
                Ok(0) => return Poll::Ready(Watched::Ended),
                Ok(_) => {}
                Err(_) => return Poll::Ready(Watched::Gone),
            }
        }
        Poll::Pending
    }
}

/// An upstream's response.
pub(crate) struct Response<'c, S> {
    incoming: Incoming<'c, S>,
    scanner: Scanner,
}

impl<'c, S: AsyncRead + Unpin> Response<'c, S> {
    pub(crate) fn new(incoming: Incoming<'c, S>) -> Self {
        Self {
            incoming,
            scanner: Scanner::default(),
        }
    }
}

impl<S: AsyncRead + Unpin> Source for Response<'_, S> {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        self.incoming.pull(sink)
    }

    fn here(&self) -> &[u8] {
        self.incoming.here()
    }

    fn took(&mut self, n: usize) {
        self.incoming.took(n);
    }

    fn is_done(&self) -> bool {
        self.incoming.is_done()
    }

    fn has_more(&self) -> bool {
        self.incoming.has_more()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        self.incoming.poll_more(cx)
    }

    fn may_read_ahead(&self) -> bool {
        self.incoming.may_read_ahead()
    }

    fn ends_at_close(&self) -> bool {
        self.incoming.ends_at_close()
    }

    fn trailers(&self) -> Option<&Head> {
        self.incoming.trailers()
    }
}

impl<S: AsyncRead + Unpin> Answering for Response<'_, S> {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
        to: Method,
    ) -> Poll<Result<response::Response, NoHead>> {
        let Incoming {
            stream,
            inbuf,
            decoder,
        } = &mut self.incoming;
        loop {
            match parse::response(inbuf.data(), &mut self.scanner, &RESPONSE_HEAD, head, to) {
                Ok(Some((response, len))) => {
                    inbuf.consume(len);
                    self.scanner = Scanner::default();
                    **decoder = Decoder::new(response.framing);
                    return Poll::Ready(Ok(response));
                }
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(Err(NoHead::Malformed(refusal.why))),
            }
            match ready!(inbuf.poll_fill(cx, stream, RESPONSE_HEAD.bytes_max + READ_BYTES)) {
                Ok(0) => return Poll::Ready(Err(NoHead::Ended)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(NoHead::Failed(error))),
            }
        }
    }

    fn has_spoken(&self) -> bool {
        !self.incoming.inbuf.is_empty()
    }
}

/// What goes to a client, or to an upstream.
pub(crate) struct Outgoing<'c, S> {
    stream: &'c RefCell<S>,
    out: &'c mut Vec<u8>,
    /// How much of `out` is gone.
    sent: usize,
    encoder: Encoder,
}

impl<'c, S: AsyncWrite + Unpin> Outgoing<'c, S> {
    /// `framing` is of the content that will follow what is in `out`.
    pub(crate) fn new(stream: &'c RefCell<S>, out: &'c mut Vec<u8>, framing: Framing) -> Self {
        Self {
            stream,
            out,
            sent: 0,
            encoder: Encoder::for_framing(framing),
        }
    }
}

impl<S: AsyncWrite + Unpin> Sink for Outgoing<'_, S> {
    fn is_full(&self) -> bool {
        self.out.len() >= GATHER_BYTES
    }

    fn put(&mut self, data: &[u8]) {
        self.encoder.encode(data, self.out);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.encoder.finish(trailers, self.out);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        let rest = self.out.get(self.sent..).unwrap_or_default();
        if rest.is_empty() {
            self.out.clear();
            self.sent = 0;
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            return Poll::Ready(Ok(0));
        }
        let n = ready!(Pin::new(&mut *stream).poll_write(cx, rest))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += n;
        Poll::Ready(Ok(n))
    }

    fn passes(&self) -> bool {
        self.encoder == Encoder::Raw
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        loop {
            let held = self.out.get(self.sent..).unwrap_or_default();
            let both = [IoSlice::new(held), IoSlice::new(data)];
            let bufs = both.get(usize::from(held.is_empty())..).unwrap_or(&both);
            let n = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, bufs))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if n > held.len() {
                let taken = n - held.len();
                self.out.clear();
                self.sent = 0;
                return Poll::Ready(Ok(taken));
            }
            self.sent += n;
        }
    }
}

/// What goes to a client, heads included.
pub(crate) struct Answer<'c, S> {
    outgoing: Outgoing<'c, S>,
    clock: &'c Clock,
    with_trailers: bool,
}

impl<'c, S: AsyncWrite + Unpin> Answer<'c, S> {
    pub(crate) fn new(stream: &'c RefCell<S>, out: &'c mut Vec<u8>, clock: &'c Clock) -> Self {
        Self {
            outgoing: Outgoing::new(stream, out, Framing::Empty),
            clock,
            with_trailers: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Sink for Answer<'_, S> {
    fn is_full(&self) -> bool {
        self.outgoing.is_full()
    }

    fn put(&mut self, data: &[u8]) {
        self.outgoing.put(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.outgoing
            .finish(trailers.filter(|_| self.with_trailers));
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.outgoing.poll_send(cx)
    }

    fn passes(&self) -> bool {
        self.outgoing.passes()
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.outgoing.poll_pass(cx, data)
    }
}

impl<S: AsyncWrite + Unpin> Answered for Answer<'_, S> {
    fn inform(&mut self, head: &Head, response: &response::Response) {
        let leaving = Leaving {
            framing: Framing::Empty,
            keeps_length: false,
            with_trailers: false,
        };
        let out = &mut self.outgoing.out;
        write_response(out, head, response, leaving, false, self.clock);
    }

    fn begin(
        &mut self,
        head: &Head,
        response: &response::Response,
        request: &Request,
        may_live: bool,
    ) -> bool {
        let mut leaving = Leaving::of(head, response, request);
        // 1.0 has no chunks; 1.1 needs no close to end a body.
        if matches!(response.framing, Framing::Delimited | Framing::UntilClose) {
            leaving.framing = match request.version {
                Version::Http10 => Framing::UntilClose,
                _ => Framing::Delimited,
            };
        }
        let lives = may_live && request.keeps_alive() && leaving.framing != Framing::UntilClose;
        self.outgoing.encoder = Encoder::for_framing(leaving.framing);
        self.with_trailers = leaving.with_trailers;
        let out = &mut self.outgoing.out;
        write_response(out, head, response, leaving, !lives, self.clock);
        lives
    }
}
