//! The open connections to SPIFFE peers of one worker, and whether each peer
//! would still be admitted today.
//!
//! A peer is admitted once, in its handshake. Trust does not end there: an
//! authority leaves its bundle, our own identity is withdrawn, an allowlist
//! is narrowed by a reload. Each such change is followed by a look at every
//! open connection. One whose peer would not be admitted any more has **lost
//! its trust**: it serves no further exchange, and what is under way on it has
//! `spiffe.trustLossGrace` to finish. Trust that comes back in time is as good
//! as before.
//!
//! Expiry is no loss of trust. A peer is judged by today's authorities and
//! today's allowlist, but as of the time of its handshake; else every tunnel
//! would die with the first certificate that is renewed. For the same reason
//! the absence of an authority that has expired since says nothing: bundles
//! are tidied up.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures_lite::future::yield_now;
use log::{info, warn};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::CertificateDer;
use slab::Slab;
use spiffe::SpiffeId;

use crate::config::Config;
use crate::identity::bundle::Bundle;
use crate::identity::{Identity, Snapshot};
use crate::metrics::{EXPIRED, Recorder, TRUST_LOST};
use crate::runtime::{Runtime, Timer};
use crate::tls::verifier::{
    Authorities, PeerError, Role, Verified, VerifiedPeer, authenticate, authorise,
};
use crate::tls::{provider, unix_now};
use crate::transport::Transport;

/// How often deadlines and expiry are looked at, while there is one to meet.
const TICK: Duration = Duration::from_secs(1);
/// Connections judged before others get a turn; each may cost a signature.
const JUDGED_PER_TURN: usize = 32;

/// Why a connection may not be used further.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Loss {
    /// We have no identity ourselves.
    Withdrawn,
    /// We have another identity than the one that we showed.
    Renamed,
    /// The configuration has no such SPIFFE transport any more.
    NoTransport,
    /// The verifier says no.
    Peer(PeerError),
    /// A certificate of the handshake has expired. No loss of trust.
    Expired,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Withdrawn => f.write_str("our own identity was withdrawn"),
            Self::Renamed => f.write_str("we have another SPIFFE ID than the one shown to it"),
            Self::NoTransport => {
                f.write_str("the configuration has no such transport with spiffe any more")
            }
            Self::Peer(error) => write!(f, "the peer is not trusted any more: {error}"),
            Self::Expired => f.write_str("a certificate of its handshake has expired"),
        }
    }
}

impl Loss {
    /// What an HTTP client is told, with the error type of RFC 9209.
    pub(crate) fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Withdrawn | Self::Renamed | Self::NoTransport => (503, "destination_unavailable"),
            Self::Peer(_) | Self::Expired => (502, "tls_certificate_error"),
        }
    }
}

/// On what a peer was admitted.
#[derive(Debug)]
pub(crate) struct Grounds {
    pub(crate) verified: Verified,
    /// As it came, leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// By what it was admitted.
    pub(crate) transport: Arc<Transport>,
    pub(crate) snapshot: Arc<Snapshot>,
}

impl Grounds {
    /// The end of the first life that the handshake depended on, ours
    /// included. Unix seconds.
    fn until(&self) -> i64 {
        self.verified.until.min(self.snapshot.svid().not_after())
    }
}

/// The state of all that decides about a peer: of the identity, and of the
/// configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Version {
    generation: u64,
    configuration: u64,
}

/// What is left to a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Standing {
    Good,
    /// The grace, from then on, for what is under way.
    Lost(Loss, Instant),
    /// Nothing.
    Over(Loss),
}

#[derive(Debug)]
struct Connection {
    verified: Verified,
    /// The end of the authority's life, as of the last look.
    authority_until: Cell<i64>,
    chain: Vec<CertificateDer<'static>>,
    /// Its name; the policy is looked up anew each time.
    transport: String,
    /// Whom we said to be.
    own: SpiffeId,
    until: i64,
    /// The bundle by which its chain was last found good. The same again
    /// needs no second look.
    bundle: RefCell<Option<Arc<Bundle>>>,
    /// As of when its standing is right.
    seen: Cell<Version>,
    standing: RefCell<Standing>,
    is_tunnel: Cell<bool>,
    /// Of whoever uses it, once it is over.
    waker: RefCell<Option<Waker>>,
}

impl Connection {
    /// Whether the peer would be admitted by `snapshot` and `policy`. What was
    /// verified is remembered. `unix` (seconds) is given for one that has been
    /// good so far: then an authority that has expired since need not be there
    /// any more.
    fn judge(
        &self,
        snapshot: Option<&Snapshot>,
        policy: Option<&Transport>,
        algorithms: &WebPkiSupportedAlgorithms,
        unix: Option<i64>,
    ) -> Result<(), Loss> {
        let allowlist = policy.and_then(Transport::allowlist);
        let allowlist = allowlist.ok_or(Loss::NoTransport)?;
        let snapshot = snapshot.ok_or(Loss::Withdrawn)?;
        if *snapshot.svid().id() != self.own {
            return Err(Loss::Renamed);
        }
        let peer = &self.verified.peer;
        authorise(peer, allowlist, snapshot).map_err(Loss::Peer)?;
        let domain = peer.id().trust_domain();
        let Some(bundle) = snapshot.bundle(domain) else {
            let id = peer.id().clone();
            return Err(Loss::Peer(PeerError::NoBundle { id }));
        };
        let known = self.bundle.borrow().clone();
        let is_known = known.is_some_and(|known| Arc::ptr_eq(&known, bundle));
        let has_expired = unix.is_some_and(|unix| unix > self.authority_until.get());
        if is_known || has_expired {
            return Ok(());
        }
        let again = authenticate(
            &self.chain,
            Role::Server,
            snapshot,
            Authorities::NotExpired,
            algorithms,
            self.verified.at,
        )
        .map_err(Loss::Peer)?;
        self.authority_until.set(again.authority_until);
        *self.bundle.borrow_mut() = Some(Arc::clone(bundle));
        Ok(())
    }
}

/// All open connections of a worker to SPIFFE peers.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    recorder: Rc<Recorder>,
    algorithms: WebPkiSupportedAlgorithms,
    open: RefCell<Slab<Rc<Connection>>>,
    /// Today's transports, by name.
    policies: RefCell<HashMap<String, Arc<Transport>>>,
    /// Grows with each reload.
    configuration: Cell<u64>,
    grace: Cell<Duration>,
    closes_on_expiry: Cell<bool>,
    bell: (Sender<()>, Receiver<()>),
}

impl Trust {
    pub(crate) fn new(identity: Identity, recorder: Rc<Recorder>) -> Self {
        let bell = async_channel::bounded(1);
        identity.changed().ring_into(bell.0.clone());
        Self(Rc::new(Inner {
            identity,
            recorder,
            algorithms: provider().signature_verification_algorithms,
            open: RefCell::default(),
            policies: RefCell::default(),
            configuration: Cell::new(0),
            grace: Cell::new(Duration::ZERO),
            closes_on_expiry: Cell::new(false),
            bell,
        }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// From now on this configuration decides.
    pub(crate) fn configure(&self, config: &Config) {
        let spiffe = &config.spiffe;
        self.set(
            &config.transports,
            spiffe.trust_loss_grace,
            spiffe.close_on_expiry,
        );
    }

    fn set(&self, transports: &[Arc<Transport>], grace: Duration, closes_on_expiry: bool) {
        let named = |it: &Arc<Transport>| (it.name.clone(), Arc::clone(it));
        *self.0.policies.borrow_mut() = transports.iter().map(named).collect();
        self.0.grace.set(grace);
        self.0.closes_on_expiry.set(closes_on_expiry);
        let next = self.0.configuration.get().wrapping_add(1);
        self.0.configuration.set(next);
        self.ring();
    }

    fn ring(&self) {
        // Full: it has been rung already.
        let _rung = self.0.bell.0.try_send(());
    }

    fn version(&self) -> Version {
        Version {
            generation: self.0.identity.generation(),
            configuration: self.0.configuration.get(),
        }
    }

    /// Enters a connection whose handshake is over. What has changed during
    /// the handshake is taken into account: nobody comes in late on a trust
    /// that is gone.
    ///
    /// # Errors
    /// The peer would not be admitted now.
    pub(crate) fn admit(&self, grounds: Grounds) -> Result<Admission, Loss> {
        // Read before what it stands for: it can be too old, never too new.
        let seen = self.version();
        let nothing_new = seen.generation == grounds.snapshot.generation()
            && self
                .0
                .policies
                .borrow()
                .get(&grounds.transport.name)
                .is_some_and(|today| *today == grounds.transport);
        let domain = grounds.verified.peer.id().trust_domain();
        let connection = Connection {
            own: grounds.snapshot.svid().id().clone(),
            until: grounds.until(),
            bundle: RefCell::new(grounds.snapshot.bundle(domain).cloned()),
            transport: grounds.transport.name.clone(),
            authority_until: Cell::new(grounds.verified.authority_until),
            verified: grounds.verified,
            chain: grounds.chain,
            seen: Cell::new(seen),
            standing: RefCell::new(Standing::Good),
            is_tunnel: Cell::new(false),
            waker: RefCell::new(None),
        };
        if !nothing_new {
            self.judge(&connection, None)?;
        }
        let connection = Rc::new(connection);
        let mut open = self.0.open.borrow_mut();
        if open.is_empty() && self.0.closes_on_expiry.get() {
            // Nobody was there to watch; from now on somebody is.
            self.ring();
        }
        let slot = open.insert(Rc::clone(&connection));
        Ok(Admission {
            connection,
            slot,
            trust: self.clone(),
        })
    }

    fn judge(&self, connection: &Connection, unix: Option<i64>) -> Result<(), Loss> {
        let snapshot = self.0.identity.current();
        let policies = self.0.policies.borrow();
        let policy = policies.get(&connection.transport).map(Arc::as_ref);
        connection.judge(snapshot.as_deref(), policy, &self.0.algorithms, unix)
    }

    /// The same, of one that was admitted.
    fn judge_again(&self, connection: &Connection) -> Result<(), Loss> {
        // What was lost before an authority expired stays lost after it.
        let is_good = *connection.standing.borrow() == Standing::Good;
        self.judge(connection, is_good.then(unix_now))
    }

    /// Follows changes of the identity and of the configuration, and calls
    /// `changed` after each. Never ends.
    pub(crate) async fn follow<R: Runtime>(&self, runtime: &R, changed: impl Fn()) {
        let mut timer = runtime.timer();
        loop {
            timer.set(self.next(runtime.now()));
            let mut bell = std::pin::pin!(self.0.bell.1.recv());
            let rung = poll_fn(|cx| match bell.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending => timer.poll(cx).map(|()| false),
            })
            .await;
            if rung {
                self.look(|| runtime.now()).await;
                changed();
            }
            self.finish(runtime.now(), unix_now());
        }
    }

    /// When the next deadline has to be looked at.
    fn next(&self, now: Instant) -> Option<Instant> {
        let open = self.0.open.borrow();
        let deadlines = open
            .iter()
            .filter_map(|(_, it)| match *it.standing.borrow() {
                // Beyond the end of time there is no deadline.
                Standing::Lost(_, since) => since.checked_add(self.0.grace.get()),
                _ => None,
            });
        let tick = self.0.closes_on_expiry.get() && !open.is_empty();
        let tick = tick.then(|| now.checked_add(TICK)).flatten();
        deadlines.min().into_iter().chain(tick).min()
    }

    /// Judges every connection that was not judged since the last change.
    async fn look(&self, now: impl Fn() -> Instant) {
        let version = self.version();
        let mut news: HashMap<(String, String, String), usize> = HashMap::new();
        let stale: Vec<Rc<Connection>> = {
            let open = self.0.open.borrow();
            let stale = open.iter().filter(|(_, it)| it.seen.get() != version);
            stale.map(|(_, it)| Rc::clone(it)).collect()
        };
        for (index, it) in stale.iter().enumerate() {
            if index % JUDGED_PER_TURN == JUDGED_PER_TURN - 1 {
                yield_now().await;
            }
            let verdict = self.judge_again(it);
            it.seen.set(version);
            if let Some(words) = self.apply(it, verdict, now()) {
                let peer = it.verified.peer.id().to_string();
                *news.entry((it.transport.clone(), peer, words)).or_default() += 1;
            }
        }
        for ((transport, peer, words), count) in news {
            warn!("{transport}: {count} open connections to {peer}: {words}");
        }
    }

    /// Says what is new, if it is.
    fn apply(&self, it: &Connection, verdict: Result<(), Loss>, now: Instant) -> Option<String> {
        let mut standing = it.standing.borrow_mut();
        match (&*standing, verdict) {
            (Standing::Over(_), _) | (Standing::Good, Ok(())) | (Standing::Lost(..), Err(_)) => {
                None
            }
            (Standing::Lost(..), Ok(())) => {
                *standing = Standing::Good;
                Some("trusted again".to_owned())
            }
            (Standing::Good, Err(loss)) => {
                let grace = self.0.grace.get();
                let words = format!("{loss}; what is under way has {grace:?} (trustLossGrace)");
                *standing = Standing::Lost(loss, now);
                Some(words)
            }
        }
    }

    /// Ends what is over.
    fn finish(&self, now: Instant, unix: i64) {
        let (grace, closes_on_expiry) = (self.0.grace.get(), self.0.closes_on_expiry.get());
        for (_, it) in self.0.open.borrow().iter() {
            let mut standing = it.standing.borrow_mut();
            let over = match &*standing {
                Standing::Lost(loss, since) if now.saturating_duration_since(*since) >= grace => {
                    loss.clone()
                }
                Standing::Good | Standing::Lost(..)
                    if closes_on_expiry && it.is_tunnel.get() && unix > it.until =>
                {
                    Loss::Expired
                }
                _ => continue,
            };
            *standing = Standing::Over(over);
            let waker = it.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// A connection to an admitted peer. To be kept as long as the connection.
#[derive(Debug)]
pub struct Admission {
    connection: Rc<Connection>,
    slot: usize,
    trust: Trust,
}

impl Admission {
    /// Who the peer is.
    #[must_use]
    pub fn peer(&self) -> &VerifiedPeer {
        &self.connection.verified.peer
    }

    /// Whether the connection may serve another exchange at `unix` (seconds):
    /// its peer would be admitted now, and no certificate that its handshake
    /// depended on has expired.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn is_fit(&self, unix: i64) -> Result<(), Loss> {
        let it = &self.connection;
        match &*it.standing.borrow() {
            Standing::Over(loss) => return Err(loss.clone()),
            // What has changed since is so new that it was not looked at yet.
            _ if it.seen.get() != self.trust.version() => self.trust.judge_again(it)?,
            Standing::Lost(loss, _) => return Err(loss.clone()),
            Standing::Good => {}
        }
        if unix > it.until {
            return Err(Loss::Expired);
        }
        Ok(())
    }

    /// From now on it carries something that has no end of its own.
    pub(crate) fn becomes_tunnel(&self) {
        self.connection.is_tunnel.set(true);
    }

    /// Ready once what is under way must end.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<Loss> {
        let it = &self.connection;
        if let Standing::Over(loss) = &*it.standing.borrow() {
            return Poll::Ready(loss.clone());
        }
        let mut waker = it.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Counts a connection that is closed for this reason. `usage` is what it
    /// was used for: `idle`, `exchange`, `tunnel` or `upgrade`.
    pub(crate) fn count_closed(&self, usage: &str, why: &Loss) {
        let transport = self.connection.transport.as_str();
        let family = if *why == Loss::Expired {
            &EXPIRED
        } else {
            &TRUST_LOST
        };
        let counter = self.trust.0.recorder.counter(family, &[transport, usage]);
        counter.add(1);
        let peer = self.peer().id();
        info!("{transport}: a connection to {peer} is closed ({usage}): {why}");
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.trust.0.open.borrow_mut().try_remove(self.slot);
    }
}
