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

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_channel::{Receiver, Sender};
use log::{info, warn};

pub use snapshot::{Snapshot, Svid};

/// News from the Workload API.
#[derive(Debug)]
pub enum Update {
    /// A complete new state.
    Issued(Box<snapshot::Material>),
    /// The agent has taken our identity away, or never gave us one.
    Withdrawn(String),
    /// The agent could not be asked or gave no usable answer. What we have
    /// stays good until it expires.
    Failed(String),
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
    /// Closed once there has been a first snapshot.
    first: (Sender<()>, Receiver<()>),
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    problem: Option<String>,
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
            first: async_channel::bounded(1),
        }))
    }

    /// The newest snapshot. `None`: none yet, or withdrawn.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        let state = self.0.current.read();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.snapshot.clone()
    }

    /// Changes whenever [`current`](Self::current) does. 0: nothing yet.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Why there is no snapshot, or why it is not being renewed.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let state = self.0.current.read();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.problem.clone()
    }

    /// Waits for the first snapshot. Cancel safe.
    pub async fn first(&self) {
        // Nothing is ever sent: an error means closed, and so published.
        let _closed = self.0.first.1.recv().await;
    }

    /// Applies updates in order, until the sender is gone.
    ///
    /// Readers see the old snapshot or the new one, never a mixture.
    pub async fn keep_current(&self, updates: Receiver<Update>) {
        while let Ok(update) = updates.recv().await {
            self.apply(update);
        }
    }

    /// Applies one update.
    pub fn apply(&self, update: Update) {
        let state = self.0.current.write();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match update {
            Update::Issued(material) => {
                let generation = self.generation().wrapping_add(1);
                let snapshot = Arc::new(Snapshot::new(generation, *material));
                info!("identity: {}", snapshot.summary());
                state.snapshot = Some(snapshot);
                state.problem = None;
                self.0.generation.store(generation, Ordering::Release);
                self.0.first.1.close();
            }
            Update::Withdrawn(why) => {
                if state.snapshot.take().is_some() {
                    warn!("identity: withdrawn, nothing is sent to SPIFFE backends: {why}");
                    self.0.generation.fetch_add(1, Ordering::AcqRel);
                }
                state.problem = Some(why);
            }
            Update::Failed(why) => state.problem = Some(why),
        }
    }
}
