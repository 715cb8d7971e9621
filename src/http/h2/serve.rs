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
use super::io::{Io, Traffic};
use super::sides::{Answer, Ask, Body, Respond};
use super::{FAULTS_MAX, SEND_BUFFER};
use crate::drain::Running;
use crate::http::exchange::side::{Side, Sink};
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
/// Of how many streams the client may take back the most at once.
const TAKEN_BACK_MAX: u64 = 500;
/// What is taken back later was wanted for a while.
const AT_ONCE: Duration = Duration::from_secs(1);

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
        .initial_connection_window_size(entry.buffered_max)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(entry.streams_max)
        .max_header_list_size(u32::try_from(entry.head.bytes_max).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(FAULTS_MAX));
    let io = Io::new(stream, ahead);
    let traffic = io.traffic();
    traffic.allow();
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
        traffic,
        sent: (0, runtime.now()),
        taken_back: 0,
    };
    let mut streams = FuturesUnordered::new();
    let mut connection = connection;
    poll_fn(|cx| serving.poll(cx, &mut connection, &mut streams)).await
}

/// How a stream has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stream {
    Answered,
    /// The client took its request back before an answer could be of use.
    TakenBack,
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
    traffic: Rc<Traffic>,
    /// How often something had gone when it was last looked at, and since when
    /// nothing has.
    sent: (u64, Instant),
    /// Streams that the client took back at once.
    taken_back: u64,
}

type Connection<'s, S> = h2::server::Connection<Io<&'s mut S>, Bytes>;
type Streams<'s> = FuturesUnordered<Pin<Box<dyn Future<Output = Stream> + 's>>>;

impl<'h, R: Runtime> Serving<'h, R> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection<'_, R::Stream>,
        streams: &mut Streams<'h>,
    ) -> Poll<End> {
        self.traffic.allow();
        if self.is_last_request() || self.running.poll_stopping(cx).is_ready() {
            self.leave(connection);
        }
        loop {
            while let Poll::Ready(Some(ended)) = streams.poll_next_unpin(cx) {
                if ended == Stream::TakenBack {
                    self.taken_back += 1;
                }
            }
            if self.taken_back > TAKEN_BACK_MAX && self.taken_back > self.served / 2 {
                // It asks for work, not for answers (CVE-2023-44487).
                info!(
                    "{}: {}: too many streams taken back",
                    self.http.name, self.client.ip
                );
                self.taken_back = 0;
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
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
        match self.poll_idle(cx, streams.is_empty()) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(end)) => return Poll::Ready(end),
            Poll::Ready(None) => {}
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

    /// How long a connection without streams may stay. What its streams have
    /// left behind is still on its way as long as the client takes some of it
    /// in time; if it does not, that is the end.
    fn poll_idle(&mut self, cx: &mut Context<'_>, has_no_streams: bool) -> Poll<Option<End>> {
        let now = self.http.runtime().now();
        let is_blocked = self.traffic.is_blocked();
        let is_idle = has_no_streams && !is_blocked;
        self.idle_since = is_idle.then(|| self.idle_since.unwrap_or(now));
        if self.running.is_stopping() {
            self.running.set_finished(is_idle);
        }
        if !is_blocked || self.sent.0 != self.traffic.writes() {
            self.sent = (self.traffic.writes(), now);
        }
        let entry = &self.plan.entry;
        let limit = match self.idle_since {
            None => None,
            Some(_) if self.is_leaving => Some(FIRST_REQUEST),
            // As for a first head in HTTP/1.
            Some(_) if self.served == 0 => entry.read_timeout,
            Some(_) => entry.idle_timeout,
        };
        let end = if has_no_streams && is_blocked {
            // While there are streams, each looks to its own.
            Some(self.sent.1).zip(entry.write_timeout)
        } else {
            self.idle_since.zip(limit)
        };
        let end = end.and_then(|(since, limit): (Instant, Duration)| since.checked_add(limit));
        self.timer.set(end);
        self.timer.poll(cx).map(|()| is_blocked.then_some(End::Cut))
    }

    /// One request. Whatever begins now is served by what a reload may have
    /// changed.
    fn stream(
        &mut self,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Stream> + 'h>> {
        if let Some(plan) = self.http.newer_plan(&self.plan) {
            self.client = Rc::new(self.http.client(&plan, self.client.ip));
            self.plan = plan;
        }
        let (http, running) = (self.http, self.running);
        let (plan, client) = (Rc::clone(&self.plan), Rc::clone(&self.client));
        let answering = answer(http, plan, client, running, request, respond);
        Box::pin(async move {
            let ended = AssertUnwindSafe(answering).catch_unwind().await;
            ended.unwrap_or_else(|_| {
                http.panics.add(1);
                error!("{}: a stream ended by a panic; the others go on", http.name);
                Stream::Answered
            })
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
) -> Stream {
    let began = http.runtime().now();
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
            return Stream::Answered;
        }
    };
    let journey = Journey::new(http, &plan, &client, running, &head, &request);
    match journey.run(&mut down, &mut response_head).await {
        After::Next | After::Last => {}
        After::Cut | After::Switched(_) => {
            down.respond.borrow_mut().reset(Reason::INTERNAL_ERROR);
        }
        After::Gone => {
            down.respond.borrow_mut().reset(Reason::CANCEL);
            let lived = http.runtime().now().saturating_duration_since(began);
            if lived < AT_ONCE {
                return Stream::TakenBack;
            }
        }
    }
    Stream::Answered
}
