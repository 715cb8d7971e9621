//! One client connection of HTTP/2: requests beside each other.
//!
//! All of it is one task: the connection's frames, and a future per stream. A
//! stream that panics is reset, and the others go on.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use log::{debug, error, info};

use super::convert;
use super::io::{Io, Reads};
use super::sides::{Answer, Ask, Body, Respond};
use super::{FAULTS_MAX, SEND_BUFFER};
use crate::drain::Running;
use crate::http::exchange::{Side, Sink};
use crate::http::fields::Client;
use crate::http::forward::{After, Downstream, Journey};
use crate::http::message::head::Head;
use crate::http::message::{Framing, Refusal};
use crate::http::plan::{Ended, Plan};
use crate::http::reply::{Reply, is_call};
use crate::http::wire::{Pace, ReadBuf, Timers, send_all};
use crate::http::{End, FIRST_REQUEST, Http, Keeping};
use crate::runtime::{Runtime, Timer, within};

/// What a stream may send before it is read. A thousand clients may do so at
/// once, and what they send is held twice over in the crate's buffers.
const STREAM_WINDOW: u32 = 32 << 10;
/// What all streams of a connection may send before it is read.
const CONNECTION_WINDOW: u32 = 128 << 10;

/// Serves a connection to its end. `ahead` is what was read of it already.
pub(crate) async fn serve<R: Runtime>(
    http: &Http<R>,
    plan: &Rc<Plan<R>>,
    client: Client,
    (stream, ahead): (&mut R::Stream, ReadBuf),
    running: &Running,
) -> End {
    let entry = &plan.entry;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(entry.streams_max)
        .max_header_list_size(u32::try_from(entry.head.bytes_max).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(FAULTS_MAX));
    let io = Io::new(stream, ahead);
    let reads = io.reads();
    reads.allow();
    let runtime = http.runtime();
    let shaken = within(
        runtime,
        entry.read_timeout,
        builder.handshake::<_, Bytes>(io),
    )
    .await;
    let connection = match shaken {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => {
            debug!("{}: {}: {error}", http.name, client.ip);
            return End::Gone;
        }
        None => return End::Gone,
    };
    let mut serving = Serving {
        http,
        client: Rc::new(client),
        plan: Rc::clone(plan),
        keeping: Keeping::new(entry, runtime.now()),
        served: 0,
        running,
        timer: runtime.timer(),
        idle_since: Some(runtime.now()),
        is_leaving: false,
        reads,
    };
    let mut streams = FuturesUnordered::new();
    let mut connection = connection;
    poll_fn(|cx| serving.poll(cx, &mut connection, &mut streams)).await
}

/// The state of a connection.
struct Serving<'h, R: Runtime> {
    http: &'h Http<R>,
    client: Rc<Client>,
    plan: Rc<Plan<R>>,
    keeping: Keeping,
    served: u64,
    running: &'h Running,
    timer: R::Timer,
    /// Since when there is no stream.
    idle_since: Option<Instant>,
    /// It has been said that no further stream is taken.
    is_leaving: bool,
    reads: Rc<Reads>,
}

type Connection<'s, S> = h2::server::Connection<Io<&'s mut S>, Bytes>;
type Streams<'s> = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + 's>>>;

impl<'h, R: Runtime> Serving<'h, R> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection<'_, R::Stream>,
        streams: &mut Streams<'h>,
    ) -> Poll<End> {
        self.reads.allow();
        if self.is_last_request() || self.running.poll_stopping(cx).is_ready() {
            self.leave(connection);
        }
        loop {
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
            // After the streams: what they have queued goes out now.
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.served += 1;
                    streams.push(self.stream(request, respond));
                    if self.is_last_request() {
                        self.leave(connection);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    debug!("{}: {}: {error}", self.http.name, self.client.ip);
                    return Poll::Ready(End::Gone);
                }
                Poll::Ready(None) => return Poll::Ready(End::Quiet),
                Poll::Pending => break,
            }
        }
        if self.poll_idle(cx, streams.is_empty()).is_pending() {
            return Poll::Pending;
        }
        if self.is_leaving {
            return Poll::Ready(End::Quiet);
        }
        // A word of goodbye first.
        self.leave(connection);
        self.idle_since = None;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_last_request(&self) -> bool {
        let now = self.http.runtime().now();
        self.keeping.is_over(self.served, now)
    }

    /// No further stream is taken.
    fn leave(&mut self, connection: &mut Connection<'_, R::Stream>) {
        if !self.is_leaving {
            self.is_leaving = true;
            connection.graceful_shutdown();
        }
    }

    /// How long a connection without streams may stay.
    fn poll_idle(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Poll<()> {
        let now = self.http.runtime().now();
        self.idle_since = is_idle.then(|| self.idle_since.unwrap_or(now));
        if self.running.is_stopping() {
            self.running.set_finished(is_idle);
        }
        let entry = &self.plan.entry;
        let limit = match self.idle_since {
            None => None,
            Some(_) if self.is_leaving => Some(FIRST_REQUEST),
            // As for a first head in HTTP/1.
            Some(_) if self.served == 0 => entry.read_timeout,
            Some(_) => entry.idle_timeout,
        };
        let end = self.idle_since.zip(limit);
        let end = end.and_then(|(since, limit): (Instant, Duration)| since.checked_add(limit));
        self.timer.set(end);
        self.timer.poll(cx)
    }

    /// One request. Whatever begins now is served by what a reload may have
    /// changed.
    fn stream(
        &mut self,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Pin<Box<dyn Future<Output = ()> + 'h>> {
        if let Some(plan) = self.http.newer_plan(&self.plan) {
            self.client = Rc::new(self.http.client(&plan, self.client.ip));
            self.plan = plan;
        }
        let (http, running) = (self.http, self.running);
        let (plan, client) = (Rc::clone(&self.plan), Rc::clone(&self.client));
        let answering = answer(http, plan, client, running, request, respond);
        Box::pin(async move {
            if AssertUnwindSafe(answering).catch_unwind().await.is_err() {
                http.panics.add(1);
                error!("{}: a stream ended by a panic; the others go on", http.name);
            }
        })
    }
}

/// The client's side of one stream.
struct Down<'h, R: Runtime> {
    http: &'h Http<R>,
    body: Body,
    respond: RefCell<Respond>,
    timers: Timers<R::Timer>,
    write_timeout: Option<Duration>,
    /// A gRPC call, which wants its answers in a form of its own.
    is_call: bool,
}

impl<R: Runtime> Downstream<R> for Down<'_, R> {
    type Body<'a>
        = Ask<'a>
    where
        Self: 'a;
    type Answer<'a>
        = Answer<'a>
    where
        Self: 'a;

    fn side(&mut self) -> Side<'_, Self::Body<'_>, Self::Answer<'_>, R::Timer> {
        Side {
            incoming: Ask {
                body: &mut self.body,
                respond: &self.respond,
            },
            outgoing: Answer {
                respond: &self.respond,
                clock: self.http.clock(),
            },
            timers: &mut self.timers,
        }
    }

    async fn reply(&mut self, reply: Reply, to_head: bool, _closes: bool) -> bool {
        let body = reply.body();
        let ends = self.is_call || to_head || body.is_empty();
        let respond = &self.respond;
        let made = if self.is_call {
            convert::call_reply_to(reply)
        } else {
            convert::reply_to(reply)
        };
        respond.borrow_mut().begin(made, ends);
        let mut answer = Answer {
            respond,
            clock: self.http.clock(),
        };
        if !ends {
            answer.put(body.as_bytes());
        }
        answer.finish(None);
        let (runtime, timer) = (self.http.runtime(), &mut self.timers.write);
        let mut pace = Pace::new(0);
        send_all(runtime, &mut answer, timer, self.write_timeout, &mut pace)
            .await
            .is_ok()
    }
}

async fn answer<R: Runtime>(
    http: &Http<R>,
    plan: Rc<Plan<R>>,
    client: Rc<Client>,
    running: &Running,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, recv) = request.into_parts();
    let ends = recv.is_end_stream();
    let (mut head, mut response_head) = (Head::default(), Head::default());
    let judged = convert::request(&parts, ends, &plan.entry.head, &mut head);
    let framing = judged.as_ref().map_or(Framing::Empty, |it| it.framing);
    let to_head = parts.method == http::Method::HEAD;
    drop(parts);
    let mut down = Down {
        http,
        body: Body::new(recv, framing),
        respond: RefCell::new(Respond::new(respond)),
        timers: Timers::new(http.runtime()),
        write_timeout: plan.entry.write_timeout,
        is_call: is_call(&head),
    };
    let request = match judged {
        Ok(request) => request,
        Err(Refusal { status, why }) => {
            let (name, ip) = (&http.name, client.ip);
            info!("{name}: {ip}: refused with {status}: {why}");
            plan.unrouted.count(Ended::With(status));
            let reply = Reply::request_error(status);
            down.reply(reply, to_head, false).await;
            return;
        }
    };
    let journey = Journey::new(http, &plan, &client, running, &head, &request);
    match journey.run(&mut down, &mut response_head).await {
        After::Next | After::Last => {}
        After::Cut | After::Switched(_) => {
            down.respond.borrow_mut().reset(Reason::INTERNAL_ERROR);
        }
        After::Gone => down.respond.borrow_mut().reset(Reason::CANCEL),
    }
}
