//! Upstream connections of one worker, for the exchanges to come.
//!
//! A connection of HTTP/1.1 serves one exchange at a time. It is put back only
//! when the exchange on it has ended cleanly, and handed out only when it has
//! been silent since, is not too old, and its peer would still be admitted. One
//! of HTTP/2 is shared by as many exchanges as its backend allows.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::AsyncRead;

use super::h2::upstream::{Lease, Shared};
use super::wire::Conn;
use crate::config::Scheme;
use crate::dial::{Admission, Channel, DialError, Dialer};
use crate::metrics::{Counter, Gauge, POOL_IDLE, POOL_REUSED, POOL_SHARED, Recorder};
use crate::net::Address;
use crate::runtime::{Runtime, Stream, sleep};
use crate::tls::unix_now;
use crate::transport::HttpTransport;

/// How often idle connections are looked at, to let go of dead ones.
const SWEEP: Duration = Duration::from_secs(5);
/// What is offered over TLS (ALPN).
const EITHER: &[&[u8]] = &[b"h2", b"http/1.1"];
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// A way to a backend, for one exchange.
pub(crate) enum Upstream<R: Runtime> {
    /// A connection of its own.
    Http1(Box<Own<R>>),
    /// A place on one that others use too.
    Http2(Lease),
}

impl<R: Runtime> Upstream<R> {
    /// Whether its connection has served an exchange before.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(own) => own.reused,
            Self::Http2(lease) => lease.reused,
        }
    }
}

/// An upstream connection that speaks HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Own<R: Runtime> {
    pub(crate) conn: Conn<Channel<R::Stream>, R::Timer>,
    pub(crate) admission: Option<Admission>,
    /// Whether it has served an exchange before.
    pub(crate) reused: bool,
    /// How long it may be silent once it is a tunnel.
    pub(crate) idle_limit: Option<Duration>,
}

impl<R: Runtime> Own<R> {
    /// Whether its peer would still be admitted, and its certificates have
    /// not expired. If not, that is counted: the caller closes it.
    fn is_admitted(&self) -> bool {
        let Some(admission) = &self.admission else {
            return true;
        };
        match admission.is_fit(unix_now()) {
            Ok(()) => true,
            Err(why) => {
                admission.count_closed("idle", &why);
                false
            }
        }
    }

    /// Asks the kernel itself whether something has come. A call for each
    /// reuse would cost what the reactor tells for nothing one turn later.
    fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let stream = self.conn.stream.borrow();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(stream.inner().socket(), &mut [0; 1], flags) == Err(rustix::io::Errno::WOULDBLOCK)
    }
}

/// Where connections of one kind are kept: one transport, one address.
#[derive(Debug)]
pub(crate) struct Slot<R: Runtime> {
    transport: Arc<HttpTransport>,
    address: Address,
    scheme: Scheme,
    idle: RefCell<Vec<(Box<Own<R>>, Instant)>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// What the backend spoke when it last had the choice.
    chose: Cell<Chose>,
    gate: Gate,
    /// The configuration has no use for it any more: nothing is put back.
    retired: Cell<bool>,
    idle_now: Gauge,
    shared_now: Gauge,
    reused: Counter,
}

/// What a backend speaks of what it is offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Chose {
    Unknown,
    Http1,
    Http2,
}

/// While a connection that can be shared is on its way, others wait for it
/// rather than dial their own.
#[derive(Debug, Default)]
struct Gate {
    busy: Cell<bool>,
    /// Whether the last one came to nothing.
    failed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Held by the one who dials.
struct Pass<'g>(&'g Gate);

impl Gate {
    fn enter(&self) -> Pass<'_> {
        self.busy.set(true);
        self.failed.set(false);
        Pass(self)
    }

    async fn wait(&self) {
        poll_fn(|cx| {
            if !self.busy.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|old| old.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }
}

/// All idle connections of a worker.
#[derive(Debug)]
pub(crate) struct Pool<R: Runtime> {
    dialer: Rc<Dialer<R>>,
    recorder: Rc<Recorder>,
    slots: RefCell<Vec<Rc<Slot<R>>>>,
    sweeping: Cell<bool>,
}

impl<R: Runtime> Pool<R> {
    pub(crate) fn new(dialer: Rc<Dialer<R>>, recorder: Rc<Recorder>) -> Self {
        Self {
            dialer,
            recorder,
            slots: RefCell::default(),
            sweeping: Cell::new(false),
        }
    }

    /// The slot for a server; the same one for the same transport and address.
    /// Transports are compared whole: one that was changed by a reload gets
    /// connections of its own.
    pub(crate) fn slot(
        &self,
        transport: &Arc<HttpTransport>,
        address: &Address,
        scheme: Scheme,
    ) -> Rc<Slot<R>> {
        let mut slots = self.slots.borrow_mut();
        let known = slots.iter().find(|slot| {
            slot.transport == *transport && slot.address == *address && slot.scheme == scheme
        });
        if let Some(known) = known {
            return Rc::clone(known);
        }
        let server = format!("{scheme}://{address}");
        let labels = [transport.base.name.as_str(), &server];
        let slot = Rc::new(Slot {
            transport: Arc::clone(transport),
            address: address.clone(),
            scheme,
            idle: RefCell::default(),
            shared: RefCell::default(),
            chose: Cell::new(Chose::Unknown),
            gate: Gate::default(),
            retired: Cell::new(false),
            idle_now: self.recorder.gauge(&POOL_IDLE, &labels),
            shared_now: self.recorder.gauge(&POOL_SHARED, &labels),
            reused: self.recorder.counter(&POOL_REUSED, &labels),
        });
        slots.push(Rc::clone(&slot));
        slot
    }

    /// Closes what no slot in `used` needs, after a reload.
    pub(crate) fn keep_only(&self, used: &[Rc<Slot<R>>]) {
        self.slots.borrow_mut().retain(|slot| {
            let is_used = used.iter().any(|other| Rc::ptr_eq(other, slot));
            if !is_used {
                slot.retired.set(true);
                let idle = slot.idle.take();
                slot.idle_now.set(0);
                for (upstream, _) in idle {
                    // Those that may not be used are counted.
                    upstream.is_admitted();
                }
                for shared in slot.shared.take() {
                    shared.is_admitted();
                    shared.retire();
                }
            }
            is_used
        });
    }

    pub(crate) fn dialer(&self) -> &Dialer<R> {
        &self.dialer
    }

    /// A way to the server of this slot, where [`take`](Self::take) finds none
    /// idle. `may_reuse`: on a connection that is shared; `only_http1`: as the
    /// exchange may end HTTP on it.
    pub(crate) async fn get(
        self: &Rc<Self>,
        slot: &Slot<R>,
        may_reuse: bool,
        only_http1: bool,
    ) -> Result<Upstream<R>, DialError> {
        if only_http1 {
            return self.dial(slot, HTTP1).await;
        }
        if !slot.may_share() {
            return self.dial(slot, slot.offer()).await;
        }
        let mut may_reuse = may_reuse;
        let _pass = loop {
            if may_reuse && let Some(shared) = slot.shared_with_room() {
                slot.reused.add(1);
                return Ok(Upstream::Http2(shared.lease()));
            }
            if !slot.gate.busy.get() {
                break slot.gate.enter();
            }
            slot.gate.wait().await;
            if slot.retired.get() {
                // Nothing is shared any more that could be waited for.
                return self.dial(slot, slot.offer()).await;
            }
            // What is there now is new, whoever has dialled it.
            may_reuse = true;
            if slot.gate.failed.get() || slot.chose.get() == Chose::Http1 {
                // It was no good for anyone: each by itself.
                return self.dial(slot, slot.offer()).await;
            }
        };
        let dialed = self.dial(slot, slot.offer()).await;
        slot.gate.failed.set(dialed.is_err());
        dialed
    }

    /// An idle connection, the most recently used first.
    pub(crate) fn take(&self, slot: &Slot<R>) -> Option<Box<Own<R>>> {
        let now = self.dialer.runtime().now();
        loop {
            let (mut upstream, since) = {
                let mut idle = slot.idle.borrow_mut();
                // One that was put back in an earlier turn, if there is one:
                // what its upstream has sent too much, the reactor has seen.
                // They are in the order in which they were put back.
                let taken = match idle.partition_point(|(_, since)| *since < now) {
                    0 => idle.pop()?,
                    rested => idle.remove(rested - 1),
                };
                slot.idle_now.set(idle.len());
                taken
            };
            if since >= now && !upstream.is_silent() {
                continue;
            }
            if slot.is_usable(&upstream, since, now) && upstream.is_admitted() {
                upstream.reused = true;
                slot.reused.add(1);
                return Some(upstream);
            }
        }
    }

    /// A new connection.
    async fn dial(
        self: &Rc<Self>,
        slot: &Slot<R>,
        offer: &'static [&'static [u8]],
    ) -> Result<Upstream<R>, DialError> {
        let base = &slot.transport.base;
        let runtime = self.dialer.runtime();
        let tls = slot.scheme == Scheme::Https;
        let offer = tls.then_some(offer);
        let dialed = self.dialer.dial(base, &slot.address, offer).await?;
        let speaks_http2 = match slot.scheme {
            Scheme::Http => false,
            Scheme::Https => dialed.channel.protocol() == Some(b"h2"),
            Scheme::H2c => true,
        };
        if offer == Some(EITHER) {
            slot.chose.set(if speaks_http2 {
                Chose::Http2
            } else {
                Chose::Http1
            });
        }
        if !speaks_http2 {
            return Ok(Upstream::Http1(Box::new(Own {
                conn: Conn::new(runtime, dialed.channel),
                admission: dialed.admission,
                reused: false,
                idle_limit: slot.transport.stream_idle_timeout,
            })));
        }
        let transport = &slot.transport;
        let shared = Shared::start(runtime, transport, dialed, &slot.shared_now).await?;
        if slot.retired.get() {
            shared.ends_with_its_exchanges();
        } else {
            slot.shared.borrow_mut().push(Rc::clone(&shared));
            self.watch();
        }
        Ok(Upstream::Http2(shared.lease()))
    }

    /// Keeps a connection for the next exchange, if it is fit for one.
    pub(crate) fn put(self: &Rc<Self>, slot: &Slot<R>, mut upstream: Box<Own<R>>) {
        if !upstream.is_admitted() || slot.retired.get() {
            return;
        }
        {
            let mut idle = slot.idle.borrow_mut();
            if idle.len() >= slot.transport.max_idle_per_host {
                return;
            }
            upstream.conn.give_back();
            idle.push((upstream, self.dialer.runtime().now()));
            slot.idle_now.set(idle.len());
        }
        self.watch();
    }

    /// Sees to it that what is unfit is closed in time.
    fn watch(self: &Rc<Self>) {
        if !self.sweeping.replace(true) {
            let pool = Rc::clone(self);
            self.dialer
                .runtime()
                .spawn(async move { pool.sweep().await });
        }
    }

    /// Closes what is dead or too old, until nothing is left.
    async fn sweep(&self) {
        let runtime = self.dialer.runtime();
        loop {
            sleep(runtime, SWEEP).await;
            if self.close_unfit() == 0 {
                self.sweeping.set(false);
                return;
            }
        }
    }

    /// Closes what may not be used any more. Returns how many are left.
    pub(crate) fn close_unfit(&self) -> usize {
        let now = self.dialer.runtime().now();
        let mut left = 0;
        for slot in self.slots.borrow().iter() {
            let mut idle = slot.idle.borrow_mut();
            idle.retain(|(upstream, since)| {
                slot.is_usable(upstream, *since, now) && upstream.is_admitted()
            });
            slot.idle_now.set(idle.len());
            let mut shared = slot.shared.borrow_mut();
            let mut idle_left = slot.transport.max_idle_per_host;
            shared.retain(|it| {
                if !it.is_open() || !it.is_admitted() {
                    return false;
                }
                if it.is_idle() {
                    if idle_left == 0 {
                        it.retire();
                        return false;
                    }
                    idle_left -= 1;
                }
                true
            });
            left += idle.len() + shared.len();
        }
        left
    }
}

impl<R: Runtime> Slot<R> {
    /// Whether a connection may turn out to be one that can be shared.
    pub(crate) fn may_share(&self) -> bool {
        match self.scheme {
            Scheme::Http => false,
            Scheme::Https => self.transport.http2 && self.chose.get() != Chose::Http1,
            Scheme::H2c => true,
        }
    }

    /// What to offer over TLS.
    fn offer(&self) -> &'static [&'static [u8]] {
        if self.transport.http2 { EITHER } else { HTTP1 }
    }

    fn shared_with_room(&self) -> Option<Rc<Shared>> {
        let shared = self.shared.borrow();
        let found = shared.iter().find(|it| it.has_room() && it.is_admitted());
        found.map(Rc::clone)
    }

    /// Young enough, and silent. A byte from an idle upstream is never a
    /// response (RFC 9112, section 6.3); an end means that it has closed.
    fn is_usable(&self, upstream: &Own<R>, since: Instant, now: Instant) -> bool {
        let limit = self.transport.idle_conn_timeout;
        if limit.is_some_and(|limit| now.saturating_duration_since(since) >= limit) {
            return false;
        }
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        let mut stream = upstream.conn.stream.borrow_mut();
        upstream.conn.inbuf.is_empty()
            && Pin::new(&mut *stream)
                .poll_read(&mut cx, &mut byte)
                .is_pending()
    }
}
