//! One client connection of HTTP/1: requests one after the other.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use log::{debug, info};

use super::body::Decoder;
use super::parse::{self, Parsed, Scanner};
use super::sides::{Answer, Incoming, Outgoing};
use crate::dial;
use crate::drain::Running;
use crate::http::exchange::Side;
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
pub(crate) struct Connection<'h, R: Runtime> {
    http: &'h Http<R>,
    /// Of the request that is served, or was served last.
    plan: Rc<Plan<R>>,
    client: Client,
    down: Down<'h, R>,
    head: Head,
    response_head: Head,
    keeping: Keeping,
    served: u64,
    running: &'h Running,
}

/// What an exchange needs of it.
struct Down<'h, R: Runtime> {
    http: &'h Http<R>,
    conn: Conn<R::Stream, R::Timer>,
    /// Of the request that is served.
    decoder: Decoder,
    write_timeout: Option<std::time::Duration>,
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
        } = &mut self.conn;
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
        } = &mut self.conn;
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

impl<'h, R: Runtime> Connection<'h, R> {
    pub(crate) fn new(
        http: &'h Http<R>,
        plan: Rc<Plan<R>>,
        client: Client,
        stream: R::Stream,
        running: &'h Running,
    ) -> Self {
        Self {
            http,
            keeping: Keeping::new(&plan.entry, http.runtime().now()),
            down: Down {
                http,
                conn: Conn::new(http.runtime(), stream),
                decoder: Decoder::new(Framing::Empty),
                write_timeout: plan.entry.write_timeout,
            },
            plan,
            client,
            head: Head::default(),
            response_head: Head::default(),
            served: 0,
            running,
        }
    }

    /// Serves it until no further request can come.
    pub(crate) async fn run(&mut self) -> Ending {
        let mut is_first = true;
        let mut in_a_row = 0;
        loop {
            // A busy client must leave other connections their turns.
            if self.served % REQUESTS_PER_TURN == REQUESTS_PER_TURN - 1 {
                futures_lite::future::yield_now().await;
            }
            let was_sent_ahead = !self.down.conn.inbuf.is_empty();
            in_a_row = if was_sent_ahead { in_a_row + 1 } else { 0 };
            let mut request = match self.next_request(is_first).await {
                Ok(request) => request,
                Err(ending) => return ending,
            };
            is_first = false;
            self.served += 1;
            if self.is_last_request() || in_a_row >= self.plan.entry.pipelined_max {
                request.connection.close = true;
            }
            self.down.conn.take_out();
            self.down.decoder = Decoder::new(request.framing);
            self.down.write_timeout = self.plan.entry.write_timeout;
            let journey = Journey::new(
                self.http,
                &self.plan,
                &self.client,
                self.running,
                &self.head,
                &request,
            );
            // Boxed: while a connection waits for its next request, it does not
            // hold the room that serving one takes.
            let served = Box::pin(journey.run(&mut self.down, &mut self.response_head));
            let end = match served.await {
                After::Next => continue,
                After::Last => End::Quiet,
                After::Cut => End::Cut,
                After::Gone => End::Gone,
                After::Switched(upstream) => Box::pin(self.tunnel(*upstream)).await,
            };
            return Ending::Closed(end);
        }
    }

    /// The stream, and what was read ahead of it.
    pub(crate) fn into_parts(mut self) -> (R::Stream, ReadBuf) {
        self.down.conn.give_back_out();
        self.head.give_back();
        self.response_head.give_back();
        (self.down.conn.stream.into_inner(), self.down.conn.inbuf)
    }

    /// `keepAliveMaxRequests` and `keepAliveMaxTime`.
    fn is_last_request(&self) -> bool {
        self.keeping.is_over(self.served, self.http.runtime().now())
    }

    /// Whatever begins now is served by what a reload may have changed.
    fn adopt_plan(&mut self) {
        if let Some(plan) = self.http.newer_plan(&self.plan) {
            self.client = self.http.client(&plan, self.client.ip);
            self.plan = plan;
        }
    }

    /// Waits for a request head.
    async fn next_request(&mut self, is_first: bool) -> Result<Request, Ending> {
        self.adopt_plan();
        let mut scanner = Scanner::default();
        let mut empty_lines = 0;
        let mut head_deadline = None;
        let mut stopping_deadline = None;
        loop {
            if is_first {
                match begins_with_preface(self.down.conn.inbuf.data()) {
                    Some(true) => return Err(Ending::Http2),
                    // More of it is needed, to tell.
                    None => {}
                    Some(false) => {
                        if let Some(request) = self.parse(&mut scanner, &mut empty_lines).await? {
                            return Ok(request);
                        }
                    }
                }
            } else if let Some(request) = self.parse(&mut scanner, &mut empty_lines).await? {
                return Ok(request);
            }
            let plan = Rc::clone(&self.plan);
            let entry = &plan.entry;
            let max = entry.head.bytes_max + READ_BYTES;
            let is_idle = self.down.conn.inbuf.is_empty();
            // An absolute deadline for a head that has begun, so that a
            // client cannot stretch it byte by byte.
            let deadline = if is_idle && is_first && self.running.is_stopping() {
                // It has come in late; its request may be on its way.
                if stopping_deadline.is_none() {
                    stopping_deadline = self.http.after(Some(FIRST_REQUEST));
                    self.running.set_finished(true);
                }
                stopping_deadline
            } else if is_idle && !is_first {
                self.http.after(entry.idle_timeout)
            } else {
                if head_deadline.is_none() {
                    head_deadline = self.http.after(entry.read_timeout);
                }
                head_deadline
            };
            if is_idle {
                self.down.conn.give_back();
                self.head.give_back();
                self.response_head.give_back();
            }
            let Conn {
                stream,
                inbuf,
                timers,
                ..
            } = &mut self.down.conn;
            let running = self.running;
            timers.read.set(deadline);
            let filled = poll_fn(|cx| match inbuf.poll_fill(cx, stream, max) {
                Poll::Ready(filled) => Poll::Ready(filled.map_err(Stop::Io)),
                Poll::Pending
                    if is_idle
                        && stopping_deadline.is_none()
                        && running.poll_stopping(cx).is_ready() =>
                {
                    Poll::Ready(if is_first { Err(Stop::Timeout) } else { Ok(0) })
                }
                Poll::Pending => timers.read.poll(cx).map(|()| Err(Stop::Timeout)),
            })
            .await;
            timers.read.set(None);
            let end = match filled {
                Ok(0) if is_idle => End::Quiet,
                // Cut within a head: nobody is there to read a 400.
                Ok(0) | Err(Stop::Io(_)) => End::Gone,
                // It begins now, not when the connection fell idle.
                Ok(_) if is_idle => {
                    self.running.set_finished(false);
                    self.adopt_plan();
                    continue;
                }
                Ok(_) => continue,
                // The stop has come: once more, with the time that is left.
                Err(Stop::Timeout)
                    if is_idle
                        && is_first
                        && running.is_stopping()
                        && stopping_deadline.is_none() =>
                {
                    continue;
                }
                Err(Stop::Timeout) if is_idle => End::Quiet,
                Err(Stop::Timeout) => {
                    let late = Refusal {
                        status: 408,
                        why: "no whole request head in time",
                    };
                    Box::pin(self.refuse(late)).await
                }
            };
            return Err(Ending::Closed(end));
        }
    }

    /// The request whose head is in the buffer, if it is all there.
    /// `empty_lines` are those that have come before it.
    async fn parse(
        &mut self,
        scanner: &mut Scanner,
        empty_lines: &mut usize,
    ) -> Result<Option<Request>, Ending> {
        let inbuf = &mut self.down.conn.inbuf;
        let parsed = match parse::skip_empty_lines(inbuf.data(), empty_lines) {
            Ok((skip, waits)) => {
                // Nothing but that is not the beginning of a request.
                inbuf.consume(skip);
                if waits {
                    return Ok(None);
                }
                parse::request(inbuf.data(), scanner, &self.plan.entry.head, &mut self.head)
            }
            Err(refusal) => Err(refusal),
        };
        match parsed {
            Ok(Parsed::Done(request, len)) => {
                inbuf.consume(len);
                Ok(Some(request))
            }
            Ok(Parsed::Partial) => Ok(None),
            Err(refusal) => Err(Ending::Closed(Box::pin(self.refuse(refusal)).await)),
        }
    }

    /// Where the next request begins is not known: this is the last answer.
    async fn refuse(&mut self, Refusal { status, why }: Refusal) -> End {
        let (name, ip) = (&self.http.name, self.client.ip);
        info!("{name}: {ip}: refused with {status}: {why}");
        self.plan.unrouted.count(Ended::With(status));
        self.down.write_timeout = self.plan.entry.write_timeout;
        let reply = Reply::request_error(status);
        // As far as anyone can tell.
        let to_head = self.down.conn.inbuf.data().starts_with(b"HEAD ");
        if self.down.reply(reply, to_head, true).await {
            End::Quiet
        } else {
            End::Gone
        }
    }

    /// Passes bytes both ways after a protocol switch, those first that were
    /// read ahead.
    async fn tunnel(&mut self, upstream: Own<R>) -> End {
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
        let down = &mut self.down.conn;
        let client = (down.stream.get_mut(), &mut down.inbuf);
        let upstream = (dialed, &mut up.inbuf);
        let relayed = tunnel::run(self.http.runtime(), client, upstream, terms).await;
        match relayed.end {
            Ok(()) => End::Gone,
            Err(why) => {
                debug!("{}: {}: tunnel: {why}", self.http.name, self.client.ip);
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
