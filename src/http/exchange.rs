//! One request and its response, over two connections, both ways at once.
//!
//! Two futures of one task share the two connections: one carries the request
//! up ([`send`]), the other the response down ([`receive`]). So an early
//! answer is delivered at once, a backend may stream while the client still
//! does, and a client that goes away ends the exchange.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};

use super::fields::write_response;
use super::h1::body::{Decoder, Encoder};
use super::h1::head::{Head, Limits, Name, Scanner};
use super::h1::request::{Method, Request};
use super::h1::response::{self, Response, switches_to_what_was_asked};
use super::h1::{Framing, Refusal};
use super::reply::Reply;
use super::wire::{Conn, READ_BYTES, ReadBuf, Stop, fill, write_all};
use crate::dial::{Admission, Loss, tls_error_type};
use crate::runtime::{Runtime, Timer};

/// Content gathered before it is written.
const GATHER_BYTES: usize = 32 << 10;
/// Rounds of reading and writing before other connections get a turn: a fast
/// pair of peers never makes either wait.
const ROUNDS_PER_TURN: u32 = 16;
/// Interim responses to one request.
const INTERIM_MAX: usize = 32;
/// Heads of responses; they may carry many cookies.
const RESPONSE_HEAD: Limits = Limits {
    line_max: 8 << 10,
    bytes_max: 64 << 10,
    fields_max: 200,
};

/// What an exchange is bound by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Between two reads of the request's body.
    pub(crate) read_timeout: Option<Duration>,
    /// Between two writes, either way.
    pub(crate) write_timeout: Option<Duration>,
    /// From the request's end to the response's head.
    pub(crate) response_header_timeout: Option<Duration>,
    /// Of the request's body.
    pub(crate) body_max: Option<u64>,
    /// How long a client that has closed its half may wait for an upstream
    /// that says nothing: most such clients have gone.
    pub(crate) half_closed_timeout: Option<Duration>,
}

/// How an exchange ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The response was delivered whole. Whether each connection is good for
    /// another exchange.
    Done {
        status: u16,
        client_lives: bool,
        upstream_lives: bool,
    },
    /// The upstream agreed to another protocol, and the client was told so.
    Upgraded,
    /// No byte of a response has come: it can be tried anew if the request
    /// may be repeated and the connection had been idle.
    Stale(String),
    /// The upstream failed before its response began.
    UpstreamFailed { reply: Reply, why: String },
    /// The request turned out bad before a response began.
    RequestFailed { reply: Reply, why: &'static str },
    /// A response had begun, and could not be finished: the client connection
    /// must be cut, so that what it got does not look whole.
    Cut(String),
    /// The client went away.
    ClientGone,
}

/// What the two directions tell each other.
#[derive(Debug, Default)]
struct Flow {
    /// When the last byte of the request was written.
    sent_at: Cell<Option<Instant>>,
    /// A byte of a final response went to the client.
    begun: Cell<bool>,
    /// Grows with each piece that came down.
    pieces: Cell<u64>,
}

/// Runs an exchange. `up.out` holds the request's head, ready to be sent.
pub(crate) async fn run<R: Runtime, D, U>(
    runtime: &R,
    down: &mut Conn<D, R::Timer>,
    up: &mut Conn<U, R::Timer>,
    question: Question<'_>,
    response_head: &mut Head,
) -> Outcome
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let flow = Flow::default();
    let mut sending = pin!(send(
        runtime,
        Incoming {
            stream: &down.stream,
            inbuf: &mut down.inbuf,
            timer: &mut down.read_timer,
        },
        Outgoing {
            stream: &up.stream,
            out: &mut up.out,
            timer: &mut up.write_timer,
        },
        question.request.framing,
        question.terms,
        &flow,
    ));
    let mut receiving = pin!(receive(
        runtime,
        Incoming {
            stream: &up.stream,
            inbuf: &mut up.inbuf,
            timer: &mut up.read_timer,
        },
        Outgoing {
            stream: &down.stream,
            out: &mut down.out,
            timer: &mut down.write_timer,
        },
        question,
        response_head,
        &flow,
    ));
    poll_fn(|cx| {
        let sent = sending.as_mut().poll(cx);
        if let Poll::Ready(outcome) = receiving.as_mut().poll(cx) {
            return Poll::Ready(outcome);
        }
        // The request side ends only when it fails.
        match sent {
            Poll::Pending => match question.admission {
                Some(admission) => admission
                    .poll_over(cx)
                    .map(|loss| untrusted(admission, &loss, flow.begun.get())),
                None => Poll::Pending,
            },
            Poll::Ready(_) if flow.begun.get() => {
                Poll::Ready(Outcome::Cut("the request's body broke off".to_owned()))
            }
            Poll::Ready(outcome) => Poll::Ready(outcome),
        }
    })
    .await
}

/// The upstream's time is over: `spiffe.trustLossGrace`.
fn untrusted(admission: &Admission, loss: &Loss, begun: bool) -> Outcome {
    admission.count_closed("exchange", loss);
    let why = format!("{loss}, and trustLossGrace is over");
    if begun {
        return Outcome::Cut(why);
    }
    let (status, error) = loss.status();
    Outcome::UpstreamFailed {
        reply: Reply { status, error },
        why,
    }
}

struct Incoming<'c, S, T> {
    stream: &'c RefCell<S>,
    inbuf: &'c mut ReadBuf,
    timer: &'c mut T,
}

struct Outgoing<'c, S, T> {
    stream: &'c RefCell<S>,
    out: &'c mut Vec<u8>,
    timer: &'c mut T,
}

impl<S: AsyncWrite + Unpin, T> Outgoing<'_, S, T> {
    async fn write<R: Runtime<Timer = T>>(
        &mut self,
        runtime: &R,
        limit: Option<Duration>,
    ) -> Result<(), Stop> {
        write_all(runtime, self.stream, self.out, self.timer, limit).await
    }
}

/// What is asked, and on what terms.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) head: &'a Head,
    pub(crate) request: &'a Request,
    pub(crate) terms: Terms,
    /// Whether the client connection must end with this exchange.
    pub(crate) is_stopping: &'a dyn Fn() -> bool,
    /// Of the upstream, if it is a SPIFFE peer.
    pub(crate) admission: Option<&'a Admission>,
}

/// Carries the request up, then watches the client. It returns only when the
/// client or its request fails.
async fn send<R: Runtime, D, U>(
    runtime: &R,
    down: Incoming<'_, D, R::Timer>,
    mut up: Outgoing<'_, U, R::Timer>,
    framing: Framing,
    terms: Terms,
    flow: &Flow,
) -> Outcome
where
    D: AsyncRead + Unpin,
    U: AsyncWrite + Unpin,
{
    let mut decoder = Decoder::new(framing);
    let encoder = match framing {
        Framing::Chunked => Encoder::Chunked,
        _ => Encoder::Raw,
    };
    let failed = |status, why| Outcome::RequestFailed {
        reply: Reply::request_error(status),
        why,
    };
    let mut total: u64 = 0;
    let mut rounds = 0;
    loop {
        take_turns(&mut rounds).await;
        while !decoder.is_done() && up.out.len() < GATHER_BYTES {
            let progress = match decoder.advance(down.inbuf.data()) {
                Ok(progress) => progress,
                Err(why) => return failed(400, why),
            };
            down.inbuf.consume(progress.framing);
            let data = down.inbuf.data().get(..progress.data).unwrap_or_default();
            encoder.encode(data, up.out);
            down.inbuf.consume(progress.data);
            total = total.saturating_add(u64::try_from(progress.data).unwrap_or(u64::MAX));
            if terms.body_max.is_some_and(|max| total > max) {
                return failed(413, "the body is larger than maxRequestBodyBytes");
            }
            if progress.framing == 0 && progress.data == 0 {
                break;
            }
        }
        if decoder.is_done() {
            encoder.finish(up.out);
        }
        match up.write(runtime, terms.write_timeout).await {
            Ok(()) => {}
            // It may have answered before it closed; the other direction sees.
            Err(Stop::Io(_)) => break,
            Err(Stop::Timeout) => {
                return Outcome::UpstreamFailed {
                    reply: Reply {
                        status: 504,
                        error: "connection_write_timeout",
                    },
                    why: "the upstream did not take the request in time (writeTimeout)".to_owned(),
                };
            }
        }
        if decoder.is_done() {
            flow.sent_at.set(Some(runtime.now()));
            break;
        }
        if !down.inbuf.is_empty() {
            continue;
        }
        let deadline = terms
            .read_timeout
            .and_then(|limit| runtime.now().checked_add(limit));
        match fill(down.stream, down.inbuf, READ_BYTES, down.timer, deadline).await {
            Ok(0) => return Outcome::ClientGone,
            Ok(_) => {}
            Err(Stop::Timeout) => return failed(408, "the body did not come in time"),
            Err(Stop::Io(_)) => return Outcome::ClientGone,
        }
    }
    // What comes now is the next request: it waits, in the buffer as far as
    // there is room. An end is no reason to stop (RFC 9112, section 9.6), a
    // reset is (9.5).
    let mut watching = true;
    let mut pieces_at_end = None;
    poll_fn(|cx| {
        while watching {
            if down.inbuf.len() >= READ_BYTES {
                watching = false;
                break;
            }
            match down.inbuf.poll_fill(cx, down.stream, READ_BYTES) {
                Poll::Ready(Ok(0)) => {
                    watching = false;
                    pieces_at_end = Some(u64::MAX);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Outcome::ClientGone),
                Poll::Pending => break,
            }
        }
        // A socket that has ended tells nothing more, not even of a reset: so
        // the wait is bounded, as long as nothing comes down.
        if let Some(before) = pieces_at_end {
            if before != flow.pieces.get() {
                pieces_at_end = Some(flow.pieces.get());
                let limit = terms.half_closed_timeout;
                let deadline = limit.and_then(|limit| runtime.now().checked_add(limit));
                down.timer.set(deadline);
            }
            return down.timer.poll(cx).map(|()| Outcome::ClientGone);
        }
        Poll::Pending
    })
    .await
}

/// Brings the response down.
async fn receive<R: Runtime, D, U>(
    runtime: &R,
    mut up: Incoming<'_, U, R::Timer>,
    mut down: Outgoing<'_, D, R::Timer>,
    asked: Question<'_>,
    head: &mut Head,
    flow: &Flow,
) -> Outcome
where
    D: AsyncWrite + Unpin,
    U: AsyncRead + Unpin,
{
    let Question { request, terms, .. } = asked;
    let mut interim = 0;
    let response = loop {
        let response = match next_head(&mut up, request.kind, &terms, head, flow, interim > 0).await
        {
            Ok(response) => response,
            Err(outcome) => return outcome,
        };
        if !response.is_interim() {
            break response;
        }
        interim += 1;
        if interim > INTERIM_MAX {
            return protocol_error("too many interim responses");
        }
        // RFC 9110, section 15.2: all are forwarded, but not to 1.0 clients.
        if !request.is_1_0 {
            write_response(down.out, head, &response, Framing::Empty, false, false);
            // While it is half written, nothing else may be.
            flow.begun.set(true);
            if let Err(stop) = down.write(runtime, terms.write_timeout).await {
                return client_write_failed(stop);
            }
            flow.begun.set(false);
        }
    };
    if response.status == 101 {
        if flow.sent_at.get().is_none() {
            return protocol_error("101 before the request was sent");
        }
        if !request.wants_upgrade || !switches_to_what_was_asked(asked.head, head) {
            return protocol_error("101 to a request that did not ask for that protocol");
        }
        write_response(down.out, head, &response, Framing::Empty, false, false);
        flow.begun.set(true);
        return match down.write(runtime, terms.write_timeout).await {
            Ok(()) => Outcome::Upgraded,
            Err(stop) => client_write_failed(stop),
        };
    }
    let (framing, encoder) = match response.framing {
        Framing::Chunked | Framing::UntilClose if request.is_1_0 => {
            (Framing::UntilClose, Encoder::Raw)
        }
        Framing::Chunked | Framing::UntilClose => (Framing::Chunked, Encoder::Chunked),
        other => (other, Encoder::Raw),
    };
    let is_bodiless_with_length = (request.kind == Method::Head || response.status == 304)
        && response.status != 204
        && head.values(Name::ContentLength).next().is_some();
    // A request that is still under way when its answer comes cannot be told
    // apart from the next one if we stop reading it.
    let client_lives = request.keeps_alive()
        && framing != Framing::UntilClose
        && flow.sent_at.get().is_some()
        && !(asked.is_stopping)();
    write_response(
        down.out,
        head,
        &response,
        framing,
        is_bodiless_with_length,
        !client_lives,
    );
    let whole = match body(
        runtime, &mut up, &mut down, &response, encoder, &terms, flow,
    )
    .await
    {
        Ok(()) => true,
        Err(outcome) => return outcome,
    };
    Outcome::Done {
        status: response.status,
        client_lives: client_lives && whole,
        upstream_lives: response.keeps_alive()
            && flow.sent_at.get().is_some()
            && up.inbuf.is_empty(),
    }
}

/// Reads until there is a response head.
async fn next_head<U: AsyncRead + Unpin, T: Timer>(
    up: &mut Incoming<'_, U, T>,
    to: Method,
    terms: &Terms,
    head: &mut Head,
    flow: &Flow,
    has_spoken: bool,
) -> Result<Response, Outcome> {
    let mut scanner = Scanner::default();
    loop {
        match response::parse(up.inbuf.data(), &mut scanner, &RESPONSE_HEAD, head, to) {
            Ok(Some((response, len))) => {
                up.inbuf.consume(len);
                return Ok(response);
            }
            Ok(None) => {}
            Err(Refusal { why, .. }) => return Err(protocol_error(why)),
        }
        let filled = poll_fn(|cx| {
            match up
                .inbuf
                .poll_fill(cx, up.stream, RESPONSE_HEAD.bytes_max + READ_BYTES)
            {
                Poll::Ready(result) => Poll::Ready(result.map_err(Stop::Io)),
                Poll::Pending => {
                    // The time runs from the request's last byte on.
                    let limit = terms.response_header_timeout;
                    let deadline = limit
                        .zip(flow.sent_at.get())
                        .and_then(|(limit, sent_at)| sent_at.checked_add(limit));
                    up.timer.set(deadline);
                    up.timer.poll(cx).map(|()| Err(Stop::Timeout))
                }
            }
        })
        .await;
        up.timer.set(None);
        let nothing_yet = up.inbuf.is_empty() && !has_spoken;
        match filled {
            Ok(0) if nothing_yet => {
                return Err(Outcome::Stale("closed without a response".to_owned()));
            }
            Ok(0) => {
                return Err(upstream_failed(
                    "http_response_incomplete",
                    "closed within the response head",
                ));
            }
            Ok(_) => {}
            Err(Stop::Timeout) => {
                let limit = terms.response_header_timeout.unwrap_or_default();
                return Err(Outcome::UpstreamFailed {
                    reply: Reply {
                        status: 504,
                        error: "http_response_timeout",
                    },
                    why: format!("no response head within {limit:?} (responseHeaderTimeout)"),
                });
            }
            Err(Stop::Io(error)) if nothing_yet && !is_tls_alert(&error) => {
                return Err(Outcome::Stale(error.to_string()));
            }
            Err(Stop::Io(error)) => {
                return Err(upstream_failed(tls_error_type(&error), &error.to_string()));
            }
        }
    }
}

/// An alert is an answer, although not one of HTTP: the peer refuses us.
fn is_tls_alert(error: &io::Error) -> bool {
    tls_error_type(error) != "connection_terminated"
}

/// Carries the body down, the head already waiting in `down.out`.
async fn body<R: Runtime, D, U>(
    runtime: &R,
    up: &mut Incoming<'_, U, R::Timer>,
    down: &mut Outgoing<'_, D, R::Timer>,
    response: &Response,
    encoder: Encoder,
    terms: &Terms,
    flow: &Flow,
) -> Result<(), Outcome>
where
    D: AsyncWrite + Unpin,
    U: AsyncRead + Unpin,
{
    let mut decoder = Decoder::new(response.framing);
    let mut rounds = 0;
    loop {
        take_turns(&mut rounds).await;
        flow.pieces.set(flow.pieces.get().wrapping_add(1));
        while !decoder.is_done() && down.out.len() < GATHER_BYTES {
            let progress = match decoder.advance(up.inbuf.data()) {
                Ok(progress) => progress,
                Err(why) if flow.begun.get() => return Err(Outcome::Cut(why.to_owned())),
                Err(why) => return Err(protocol_error(why)),
            };
            up.inbuf.consume(progress.framing);
            let data = up.inbuf.data().get(..progress.data).unwrap_or_default();
            encoder.encode(data, down.out);
            up.inbuf.consume(progress.data);
            if progress.framing == 0 && progress.data == 0 {
                break;
            }
        }
        if decoder.is_done() {
            encoder.finish(down.out);
        }
        flow.begun.set(true);
        if let Err(stop) = down.write(runtime, terms.write_timeout).await {
            return Err(client_write_failed(stop));
        }
        if decoder.is_done() {
            return Ok(());
        }
        if !up.inbuf.is_empty() {
            continue;
        }
        match fill(up.stream, up.inbuf, READ_BYTES, up.timer, None).await {
            Ok(0) if decoder.ends_at_close() => {
                encoder.finish(down.out);
                return match down.write(runtime, terms.write_timeout).await {
                    Ok(()) => Ok(()),
                    Err(stop) => Err(client_write_failed(stop)),
                };
            }
            Ok(0) => {
                return Err(Outcome::Cut(
                    "the upstream closed within the body".to_owned(),
                ));
            }
            Ok(_) => {}
            Err(Stop::Io(error)) => {
                return Err(Outcome::Cut(format!(
                    "the upstream failed within the body: {error}"
                )));
            }
            Err(Stop::Timeout) => {
                return Err(Outcome::Cut(
                    "the upstream fell silent within the body".to_owned(),
                ));
            }
        }
    }
}

/// Lets other connections run, now and then.
async fn take_turns(rounds: &mut u32) {
    *rounds += 1;
    if *rounds > ROUNDS_PER_TURN {
        *rounds = 0;
        futures_lite::future::yield_now().await;
    }
}

fn client_write_failed(stop: Stop) -> Outcome {
    match stop {
        Stop::Timeout => Outcome::Cut("the client did not read in time (writeTimeout)".to_owned()),
        Stop::Io(_) => Outcome::ClientGone,
    }
}

fn protocol_error(why: &str) -> Outcome {
    upstream_failed("http_protocol_error", why)
}

fn upstream_failed(error: &'static str, why: &str) -> Outcome {
    Outcome::UpstreamFailed {
        reply: Reply { status: 502, error },
        why: why.to_owned(),
    }
}
