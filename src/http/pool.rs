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
use crate::dial::{Address, Admission, Channel, DialError, Dialer};
use crate::runtime::{Runtime, Stream, sleep};
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
struct Slot<R: Runtime> {
    transport: Arc<HttpTransport>,
    address: Address,
    tls: bool,
    idle: RefCell<Vec<(Upstream<R>, Instant)>>,
}

/// A slot's number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SlotId(usize);

/// All idle connections of a worker.
#[derive(Debug)]
pub(crate) struct Pool<R: Runtime> {
    dialer: Dialer<R>,
    slots: Vec<Slot<R>>,
    sweeping: Cell<bool>,
}

impl<R: Runtime> Pool<R> {
    pub(crate) fn new(dialer: Dialer<R>) -> Self {
        Self {
            dialer,
            slots: Vec::new(),
            sweeping: Cell::new(false),
        }
    }

    /// The slot for a server; the same one for the same transport and address.
    pub(crate) fn slot(
        &mut self,
        transport: &Arc<HttpTransport>,
        address: &Address,
        tls: bool,
    ) -> SlotId {
        let known = self.slots.iter().position(|slot| {
            Arc::ptr_eq(&slot.transport, transport) && slot.address == *address && slot.tls == tls
        });
        SlotId(known.unwrap_or_else(|| {
            self.slots.push(Slot {
                transport: Arc::clone(transport),
                address: address.clone(),
                tls,
                idle: RefCell::default(),
            });
            self.slots.len() - 1
        }))
    }

    pub(crate) fn dialer(&self) -> &Dialer<R> {
        &self.dialer
    }

    /// An idle connection, the most recently used first.
    pub(crate) fn take(&self, id: SlotId) -> Option<Upstream<R>> {
        let slot = self.slots.get(id.0)?;
        let now = self.dialer.runtime().now();
        loop {
            let (mut upstream, since) = {
                let mut idle = slot.idle.borrow_mut();
                // One that was put back in an earlier turn, if there is one:
                // what its upstream has sent too much, the reactor has seen.
                match idle.iter().rposition(|(_, since)| *since < now) {
                    Some(rested) => idle.remove(rested),
                    None => idle.pop()?,
                }
            };
            if since >= now && !upstream.is_silent() {
                continue;
            }
            if slot.is_usable(&upstream, since, now)
                && self
                    .dialer
                    .still_admits(&slot.transport.base, &mut upstream.admission)
            {
                upstream.reused = true;
                return Some(upstream);
            }
        }
    }

    /// A new connection.
    pub(crate) async fn dial(&self, id: SlotId) -> Result<Upstream<R>, DialError> {
        let slot = self
            .slots
            .get(id.0)
            .ok_or_else(|| DialError::Config("no such slot".to_owned()))?;
        let base = &slot.transport.base;
        let dialed = self.dialer.dial(base, &slot.address, slot.tls).await?;
        Ok(Upstream {
            conn: Conn::new(self.dialer.runtime(), dialed.channel),
            admission: dialed.admission,
            reused: false,
        })
    }

    /// Keeps a connection for the next exchange.
    pub(crate) fn put(self: &Rc<Self>, id: SlotId, upstream: Upstream<R>) {
        let Some(slot) = self.slots.get(id.0) else {
            return;
        };
        {
            let mut idle = slot.idle.borrow_mut();
            if idle.len() >= slot.transport.max_idle_per_host {
                return;
            }
            idle.push((upstream, self.dialer.runtime().now()));
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
            let now = runtime.now();
            let mut left = 0;
            for slot in &self.slots {
                let mut idle = slot.idle.borrow_mut();
                idle.retain(|(upstream, since)| slot.is_usable(upstream, *since, now));
                left += idle.len();
            }
            if left == 0 {
                self.sweeping.set(false);
                return;
            }
        }
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
