//! Both sides of an exchange in HTTP/2: streams of the crate as sources and
//! sinks of content.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::convert;
use crate::http::exchange::side::{
    Answered, Answering, Asking, NoHead, NotBegun, Sink, Source, Watched,
};
use crate::http::h1::sides::RESPONSE_HEAD;
use crate::http::message::Framing;
use crate::http::message::head::Head;
use crate::http::message::request::{Method, Request};
use crate::http::message::response::Response;
use crate::http::reply::Clock;
use crate::http::wire::GATHER_BYTES;

/// The content of a message.
#[derive(Debug)]
pub(crate) struct Body {
    recv: RecvStream,
    /// What has come and was not moved yet.
    chunk: Bytes,
    /// What was moved, and counts against the sender until it is gone.
    owed: usize,
    /// What may still come. `None`: what comes.
    left: Option<u64>,
    has_ended: bool,
    trailers: Option<Head>,
    /// What is wrong with them.
    fault: Option<&'static str>,
}

impl Body {
    pub(crate) fn new(recv: RecvStream, framing: Framing) -> Self {
        let left = match framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Delimited | Framing::UntilClose => None,
        };
        Self {
            has_ended: recv.is_end_stream(),
            recv,
            chunk: Bytes::new(),
            owed: 0,
            left,
            trailers: None,
            fault: None,
        }
    }
}

impl Source for Body {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        if let Some(why) = self.fault {
            return Err(why);
        }
        let n = self.chunk.len();
        let moved = u64::try_from(n).unwrap_or(u64::MAX);
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(moved)
                .ok_or("more content than the head said")?;
            if self.has_ended && *left > 0 {
                return Err("less content than the head said");
            }
        }
        if n > 0 {
            sink.put(&self.chunk);
            self.chunk = Bytes::new();
            self.owed += n;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.has_ended && self.chunk.is_empty()
    }

    fn has_more(&self) -> bool {
        !self.chunk.is_empty()
    }

    fn may_read_ahead(&self) -> bool {
        false
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        // More is waited for once what came before has been sent.
        let owed = std::mem::take(&mut self.owed);
        if owed > 0 {
            // It fails only for a stream that is gone, of which no more comes.
            let _released = self.recv.flow_control().release_capacity(owed);
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(chunk)) => {
                let n = chunk.len();
                self.chunk = chunk;
                self.has_ended |= self.recv.is_end_stream();
                Poll::Ready(Ok(Some(n)))
            }
            Some(Err(error)) => Poll::Ready(Err(io_error(error))),
            None => {
                let trailers = ready!(self.recv.poll_trailers(cx)).map_err(io_error)?;
                if let Some(map) = trailers {
                    match convert::trailers(&map) {
                        Ok(trailers) => {
                            self.trailers = Some(trailers).filter(|it| !it.has_no_fields());
                        }
                        Err(why) => self.fault = Some(why),
                    }
                }
                self.has_ended = true;
                Poll::Ready(Ok(Some(0)))
            }
        }
    }

    fn trailers(&self) -> Option<&Head> {
        self.trailers.as_ref()
    }
}

/// Content on its way out.
#[derive(Debug, Default)]
pub(crate) struct Out {
    bytes: BytesMut,
    end: End,
}

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// After what is held, and then perhaps with trailers.
    Ending(Option<HeaderMap>),
    Ended,
}

impl Out {
    /// Of a message that ends with its head.
    pub(crate) fn ended() -> Self {
        Self {
            bytes: BytesMut::new(),
            end: End::Ended,
        }
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        if matches!(self.end, End::Open) {
            // What cannot be carried is left out: it is no part of the content.
            let trailers = trailers.and_then(|it| convert::trailers_to(it).ok());
            self.end = End::Ending(trailers);
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> Poll<io::Result<usize>> {
        let held = self.bytes.len();
        if held == 0 {
            if let End::Ending(trailers) = &mut self.end {
                let trailers = trailers.take();
                self.end = End::Ended;
                match trailers {
                    Some(trailers) => stream.send_trailers(trailers),
                    None => stream.send_data(Bytes::new(), true),
                }
                .map_err(io_error)?;
            }
            return Poll::Ready(Ok(0));
        }
        stream.reserve_capacity(held);
        let mut room = stream.capacity();
        if room == 0 {
            room = match ready!(stream.poll_capacity(cx)) {
                Some(room) => room.map_err(io_error)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let n = room.min(held);
        let data = self.bytes.split_to(n).freeze();
        let is_last = n == held && matches!(self.end, End::Ending(None));
        if is_last {
            self.end = End::Ended;
        }
        stream.send_data(data, is_last).map_err(io_error)?;
        Poll::Ready(Ok(n))
    }
}

/// A request's content on its way to an upstream.
#[derive(Debug)]
pub(crate) struct Outgoing {
    stream: SendStream<Bytes>,
    out: Out,
}

impl Outgoing {
    pub(crate) fn new(stream: SendStream<Bytes>, out: Out) -> Self {
        Self { stream, out }
    }
}

impl Sink for Outgoing {
    fn is_full(&self) -> bool {
        self.out.bytes.len() >= GATHER_BYTES
    }

    fn put(&mut self, data: &[u8]) {
        self.out.bytes.extend_from_slice(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.out.finish(trailers);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.out.poll_send(cx, &mut self.stream)
    }
}

/// An upstream's response.
#[derive(Debug)]
pub(crate) struct Incoming {
    response: ResponseFuture,
    body: Option<Body>,
}

impl Incoming {
    pub(crate) fn new(response: ResponseFuture) -> Self {
        Self {
            response,
            body: None,
        }
    }
}

impl Answering for Incoming {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
        to: Method,
    ) -> Poll<Result<Response, NoHead>> {
        let interim = match self.response.poll_informational(cx) {
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(no_head(error))),
            Poll::Ready(Some(Ok(interim))) => Some(interim),
            Poll::Ready(None) | Poll::Pending => None,
        };
        let (parts, ends) = match interim {
            Some(interim) => (interim.into_parts().0, false),
            None => match ready!(Pin::new(&mut self.response).poll(cx)) {
                Ok(response) => {
                    let (parts, recv) = response.into_parts();
                    let ends = recv.is_end_stream();
                    self.body = Some(Body::new(recv, Framing::Delimited));
                    (parts, ends)
                }
                Err(error) => return Poll::Ready(Err(no_head(error))),
            },
        };
        let response = convert::response(&parts, ends, to, &RESPONSE_HEAD, head);
        let response = response.map_err(|refusal| NoHead::Malformed(refusal.why))?;
        match &mut self.body {
            Some(_) if response.is_interim() => {
                return Poll::Ready(Err(NoHead::Malformed("an interim response with content")));
            }
            Some(body) => {
                body.left = match response.framing {
                    Framing::Empty => Some(0),
                    Framing::Length(length) => Some(length),
                    Framing::Delimited | Framing::UntilClose => None,
                };
            }
            None => {}
        }
        Poll::Ready(Ok(response))
    }

    fn has_spoken(&self) -> bool {
        false
    }
}

impl Source for Incoming {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        self.body.as_mut().map_or(Ok(()), |body| body.pull(sink))
    }

    fn is_done(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_done)
    }

    fn has_more(&self) -> bool {
        self.body.as_ref().is_some_and(Body::has_more)
    }

    fn may_read_ahead(&self) -> bool {
        false
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        match &mut self.body {
            // The end of a connection hides the end of a stream that came right
            // before it. What was announced has come: it is whole.
            Some(body) => match ready!(body.poll_more(cx)) {
                Err(error) if body.left == Some(0) && is_of_connection(&error) => {
                    body.has_ended = true;
                    Poll::Ready(Ok(Some(0)))
                }
                result => Poll::Ready(result),
            },
            None => Poll::Ready(Ok(None)),
        }
    }

    fn trailers(&self) -> Option<&Head> {
        self.body.as_ref().and_then(Body::trailers)
    }
}

fn no_head(error: h2::Error) -> NoHead {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    // A GOAWAY is an error only of streams that it says were not begun.
    if error.is_remote() && is_refused {
        return NoHead::NotBegun(NotBegun::Refused);
    }
    if error.is_remote() && error.is_go_away() {
        return NoHead::NotBegun(NotBegun::Leaving);
    }
    if error.is_io() {
        return NoHead::Failed(io_error(error));
    }
    NoHead::Malformed("the stream was reset, or its frames are malformed")
}

/// The error beneath, if there is one.
pub(crate) fn io_error(error: h2::Error) -> io::Error {
    if !error.is_io() {
        return io::Error::other(error);
    }
    let inner = error.into_io();
    inner.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
}

/// Whether a connection has failed beneath its streams.
fn is_of_connection(error: &io::Error) -> bool {
    error.get_ref().is_none_or(|inner| !inner.is::<h2::Error>())
}

/// The way to a client: before its response has begun, and after.
pub(crate) struct Respond {
    response: SendResponse<Bytes>,
    /// A head that can still be replaced, and whether it is all.
    head: Option<(http::Response<()>, bool)>,
    content: Option<SendStream<Bytes>>,
    out: Out,
    /// What could not be sent. A sink says so when it sends.
    failed: Option<io::Error>,
}

impl Respond {
    pub(crate) fn new(response: SendResponse<Bytes>) -> Self {
        Self {
            response,
            head: None,
            content: None,
            out: Out::default(),
            failed: None,
        }
    }

    /// Ends the stream without an answer, or within one.
    pub(crate) fn reset(&mut self, reason: Reason) {
        match &mut self.content {
            Some(content) => content.send_reset(reason),
            None => self.response.send_reset(reason),
        }
    }

    /// Puts an answer. `ends`: there is no content.
    pub(crate) fn begin(&mut self, made: Result<http::Response<()>, &'static str>, ends: bool) {
        match made {
            Ok(head) => {
                self.head = Some((head, ends));
                self.out = if ends { Out::ended() } else { Out::default() };
            }
            Err(why) => self.failed = Some(io::Error::other(why)),
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Watched> {
        let polled = match &mut self.content {
            Some(content) => content.poll_reset(cx),
            None => self.response.poll_reset(cx),
        };
        polled.map(|_| Watched::Gone)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if let Some((head, ends)) = self.head.take() {
            let content = self.response.send_response(head, ends).map_err(io_error)?;
            self.content = Some(content);
        }
        match &mut self.content {
            Some(content) => self.out.poll_send(cx, content),
            None => Poll::Ready(Ok(0)),
        }
    }
}

/// A client's request, and whether it still wants an answer.
pub(crate) struct Ask<'s> {
    pub(crate) body: &'s mut Body,
    pub(crate) respond: &'s RefCell<Respond>,
}

impl Source for Ask<'_> {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        self.body.pull(sink)
    }

    fn is_done(&self) -> bool {
        self.body.is_done()
    }

    fn has_more(&self) -> bool {
        self.body.has_more()
    }

    fn may_read_ahead(&self) -> bool {
        false
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        self.body.poll_more(cx)
    }

    fn trailers(&self) -> Option<&Head> {
        self.body.trailers()
    }
}

impl Asking for Ask<'_> {
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Watched> {
        self.respond.borrow_mut().poll_reset(cx)
    }
}

/// What goes to a client.
pub(crate) struct Answer<'s> {
    pub(crate) respond: &'s RefCell<Respond>,
    pub(crate) clock: &'s Clock,
}

impl Sink for Answer<'_> {
    fn is_full(&self) -> bool {
        self.respond.borrow().out.bytes.len() >= GATHER_BYTES
    }

    fn put(&mut self, data: &[u8]) {
        self.respond.borrow_mut().out.bytes.extend_from_slice(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.respond.borrow_mut().out.finish(trailers);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.respond.borrow_mut().poll_send(cx)
    }
}

impl Answered for Answer<'_> {
    fn inform(&mut self, head: &Head, response: &Response) {
        let respond = &mut *self.respond.borrow_mut();
        let sent = convert::interim_to(head, response, self.clock)
            .map_err(io::Error::other)
            .and_then(|it| respond.response.send_informational(it).map_err(io_error));
        if let Err(error) = sent {
            respond.failed = Some(error);
        }
    }

    fn begin(
        &mut self,
        head: &Head,
        response: &Response,
        request: &Request,
        _may_live: bool,
    ) -> bool {
        let ends = matches!(response.framing, Framing::Empty | Framing::Length(0));
        let made = convert::response_to(head, response, request, self.clock);
        self.respond.borrow_mut().begin(made, ends);
        true
    }
}
