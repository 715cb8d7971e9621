//! Idle upstream connections of one worker.
//!
//! A connection is put back only when the exchange on it has ended cleanly,
//! and handed out only when it has been silent since, is not too old, and
//! its peer would still be admitted.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use futures_lite::AsyncRead;

use super::wire::Conn;
use crate::dial::{Admission, Channel, DialError, Dialer};
use crate::metrics::{Counter, Gauge, POOL_IDLE, POOL_REUSED, Recorder};
use crate::net::Address;
use crate::runtime::{Runtime, Stream, sleep};
use crate::tls::unix_now;
use crate::transport::HttpTransport;

/// How often idle connections are looked at, to let go of dead ones.
const SWEEP: Duration = Duration::from_secs(5);

/// An upstream connection that speaks HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Upstream<R: Runtime> {
    pub(crate) conn: Conn<Channel<R::Stream>, R::Timer>,
    pub(crate) admission: Option<Admission>,
    /// Whether it has served an exchange before.
    pub(crate) reused: bool,
}

impl<R: Runtime> Upstream<R> {
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
    tls: bool,
    idle: RefCell<Vec<(Upstream<R>, Instant)>>,
    /// The configuration has no use for it any more: nothing is put back.
    retired: Cell<bool>,
    idle_now: Gauge,
    reused: Counter,
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
        tls: bool,
    ) -> Rc<Slot<R>> {
        let mut slots = self.slots.borrow_mut();
        let known = slots.iter().find(|slot| {
            slot.transport == *transport && slot.address == *address && slot.tls == tls
        });
        if let Some(known) = known {
            return Rc::clone(known);
        }
        let server = format!("{}://{address}", if tls { "https" } else { "http" });
        let labels = [transport.base.name.as_str(), &server];
        let slot = Rc::new(Slot {
            transport: Arc::clone(transport),
            address: address.clone(),
            tls,
            idle: RefCell::default(),
            retired: Cell::new(false),
            idle_now: self.recorder.gauge(&POOL_IDLE, &labels),
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
            }
            is_used
        });
    }

    pub(crate) fn dialer(&self) -> &Dialer<R> {
        &self.dialer
    }

    /// An idle connection, the most recently used first.
    pub(crate) fn take(&self, slot: &Slot<R>) -> Option<Upstream<R>> {
        let now = self.dialer.runtime().now();
        loop {
            let (mut upstream, since) = {
                let mut idle = slot.idle.borrow_mut();
                // One that was put back in an earlier turn, if there is one:
                // what its upstream has sent too much, the reactor has seen.
                let taken = match idle.iter().rposition(|(_, since)| *since < now) {
                    Some(rested) => idle.remove(rested),
                    None => idle.pop()?,
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
    pub(crate) async fn dial(&self, slot: &Slot<R>) -> Result<Upstream<R>, DialError> {
        let base = &slot.transport.base;
        let dialed = self.dialer.dial(base, &slot.address, slot.tls).await?;
        Ok(Upstream {
            conn: Conn::new(self.dialer.runtime(), dialed.channel),
            admission: dialed.admission,
            reused: false,
        })
    }

    /// Keeps a connection for the next exchange, if it is fit for one.
    pub(crate) fn put(self: &Rc<Self>, slot: &Slot<R>, upstream: Upstream<R>) {
        if !upstream.is_admitted() || slot.retired.get() {
            return;
        }
        {
            let mut idle = slot.idle.borrow_mut();
            if idle.len() >= slot.transport.max_idle_per_host {
                return;
            }
            idle.push((upstream, self.dialer.runtime().now()));
            slot.idle_now.set(idle.len());
        }
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
            left += idle.len();
        }
        left
    }
}

impl<R: Runtime> Slot<R> {
    /// Young enough, and silent. A byte from an idle upstream is never a
    /// response (RFC 9112, section 6.3); an end means that it has closed.
    fn is_usable(&self, upstream: &Upstream<R>, since: Instant, now: Instant) -> bool {
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
