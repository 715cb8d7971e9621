//! One client connection of HTTP/1: requests one after the other.

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use log::{debug, info};

use super::body::Decoder;
use super::parse::{self, Parsed, Scanner};
use super::sides::{Answer, Incoming, Outgoing};
use crate::dial;
use crate::drain::Running;
use crate::http::exchange::side::Side;
use crate::http::fields::Client;
use crate::http::forward::{After, Downstream, Journey};
use crate::http::h2::PREFACE;
use crate::http::message::head::Head;
use crate::http::message::request::Request;
use crate::http::message::{Framing, Refusal};
use crate::http::plan::{Ended, Plan};
use crate::http::pool::Own;
use crate::http::reply::Reply;
use crate::http::wire::{Conn, Pace, READ_BYTES, ReadBuf, Stop, send_all};
use crate::http::{End, FIRST_REQUEST, Http, Keeping};
use crate::runtime::{Runtime, Timer};
use crate::tcp::{copy, tunnel};

/// Requests of one connection before others get a turn.
const REQUESTS_PER_TURN: u64 = 32;

/// How the requests of a connection ended.
pub(crate) enum Ending {
    Closed(End),
    /// The client speaks HTTP/2. What it has sent so far is in the buffer.
    Http2,
}

/// One client connection.
pub(crate) struct Connection<R: Runtime> {
    /// Of the request that is served, or was served last.
    plan: Rc<Plan<R>>,
    client: Client,
    conn: Conn<R::Stream, R::Timer>,
    keeping: Keeping,
    served: u64,
}

/// What an exchange needs of it.
struct Down<'c, R: Runtime> {
    http: &'c Http<R>,
    conn: &'c mut Conn<R::Stream, R::Timer>,
    decoder: Decoder,
    write_timeout: Option<Duration>,
}

impl<'c, R: Runtime> Down<'c, R> {
    /// `framing` is of the request's body.
    fn new(
        http: &'c Http<R>,
        conn: &'c mut Conn<R::Stream, R::Timer>,
        plan: &Plan<R>,
        framing: Framing,
    ) -> Self {
        Self {
            http,
            conn,
            decoder: Decoder::new(framing),
            write_timeout: plan.entry.write_timeout,
        }
    }
}

impl<R: Runtime> Downstream<R> for Down<'_, R> {
    type Body<'a>
        = Incoming<'a, R::Stream>
    where
        Self: 'a;
    type Answer<'a>
        = Answer<'a, R::Stream>
    where
        Self: 'a;

    fn side(&mut self) -> Side<'_, Self::Body<'_>, Self::Answer<'_>, R::Timer> {
        let Conn {
            stream,
            inbuf,
            out,
            timers,
        } = &mut *self.conn;
        Side {
            incoming: Incoming::new(stream, inbuf, &mut self.decoder),
            outgoing: Answer::new(stream, out, self.http.clock()),
            timers,
        }
    }

    async fn reply(&mut self, reply: Reply, to_head: bool, closes: bool) -> bool {
        let Conn {
            stream,
            out,
            timers,
            ..
        } = &mut *self.conn;
        out.clear();
        reply.write(out, to_head, closes);
        let mut outgoing = Outgoing::new(stream, out, Framing::Empty);
        let (runtime, timer) = (self.http.runtime(), &mut timers.write);
        let mut pace = Pace::new(0);
        send_all(runtime, &mut outgoing, timer, self.write_timeout, &mut pace)
            .await
            .is_ok()
    }
}

impl<R: Runtime> Connection<R> {
    pub(crate) fn new(http: &Http<R>, ip: IpAddr, stream: R::Stream) -> Self {
        let plan = http.plan();
        Self {
            client: http.client(&plan, ip),
            keeping: Keeping::new(&plan.entry, http.runtime().now()),
            conn: Conn::new(http.runtime(), stream),
            plan,
            served: 0,
        }
    }

    /// Serves it until no further request can come.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn would have room for its arguments twice"
    )]
    pub(crate) fn run(
        &mut self,
        http: &Http<R>,
        running: &Running,
    ) -> impl Future<Output = Ending> {
        async move {
            let mut in_a_row = 0;
            loop {
                // A busy client must leave other connections their turns.
                if self.served % REQUESTS_PER_TURN == REQUESTS_PER_TURN - 1 {
                    futures_lite::future::yield_now().await;
                }
                let was_sent_ahead = !self.conn.inbuf.is_empty();
                in_a_row = if was_sent_ahead { in_a_row + 1 } else { 0 };
                let (mut request, head) = match self.next_request(http, running).await {
                    Ok(asked) => asked,
                    Err(ending) => return ending,
                };
                self.served += 1;
                let now = http.runtime().now();
                if self.keeping.is_over(self.served, now)
                    || in_a_row >= self.plan.entry.pipelined_max
                {
                    request.connection.close = true;
                }
                // Boxed: while a connection waits for its next request, or is a
                // tunnel, it does not hold the room that serving one takes.
                let end = match Box::pin(self.answer(http, running, request, head)).await {
                    After::Next => continue,
                    After::Last => End::Quiet,
                    After::Cut => End::Cut,
                    After::Gone => End::Gone,
                    After::Switched(upstream) => Box::pin(self.tunnel(http, *upstream)).await,
                };
                return Ending::Closed(end);
            }
        }
    }

    /// Serves a request.
    async fn answer(
        &mut self,
        http: &Http<R>,
        running: &Running,
        request: Request,
        mut head: Head,
    ) -> After<R> {
        self.conn.take_out();
        let mut down = Down::new(http, &mut self.conn, &self.plan, request.framing);
        let mut response_head = Head::default();
        let (plan, client) = (&self.plan, &self.client);
        let journey = Journey::new(http, plan, client, running, &head, &request);
        let after = journey.run(&mut down, &mut response_head).await;
        head.give_back();
        response_head.give_back();
        after
    }

    /// The client's address, its stream, and what was read ahead of it.
    pub(crate) fn into_parts(mut self) -> (IpAddr, R::Stream, ReadBuf) {
        self.conn.give_back_out();
        (
            self.client.ip,
            self.conn.stream.into_inner(),
            self.conn.inbuf,
        )
    }

    /// Whatever begins now is served by what a reload may have changed.
    fn adopt_plan(&mut self, http: &Http<R>) {
        if let Some(plan) = http.newer_plan(&self.plan) {
            self.client = http.client(&plan, self.client.ip);
            self.plan = plan;
        }
    }

    /// Waits for a request head.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn would have room for its arguments twice"
    )]
    fn next_request(
        &mut self,
        http: &Http<R>,
        running: &Running,
    ) -> impl Future<Output = Result<(Request, Head), Ending>> {
        async move {
            self.adopt_plan(http);
            let is_first = self.served == 0;
            let mut scanner = Scanner::default();
            let mut empty_lines = 0;
            // An absolute deadline for a head that has begun, so that a client
            // cannot stretch it byte by byte.
            let mut head_deadline = None;
            // Another for a connection that has asked for nothing when the
            // proxy is stopped.
            let mut stopping_deadline = None;
            loop {
                let refused = match begins_with_preface(self.conn.inbuf.data()) {
                    Some(true) if is_first => return Err(Ending::Http2),
                    // More of it is needed, to tell.
                    None if is_first => None,
                    _ => match self.parse(&mut scanner, &mut empty_lines) {
                        Ok(Some(asked)) => return Ok(asked),
                        Ok(None) => None,
                        Err(refusal) => Some(refusal),
                    },
                };
                if let Some(refusal) = refused {
                    let end = Box::pin(self.refuse(http, refusal)).await;
                    return Err(Ending::Closed(end));
                }
                let is_idle = self.conn.inbuf.is_empty();
                let entry = &self.plan.entry;
                let max = entry.head.bytes_max + READ_BYTES;
                let deadline = if is_idle && is_first && running.is_stopping() {
                    // It has come in late; its request may be on its way.
                    if stopping_deadline.is_none() {
                        stopping_deadline = http.after(Some(FIRST_REQUEST));
                    }
                    running.set_finished(true);
                    stopping_deadline
                } else if is_idle && !is_first {
                    // An empty line was no beginning.
                    head_deadline = None;
                    http.after(entry.idle_timeout)
                } else {
                    if head_deadline.is_none() {
                        head_deadline = http.after(entry.read_timeout);
                    }
                    head_deadline
                };
                if is_idle {
                    self.conn.give_back();
                }
                let conn = &mut self.conn;
                conn.timers.read.set(deadline);
                let minds_stop = is_idle && stopping_deadline.is_none();
                let filled = poll_fn(move |cx| {
                    let Conn {
                        stream,
                        inbuf,
                        timers,
                        ..
                    } = &mut *conn;
                    match inbuf.poll_fill(cx, stream, max) {
                        Poll::Ready(filled) => Poll::Ready(filled.map_err(Stop::Io)),
                        Poll::Pending if minds_stop && running.poll_stopping(cx).is_ready() => {
                            Poll::Ready(if is_first { Err(Stop::Timeout) } else { Ok(0) })
                        }
                        Poll::Pending => timers.read.poll(cx).map(|()| Err(Stop::Timeout)),
                    }
                })
                .await;
                self.conn.timers.read.set(None);
                let end = match filled {
                    Ok(0) if is_idle => End::Quiet,
                    // Cut within a head: nobody is there to read a 400.
                    Ok(0) | Err(Stop::Io(_)) => End::Gone,
                    // It begins now, not when the connection fell idle.
                    Ok(_) if is_idle => {
                        running.set_finished(false);
                        self.adopt_plan(http);
                        continue;
                    }
                    Ok(_) => continue,
                    // The stop has come: once more, with the time that is left.
                    Err(Stop::Timeout) if minds_stop && is_first && running.is_stopping() => {
                        continue;
                    }
                    Err(Stop::Timeout) if is_idle => End::Quiet,
                    Err(Stop::Timeout) => {
                        let late = Refusal {
                            status: 408,
                            why: "no whole request head in time",
                        };
                        Box::pin(self.refuse(http, late)).await
                    }
                };
                return Err(Ending::Closed(end));
            }
        }
    }

    /// The request whose head is in the buffer, if it is all there.
    /// `empty_lines` are those that have come before it.
    fn parse(
        &mut self,
        scanner: &mut Scanner,
        empty_lines: &mut u8,
    ) -> Result<Option<(Request, Head)>, Refusal> {
        let inbuf = &mut self.conn.inbuf;
        let (skip, waits) = parse::skip_empty_lines(inbuf.data(), empty_lines)?;
        // Nothing but that is not the beginning of a request.
        inbuf.consume(skip);
        if waits {
            return Ok(None);
        }
        let mut head = Head::default();
        match parse::request(inbuf.data(), scanner, &self.plan.entry.head, &mut head)? {
            Parsed::Done(request, len) => {
                inbuf.consume(len);
                Ok(Some((request, head)))
            }
            Parsed::Partial => Ok(None),
        }
    }

    /// Where the next request begins is not known: this is the last answer.
    async fn refuse(&mut self, http: &Http<R>, Refusal { status, why }: Refusal) -> End {
        let (name, ip) = (&http.name, self.client.ip);
        info!("{name}: {ip}: refused with {status}: {why}");
        self.plan.unrouted.count(Ended::With(status));
        let reply = Reply::request_error(status);
        // As far as anyone can tell.
        let to_head = self.conn.inbuf.data().starts_with(b"HEAD ");
        let mut down = Down::new(http, &mut self.conn, &self.plan, Framing::Empty);
        if down.reply(reply, to_head, true).await {
            End::Quiet
        } else {
            End::Gone
        }
    }

    /// Passes bytes both ways after a protocol switch, those first that were
    /// read ahead.
    async fn tunnel(&mut self, http: &Http<R>, upstream: Own<R>) -> End {
        let mut up = upstream.conn;
        let dialed = dial::Upstream {
            channel: up.stream.into_inner(),
            admission: upstream.admission,
        };
        let terms = tunnel::Terms {
            limits: copy::Limits {
                idle: upstream.idle_limit,
                termination: None,
            },
            usage: "upgrade",
            bytes: None,
        };
        let down = &mut self.conn;
        let client = (down.stream.get_mut(), &mut down.inbuf);
        let upstream = (dialed, &mut up.inbuf);
        let relayed = tunnel::run(http.runtime(), client, upstream, terms).await;
        match relayed.end {
            Ok(()) => End::Gone,
            Err(why) => {
                debug!("{}: {}: tunnel: {why}", http.name, self.client.ip);
                End::Cut
            }
        }
    }
}

/// Whether a connection begins as HTTP/2 does. `None`: it may.
fn begins_with_preface(data: &[u8]) -> Option<bool> {
    let n = data.len().min(PREFACE.len());
    if data.get(..n) != PREFACE.get(..n) || data.is_empty() {
        return Some(false);
    }
    (n == PREFACE.len()).then_some(true)
}
