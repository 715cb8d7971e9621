//! The composition root: a [`Config`] becomes a running [`Proxy`]. It starts the
//! threads of the workers and hands every part what it needs.

use std::convert::Infallible;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_executor::LocalExecutor;
use async_io::Timer;
use futures_lite::FutureExt;
use log::{error, warn};

use crate::admin::Admin;
use crate::config::{Config, Spiffe};
use crate::error::Error;
use crate::identity::{Identity, Trouble, Update, workload_api};
use crate::reload::{Desk, Fixed, Handle};
use crate::runtime::Runtime;
use crate::state::State;
use crate::tls::unix_now;
use crate::worker::{self, Inbox};

/// How often a wait for the first SVID is spoken of.
const WAIT_NOTICE: Duration = Duration::from_secs(10);

/// The wait before a thread that could not be had is tried again.
const THREAD_RETRY: Duration = Duration::from_secs(5);

/// A proxy whose addresses are taken, and which does not listen yet.
///
/// [`run`](Self::run) does everything on threads of its own. An embedder runs
/// [`control`](Self::control) and one [`worker`](Self::worker) per thread on
/// executors of its own.
pub struct Proxy {
    handle: Handle,
    admin: Option<Admin>,
    /// One per worker; the first configuration waits in each.
    changes: Mutex<Vec<Inbox>>,
    workers: usize,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Takes every address that `config` names, for so many workers.
    ///
    /// # Errors
    /// [`Error::Bind`] for the first address that cannot be had.
    pub fn bind(config: Config, workers: usize) -> Result<Self, Error> {
        Self::bind_with(config, workers, Vec::new())
    }

    /// The same, with sockets that listen already, for example those that a
    /// service manager holds while the program is replaced. An entry point
    /// with exactly the address of one uses it; its workers share it.
    ///
    /// # Errors
    /// [`Error::Bind`] for the first address that cannot be had, and
    /// [`Error::Inherited`] for a socket that no entry point has a use for.
    pub fn bind_with(
        config: Config,
        workers: usize,
        inherited: Vec<TcpListener>,
    ) -> Result<Self, Error> {
        let mut sockets = Vec::new();
        for listener in inherited {
            let address = listener.local_addr()?;
            if !config.entry_points.iter().any(|it| it.address == address) {
                return Err(Error::Inherited(format!(
                    "a socket for {address} was handed over, and no entry point has exactly this address"
                )));
            }
            if sockets.iter().any(|(other, _)| *other == address) {
                return Err(Error::Inherited(format!(
                    "two sockets for {address} were handed over, and an entry point uses one; what comes to the other would wait for ever"
                )));
            }
            sockets.push((address, listener));
        }
        let admin = match &config.admin {
            None => None,
            Some(address) => Some(Admin::bind(address).map_err(|source| Error::Bind {
                what: "admin.address".to_owned(),
                address: format!("{address:?}"),
                source,
            })?),
        };
        let config = Arc::new(config);
        let (desk, changes) = Desk::new(workers, sockets);
        if let Err(errors) = desk.change(&config, || {})
            && let Some(first) = errors.into_iter().next()
        {
            return Err(first);
        }
        Ok(Self {
            handle: Handle {
                fixed: Fixed {
                    admin: config.admin.clone(),
                    log_level: config.log_level,
                },
                state: Arc::new(State::new(config, workers)),
                desk: Arc::new(desk),
            },
            admin,
            changes: Mutex::new(changes),
            workers,
        })
    }

    /// The address of an entry point, with the port that it really has.
    #[must_use]
    pub fn address(&self, entry_point: &str) -> Option<SocketAddr> {
        self.handle.address(entry_point)
    }

    /// The address of the admin endpoint, if it is one of TCP.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(Admin::tcp_address)
    }

    /// The identity that connections are made with.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state().identity
    }

    /// Ends and reloads the proxy.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn state(&self) -> &Arc<State> {
        &self.handle.state
    }

    /// Everything but the connections: the admin endpoint, the Workload API,
    /// the store, the wait for the first SVID. Needs async-io's reactor, and
    /// no executor. Does not end by itself, except with an error; drop it when
    /// the workers have ended.
    ///
    /// # Errors
    /// [`Error::NoIdentity`], and [`Error::Ended`] when a part of it fails.
    pub async fn control(&self) -> Result<Infallible, Error> {
        let executor = Rc::new(LocalExecutor::new());
        let admin = async {
            match &self.admin {
                Some(admin) => admin.serve(&executor, self.state()).await,
                None => std::future::pending().await,
            }
            Err(Error::Ended("the admin endpoint".to_owned()))
        };
        let start = async {
            self.wait_for_identity().await?;
            self.state().go.set();
            std::future::pending().await
        };
        // It goes on after the stop: what is in flight still needs an
        // identity, and somebody may ask how it goes.
        let work = start
            .or(self.keep_identity())
            .or(self.tell_of_expiry())
            .or(admin);
        executor.run(work).await
    }

    /// Keeps the identity current, from the Workload API that the
    /// configuration names.
    async fn keep_identity(&self) -> Result<Infallible, Error> {
        let configured = self.state().configured.listen();
        let mut is_first = true;
        loop {
            let config = self.state().config();
            let (sender, updates) = async_channel::bounded(4);
            // While the thread lives it holds the sender: its end is seen as
            // the channel's. Without a thread, this end holds it.
            let _without_thread = match &config.spiffe.endpoint {
                None => Some(sender),
                Some(endpoint) => {
                    let settings = workload_api::Settings {
                        endpoint: endpoint.clone(),
                        hint: config.spiffe.hint.clone(),
                    };
                    if let Err(error) = workload_api::spawn(settings, sender) {
                        if is_first {
                            return Err(error.into());
                        }
                        error!("the Workload API's thread cannot be started: {error}");
                        Timer::after(THREAD_RETRY).await;
                        continue;
                    }
                    None
                }
            };
            let store = async {
                self.state().identity.keep_current(&updates).await;
                Err(Error::Ended("the identity thread".to_owned()))
            };
            let another = async {
                let source = |spiffe: &Spiffe| (spiffe.endpoint.clone(), spiffe.hint.clone());
                loop {
                    // The bell lives as long as we do.
                    let _rung = configured.recv().await;
                    let now = self.state().config();
                    if source(&now.spiffe) != source(&config.spiffe) {
                        return Ok(now);
                    }
                }
            };
            is_first = false;
            // What we have stays until the other agent gives something.
            let now = another.or(store).await?;
            self.state().identity.disconnected();
            if now.spiffe.endpoint.is_none() {
                let why = "the configuration has no use for an identity any more".to_owned();
                let trouble = Trouble {
                    why,
                    code: "no_identity",
                    is_open: false,
                };
                let withdrawn = Update::Withdrawn(trouble);
                self.state().identity.apply(withdrawn, unix_now());
            }
        }
    }

    /// Says loudly when our SVID was not renewed in time.
    async fn tell_of_expiry(&self) -> Result<Infallible, Error> {
        let identity = self.identity();
        let changed = identity.changed().listen();
        loop {
            let left = identity.current().map(|snapshot| {
                let not_after = snapshot.svid().not_after();
                u64::try_from(not_after.saturating_add(1).saturating_sub(unix_now())).unwrap_or(0)
            });
            let expired = async {
                match left {
                    None => std::future::pending().await,
                    // At most a day at once: clocks are set, machines sleep.
                    Some(left) => Timer::after(Duration::from_secs(left.min(86_400))).await,
                };
            };
            let other = async {
                let _rung = changed.recv().await;
            };
            other.or(expired).await;
            let current = identity.current();
            if let Some(snapshot) = current.filter(|it| it.svid().is_expired(unix_now())) {
                error!(
                    "identity: {} has expired and was not renewed; it is not presented: {}",
                    snapshot.svid(),
                    identity.problem().unwrap_or_default()
                );
                let _rung = changed.recv().await;
            }
        }
    }

    async fn wait_for_identity(&self) -> Result<(), Error> {
        let state = self.state();
        let config = state.config();
        let configured = state.configured.listen();
        let identity = &state.identity;
        let first = async {
            identity.first().await;
            Ok(())
        };
        let no_need = async {
            loop {
                let config = state.config();
                if !config.needs_identity() || !config.spiffe.wait_for_svid {
                    return Ok(());
                }
                let _rung = configured.recv().await;
            }
        };
        let notices = async {
            loop {
                Timer::after(WAIT_NOTICE).await;
                warn!(
                    "still waiting for the first SVID; entry points do not listen yet: {}",
                    identity.problem().unwrap_or_default()
                );
            }
        };
        let limit = async {
            match config.spiffe.startup_timeout {
                Some(limit) => Timer::after(limit).await,
                None => std::future::pending().await,
            };
            let why = identity.problem();
            Err(Error::NoIdentity(why.unwrap_or_else(|| {
                "the Workload API has not answered".to_owned()
            })))
        };
        no_need.or(first).or(limit).or(notices).await
    }

    /// One worker: waits until it may listen, serves until the proxy is
    /// stopped, and lets what is in flight finish. Returns whether it did,
    /// each entry point within its `graceTimeOut`.
    ///
    /// To be called once for each worker that was asked for.
    ///
    /// # Errors
    /// The operating system's, when a socket cannot listen.
    pub async fn worker<R: Runtime>(&self, runtime: R) -> Result<bool, Error> {
        let changes = {
            let changes = self.changes.lock();
            changes.unwrap_or_else(PoisonError::into_inner).pop()
        };
        let changes = changes.ok_or_else(|| Error::Ended("a worker too many".to_owned()))?;
        Ok(worker::run(runtime, Arc::clone(self.state()), changes).await?)
    }

    /// Runs on threads of its own, one per worker, until `until` completes or
    /// something fails. Returns whether everything in flight finished.
    ///
    /// `until` may say that there is no time to finish: `false`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self, until: impl Future<Output = Urgency>) -> Result<bool, Error> {
        let proxy = Arc::new(self);
        let (report, reports) = async_channel::unbounded();
        for index in 0..proxy.workers {
            let (proxy, report) = (Arc::clone(&proxy), report.clone());
            std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run_worker(&proxy)));
                    let ended = ran.unwrap_or_else(|_| {
                        Err(Error::Ended(format!("worker-{index}, by a panic,")))
                    });
                    // The receiver goes first only when the process ends.
                    drop(report.try_send(ended));
                })?;
        }
        drop(report);
        async_io::block_on(async {
            let finished = async {
                let mut drained = true;
                for _ in 0..proxy.workers {
                    match reports.recv().await {
                        Ok(ended) => drained &= ended?,
                        Err(_) => return Err(Error::Ended("a worker thread".to_owned())),
                    }
                }
                Ok(drained)
            };
            let controlled = async { match proxy.control().await? {} };
            let told = async {
                match until.await {
                    Urgency::Drain => {}
                    Urgency::Now => return Ok(false),
                }
                std::future::pending().await
            };
            finished.or(controlled).or(told).await
        })
    }
}

/// How a proxy is told to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// [`Handle::stop`] was called; let it finish.
    Drain,
    /// At once.
    Now,
}

#[cfg(target_os = "linux")]
fn run_worker(proxy: &Proxy) -> Result<bool, Error> {
    crate::runtime::epoll::run(|runtime| proxy.worker(runtime))?
}

#[cfg(not(target_os = "linux"))]
fn run_worker(proxy: &Proxy) -> Result<bool, Error> {
    let executor = Rc::new(LocalExecutor::new());
    let weak = Rc::downgrade(&executor);
    let runtime = crate::runtime::async_io::AsyncIo::new(move |task| {
        if let Some(executor) = weak.upgrade() {
            executor.spawn(task).detach();
        }
    });
    async_io::block_on(executor.run(proxy.worker(runtime)))
}
