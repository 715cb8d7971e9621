//! The composition root: a [`Config`] becomes a running [`Proxy`]. It starts the
//! threads of the workers and hands every part what it needs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use async_executor::LocalExecutor;
use async_io::Timer;
use futures_lite::FutureExt;
use log::{info, warn};

use crate::admin::Admin;
use crate::config::{Config, Serves};
use crate::dial::Dialer;
use crate::drain::Drain;
use crate::http::pool::Pool;
use crate::http::{Http, Service};
use crate::identity::{Identity, workload_api};
use crate::listener::{Bound, Panics, accept};
use crate::runtime::{Runtime, within};
use crate::tcp::Tcp;
use crate::tls::{self, unix_now};

/// How often a wait for the first SVID is spoken of.
const WAIT_NOTICE: Duration = Duration::from_secs(10);

/// A proxy whose addresses are taken, and which does not listen yet.
///
/// [`run`](Self::run) does everything on threads of its own. An embedder runs
/// [`control`](Self::control) and one [`worker`](Self::worker) per thread on
/// executors of its own.
pub struct Proxy {
    config: Arc<Config>,
    state: Arc<State>,
    admin: Option<Admin>,
    /// One list per worker, with one socket per entry point.
    sockets: Mutex<Vec<Vec<Bound>>>,
    addresses: BTreeMap<String, SocketAddr>,
    workers: usize,
    stop: Stopper,
    /// Closed once workers may listen.
    go: (Sender<()>, Receiver<()>),
}

/// What the admin endpoint tells.
#[derive(Debug)]
pub(crate) struct State {
    identity: Identity,
    needs_identity: bool,
    stopping: AtomicBool,
    workers: usize,
    listening: AtomicUsize,
}

impl State {
    /// Why the proxy does not serve, if so.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        if self.needs_identity {
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
        (self.listening.load(Ordering::Relaxed) < self.workers).then(|| "starting".to_owned())
    }
}

/// Ends a proxy, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Stopper {
    fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self { sender, receiver }
    }

    /// Tells workers to stop accepting and to finish what is in flight.
    pub fn stop(&self) {
        self.sender.close();
    }

    /// Completes once [`stop`](Self::stop) was called. Cancel safe.
    pub async fn stopped(&self) {
        // Nothing is ever sent: an error means closed.
        let _closed = self.receiver.recv().await;
    }
}

/// Why a proxy could not start or go on.
#[derive(Debug)]
pub enum Error {
    /// An address cannot be had.
    Bind {
        /// The key in the file.
        what: String,
        /// The address.
        address: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// No SVID within `spiffe.startupTimeout`.
    NoIdentity(String),
    /// A part that never ends has ended.
    Ended(String),
    /// The operating system's, elsewhere.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind {
                what,
                address,
                source,
            } => write!(f, "{what}: cannot listen on {address}: {source}"),
            Self::NoIdentity(why) => {
                write!(f, "no SVID within spiffe.startupTimeout: {why}")
            }
            Self::Ended(what) => write!(f, "{what} has ended unexpectedly"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addresses", &self.addresses)
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
        let bind_error = |what: String, address: String| {
            move |source| Error::Bind {
                what,
                address,
                source,
            }
        };
        let admin = match &config.admin {
            None => None,
            Some(address) => Some(Admin::bind(address).map_err(bind_error(
                "admin.address".to_owned(),
                format!("{address:?}"),
            ))?),
        };
        let mut addresses: BTreeMap<String, SocketAddr> = BTreeMap::new();
        let mut sockets = Vec::new();
        for _ in 0..workers {
            let mut of_worker = Vec::new();
            for entry in &config.entry_points {
                // With port 0 the first worker gets a port, and the others
                // join it.
                let address = addresses.get(&entry.name).copied();
                let address = address.unwrap_or(entry.address);
                let bound = Bound::new(address).map_err(bind_error(
                    format!("entryPoints.{}", entry.name),
                    address.to_string(),
                ))?;
                addresses.insert(entry.name.clone(), bound.address);
                of_worker.push(bound);
            }
            sockets.push(of_worker);
        }
        let needs_identity = config.needs_identity();
        Ok(Self {
            config: Arc::new(config),
            state: Arc::new(State {
                identity: Identity::new(),
                needs_identity,
                stopping: AtomicBool::new(false),
                workers,
                listening: AtomicUsize::new(0),
            }),
            admin,
            sockets: Mutex::new(sockets),
            addresses,
            workers,
            stop: Stopper::new(),
            go: async_channel::bounded(1),
        })
    }

    /// The address of an entry point, with the port that it really has.
    #[must_use]
    pub fn address(&self, entry_point: &str) -> Option<SocketAddr> {
        self.addresses.get(entry_point).copied()
    }

    /// The address of the admin endpoint, if it is one of TCP.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(Admin::tcp_address)
    }

    /// The identity that connections are made with.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// A handle that ends the proxy.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
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
        let (sender, updates) = async_channel::bounded(4);
        // While the thread lives it holds the sender: its end is seen as the
        // channel's. Without a thread, this end holds it.
        let _without_thread = match &self.config.spiffe.endpoint {
            None => Some(sender),
            Some(endpoint) => {
                let settings = workload_api::Settings {
                    endpoint: endpoint.clone(),
                    hint: self.config.spiffe.hint.clone(),
                    provider: tls::provider(),
                };
                workload_api::spawn(settings, sender)?;
                None
            }
        };
        let admin = async {
            match &self.admin {
                Some(admin) => admin.serve(&executor, &self.state).await,
                None => std::future::pending().await,
            }
            Err(Error::Ended("the admin endpoint".to_owned()))
        };
        let store = async {
            self.state.identity.keep_current(updates).await;
            Err(Error::Ended("the identity thread".to_owned()))
        };
        let start = async {
            self.wait_for_identity().await?;
            self.go.0.close();
            std::future::pending().await
        };
        let stopped = async {
            self.stop.stopped().await;
            self.state.stopping.store(true, Ordering::Relaxed);
            // What is in flight still needs an identity, and somebody may ask
            // how it goes.
            std::future::pending().await
        };
        let work = stopped.or(start).or(store).or(admin);
        executor.run(work).await
    }

    async fn wait_for_identity(&self) -> Result<(), Error> {
        let spiffe = &self.config.spiffe;
        if !self.state.needs_identity || !spiffe.wait_for_svid {
            return Ok(());
        }
        let identity = &self.state.identity;
        let got = async {
            identity.first().await;
            Ok(())
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
            match spiffe.startup_timeout {
                Some(limit) => Timer::after(limit).await,
                None => std::future::pending().await,
            };
            let why = identity.problem();
            Err(Error::NoIdentity(why.unwrap_or_else(|| {
                "the Workload API has not answered".to_owned()
            })))
        };
        got.or(limit).or(notices).await
    }

    /// One worker: waits until it may listen, serves until the proxy is
    /// stopped, and lets what is in flight finish. Returns whether it did,
    /// within the longest `graceTimeOut`.
    ///
    /// To be called once for each worker that was asked for.
    ///
    /// # Errors
    /// The operating system's, when a socket cannot listen.
    pub async fn worker<R: Runtime>(&self, runtime: R) -> Result<bool, Error> {
        let sockets = {
            let sockets = self.sockets.lock();
            sockets.unwrap_or_else(PoisonError::into_inner).pop()
        };
        let sockets = sockets.ok_or_else(|| Error::Ended("a worker too many".to_owned()))?;
        let stopped_first = async {
            self.stop.stopped().await;
            true
        };
        let may_listen = async {
            let _closed = self.go.1.recv().await;
            false
        };
        if stopped_first.or(may_listen).await {
            return Ok(true);
        }
        let Entries { drains, accepting } = self.entries(&runtime, sockets)?;
        self.state.listening.fetch_add(1, Ordering::Relaxed);
        info!("a worker listens");
        let mut accepting = std::pin::pin!(accepting);
        let stopped = async {
            self.stop.stopped().await;
            Ok(())
        };
        let serving = async {
            accepting.as_mut().await;
            Err(Error::Ended("an accept loop".to_owned()))
        };
        stopped.or(serving).await?;
        for drain in &drains {
            drain.stop();
        }
        // Each takes in what the kernel has queued, and closes its socket.
        accepting.await;
        let grace = self.config.entry_points.iter().map(|entry| entry.grace);
        let all_done = async {
            for drain in &drains {
                drain.fewer_than(1).await;
            }
        };
        let drained = within(&runtime, grace.max(), all_done).await.is_some();
        let left: usize = drains.iter().map(Drain::running).sum();
        if !drained {
            warn!("{left} connections were still open when graceTimeOut was over");
        }
        Ok(drained)
    }

    fn entries<R: Runtime>(
        &self,
        runtime: &R,
        sockets: Vec<Bound>,
    ) -> io::Result<Entries<impl Future<Output = ()> + use<R>>> {
        let identity = &self.state.identity;
        let server: Rc<str> = Rc::from(host_name().as_str());
        let panics: Panics = Rc::new(Cell::new(0));
        let mut pool = Pool::new(Dialer::new(runtime.clone(), identity.clone()));
        let mut services: Vec<Rc<Service>> = Vec::new();
        // Slots are given out before the pool is shared.
        for entry in &self.config.entry_points {
            if let Serves::Http(http) = &entry.serves {
                for route in &http.routes {
                    if !services.iter().any(|known| known.is_for(&route.service)) {
                        services.push(Rc::new(Service::new(&route.service, &mut pool)));
                    }
                }
            }
        }
        let pool = Rc::new(pool);
        let tcp_dialer = Rc::new(Dialer::new(runtime.clone(), identity.clone()));
        let mut drains = Vec::new();
        let mut loops: Vec<futures_lite::future::BoxedLocal<()>> = Vec::new();
        for (entry, socket) in self.config.entry_points.iter().zip(sockets) {
            let listener = runtime.listener(socket.listen()?)?;
            let drain = Drain::default();
            drains.push(drain.clone());
            let (runtime, name) = (runtime.clone(), entry.name.clone());
            let panics = Rc::clone(&panics);
            let max = entry.connections_max.div_ceil(self.workers.max(1));
            match &entry.serves {
                Serves::Http(config) => {
                    let of_routes = config.routes.iter().filter_map(|route| {
                        services.iter().find(|s| s.is_for(&route.service)).cloned()
                    });
                    let of_routes = of_routes.collect();
                    let (pool, server) = (Rc::clone(&pool), Rc::clone(&server));
                    let http = Rc::new(Http::new(&name, config, pool, of_routes, server));
                    loops.push(Box::pin(async move {
                        accept(
                            &runtime,
                            &name,
                            &listener,
                            max,
                            &drain,
                            &panics,
                            |s, peer, r| {
                                let http = Rc::clone(&http);
                                async move { http.serve(s, peer, &r).await }
                            },
                        )
                        .await;
                    }));
                }
                Serves::Tcp(service) => {
                    let tcp = Rc::new(Tcp::new(&name, service, Rc::clone(&tcp_dialer)));
                    loops.push(Box::pin(async move {
                        accept(
                            &runtime,
                            &name,
                            &listener,
                            max,
                            &drain,
                            &panics,
                            |s, peer, r| {
                                let tcp = Rc::clone(&tcp);
                                async move {
                                    tcp.serve(s, peer).await;
                                    drop(r);
                                }
                            },
                        )
                        .await;
                    }));
                }
            }
        }
        Ok(Entries {
            drains,
            accepting: async move {
                // None ends before the drain begins; then all must.
                std::future::poll_fn(move |cx| {
                    loops.retain_mut(|it| it.as_mut().poll(cx).is_pending());
                    if loops.is_empty() {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            },
        })
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
    /// A [`Stopper`] was used; let it finish.
    Drain,
    /// At once.
    Now,
}

struct Entries<F> {
    drains: Vec<Drain>,
    accepting: F,
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

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
