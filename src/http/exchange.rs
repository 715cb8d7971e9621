//! One request and its response, over two connections, both ways at once.
//!
//! Two futures of one task share the two sides: one carries the request up
//! ([`send`]), the other the response down ([`receive`]). So an early answer is
//! delivered at once, a backend may stream while the client still does, and a
//! client that goes away ends the exchange.
//!
//! Neither knows a version: what they need of a side are the traits of
//! [`side`], which [`h1`](super::h1::sides) and [`h2`](super::h2::sides) have.

mod kept;
pub(crate) mod side;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use self::kept::Keeping;
pub(crate) use self::kept::Kept;
use self::side::{Answered, Answering, Asking, NoHead, NotBegun, Side, Sink, Source, Watched};
use super::message::head::Head;
use super::message::request::{Method, Request};
use super::message::response::{Response, switches_to_what_was_asked};
use super::reply::{Reply, is_call};
use super::wire::{Late, Pace, Sending, Stop, more, more_now, send_all};
use crate::dial::{Admission, Loss, tls_error_type};
use crate::runtime::{Runtime, Timer};

/// Content that is written from where it was read, if there is so much of it.
/// Less is copied behind its head: one plain send is the cheaper.
const AS_IT_IS_BYTES_MIN: usize = 8 << 10;
/// Writes before other connections get a turn: a fast pair of peers never makes
/// either wait.
const ROUNDS_PER_TURN: u32 = 4;
/// Interim responses to one request.
const INTERIM_MAX: usize = 32;

/// What an exchange is bound by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Between two reads of the request's body.
    pub(crate) read_timeout: Option<Duration>,
    /// Between two writes, either way.
    pub(crate) write_timeout: Option<Duration>,
    /// From the request's end to the response's head.
    pub(crate) response_header_timeout: Option<Duration>,
    /// Between two reads of the response's body.
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// Of the request's body.
    pub(crate) body_max: Option<u64>,
    /// Bytes a second that the client has to send or take while it is waited
    /// for. 0: as few as it likes.
    pub(crate) rate_min: u64,
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
    /// The upstream has not begun with the request, by its own word: it can be
    /// tried anew if what was sent of it is still here.
    NotBegun(NotBegun),
    /// The upstream failed before its response began.
    UpstreamFailed { reply: Reply, why: String },
    /// The request turned out bad before a response began, or its connection
    /// did: there can be no other after it.
    RequestFailed { reply: Reply, why: &'static str },
    /// A response had begun, and could not be finished: the client must not
    /// take what it got for the whole.
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
    /// Since when the client may be waiting to be told to go on.
    held_at: Cell<Option<Instant>>,
    /// The upstream has said that it wants the content.
    continued: Cell<bool>,
    /// Grows with each piece that came down.
    pieces: Cell<u64>,
}

/// What is asked, and on what terms.
pub(crate) struct Question<'a> {
    pub(crate) head: &'a Head,
    pub(crate) request: &'a Request,
    pub(crate) terms: Terms,
    /// Whether the client connection must end with this exchange.
    pub(crate) is_stopping: &'a dyn Fn() -> bool,
    /// Of an upstream that is a SPIFFE peer and this exchange's alone.
    pub(crate) admission: Option<&'a Admission>,
}

/// Runs an exchange. The upstream's side holds the request's head, ready to be
/// sent or sent already.
pub(crate) async fn run<R, B, A, V, U>(
    runtime: &R,
    down: &mut Side<'_, B, A, R::Timer>,
    up: &mut Side<'_, V, U, R::Timer>,
    question: &Question<'_>,
    kept: &mut Kept,
    response_head: &mut Head,
) -> Outcome
where
    R: Runtime,
    B: Asking,
    A: Answered,
    V: Answering,
    U: Sink,
{
    let flow = Flow::default();
    let mut sending = pin!(send(
        runtime,
        (&mut down.incoming, &mut down.timers.read),
        (&mut up.outgoing, &mut up.timers.write),
        question,
        kept,
        &flow,
    ));
    let mut receiving = pin!(receive(
        runtime,
        (&mut up.incoming, &mut up.timers.read),
        (&mut down.outgoing, &mut down.timers.write),
        question,
        response_head,
        &flow,
    ));
    poll_fn(|cx| {
        let sent = sending.as_mut().poll(cx);
        let had_continued = flow.continued.get();
        if let Poll::Ready(outcome) = receiving.as_mut().poll(cx) {
            return Poll::Ready(outcome);
        }
        if flow.continued.get() != had_continued {
            // It is news for the other direction, which was asked before.
            cx.waker().wake_by_ref();
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

/// Carries the request up, then watches the client. It returns only when the
/// client or its request fails.
async fn send<R: Runtime>(
    runtime: &R,
    (body, read_timer): (&mut impl Asking, &mut R::Timer),
    (up, write_timer): (&mut impl Sink, &mut Late<R::Timer>),
    Question {
        head,
        request,
        terms,
        ..
    }: &Question<'_>,
    kept: &mut Kept,
    flow: &Flow,
) -> Outcome {
    let failed = |status, why| Outcome::RequestFailed {
        reply: Reply::request_error(status),
        why,
    };
    // What an earlier try has taken from the client.
    up.put(kept.bytes());
    // A call that streams may be silent for as long as it likes.
    let mut pace = Pace::new(if is_call(head) { 0 } else { terms.rate_min });
    let mut no_pace = Pace::new(0);
    let mut rounds = 0;
    loop {
        let mut keeping = Keeping { sink: up, kept };
        let as_it_is = goes_as_it_is(body, &keeping);
        if !as_it_is && let Err(why) = body.pull(&mut keeping) {
            return failed(400, why);
        }
        let total = keeping.kept.total();
        if terms.body_max.is_some_and(|max| total > max) {
            return failed(413, "the body is larger than maxRequestBodyBytes");
        }
        let is_done = body.is_done();
        if is_done {
            keeping.finish(body.trailers());
        }
        let may_be_held =
            request.expects_continue && total == 0 && !as_it_is && !flow.continued.get();
        let mut has_ended = false;
        if !is_done && !may_be_held && !keeping.is_full() && body.may_read_ahead() {
            let next = more_now(body, &mut pace).await;
            match next {
                Some(Ok(true)) => continue,
                // A reset is told once: nobody else would hear of it.
                Some(Err(_)) => return Outcome::ClientGone,
                // Cut short: the upstream is told as much as has come.
                Some(Ok(false)) => has_ended = true,
                None => {}
            }
        }
        take_turns(&mut rounds).await;
        let mut sending = Sending::new(runtime, write_timer, terms.write_timeout, &mut no_pace);
        let sent =
            poll_fn(
                |cx| match sending.poll(cx, |cx| poll_out(cx, as_it_is, body, &mut keeping)) {
                    Poll::Ready(sent) => Poll::Ready(Some(sent)),
                    Poll::Pending => body.poll_gone(cx).map(|()| None),
                },
            );
        match sent.await {
            None => return Outcome::ClientGone,
            Some(Ok(())) => {}
            // It may have answered before it closed; the other direction sees.
            Some(Err(Stop::Io(_))) => break,
            Some(Err(Stop::Timeout)) => {
                return Outcome::UpstreamFailed {
                    reply: Reply {
                        status: 504,
                        error: "connection_write_timeout",
                    },
                    why: "the upstream did not take the request in time (writeTimeout)".to_owned(),
                };
            }
        }
        if is_done {
            flow.sent_at.set(Some(runtime.now()));
            break;
        }
        // It may have ended with what has gone as it was.
        if body.has_more() || body.is_done() {
            continue;
        }
        if may_be_held {
            match held(runtime, body, read_timer, terms.half_closed_timeout, flow).await {
                Ok(Held::Sent) => continue,
                Ok(Held::Continued) => {}
                Ok(Held::Ended) | Err(Stop::Io(_)) => return Outcome::ClientGone,
                Err(Stop::Timeout) => {
                    return Outcome::UpstreamFailed {
                        reply: Reply {
                            status: 504,
                            error: "http_response_timeout",
                        },
                        why: "no answer to Expect: 100-continue (idleTimeout)".to_owned(),
                    };
                }
            }
        }
        if has_ended {
            return Outcome::ClientGone;
        }
        match more(runtime, body, read_timer, terms.read_timeout, &mut pace).await {
            Ok(true) => {}
            Ok(false) | Err(Stop::Io(_)) => return Outcome::ClientGone,
            Err(Stop::Timeout) => {
                return failed(
                    408,
                    "the body did not come in time (readTimeout, minBodyRate)",
                );
            }
        }
    }
    // An end is no reason to stop (RFC 9112, section 9.6), a reset is (9.5).
    let mut pieces_at_end = None;
    poll_fn(|cx| {
        if pieces_at_end.is_none() {
            match body.poll_watch(cx) {
                Poll::Ready(Watched::Gone) => return Poll::Ready(Outcome::ClientGone),
                Poll::Ready(Watched::Ended) => pieces_at_end = Some(u64::MAX),
                Poll::Pending => return Poll::Pending,
            }
        }
        // A socket that has ended tells nothing more, not even of a reset: so
        // the wait is bounded, as long as nothing comes down.
        if pieces_at_end != Some(flow.pieces.get()) {
            pieces_at_end = Some(flow.pieces.get());
            let limit = terms.half_closed_timeout;
            let deadline = limit.and_then(|limit| runtime.now().checked_add(limit));
            read_timer.set(deadline);
        }
        read_timer.poll(cx).map(|()| Outcome::ClientGone)
    })
    .await
}

/// Waits for the upstream's side of something, unless the client goes away
/// first: then `None`.
pub(crate) async fn unless_gone<T>(
    client: &mut impl Asking,
    wanted: impl Future<Output = T>,
) -> Option<T> {
    let mut wanted = pin!(wanted);
    poll_fn(|cx| match wanted.as_mut().poll(cx) {
        Poll::Ready(it) => Poll::Ready(Some(it)),
        Poll::Pending => client.poll_gone(cx).map(|()| None),
    })
    .await
}

/// What has ended the wait of a client that expects to be told to go on.
enum Held {
    /// It has gone on by itself.
    Sent,
    /// It was told.
    Continued,
    /// It has sent its last byte.
    Ended,
}

/// Waits for the content of a client that may be waiting for 100 (RFC 9110,
/// section 10.1.1): it is the upstream's turn, so its time counts and not the
/// client's.
async fn held<R: Runtime>(
    runtime: &R,
    body: &mut impl Source,
    timer: &mut R::Timer,
    limit: Option<Duration>,
    flow: &Flow,
) -> Result<Held, Stop> {
    let now = runtime.now();
    flow.held_at.set(Some(now));
    timer.set(limit.and_then(|limit| now.checked_add(limit)));
    let result = poll_fn(|cx| {
        if let Poll::Ready(came) = body.poll_more(cx) {
            let held = came.map(|n| n.map_or(Held::Ended, |_| Held::Sent));
            return Poll::Ready(held.map_err(Stop::Io));
        }
        if flow.continued.get() {
            return Poll::Ready(Ok(Held::Continued));
        }
        timer.poll(cx).map(|()| Err(Stop::Timeout))
    })
    .await;
    timer.set(None);
    flow.held_at.set(None);
    result
}

/// Brings the response down.
async fn receive<R: Runtime>(
    runtime: &R,
    (up, read_timer): (&mut impl Answering, &mut R::Timer),
    (down, write_timer): (&mut impl Answered, &mut Late<R::Timer>),
    asked: &Question<'_>,
    head: &mut Head,
    flow: &Flow,
) -> Outcome {
    let Question { request, terms, .. } = asked;
    let mut pace = Pace::new(terms.rate_min);
    let mut interim = 0;
    let response = loop {
        let response = next_head(
            (up, read_timer),
            request.kind,
            terms,
            head,
            flow,
            interim > 0,
        );
        let response = match response.await {
            Ok(response) => response,
            Err(outcome) => return outcome,
        };
        if !response.is_interim() {
            break response;
        }
        flow.continued.set(true);
        interim += 1;
        if interim > INTERIM_MAX {
            return protocol_error("too many interim responses");
        }
        // RFC 9110, section 15.2: all are forwarded, but not to 1.0 clients.
        if request.takes_interim() {
            down.inform(head, &response);
            // While it is half written, nothing else may be.
            flow.begun.set(true);
            let sent = send_all(runtime, down, write_timer, terms.write_timeout, &mut pace);
            if let Err(stop) = sent.await {
                return client_write_failed(stop);
            }
            flow.begun.set(false);
        }
    };
    if response.status == 101 {
        if flow.sent_at.get().is_none() {
            return not_asked_for("101 before the request was sent");
        }
        if !request.wants_upgrade || !switches_to_what_was_asked(asked.head, head) {
            return not_asked_for("101 to a request that did not ask for that protocol");
        }
        down.inform(head, &response);
        flow.begun.set(true);
        let sent = send_all(runtime, down, write_timer, terms.write_timeout, &mut pace);
        return match sent.await {
            Ok(()) => Outcome::Upgraded,
            Err(stop) => client_write_failed(stop),
        };
    }
    // A request that is still under way when its answer comes cannot be told
    // apart from the next one if we stop reading it.
    let may_live = flow.sent_at.get().is_some() && !(asked.is_stopping)();
    let client_lives = down.begin(head, &response, request, may_live);
    let delivered = body(
        runtime,
        (up, read_timer),
        (down, write_timer),
        terms,
        &mut pace,
        flow,
    );
    if let Err(outcome) = delivered.await {
        return outcome;
    }
    Outcome::Done {
        status: response.status,
        client_lives,
        upstream_lives: response.keeps_alive() && flow.sent_at.get().is_some() && !up.has_spoken(),
    }
}

/// Waits until there is a response head.
async fn next_head<T: Timer>(
    (up, timer): (&mut impl Answering, &mut T),
    to: Method,
    terms: &Terms,
    head: &mut Head,
    flow: &Flow,
    has_answered: bool,
) -> Result<Response, Outcome> {
    let result = poll_fn(|cx| match up.poll_head(cx, head, to) {
        Poll::Ready(result) => Poll::Ready(Ok(result)),
        Poll::Pending => {
            // The time runs from the request's last byte on, or from when it
            // is held back.
            let limit = terms.response_header_timeout;
            let deadline = limit
                .zip(flow.sent_at.get().or_else(|| flow.held_at.get()))
                .and_then(|(limit, sent_at)| sent_at.checked_add(limit));
            timer.set(deadline);
            timer.poll(cx).map(Err)
        }
    })
    .await;
    timer.set(None);
    let nothing_yet = !up.has_spoken() && !has_answered;
    Err(match result {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(NoHead::Malformed(why))) => protocol_error(why),
        Ok(Err(NoHead::NotBegun(why))) if nothing_yet => Outcome::NotBegun(why),
        Ok(Err(NoHead::NotBegun(why))) => protocol_error(why.why()),
        Ok(Err(NoHead::Ended)) if nothing_yet => {
            Outcome::Stale("closed without a response".to_owned())
        }
        Ok(Err(NoHead::Ended)) => upstream_failed(
            "http_response_incomplete",
            "closed within the response head",
        ),
        Ok(Err(NoHead::Failed(error))) if nothing_yet && !is_tls_alert(&error) => {
            Outcome::Stale(error.to_string())
        }
        Ok(Err(NoHead::Failed(error))) => {
            upstream_failed(tls_error_type(&error), &error.to_string())
        }
        Err(()) => {
            let limit = terms.response_header_timeout.unwrap_or_default();
            Outcome::UpstreamFailed {
                reply: Reply {
                    status: 504,
                    error: "http_response_timeout",
                },
                why: format!("no response head within {limit:?} (responseHeaderTimeout)"),
            }
        }
    })
}

/// An alert is an answer, although not one of HTTP: the peer refuses us.
pub(crate) fn is_tls_alert(error: &io::Error) -> bool {
    tls_error_type(error) != "connection_terminated"
}

/// Carries the body down, behind the head that waits in `down`.
async fn body<R: Runtime>(
    runtime: &R,
    (up, read_timer): (&mut impl Source, &mut R::Timer),
    (down, write_timer): (&mut impl Sink, &mut Late<R::Timer>),
    terms: &Terms,
    pace: &mut Pace,
    flow: &Flow,
) -> Result<(), Outcome> {
    let mut no_pace = Pace::new(0);
    let mut rounds = 0;
    loop {
        flow.pieces.set(flow.pieces.get().wrapping_add(1));
        let as_it_is = goes_as_it_is(up, down);
        if !as_it_is && let Err(why) = up.pull(down) {
            return Err(if flow.begun.get() {
                Outcome::Cut(why.to_owned())
            } else {
                protocol_error(why)
            });
        }
        let is_done = up.is_done();
        if is_done {
            down.finish(up.trailers());
        }
        let mut next = None;
        if !is_done && !down.is_full() && up.may_read_ahead() {
            next = more_now(up, &mut no_pace).await;
            if matches!(next, Some(Ok(true))) {
                continue;
            }
        }
        take_turns(&mut rounds).await;
        flow.begun.set(true);
        let limit = terms.write_timeout;
        let mut sending = Sending::new(runtime, write_timer, limit, pace);
        let sent = poll_fn(|cx| sending.poll(cx, |cx| poll_out(cx, as_it_is, up, down))).await;
        drop(sending);
        sent.map_err(client_write_failed)?;
        if is_done {
            return Ok(());
        }
        // It may have ended with what has gone as it was.
        if up.has_more() || up.is_done() {
            continue;
        }
        let limit = terms.stream_idle_timeout;
        let next = match next {
            Some(next) => next,
            None => more(runtime, up, read_timer, limit, &mut no_pace).await,
        };
        let cut = match next {
            Ok(true) => continue,
            Ok(false) if up.ends_at_close() => {
                down.finish(None);
                let sent = send_all(runtime, down, write_timer, terms.write_timeout, pace);
                return sent.await.map_err(client_write_failed);
            }
            Ok(false) => "the upstream closed within the body".to_owned(),
            Err(Stop::Io(error)) => format!("the upstream failed within the body: {error}"),
            Err(Stop::Timeout) => {
                "the upstream fell silent within the body (streamIdleTimeout)".to_owned()
            }
        };
        return Err(Outcome::Cut(cut));
    }
}

/// Whether content is to be written from where it was read.
fn goes_as_it_is(source: &impl Source, sink: &impl Sink) -> bool {
    sink.passes() && source.here().len() >= AS_IT_IS_BYTES_MIN
}

/// Writes what a sink holds and, if it goes so, the content behind it, as far
/// as that goes at once. 0: there is no more, and nothing is held back.
fn poll_out(
    cx: &mut Context<'_>,
    as_it_is: bool,
    source: &mut impl Source,
    sink: &mut impl Sink,
) -> Poll<io::Result<usize>> {
    let here = source.here();
    if !as_it_is || here.is_empty() {
        return sink.poll_send(cx);
    }
    let n = ready!(sink.poll_pass(cx, here))?;
    source.took(n);
    Poll::Ready(Ok(n))
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
        Stop::Timeout => {
            Outcome::Cut("the client did not read in time (writeTimeout, minBodyRate)".to_owned())
        }
        Stop::Io(_) => Outcome::ClientGone,
    }
}

/// Neither side can be sure of what the other speaks now.
fn not_asked_for(why: &'static str) -> Outcome {
    Outcome::RequestFailed {
        reply: Reply {
            status: 502,
            error: "http_protocol_error",
        },
        why,
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

#[cfg(all(test, target_os = "linux"))]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a panic is how it fails"
)]
mod tests;
