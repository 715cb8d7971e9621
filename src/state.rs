//! What the parts of a running proxy know of each other, on any thread.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::bell::{Bell, Once};
use crate::config::Config;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::tls::unix_now;

/// Shared by the control future, the workers, the admin endpoint and every
/// [`Handle`](crate::Handle).
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) metrics: Metrics,
    config: RwLock<Arc<Config>>,
    /// Rung when there is another configuration.
    pub(crate) configured: Bell,
    pub(crate) reloads: Reloads,
    pub(crate) workers: usize,
    /// Workers that listen.
    pub(crate) listening: AtomicUsize,
    pub(crate) stop: Once,
    /// Workers may listen.
    pub(crate) go: Once,
}

/// What became of new configurations.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) applied: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// When the one that runs was applied, Unix seconds.
    pub(crate) at: AtomicI64,
}

impl State {
    pub(crate) fn new(config: Arc<Config>, workers: usize) -> Self {
        let state = Self {
            identity: Identity::new(),
            metrics: Metrics::default(),
            config: RwLock::new(config),
            configured: Bell::default(),
            reloads: Reloads::default(),
            workers,
            listening: AtomicUsize::new(0),
            stop: Once::new(),
            go: Once::new(),
        };
        state.reloads.at.store(unix_now(), Ordering::Relaxed);
        state
    }

    /// The configuration that runs.
    pub(crate) fn config(&self) -> Arc<Config> {
        let config = self.config.read();
        Arc::clone(&config.unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this one runs.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        let current = self.config.write();
        *current.unwrap_or_else(PoisonError::into_inner) = config;
        self.reloads.applied.fetch_add(1, Ordering::Relaxed);
        self.reloads.at.store(unix_now(), Ordering::Relaxed);
        self.configured.ring();
    }

    /// Why the proxy does not serve, if so.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stop.is_set() {
            return Some("stopping".to_owned());
        }
        if self.config().needs_identity() {
            match self.identity.current() {
                None => {
                    let why = self.identity.problem();
                    let why = why.unwrap_or_else(|| "the Workload API has not answered".to_owned());
                    return Some(format!("no SVID: {why}"));
                }
                Some(snapshot) if snapshot.svid().is_expired(unix_now()) => {
                    return Some("our SVID has expired".to_owned());
                }
                Some(_) => {}
            }
        }
        let listening = self.listening.load(Ordering::Relaxed);
        (listening < self.workers).then(|| "starting".to_owned())
    }
}
