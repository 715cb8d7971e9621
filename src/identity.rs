//! Who we are, and whom we can believe: our SVID and the trust bundles.
//!
//! The Workload API's thread ([`workload_api`]) sends [`Update`]s over a
//! channel to **one** store task ([`Identity::keep_current`]); everyone else
//! reads the current [`Snapshot`]. A snapshot is whole or absent: it is never
//! patched, and no reader waits on the agent.

pub mod bundle;
pub mod endpoint;
pub mod snapshot;
mod wire;
pub mod workload_api;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use async_channel::Receiver;
use log::{info, warn};

use crate::bell::{Bell, Once};
use crate::tls::unix_now;
pub use snapshot::{Snapshot, Svid};

/// News from the Workload API.
#[derive(Debug)]
pub enum Update {
    /// A complete new state.
    Issued(Box<snapshot::Material>),
    /// The agent has taken our identity away, or never gave us one.
    Withdrawn(Trouble),
    /// The agent could not be asked or gave no usable answer. What we have
    /// stays good until it expires.
    Failed(Trouble),
}

/// Why there is no new state.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// For a person.
    pub why: String,
    /// For a counter: the gRPC code, or one of our own (`connect`, `silent`,
    /// `ended`, `unusable`, `no_identity`).
    pub code: &'static str,
    /// Whether the stream goes on.
    pub is_open: bool,
}

/// The current identity, for readers on any thread.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: RwLock<State>,
    /// Of the state: a reader that remembers it can tell a change without
    /// the lock.
    generation: AtomicU64,
    /// Rung when the generation changes.
    changed: Bell,
    /// There has been a first snapshot.
    first: Once,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    record: Record,
}

/// What has happened to an identity.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Why there is no snapshot, or why it is not being renewed.
    pub problem: Option<String>,
    /// Whether the Workload API's stream is open.
    pub is_connected: bool,
    /// When the last good message came, Unix seconds.
    pub updated_at: Option<i64>,
    /// Good messages.
    pub issued: u64,
    /// Withdrawals.
    pub withdrawn: u64,
    /// Failures by code.
    pub failed: BTreeMap<&'static str, u64>,
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

impl Identity {
    /// No identity yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            current: RwLock::default(),
            generation: AtomicU64::new(0),
            changed: Bell::default(),
            first: Once::new(),
        }))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        let state = self.0.current.read();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest snapshot. `None`: none yet, or withdrawn.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.read().snapshot.clone()
    }

    /// Changes whenever [`current`](Self::current) does. 0: nothing yet.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Why there is no snapshot, or why it is not being renewed.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.read().record.problem.clone()
    }

    /// What has happened so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.read().record.clone()
    }

    /// Waits for the first snapshot. Cancel safe.
    pub async fn first(&self) {
        self.0.first.wait().await;
    }

    /// Rung after each change of the generation.
    pub(crate) fn changed(&self) -> &Bell {
        &self.0.changed
    }

    /// Applies updates in order, until the sender is gone.
    ///
    /// Readers see the old snapshot or the new one, never a mixture.
    pub async fn keep_current(&self, updates: &Receiver<Update>) {
        while let Ok(update) = updates.recv().await {
            self.apply(update, unix_now());
        }
    }

    /// The Workload API is not followed any more, or another is.
    pub(crate) fn disconnected(&self) {
        let state = self.0.current.write();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.record.is_connected = false;
    }

    /// Applies one update, at `now` (Unix seconds).
    pub fn apply(&self, update: Update, now: i64) {
        let state = self.0.current.write();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let before = self.generation();
        // What is to be logged, once nobody waits for the lock.
        let mut issued = None;
        let mut withdrawn = None;
        match update {
            Update::Issued(mut material) => {
                if let Some(known) = &state.snapshot {
                    material.keep_bundles_of(known);
                }
                let snapshot = Arc::new(Snapshot::new(before.wrapping_add(1), *material));
                self.publish(&mut state, Arc::clone(&snapshot));
                let record = &mut state.record;
                record.problem = None;
                record.is_connected = true;
                record.updated_at = Some(now);
                record.issued += 1;
                issued = Some(snapshot);
            }
            Update::Withdrawn(trouble) => {
                state.record.withdrawn += 1;
                if state.snapshot.take().is_some() {
                    self.0.generation.fetch_add(1, Ordering::AcqRel);
                    withdrawn = Some(trouble.why.clone());
                }
                state.record.is_connected = trouble.is_open;
                state.record.problem = Some(trouble.why);
            }
            Update::Failed(trouble) => {
                *state.record.failed.entry(trouble.code).or_default() += 1;
                state.record.is_connected = trouble.is_open;
                state.record.problem = Some(trouble.why);
            }
        }
        drop(state);
        if let Some(snapshot) = issued {
            info!("identity: {}", snapshot.summary());
        }
        if let Some(why) = withdrawn {
            warn!("identity: withdrawn, nothing is sent to SPIFFE backends: {why}");
        }
        if self.generation() != before {
            self.0.changed.ring();
        }
    }

    /// Publishes a snapshot that no agent has sent, under the next generation.
    #[cfg(test)]
    pub(crate) fn publish_for_tests(&self, snapshot: Arc<Snapshot>) {
        let snapshot = Arc::try_unwrap(snapshot).map(|it| it.renumbered(self.generation() + 1));
        let state = self.0.current.write();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if let Ok(snapshot) = snapshot {
            self.publish(&mut state, Arc::new(snapshot));
        }
    }

    fn publish(&self, state: &mut State, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation();
        state.snapshot = Some(snapshot);
        self.0.generation.store(generation, Ordering::Release);
        self.0.first.set();
    }
}
