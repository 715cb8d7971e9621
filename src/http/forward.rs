//! What is done with one request, whatever version it came in: judge it, find
//! its service and a server of it, relay both ways, and answer where no
//! upstream did.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use log::{debug, info, warn};

use super::Http;
use super::exchange::side::{Answered, Asking, Side};
use super::exchange::{self, Kept, Outcome, Question, Terms, unless_gone};
use super::fields::{Client, forwards_left, is_loop, write_request};
use super::h1::body::Decoder;
use super::h1::sides as h1;
use super::h2::convert;
use super::h2::upstream::Lease;
use super::message::Framing;
use super::message::head::{Head, Name};
use super::message::request::{self, Method, Request};
use super::plan::{Counts, Ended, Plan, Service};
use super::pool::{Own, Slot, Upstream};
use super::reply::Reply;
use super::wire::Timers;
use crate::config::{HttpServer, Scheme};
use crate::dial::DialError;
use crate::drain::Running;
use crate::rule::{Subject, match_form};
use crate::runtime::Runtime;

/// Content of a request that is kept for another try, where the upstream may
/// say that it has not begun with it.
const REPLAY_BYTES: usize = 16 << 10;
/// Tries after such a word.
const REPLAYS_MAX: u32 = 5;

/// The client's side of one request.
pub(crate) trait Downstream<R: Runtime> {
    type Body<'a>: Asking
    where
        Self: 'a;
    type Answer<'a>: Answered
    where
        Self: 'a;

    /// For an exchange. What an earlier one has taken of the body stays taken.
    fn side(&mut self) -> Side<'_, Self::Body<'_>, Self::Answer<'_>, R::Timer>;

    /// Sends an answer of our own. `closes`: it is the last on its connection.
    /// Returns whether it was sent.
    async fn reply(&mut self, reply: Reply, to_head: bool, closes: bool) -> bool;
}

/// What becomes of the client after its request.
pub(crate) enum After<R: Runtime> {
    /// Another may follow.
    Next,
    /// All that was to be said has been said, and nothing may follow.
    Last,
    /// What it got is not whole, and must not look so.
    Cut,
    /// It has gone.
    Gone,
    /// It speaks another protocol with this upstream now.
    Switched(Box<Own<R>>),
}

/// What a request comes to.
enum Verdict<R: Runtime> {
    /// It has had its answer, or can get none.
    After(After<R>),
    /// No upstream answered: we do.
    Fail(Reply),
    /// We do, and nothing may follow.
    Last(Reply),
}

/// Counts a request, once: when it has ended, or as cut when it is dropped
/// before.
struct Tally<'h, R: Runtime> {
    http: &'h Http<R>,
    counts: Rc<Counts>,
    began: Option<Instant>,
}

impl<R: Runtime> Tally<'_, R> {
    fn count(&mut self, ended: Ended) {
        let Some(began) = self.began.take() else {
            return;
        };
        self.counts.count(ended);
        if let Ended::With(200..) = ended {
            let now = self.http.runtime().now();
            let took = now.saturating_duration_since(began);
            self.counts.seconds.record(took);
        }
    }
}

impl<R: Runtime> Drop for Tally<'_, R> {
    fn drop(&mut self) {
        self.count(Ended::Cut);
    }
}

/// One request on its way.
pub(crate) struct Journey<'h, R: Runtime> {
    http: &'h Http<R>,
    plan: &'h Plan<R>,
    client: &'h Client,
    running: &'h Running,
    head: &'h Head,
    request: &'h Request,
    tally: Tally<'h, R>,
}

impl<'h, R: Runtime> Journey<'h, R> {
    pub(crate) fn new(
        http: &'h Http<R>,
        plan: &'h Plan<R>,
        client: &'h Client,
        running: &'h Running,
        head: &'h Head,
        request: &'h Request,
    ) -> Self {
        let tally = Tally {
            http,
            counts: Rc::clone(&plan.unrouted),
            began: Some(http.runtime().now()),
        };
        Self {
            http,
            plan,
            client,
            running,
            head,
            request,
            tally,
        }
    }

    /// Answers the request.
    pub(crate) async fn run<D: Downstream<R>>(
        mut self,
        down: &mut D,
        response_head: &mut Head,
    ) -> After<R> {
        let (reply, closes) = match self.relay(down, response_head).await {
            Verdict::After(after) => return after,
            Verdict::Last(reply) => (reply, true),
            // The next request is where it should be only if this one had no
            // body.
            Verdict::Fail(reply) => {
                let closes = self.request.framing != Framing::Empty
                    || !self.request.keeps_alive()
                    || self.running.is_stopping();
                (reply, closes)
            }
        };
        self.tally.count(Ended::With(reply.status));
        let to_head = self.request.kind == Method::Head;
        if !down.reply(reply, to_head, closes).await {
            return After::Gone;
        }
        if closes { After::Last } else { After::Next }
    }

    /// Relays request and response, unless the answer is ours.
    async fn relay<D: Downstream<R>>(
        &mut self,
        down: &mut D,
        response_head: &mut Head,
    ) -> Verdict<R> {
        let (name, ip) = (self.http.name.as_str(), self.client.ip);
        if let Err((reply, why)) = self.check() {
            info!("{name}: {ip}: {}: {why}", reply.status);
            return Verdict::Last(reply);
        }
        if forwards_left(self.head, self.request) == Some(0) {
            return Verdict::Fail(Reply::OPTIONS);
        }
        let route = self.route();
        // It asks about the server, not about what is behind it.
        if route.is_none() && self.request.target(self.head) == b"*" {
            return Verdict::Fail(Reply::OPTIONS);
        }
        let Some(index) = route else {
            debug!("{name}: {ip}: no router matches");
            return Verdict::Fail(Reply {
                status: 404,
                error: "destination_not_found",
            });
        };
        let Some((service, counts)) = self.plan.services.get(index) else {
            return Verdict::After(After::Gone);
        };
        let service = Rc::clone(service);
        self.tally.counts = Rc::clone(counts);
        self.forward(down, &service, response_head).await
    }

    fn check(&self) -> Result<(), (Reply, &'static str)> {
        let entry = &self.plan.entry;
        if let (Framing::Length(length), Some(max)) = (self.request.framing, entry.body_max)
            && length > max
        {
            return Err((
                Reply::request_error(413),
                "the body is larger than maxRequestBodyBytes",
            ));
        }
        let path = self.request.path(self.head);
        if self.plan.looks_at_path && request::is_ambiguous_path(path) {
            return Err((
                Reply::request_error(400),
                "the path has an encoded slash or backslash, and routers here look at paths",
            ));
        }
        if is_loop(self.head) {
            let reply = Reply {
                status: 508,
                error: "proxy_loop_detected",
            };
            return Err((reply, "it has come through svidgate too often"));
        }
        Ok(())
    }

    fn route(&self) -> Option<usize> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        let subject = Seen {
            head: self.head,
            request: self.request,
            host: host_of(text(self.request.authority(self.head))),
            path: match_form(text(self.request.path(self.head))),
            ip: self.client.ip,
        };
        self.plan.route(&subject)
    }

    /// Finds a server that takes the request, and relays both.
    async fn forward<D: Downstream<R>>(
        &mut self,
        down: &mut D,
        service: &Service<R>,
        response_head: &mut Head,
    ) -> Verdict<R> {
        let mut tried = Vec::new();
        let mut last = Reply {
            status: 503,
            error: "destination_unavailable",
        };
        // A server that is tried once more, and whether a connection that is
        // there will do.
        let mut again = None;
        let mut replays = 0;
        let may_refuse = service.slots.iter().any(|slot| slot.may_share());
        let mut kept = Kept::new(if may_refuse { REPLAY_BYTES } else { 0 });
        loop {
            let next = again.take().or_else(|| {
                let index = service.balancer.borrow_mut().next(&tried)?;
                Some((index, true))
            });
            let Some((index, may_reuse)) = next else {
                return Verdict::Fail(last);
            };
            let (Some(slot), Some(server)) =
                (service.slots.get(index), service.of.servers.get(index))
            else {
                return Verdict::Fail(last);
            };
            let pool = &self.http.pool;
            let idle = may_reuse.then(|| pool.take(slot)).flatten();
            let found = match idle {
                Some(own) => Some(Ok(Upstream::Http1(own))),
                None => {
                    // Boxed: what dialling needs is not for each request to carry.
                    let wants_own = self.request.wants_upgrade;
                    let getting = Box::pin(pool.get(slot, may_reuse, wants_own));
                    unless_gone(&mut down.side().incoming, getting).await
                }
            };
            let upstream = match found {
                None => {
                    return self.conclude(Outcome::ClientGone, service, server, slot, None);
                }
                Some(Ok(upstream)) => upstream,
                Some(Err(error)) => {
                    last = self.dial_failed(service, server, &error);
                    tried.push(index);
                    continue;
                }
            };
            let reused = upstream.is_reused();
            let (outcome, upstream) = self
                .exchange(down, service, server, upstream, &mut kept, response_head)
                .await;
            match &outcome {
                // A connection that had been idle may have been closed while
                // the request was on its way. What is idempotent and has no
                // body can be sent once more, on a new one (RFC 9110, 9.2.2).
                Outcome::Stale(_)
                    if reused
                        && self.request.kind.is_idempotent()
                        && matches!(self.request.framing, Framing::Empty | Framing::Length(0)) =>
                {
                    again = Some((index, false));
                }
                // Whatever it is: it was not begun (RFC 9113, section 8.7).
                Outcome::NotBegun(why) if kept.is_whole() && replays < REPLAYS_MAX => {
                    let why = why.why();
                    debug!("{}: service {}: {why}", self.http.name, service.of.name);
                    replays += 1;
                    // Another connection may have room; if not, a new one.
                    again = Some((index, replays == 1));
                }
                _ => return self.conclude(outcome, service, server, slot, upstream),
            }
        }
    }

    fn dial_failed(&self, service: &Service<R>, server: &HttpServer, error: &DialError) -> Reply {
        warn!(
            "{}: service {}, server {}, {}: {error}",
            self.http.name, service.of.name, server.address, service.of.transport.base.name
        );
        let (status, error) = error.status();
        Reply { status, error }
    }

    /// The `Host` or `:authority` that a server gets.
    fn authority<'a>(&'a self, service: &Service<R>, server: &'a HttpServer) -> &'a [u8] {
        let asked = self.request.authority(self.head);
        if service.of.pass_host && !asked.is_empty() {
            asked
        } else {
            server.authority.as_bytes()
        }
    }

    /// Returns the connection with the outcome, if it is one that can be kept.
    async fn exchange<D: Downstream<R>>(
        &mut self,
        down: &mut D,
        service: &Service<R>,
        server: &HttpServer,
        upstream: Upstream<R>,
        kept: &mut Kept,
        response_head: &mut Head,
    ) -> (Outcome, Option<Box<Own<R>>>) {
        let entry = &self.plan.entry;
        let transport = &service.of.transport;
        let terms = Terms {
            read_timeout: entry.read_timeout,
            write_timeout: entry.write_timeout,
            response_header_timeout: transport.response_header_timeout,
            stream_idle_timeout: transport.stream_idle_timeout,
            body_max: entry.body_max,
            rate_min: entry.rate_min,
            half_closed_timeout: entry.idle_timeout,
        };
        let running = self.running;
        let mut question = Question {
            head: self.head,
            request: self.request,
            terms,
            is_stopping: &|| running.is_stopping(),
            admission: None,
        };
        let runtime = self.http.runtime();
        let authority = self.authority(service, server);
        match upstream {
            Upstream::Http1(mut own) => {
                let up = &mut own.conn;
                up.take_out();
                write_request(&mut up.out, self.head, self.request, authority, self.client);
                question.admission = own.admission.as_ref();
                let mut decoder = Decoder::new(Framing::Empty);
                let incoming = h1::Incoming::new(&up.stream, &mut up.inbuf, &mut decoder);
                let mut up = Side {
                    incoming: h1::Response::new(incoming),
                    outgoing: h1::Outgoing::new(&up.stream, &mut up.out, self.request.framing),
                    timers: &mut up.timers,
                };
                let mut down = down.side();
                let outcome =
                    exchange::run(runtime, &mut down, &mut up, &question, kept, response_head);
                (outcome.await, Some(own))
            }
            Upstream::Http2(lease) => {
                let tls = server.scheme == Scheme::Https;
                let made =
                    convert::request_to(self.head, self.request, authority, tls, self.client);
                let made = match made {
                    Ok(made) => made,
                    Err(why) => {
                        let reply = Reply::request_error(400);
                        return (Outcome::RequestFailed { reply, why }, None);
                    }
                };
                let shared =
                    self.exchange_shared(down, &lease, made, &question, kept, response_head);
                (Box::pin(shared).await, None)
            }
        }
    }

    async fn exchange_shared<D: Downstream<R>>(
        &self,
        down: &mut D,
        lease: &Lease,
        made: http::Request<()>,
        question: &Question<'_>,
        kept: &mut Kept,
        response_head: &mut Head,
    ) -> Outcome {
        let runtime = self.http.runtime();
        let (incoming, outgoing) = match lease.ask(made, self.request) {
            Ok(sides) => sides,
            Err(why) => {
                lease.has_not_begun(why);
                return Outcome::NotBegun(why);
            }
        };
        let mut down = down.side();
        let mut up = Side {
            incoming,
            outgoing,
            timers: &mut Timers::new(runtime),
        };
        let outcome =
            exchange::run(runtime, &mut down, &mut up, question, kept, response_head).await;
        if let Outcome::NotBegun(why) = outcome {
            lease.has_not_begun(why);
        }
        // The connection was ended because its peer is not trusted any more.
        match (outcome, lease.shared.loss(), lease.shared.refused()) {
            (Outcome::Stale(_) | Outcome::UpstreamFailed { .. }, Some(loss), _) => {
                let (status, error) = loss.status();
                Outcome::UpstreamFailed {
                    reply: Reply { status, error },
                    why: format!("{loss}, and trustLossGrace is over"),
                }
            }
            // An alert is an answer (as in HTTP/1.1, where the crate does not
            // stand between us and it).
            (Outcome::Stale(why), None, Some(error)) => {
                let reply = Reply { status: 502, error };
                Outcome::UpstreamFailed { reply, why }
            }
            (outcome, ..) => outcome,
        }
    }

    /// What an exchange's end means for both connections.
    fn conclude(
        &mut self,
        outcome: Outcome,
        service: &Service<R>,
        server: &HttpServer,
        slot: &Slot<R>,
        upstream: Option<Box<Own<R>>>,
    ) -> Verdict<R> {
        let name = self.http.name.as_str();
        let of = &service.of.name;
        let ip = self.client.ip;
        match outcome {
            Outcome::Done {
                status,
                client_lives,
                upstream_lives,
            } => {
                self.tally.count(Ended::With(status));
                if upstream_lives && let Some(own) = upstream {
                    self.http.pool.put(slot, own);
                }
                Verdict::After(if client_lives {
                    After::Next
                } else {
                    After::Last
                })
            }
            Outcome::Upgraded => {
                self.tally.count(Ended::With(101));
                Verdict::After(upstream.map_or(After::Cut, After::Switched))
            }
            Outcome::Stale(why) => {
                drop(upstream);
                warn!("{name}: service {of}, server {}: {why}", server.address);
                Verdict::Fail(Reply {
                    status: 502,
                    error: "connection_terminated",
                })
            }
            Outcome::NotBegun(why) => {
                let why = why.why();
                warn!("{name}: service {of}, server {}: {why}", server.address);
                Verdict::Fail(Reply {
                    status: 503,
                    error: "connection_limit_reached",
                })
            }
            Outcome::UpstreamFailed { reply, why } => {
                // Before the client is told, who may take his time.
                drop(upstream);
                warn!(
                    "{name}: service {of}, server {}: {}: {why}",
                    server.address, reply.status
                );
                Verdict::Fail(reply)
            }
            Outcome::RequestFailed { reply, why } => {
                drop(upstream);
                info!("{name}: {ip}: {}: {why}", reply.status);
                Verdict::Last(reply)
            }
            Outcome::Cut(why) => {
                self.tally.count(Ended::Cut);
                warn!(
                    "{name}: {ip}: service {of}, server {}: cut: {why}",
                    server.address
                );
                Verdict::After(After::Cut)
            }
            Outcome::ClientGone => {
                self.tally.count(Ended::Gone);
                debug!("{name}: {ip}: the client went away");
                Verdict::After(After::Gone)
            }
        }
    }
}

/// A request as rules see it.
struct Seen<'r> {
    head: &'r Head,
    request: &'r Request,
    host: &'r str,
    path: std::borrow::Cow<'r, str>,
    ip: IpAddr,
}

/// A checked authority without its port and trailing dot.
fn host_of(authority: &str) -> &str {
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let host = authority.get(..end).unwrap_or(authority);
    host.strip_suffix('.').unwrap_or(host)
}

impl Subject for Seen<'_> {
    fn host(&self) -> &str {
        self.host
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn method(&self) -> &[u8] {
        self.request.method(self.head)
    }

    fn query(&self) -> Option<&[u8]> {
        self.request.query(self.head)
    }

    fn has_field(&self, name: &str, value: &str) -> bool {
        if name.eq_ignore_ascii_case("host") {
            return self.request.authority(self.head) == value.as_bytes();
        }
        self.head.fields().any(|field| {
            field.known != Name::Lookalike
                && self.head.name(field).eq_ignore_ascii_case(name.as_bytes())
                && self.head.value(field) == value.as_bytes()
        })
    }

    fn client_ip(&self) -> IpAddr {
        self.ip
    }
}
