//! A connection to a backend that many exchanges share.
//!
//! A task drives it: frames in and out, pings, and its end. Exchanges hold a
//! [`Lease`] each. The task outlives the pool's interest in the connection until
//! the last lease is gone, but no longer than its peer is trusted.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use log::{debug, info};

use super::io::{Io, Traffic};
use super::sides::{Incoming, Out, Outgoing, io_error};
use super::{FAULTS_MAX, SEND_BUFFER};
use crate::dial::{Admission, DialError, Loss, Upstream};
use crate::http::exchange::side::NotBegun;
use crate::http::message::Framing;
use crate::http::message::request::Request;
use crate::http::wire::ReadBuf;
use crate::metrics::Gauge;
use crate::runtime::{Runtime, Timer, within};
use crate::tls::unix_now;
use crate::transport::HttpTransport;

/// What a stream may send before it is read.
const STREAM_WINDOW: u32 = 64 << 10;
/// Exchanges on one connection at a time, whatever the backend allows.
const STREAMS_MAX: u32 = 1000;
/// What all streams of a connection may send before it is read: as much as
/// they may by themselves. Were it less, a few clients that do not read could
/// stop all others whose responses come over the same connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;
/// Exchanges on one connection in its life: there are 2^30 stream identifiers
/// (RFC 9113, section 5.1.1).
const EXCHANGES_MAX: u32 = 1 << 29;
/// How long a connection that nobody uses may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// Response heads; the crate refuses what is larger before we see it.
const HEAD_BYTES: u32 = 64 << 10;

/// How many exchanges may be on a connection at once, as far as has been
/// learnt. What a backend says of it is not all: it may refuse before.
#[derive(Debug)]
struct Places {
    /// Exchanges under way.
    taken: Cell<usize>,
    /// Never 0.
    ceiling: Cell<usize>,
    /// Exchanges that have ended since that was last changed.
    ended: Cell<usize>,
}

impl Places {
    fn new() -> Self {
        Self {
            taken: Cell::new(0),
            ceiling: Cell::new(Self::max()),
            ended: Cell::new(0),
        }
    }

    fn max() -> usize {
        usize::try_from(STREAMS_MAX).unwrap_or(usize::MAX)
    }

    fn take(&self) {
        self.taken.set(self.taken.get() + 1);
    }

    fn are_left(&self, allowed: usize) -> bool {
        self.taken.get() < allowed.min(self.ceiling.get())
    }

    fn are_free(&self) -> bool {
        self.taken.get() == 0
    }

    /// An exchange has ended. When as many have as there may be at once, one
    /// more is tried: who has had too much to do has not for ever.
    fn give_back(&self) {
        self.leave();
        let (ended, ceiling) = (self.ended.get() + 1, self.ceiling.get());
        self.ended.set(ended % ceiling);
        if ended >= ceiling {
            self.ceiling.set((ceiling + 1).min(Self::max()));
        }
    }

    /// An exchange was refused: there were too many.
    fn refused(&self) {
        self.leave();
        let ceiling = self.taken.get().clamp(1, self.ceiling.get());
        self.ceiling.set(ceiling);
        self.ended.set(0);
    }

    fn leave(&self) {
        self.taken.set(self.taken.get().saturating_sub(1));
    }
}

/// What exchanges, the pool and the task know of a connection.
#[derive(Debug)]
pub(crate) struct Shared {
    /// `None`: no further exchange begins on it.
    send: RefCell<Option<SendRequest<Bytes>>>,
    places: Places,
    /// How many have begun on it.
    begun: Cell<u32>,
    /// Nobody else will use it: it ends with the exchanges that it has.
    is_last: Cell<bool>,
    admission: Option<Admission>,
    traffic: Rc<Traffic>,
    /// Why its peer is not talked to any more.
    lost: RefCell<Option<Loss>>,
    /// The task's.
    waker: RefCell<Option<Waker>>,
}

impl Shared {
    /// Starts to speak HTTP/2 on a connection, and the task that drives it.
    pub(crate) async fn start<R: Runtime>(
        runtime: &R,
        transport: &HttpTransport,
        dialed: Upstream<R::Stream>,
        shared_now: &Gauge,
    ) -> Result<Rc<Self>, DialError> {
        let io = Io::new(dialed.channel, ReadBuf::default());
        let traffic = io.traffic();
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEAD_BYTES)
            .max_local_error_reset_streams(Some(FAULTS_MAX))
            .enable_push(false);
        let limit = transport.base.handshake_timeout;
        let (send, mut connection) = within(runtime, Some(limit), builder.handshake(io))
            .await
            .ok_or(DialError::HandshakeTimeout(limit))?
            .map_err(|error| DialError::Handshake(io_error(error)))?;
        let shared = Rc::new(Self {
            send: RefCell::new(Some(send)),
            places: Places::new(),
            begun: Cell::new(0),
            is_last: Cell::new(false),
            admission: dialed.admission,
            traffic: Rc::clone(&traffic),
            lost: RefCell::default(),
            waker: RefCell::default(),
        });
        let mut driver = Driver {
            shared: Rc::clone(&shared),
            name: transport.base.name.clone(),
            idle_limit: transport.idle_conn_timeout,
            idle_since: Some(runtime.now()),
            leaving_since: None,
            timer: runtime.timer(),
            pings: Pings {
                ping: connection.ping_pong(),
                after: transport.read_idle_timeout,
                limit: transport.ping_timeout,
                traffic,
                seen: 0,
                last: runtime.now(),
                sent: None,
            },
            runtime: runtime.clone(),
        };
        let counted = shared_now.one_more();
        runtime.spawn(async move {
            let mut connection = Some(connection);
            poll_fn(|cx| driver.poll(cx, &mut connection)).await;
            driver.shared.retire();
            drop(counted);
        });
        Ok(shared)
    }

    /// Whether another exchange may begin on it.
    pub(crate) fn has_room(&self) -> bool {
        let send = self.send.borrow();
        send.as_ref().is_some_and(|send| {
            let allowed = send.current_max_send_streams();
            // A backend may count a stream for a while after its end.
            self.places.are_left(allowed - allowed / 8)
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.send.borrow().is_some()
    }

    /// Whether its peer would still be admitted. If not, nothing further begins
    /// on it.
    pub(crate) fn is_admitted(&self) -> bool {
        let Some(admission) = &self.admission else {
            return true;
        };
        match admission.is_fit(unix_now()) {
            Ok(()) => true,
            Err(why) => {
                // What is under way is counted when its time is over.
                if self.is_open() && self.is_idle() {
                    admission.count_closed("idle", &why);
                }
                self.retire();
                false
            }
        }
    }

    /// Nobody but who has a place on it will use it.
    pub(crate) fn ends_with_its_exchanges(&self) {
        self.is_last.set(true);
    }

    /// Nothing further begins on it. It ends with its last exchange.
    pub(crate) fn retire(&self) {
        drop(self.send.take());
        self.wake();
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Why its peer is not talked to any more, if that is why it has ended.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lost.borrow().clone()
    }

    /// Whether no exchange is under way on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.places.are_free()
    }

    /// What its peer has said over TLS of why it ended, as an error type of
    /// `Proxy-Status`.
    pub(crate) fn refused(&self) -> Option<&'static str> {
        self.traffic.refused()
    }

    /// Takes a place on it.
    pub(crate) fn lease(self: &Rc<Self>) -> Lease {
        self.places.take();
        let begun = self.begun.get();
        self.begun.set(begun + 1);
        if begun + 1 == EXCHANGES_MAX {
            self.ends_with_its_exchanges();
        }
        Lease {
            reused: begun > 0,
            was_refused: Cell::new(false),
            shared: Rc::clone(self),
        }
    }
}

/// A place on a connection, for one exchange.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) shared: Rc<Shared>,
    /// Whether it has served an exchange before.
    pub(crate) reused: bool,
    was_refused: Cell<bool>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.was_refused.get() {
            self.shared.places.refused();
        } else {
            self.shared.places.give_back();
        }
        if !self.shared.is_idle() {
            return;
        }
        // One that refuses what it has alone will take nothing.
        if self.shared.is_last.get() || self.was_refused.get() {
            self.shared.retire();
        } else {
            self.shared.wake();
        }
    }
}

impl Lease {
    /// The backend has not begun with the exchange.
    pub(crate) fn has_not_begun(&self, why: NotBegun) {
        match why {
            NotBegun::Refused => self.was_refused.set(true),
            NotBegun::Leaving => self.shared.retire(),
        }
    }

    /// Sends the head of a request. `Err`: nothing of it was sent.
    pub(crate) fn ask(
        &self,
        made: http::Request<()>,
        request: &Request,
    ) -> Result<(Incoming, Outgoing), NotBegun> {
        let mut send = self.shared.send.borrow_mut();
        // What has been leased may have been retired since.
        let send = send.as_mut().ok_or(NotBegun::Leaving)?;
        let ends = matches!(request.framing, Framing::Empty | Framing::Length(0));
        let sent = send.send_request(made, ends);
        let (response, content) = sent.map_err(|error| {
            if error.is_go_away() || error.is_io() {
                NotBegun::Leaving
            } else {
                NotBegun::Refused
            }
        })?;
        let out = if ends { Out::ended() } else { Out::default() };
        Ok((Incoming::new(response), Outgoing::new(content, out)))
    }
}

/// The task of a connection.
struct Driver<R: Runtime> {
    shared: Rc<Shared>,
    name: String,
    idle_limit: Option<Duration>,
    idle_since: Option<Instant>,
    leaving_since: Option<Instant>,
    timer: R::Timer,
    pings: Pings,
    runtime: R,
}

impl<R: Runtime> Driver<R> {
    fn poll<C>(&mut self, cx: &mut Context<'_>, connection: &mut Option<C>) -> Poll<()>
    where
        C: Future<Output = Result<(), h2::Error>> + Unpin,
    {
        let Some(driven) = connection else {
            return Poll::Ready(());
        };
        *self.shared.waker.borrow_mut() = Some(cx.waker().clone());
        self.pings.traffic.allow();
        if let Some(admission) = &self.shared.admission
            && let Poll::Ready(loss) = admission.poll_over(cx)
        {
            if !self.shared.is_idle() {
                admission.count_closed("exchange", &loss);
            }
            // Before the streams hear that their connection is gone.
            *self.shared.lost.borrow_mut() = Some(loss);
            drop(connection.take());
            return Poll::Ready(());
        }
        if let Poll::Ready(ended) = Pin::new(driven).poll(cx) {
            if let Err(error) = ended {
                debug!("{}: a connection has ended: {error}", self.name);
            }
            return Poll::Ready(());
        }
        let now = self.runtime.now();
        let is_idle = self.shared.is_idle();
        self.idle_since = is_idle.then(|| self.idle_since.unwrap_or(now));
        let idle_end = self
            .idle_since
            .zip(self.idle_limit)
            .and_then(|(since, limit)| since.checked_add(limit));
        if idle_end.is_some_and(|end| end <= now) && self.shared.is_open() {
            self.shared.retire();
        }
        let is_leaving = is_idle && !self.shared.is_open();
        self.leaving_since = is_leaving.then(|| self.leaving_since.unwrap_or(now));
        let leave_end = self.leaving_since.map(|since| since + GOODBYE);
        let ping_end = match self.pings.poll(cx, now) {
            Ok(next) => next,
            Err(why) => {
                info!("{}: a connection is given up: {why}", self.name);
                drop(connection.take());
                return Poll::Ready(());
            }
        };
        let ends = [idle_end.filter(|end| *end > now), leave_end, ping_end];
        self.timer.set(ends.into_iter().flatten().min());
        if self.timer.poll(cx).is_ready() {
            if leave_end.is_some_and(|end| end <= now) {
                drop(connection.take());
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// `readIdleTimeout` and `pingTimeout`.
struct Pings {
    ping: Option<PingPong>,
    after: Option<Duration>,
    limit: Duration,
    traffic: Rc<Traffic>,
    seen: u64,
    /// When something last came.
    last: Instant,
    sent: Option<Instant>,
}

impl Pings {
    /// When to look again.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, String> {
        let (Some(after), Some(ping)) = (self.after, &mut self.ping) else {
            return Ok(None);
        };
        if self.seen != self.traffic.reads() {
            self.seen = self.traffic.reads();
            self.last = now;
        }
        if let Some(sent) = self.sent {
            if ping.poll_pong(cx).is_ready() {
                self.sent = None;
            } else {
                let end = sent + self.limit;
                if end <= now {
                    return Err(format!(
                        "no answer to a ping within {:?} (pingTimeout)",
                        self.limit
                    ));
                }
                return Ok(Some(end));
            }
        }
        let due = self.last + after;
        if due > now {
            return Ok(Some(due));
        }
        if ping.send_ping(Ping::opaque()).is_ok() {
            self.sent = Some(now);
            // It registers for the answer, and has the frame written.
            if ping.poll_pong(cx).is_pending() {
                return Ok(Some(now + self.limit));
            }
            self.sent = None;
        }
        self.last = now;
        Ok(Some(now + after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_lowers_the_number_and_what_ends_raises_it_again() {
        let places = Places::new();
        for _ in 0..4 {
            places.take();
        }
        assert!(places.are_left(5) && !places.are_left(4));
        places.refused();
        assert!(
            !places.are_left(1000),
            "the three that are left were enough"
        );
        places.give_back();
        assert!(places.are_left(1000));
        places.give_back();
        assert_eq!(places.ceiling.get(), 3);
        places.give_back();
        assert_eq!(places.ceiling.get(), 4, "three have ended");
        assert!(places.are_free());
        places.take();
        places.refused();
        assert_eq!(places.ceiling.get(), 1, "never none");
        for _ in 0..2_000_000 {
            places.take();
            places.give_back();
        }
        assert_eq!(places.ceiling.get(), Places::max());
    }
}
