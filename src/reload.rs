//! Steering a running proxy: ending it, and giving it another configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use async_io::Timer;
use futures_lite::FutureExt;
use log::{LevelFilter, error, info, warn};

use crate::config::source::Source;
use crate::config::{AdminAddress, Config, ConfigError};
use crate::error::Error;
use crate::listener::Bound;
use crate::state::State;
use crate::worker::{Change, Inbox, Key};

/// Between two looks at the files. A change is taken up by the second look
/// that sees it.
const LOOK: Duration = Duration::from_millis(500);

/// Steers a proxy, from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) state: Arc<State>,
    pub(crate) desk: Arc<Desk>,
    /// As at the start.
    pub(crate) fixed: Fixed,
}

/// What a reload cannot change.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    pub(crate) admin: Option<AdminAddress>,
    pub(crate) log_level: LevelFilter,
}

/// Why a configuration was not taken. The one before it goes on.
#[derive(Debug)]
pub enum ReloadError {
    /// The proxy is ending.
    Stopping,
    /// These addresses cannot be had.
    Addresses(Vec<Error>),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the proxy is ending"),
            Self::Addresses(errors) => {
                let errors: Vec<String> = errors.iter().map(Error::to_string).collect();
                f.write_str(&errors.join("\n"))
            }
        }
    }
}

impl std::error::Error for ReloadError {}

/// Where changes are made, one at a time.
#[derive(Debug)]
pub(crate) struct Desk {
    workers: Vec<Sender<Change>>,
    /// Sockets that were handed to the process. They are never closed, so
    /// that an entry point may come back to one.
    inherited: Vec<(SocketAddr, TcpListener)>,
    /// The entry points that workers have sockets for, and their addresses.
    open: Mutex<BTreeMap<Key, SocketAddr>>,
}

/// One list per worker.
type Sockets = Vec<Vec<(Key, Bound)>>;

impl Desk {
    /// A desk, and the workers' ends of it.
    pub(crate) fn new(
        workers: usize,
        inherited: Vec<(SocketAddr, TcpListener)>,
    ) -> (Self, Vec<Inbox>) {
        let channels = (0..workers).map(|_| async_channel::unbounded());
        let (senders, receivers): (_, Vec<_>) = channels.unzip();
        let desk = Self {
            workers: senders,
            inherited,
            open: Mutex::default(),
        };
        (desk, receivers.into_iter().map(Inbox).collect())
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Key, SocketAddr>> {
        let open = self.open.lock();
        open.unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of an entry point, with the port that it really has.
    pub(crate) fn address(&self, entry_point: &str) -> Option<SocketAddr> {
        let open = self.open();
        let mut found = open.iter().filter(|(key, _)| key.name == entry_point);
        found.next().map(|(_, address)| *address)
    }

    /// Takes the addresses that are new in `config`, tells the workers, and
    /// settles it for everyone else. The receiver is closed once all have
    /// applied it.
    ///
    /// # Errors
    /// Every address that cannot be had; then nothing has changed.
    pub(crate) fn change(
        &self,
        config: &Arc<Config>,
        settle: impl FnOnce(),
    ) -> Result<Receiver<()>, Vec<Error>> {
        let mut open = self.open();
        let keys: Vec<Key> = config.entry_points.iter().map(Key::of).collect();
        let unused = self.inherited.iter().map(|(address, _)| address);
        let unused = unused.filter(|it| !keys.iter().any(|key| key.address == **it));
        let unused: Vec<Error> = unused
            .map(|address| {
                Error::Inherited(format!(
                    "the socket for {address} was handed over, and no entry point would have this address any more: clients would wait for ever; this takes a restart"
                ))
            })
            .collect();
        if !unused.is_empty() {
            return Err(unused);
        }
        let new: Vec<&Key> = keys.iter().filter(|key| !open.contains_key(key)).collect();
        let (sockets, addresses) = self.bind(&new)?;
        let gone = open.len();
        open.retain(|key, _| keys.contains(key));
        let (kept, gone) = (open.len(), gone - open.len());
        info!(
            "configuration: entry points: {kept} kept, {} new, {gone} gone",
            addresses.len()
        );
        open.extend(addresses);
        // Within the lock, so that every worker gets changes in one order.
        let (applied, all_applied) = async_channel::bounded(1);
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            let change = Change {
                config: Arc::clone(config),
                sockets,
                applied: Some(applied.clone()),
            };
            // A worker that has ended needs none.
            drop(worker.try_send(change));
        }
        settle();
        Ok(all_applied)
    }

    fn bind(&self, new: &[&Key]) -> Result<(Sockets, BTreeMap<Key, SocketAddr>), Vec<Error>> {
        let mut addresses = BTreeMap::new();
        let mut errors = Vec::new();
        let mut all: Sockets = Vec::new();
        for _ in &self.workers {
            let mut sockets = Vec::new();
            for &key in new {
                // With port 0 the first worker gets a port, and the others
                // join it.
                let address = addresses.get(key).copied().unwrap_or(key.address);
                let inherited = self.inherited.iter().find(|(of, _)| *of == key.address);
                let bound = match inherited {
                    Some((_, listener)) => Bound::inherit(listener),
                    None => Bound::new(address),
                };
                match bound {
                    Ok(bound) => {
                        if !addresses.contains_key(key) {
                            info!("entryPoints.{}: {}", key.name, bound.address);
                        }
                        addresses.insert(key.clone(), bound.address);
                        sockets.push((key.clone(), bound));
                    }
                    Err(source) => errors.push(Error::Bind {
                        what: format!("entryPoints.{}", key.name),
                        address: address.to_string(),
                        source,
                    }),
                }
            }
            all.push(sockets);
            if !errors.is_empty() {
                return Err(errors);
            }
        }
        Ok((all, addresses))
    }
}

impl Handle {
    /// Ends the proxy: workers go on accepting for
    /// `requestAcceptGraceTimeout`, then finish what is in flight.
    pub fn stop(&self) {
        self.state.stop.set();
    }

    /// Completes once [`stop`](Self::stop) was called. Cancel safe.
    pub async fn stopped(&self) {
        self.state.stop.wait().await;
    }

    /// The address of an entry point, with the port that it really has.
    #[must_use]
    pub fn address(&self, entry_point: &str) -> Option<SocketAddr> {
        self.desk.address(entry_point)
    }

    /// Makes `config` the configuration that runs, on every worker, and
    /// completes once it is. Before the first SVID nothing runs, and it is only
    /// kept.
    ///
    /// Entry points of the same name, address and kind keep their listener
    /// and their connections; others are opened, or drained. Requests and TCP
    /// connections that have begun end by what they began with; whom to trust
    /// is decided by the new configuration at once. Idle connections of
    /// transports that have not changed stay. The admin address and the log
    /// level stay as they were at the start.
    ///
    /// # Errors
    /// [`ReloadError`]. With [`ReloadError::Addresses`] nothing has changed;
    /// with [`ReloadError::Stopping`] it does not matter any more.
    pub async fn reload(&self, config: Config) -> Result<(), ReloadError> {
        let changed = self.change(config);
        match changed {
            Ok(applied) => {
                let applied = async {
                    // Nothing is ever sent: an error means closed.
                    let _closed = applied.recv().await;
                    info!("configuration: applied");
                    Ok(())
                };
                let stopped = async {
                    self.state.stop.wait().await;
                    Err(ReloadError::Stopping)
                };
                applied.or(stopped).await
            }
            Err(error) => {
                self.refused();
                Err(error)
            }
        }
    }

    fn change(&self, config: Config) -> Result<Receiver<()>, ReloadError> {
        if self.state.stop.is_set() {
            return Err(ReloadError::Stopping);
        }
        for (key, differs) in [
            ("admin.address", self.fixed.admin != config.admin),
            ("log.level", self.fixed.log_level != config.log_level),
        ] {
            if differs {
                warn!("configuration: {key} is another than at the start, which takes a restart");
            }
        }
        let config = Arc::new(config);
        let settle = || self.state.configure(Arc::clone(&config));
        let applied = self.desk.change(&config, settle);
        applied.map_err(ReloadError::Addresses)
    }

    fn refused(&self) {
        self.state.reloads.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Follows a file: reloads when it has changed (if it wants that, see
    /// [`Source::look`]), when a certificate or key file that it names has,
    /// and whenever `asked` says so. A bad file is reported, and changes
    /// nothing. Never ends.
    pub async fn follow(&self, mut source: Source, asked: Receiver<()>) {
        loop {
            let question = async {
                match asked.recv().await {
                    Ok(()) => true,
                    // Nobody can ask any more.
                    Err(_) => std::future::pending().await,
                }
            };
            let look = async {
                Timer::after(LOOK).await;
                false
            };
            let was_asked = question.or(look).await;
            if was_asked {
                info!("configuration: asked to reload");
            }
            // A file system may take its time, or all of it.
            let looking = smol::unblock(move || {
                let loaded = if was_asked {
                    Some(source.load())
                } else {
                    source.look()
                };
                (source, loaded)
            });
            let (returned, loaded) = looking.await;
            source = returned;
            match loaded {
                None => {}
                Some(Ok((config, candidate))) => {
                    let path = source.path().display().to_string();
                    for warning in &config.warnings {
                        warn!("{path}: {warning}");
                    }
                    match self.reload(config).await {
                        Ok(()) => source.accept(candidate),
                        Err(error) => {
                            source.refuse(&candidate);
                            error!(
                                "{path}: not taken, the configuration before it goes on: {error}"
                            );
                        }
                    }
                }
                Some(Err(error)) => {
                    self.refused();
                    report(&source, &error);
                }
            }
        }
    }
}

fn report(source: &Source, error: &ConfigError) {
    let path = source.path().display();
    for problem in &error.problems {
        error!("{path}: {problem}");
    }
    error!("{path}: not taken, the configuration before it goes on");
}
