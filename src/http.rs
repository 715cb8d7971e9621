//! The HTTP/1.1 forwarder: the request loop of one client connection.

pub(crate) mod exchange;
pub(crate) mod fields;
pub mod h1;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod reply;
pub(crate) mod wire;

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::{AsyncWriteExt, FutureExt};
use log::{debug, info, warn};

use crate::config;
use crate::dial::{self, DialError};
use crate::drain::Running;
use crate::rule::{Subject, match_form};
use crate::runtime::{Runtime, Timer, within};
use crate::tcp::{copy, tunnel};
use exchange::{Outcome, Terms};
use fields::{Client, write_request};
use h1::head::{Head, Name, Scanner};
use h1::request::{self, Method, Parsed, Request};
use h1::{Framing, Refusal};
use plan::{Counts, Ended, Plan, Service};
use pool::{Pool, Slot, Upstream};
use reply::Reply;
use wire::{Conn, READ_BYTES, Stop, write_all};

/// How long, and how much, a client may still send after an answer that ends
/// its connection; so that the answer is not lost to a reset (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;
/// How long, once the proxy is told to end, a connection that has not asked
/// for anything yet is waited for.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a protocol that HTTP was upgraded to may be silent.
const UPGRADE_LIMITS: copy::Limits = copy::Limits {
    idle: Some(Duration::from_secs(3600)),
    termination: None,
};

/// An HTTP entry point on one worker.
#[derive(Debug)]
pub(crate) struct Http<R: Runtime> {
    name: String,
    /// Replaced by a reload. Each request is served to its end by the one
    /// that it began with.
    plan: RefCell<Rc<Plan<R>>>,
    pool: Rc<Pool<R>>,
    /// Our host name, for `X-Forwarded-Server`.
    server: Rc<str>,
}

impl<R: Runtime> Http<R> {
    pub(crate) fn new(name: &str, plan: Plan<R>, pool: Rc<Pool<R>>, server: Rc<str>) -> Self {
        Self {
            name: name.to_owned(),
            plan: RefCell::new(Rc::new(plan)),
            pool,
            server,
        }
    }

    /// Serves every request that begins from now on by another plan.
    pub(crate) fn replace(&self, plan: Plan<R>) {
        *self.plan.borrow_mut() = Rc::new(plan);
    }

    fn plan(&self) -> Rc<Plan<R>> {
        Rc::clone(&self.plan.borrow())
    }

    fn client(&self, plan: &Plan<R>, ip: IpAddr) -> Client {
        Client::new(ip, plan.entry.trusted.contains(ip), &self.server)
    }

    fn runtime(&self) -> &R {
        self.pool.dialer().runtime()
    }

    fn after(&self, limit: Option<Duration>) -> Option<Instant> {
        limit.and_then(|limit| self.runtime().now().checked_add(limit))
    }

    /// Serves a client connection to its end.
    pub(crate) async fn serve(&self, stream: R::Stream, peer: SocketAddr, running: &Running) {
        let plan = self.plan();
        let mut connection = Connection {
            http: self,
            client: self.client(&plan, peer.ip().to_canonical()),
            counts: Rc::clone(&plan.unrouted),
            plan,
            began: None,
            down: Conn::new(self.runtime(), stream),
            head: Head::default(),
            response_head: Head::default(),
            running,
        };
        let cut = async {
            running.cut().await;
            End::Cut
        };
        let end = connection.run().or(cut).await;
        if matches!(end, End::Cut) && connection.began.is_some() {
            connection.count(Ended::Cut);
        }
        let stream = connection.down.stream.into_inner();
        match end {
            End::Quiet => {
                running.set_finished(true);
                self.linger(stream).or(running.cut()).await;
            }
            End::Cut => copy::reset(stream),
            End::Gone => drop(stream),
        }
    }

    /// Closes so that the last answer arrives: our half first, then a while
    /// of not minding what still comes.
    async fn linger(&self, mut stream: R::Stream) {
        use futures_lite::AsyncReadExt;
        if stream.close().await.is_err() {
            return;
        }
        let drain = async {
            let mut waste = [0; 4096];
            let mut left = LINGER_BYTES;
            while let Ok(n) = stream.read(&mut waste).await {
                if n == 0 {
                    return;
                }
                if n >= left {
                    // Enough. Closing now would reset the connection, and the
                    // answer with it; not reading lets the client read.
                    std::future::pending().await
                }
                left -= n;
            }
        };
        // Over time or not, the connection ends here.
        within(self.runtime(), Some(LINGER), drain).await;
    }
}

/// How to end a client connection.
enum End {
    /// All that was to be said has been said.
    Quiet,
    /// What it got is not whole, and must not look so.
    Cut,
    /// It has gone.
    Gone,
}

/// One client connection.
struct Connection<'h, R: Runtime> {
    http: &'h Http<R>,
    /// Of the request that is served, or was served last.
    plan: Rc<Plan<R>>,
    counts: Rc<Counts>,
    /// When the request's head was there.
    began: Option<Instant>,
    client: Client,
    down: Conn<R::Stream, R::Timer>,
    head: Head,
    response_head: Head,
    running: &'h Running,
}

impl<R: Runtime> Connection<'_, R> {
    async fn run(&mut self) -> End {
        let mut is_first = true;
        let mut in_a_row = 0u32;
        loop {
            // Pipelined requests must leave other connections their turns.
            in_a_row = in_a_row.wrapping_add(1);
            if in_a_row.is_multiple_of(32) {
                futures_lite::future::yield_now().await;
            }
            let request = match self.next_request(is_first).await {
                Ok(request) => request,
                Err(end) => return end,
            };
            is_first = false;
            self.began = Some(self.http.runtime().now());
            if let Some(end) = self.answer(&request).await {
                return end;
            }
        }
    }

    /// Whatever begins now is served by what a reload may have changed.
    fn adopt_plan(&mut self) {
        if !Rc::ptr_eq(&self.plan, &self.http.plan.borrow()) {
            self.plan = self.http.plan();
            self.client = self.http.client(&self.plan, self.client.ip);
        }
        // No router has it yet.
        self.counts = Rc::clone(&self.plan.unrouted);
    }

    /// Counts the request, once.
    fn count(&mut self, ended: Ended) {
        let began = self.began.take();
        self.counts.count(ended);
        if let (Some(began), Ended::With(200..)) = (began, ended) {
            let now = self.http.runtime().now();
            self.counts
                .seconds
                .record(now.saturating_duration_since(began));
        }
    }

    /// Waits for a request head.
    async fn next_request(&mut self, is_first: bool) -> Result<Request, End> {
        self.adopt_plan();
        let mut scanner = Scanner::default();
        let mut head_deadline = None;
        let mut stopping_deadline = None;
        loop {
            let parsed = self.parse(&mut scanner);
            match parsed {
                Ok(Parsed::Done(request, len)) => {
                    self.down.inbuf.consume(len);
                    return Ok(request);
                }
                Ok(Parsed::Partial) => {}
                Err(refusal) => {
                    info!(
                        "{}: {}: refused with {}: {}",
                        self.http.name, self.client.ip, refusal.status, refusal.why
                    );
                    return Err(self
                        .reply(Reply::request_error(refusal.status), false)
                        .await);
                }
            }
            let plan = Rc::clone(&self.plan);
            let entry = &plan.entry;
            let max = entry.head.bytes_max + READ_BYTES;
            let is_idle = self.down.inbuf.is_empty();
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
            let Conn {
                stream,
                inbuf,
                read_timer,
                ..
            } = &mut self.down;
            let running = self.running;
            read_timer.set(deadline);
            let filled = poll_fn(|cx| match inbuf.poll_fill(cx, stream, max) {
                Poll::Ready(filled) => Poll::Ready(filled.map_err(Stop::Io)),
                Poll::Pending
                    if is_idle
                        && stopping_deadline.is_none()
                        && running.poll_stopping(cx).is_ready() =>
                {
                    Poll::Ready(if is_first { Err(Stop::Timeout) } else { Ok(0) })
                }
                Poll::Pending => read_timer.poll(cx).map(|()| Err(Stop::Timeout)),
            })
            .await;
            read_timer.set(None);
            match filled {
                Ok(0) if is_idle => return Err(End::Quiet),
                // Cut within a head: nobody is there to read a 400.
                Ok(0) | Err(Stop::Io(_)) => return Err(End::Gone),
                // It begins now, not when the connection fell idle.
                Ok(_) if is_idle => {
                    self.running.set_finished(false);
                    self.adopt_plan();
                }
                Ok(_) => {}
                // The stop has come: once more, with the time that is left.
                Err(Stop::Timeout)
                    if is_idle
                        && is_first
                        && running.is_stopping()
                        && stopping_deadline.is_none() => {}
                Err(Stop::Timeout) if is_idle => return Err(End::Quiet),
                Err(Stop::Timeout) => {
                    info!(
                        "{}: {}: no whole request head in time",
                        self.http.name, self.client.ip
                    );
                    return Err(self.reply(Reply::request_error(408), false).await);
                }
            }
        }
    }

    fn parse(&mut self, scanner: &mut Scanner) -> Result<Parsed, Refusal> {
        let (skip, wait) = request::skip_empty_lines(self.down.inbuf.data())?;
        if wait {
            return Ok(Parsed::Partial);
        }
        self.down.inbuf.consume(skip);
        let data = self.down.inbuf.data();
        request::parse(data, scanner, &self.plan.entry.head, &mut self.head)
    }

    /// Answers one request. `Some`: the connection ends with it.
    async fn answer(&mut self, request: &Request) -> Option<End> {
        let http = self.http;
        let is_head = request.kind == Method::Head;
        if let Err((reply, why)) = self.check(request) {
            info!("{}: {}: {}: {why}", http.name, self.client.ip, reply.status);
            return Some(self.reply(reply, is_head).await);
        }
        let Some(index) = self.route(request) else {
            debug!("{}: {}: no router matches", http.name, self.client.ip);
            let reply = Reply {
                status: 404,
                error: "destination_not_found",
            };
            return self.fail(reply, request, is_head).await;
        };
        let (service, counts) = self.plan.services.get(index)?;
        let service = Rc::clone(service);
        self.counts = Rc::clone(counts);
        self.forward(request, &service).await
    }

    fn check(&self, request: &Request) -> Result<(), (Reply, &'static str)> {
        let entry = &self.plan.entry;
        if let (Framing::Length(length), Some(max)) = (request.framing, entry.body_max)
            && length > max
        {
            return Err((
                Reply::request_error(413),
                "the body is larger than maxRequestBodyBytes",
            ));
        }
        if self.plan.looks_at_path && request::is_ambiguous_path(request.path(&self.head)) {
            return Err((
                Reply::request_error(400),
                "the path has an encoded slash, backslash or NUL, and routers here look at paths",
            ));
        }
        Ok(())
    }

    fn route(&self, request: &Request) -> Option<usize> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        let subject = Seen {
            head: &self.head,
            request,
            host: host_of(text(request.authority(&self.head))),
            path: match_form(text(request.path(&self.head))),
            ip: self.client.ip,
        };
        let routes = &self.plan.entry.routes;
        routes.iter().position(|route| route.rule.matches(&subject))
    }

    /// Finds a server that takes the request, and relays both.
    async fn forward(&mut self, request: &Request, service: &Service<R>) -> Option<End> {
        let is_head = request.kind == Method::Head;
        let mut tried = Vec::new();
        let mut last = Reply {
            status: 503,
            error: "destination_unavailable",
        };
        let mut again = None;
        loop {
            let may_reuse = again.is_none();
            let next = again
                .take()
                .or_else(|| service.balancer.borrow_mut().next(&tried));
            let Some(index) = next else {
                return self.fail(last, request, is_head).await;
            };
            let (Some(slot), Some(server)) =
                (service.slots.get(index), service.of.servers.get(index))
            else {
                return self.fail(last, request, is_head).await;
            };
            let mut upstream = match self.upstream(slot, may_reuse).await {
                Ok(upstream) => upstream,
                Err(error) => {
                    last = self.dial_failed(service, server, &error);
                    tried.push(index);
                    continue;
                }
            };
            let outcome = self.exchange(request, service, server, &mut upstream).await;
            // A connection that had been idle may have been closed while the
            // request was on its way. What is idempotent and has no body can
            // be sent once more, on a new one (RFC 9110, section 9.2.2).
            if let Outcome::Stale(_) = outcome
                && upstream.reused
                && request.kind.is_idempotent()
                && matches!(request.framing, Framing::Empty | Framing::Length(0))
            {
                again = Some(index);
                continue;
            }
            return self
                .conclude(outcome, request, service, server, slot, upstream)
                .await;
        }
    }

    async fn upstream(&self, slot: &Slot<R>, may_reuse: bool) -> Result<Upstream<R>, DialError> {
        if may_reuse && let Some(upstream) = self.http.pool.take(slot) {
            return Ok(upstream);
        }
        self.http.pool.dial(slot).await
    }

    fn dial_failed(
        &self,
        service: &Service<R>,
        server: &config::HttpServer,
        error: &DialError,
    ) -> Reply {
        warn!(
            "{}: service {}, server {}, {}: {error}",
            self.http.name, service.of.name, server.address, service.of.transport.base.name
        );
        let (status, error) = error.status();
        Reply { status, error }
    }

    async fn exchange(
        &mut self,
        request: &Request,
        service: &Service<R>,
        server: &config::HttpServer,
        upstream: &mut Upstream<R>,
    ) -> Outcome {
        let entry = &self.plan.entry;
        let authority = request.authority(&self.head);
        let host = if service.of.pass_host && !authority.is_empty() {
            authority
        } else {
            server.authority.as_bytes()
        };
        let Upstream {
            conn: up,
            admission,
            ..
        } = upstream;
        write_request(&mut up.out, &self.head, request, host, &self.client);
        let terms = Terms {
            read_timeout: entry.read_timeout,
            write_timeout: entry.write_timeout,
            response_header_timeout: service.of.transport.response_header_timeout,
            body_max: entry.body_max,
            half_closed_timeout: entry.idle_timeout,
        };
        let running = self.running;
        exchange::run(
            self.http.runtime(),
            &mut self.down,
            up,
            exchange::Question {
                head: &self.head,
                request,
                terms,
                is_stopping: &|| running.is_stopping(),
                admission: admission.as_ref(),
            },
            &mut self.response_head,
        )
        .await
    }

    /// What an exchange's end means for both connections.
    async fn conclude(
        &mut self,
        outcome: Outcome,
        request: &Request,
        service: &Service<R>,
        server: &config::HttpServer,
        slot: &Slot<R>,
        upstream: Upstream<R>,
    ) -> Option<End> {
        let is_head = request.kind == Method::Head;
        let name = self.http.name.as_str();
        match outcome {
            Outcome::Done {
                status,
                client_lives,
                upstream_lives,
            } => {
                self.count(Ended::With(status));
                if upstream_lives {
                    self.http.pool.put(slot, upstream);
                }
                (!client_lives).then_some(End::Quiet)
            }
            Outcome::Upgraded => {
                self.count(Ended::With(101));
                Some(self.tunnel(upstream).await)
            }
            Outcome::Stale(why) => {
                drop(upstream);
                warn!(
                    "{name}: service {}, server {}: {why}",
                    service.of.name, server.address
                );
                let reply = Reply {
                    status: 502,
                    error: "connection_terminated",
                };
                self.fail(reply, request, is_head).await
            }
            Outcome::UpstreamFailed { reply, why } => {
                // Before the client is told, who may take his time.
                drop(upstream);
                warn!(
                    "{name}: service {}, server {}: {}: {why}",
                    service.of.name, server.address, reply.status
                );
                self.fail(reply, request, is_head).await
            }
            Outcome::RequestFailed { reply, why } => {
                drop(upstream);
                info!("{name}: {}: {}: {why}", self.client.ip, reply.status);
                Some(self.reply(reply, is_head).await)
            }
            Outcome::Cut(why) => {
                self.count(Ended::Cut);
                warn!(
                    "{name}: {}: service {}, server {}: cut: {why}",
                    self.client.ip, service.of.name, server.address
                );
                Some(End::Cut)
            }
            Outcome::ClientGone => {
                self.count(Ended::Gone);
                debug!("{name}: {}: the client went away", self.client.ip);
                Some(End::Gone)
            }
        }
    }

    /// Answers where no upstream did. The next request is where it should be
    /// only if this one had no body.
    async fn fail(&mut self, reply: Reply, request: &Request, is_head: bool) -> Option<End> {
        if request.framing == Framing::Empty && request.keeps_alive() {
            return self.reply_and_go_on(reply, is_head).await;
        }
        Some(self.reply(reply, is_head).await)
    }

    /// The last answer on this connection.
    async fn reply(&mut self, reply: Reply, is_head: bool) -> End {
        if self.write_reply(reply, is_head, true).await {
            End::Quiet
        } else {
            End::Gone
        }
    }

    async fn reply_and_go_on(&mut self, reply: Reply, is_head: bool) -> Option<End> {
        let closes = self.running.is_stopping();
        if !self.write_reply(reply, is_head, closes).await {
            return Some(End::Gone);
        }
        closes.then_some(End::Quiet)
    }

    async fn write_reply(&mut self, reply: Reply, is_head: bool, closes: bool) -> bool {
        self.count(Ended::With(reply.status));
        let down = &mut self.down;
        down.out.clear();
        reply.write(&mut down.out, is_head, closes);
        let limit = self.plan.entry.write_timeout;
        let runtime = self.http.runtime();
        write_all(
            runtime,
            &down.stream,
            &mut down.out,
            &mut down.write_timer,
            limit,
        )
        .await
        .is_ok()
    }

    /// Passes bytes both ways after a protocol switch, those first that were
    /// read ahead.
    async fn tunnel(&mut self, upstream: Upstream<R>) -> End {
        let mut up = upstream.conn;
        let dialed = dial::Upstream {
            channel: up.stream.into_inner(),
            admission: upstream.admission,
        };
        let terms = tunnel::Terms {
            limits: UPGRADE_LIMITS,
            usage: "upgrade",
            bytes: None,
        };
        let client = (self.down.stream.get_mut(), &mut self.down.inbuf);
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
