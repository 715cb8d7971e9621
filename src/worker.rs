//! One worker: its entry points, its connections, and how both change over
//! time. It shares nothing with other workers but the [`State`].

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use log::{error, info, warn};

use crate::bell::Once;
use crate::config::{Config, EntryPoint, HttpEntry, HttpService, Serves};
use crate::dial::Dialer;
use crate::drain::{Drain, Running};
use crate::http::Http;
use crate::http::fields::Hop;
use crate::http::plan::{Plan, Service};
use crate::http::pool::{Pool, Slot};
use crate::listener::{Accept, Bound, Counts, accept};
use crate::metrics::Recorder;
use crate::runtime::{Runtime, sleep, within};
use crate::state::State;
use crate::tcp::{self, Tcp};
use crate::trust::Trust;

/// A configuration for a worker, the first or another.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) config: Arc<Config>,
    /// For entry points that the worker has no socket for yet.
    pub(crate) sockets: Vec<(Key, Bound)>,
    /// Dropped once it is applied.
    pub(crate) applied: Option<Sender<()>>,
}

/// A worker's end of the way that changes take. Whatever is left in it when it
/// goes, nobody waits for, and no address stays taken.
#[derive(Debug)]
pub(crate) struct Inbox(pub(crate) Receiver<Change>);

impl Drop for Inbox {
    fn drop(&mut self) {
        self.0.close();
        while self.0.try_recv().is_ok() {}
    }
}

/// What makes an entry point the same one after a reload: its listener, its
/// queue and its connections stay.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// As in the file: a port of 0 is 0.
    pub(crate) address: SocketAddr,
    is_tcp: bool,
}

impl Key {
    pub(crate) fn of(entry: &EntryPoint) -> Self {
        Self {
            name: entry.name.clone(),
            address: entry.address,
            is_tcp: matches!(entry.serves, Serves::Tcp(_)),
        }
    }
}

/// A worker that listens.
struct Worker<R: Runtime> {
    runtime: R,
    state: Arc<State>,
    recorder: Rc<Recorder>,
    trust: Trust,
    dialer: Rc<Dialer<R>>,
    pool: Rc<Pool<R>>,
    hop: Rc<Hop>,
    entries: Vec<Entry<R>>,
    /// The tasks of the entry points.
    lives: Drain,
    /// Whether one of them had to cut something.
    has_cut: Rc<Cell<bool>>,
    /// Set at the end, for tasks that nothing else ends.
    over: Once,
}

/// However it ends: an embedder may drop it.
impl<R: Runtime> Drop for Worker<R> {
    fn drop(&mut self) {
        self.over.set();
        self.pool.keep_only(&[]);
    }
}

/// An entry point on this worker.
struct Entry<R: Runtime> {
    key: Key,
    terms: Rc<Terms>,
    serves: Serving<R>,
}

/// What a reload may change of an entry point that stays.
#[derive(Debug)]
struct Terms {
    drain: Drain,
    connections_max: Cell<usize>,
    accept_grace: Cell<Duration>,
    grace: Cell<Duration>,
    is_removed: Cell<bool>,
}

enum Serving<R: Runtime> {
    Http(Rc<Http<R>>),
    Tcp(Rc<Tcp<R>>),
}

/// Serves what `changes` brings, until the proxy is stopped and what is in
/// flight has finished. Returns whether it did in time.
pub(crate) async fn run<R: Runtime>(
    runtime: R,
    state: Arc<State>,
    changes: Inbox,
) -> io::Result<bool> {
    let Some(first) = wait_to_listen(&state, &changes.0).await else {
        return Ok(true);
    };
    let recorder = Rc::new(state.metrics.recorder());
    let trust = Trust::new(state.identity.clone(), Rc::clone(&recorder));
    let dialer = Dialer::new(runtime.clone(), trust.clone(), Rc::clone(&recorder));
    let dialer = Rc::new(dialer);
    let mut worker = Worker {
        pool: Rc::new(Pool::new(Rc::clone(&dialer), Rc::clone(&recorder))),
        runtime,
        state,
        recorder,
        trust,
        dialer,
        hop: Rc::new(Hop::new(host_name())),
        entries: Vec::new(),
        lives: Drain::default(),
        has_cut: Rc::default(),
        over: Once::new(),
    };
    worker.follow_trust();
    worker.serve(first, &changes.0).await
}

/// `None`: stopped before anyone could connect.
async fn wait_to_listen(state: &State, changes: &Receiver<Change>) -> Option<Change> {
    let mut newest: Option<Change> = None;
    let stopped = async {
        state.stop.wait().await;
        None
    };
    let go = async {
        state.go.wait().await;
        Some(None)
    };
    let mut either = std::pin::pin!(stopped.or(go));
    loop {
        let change = async { changes.recv().await.ok().map(Some) };
        // A change first: what was asked for before the start is part of it.
        match change.or(either.as_mut()).await? {
            None => return newest,
            Some(mut change) => {
                // There is nothing yet that goes on as before.
                change.applied = None;
                if let Some(before) = newest.take() {
                    let kept = before.sockets.into_iter();
                    let wanted = |key: &Key| {
                        let entries = &change.config.entry_points;
                        entries.iter().any(|entry| Key::of(entry) == *key)
                    };
                    let kept: Vec<_> = kept.filter(|(key, _)| wanted(key)).collect();
                    change.sockets.extend(kept);
                }
                newest = Some(change);
            }
        }
    }
}

impl<R: Runtime> Worker<R> {
    async fn serve(&mut self, first: Change, changes: &Receiver<Change>) -> io::Result<bool> {
        let state = Arc::clone(&self.state);
        self.apply(first, true)?;
        state.listening.fetch_add(1, Ordering::Relaxed);
        info!("a worker listens");
        loop {
            let stopped = async {
                state.stop.wait().await;
                None
            };
            let change = async { changes.recv().await.ok() };
            let Some(change) = stopped.or(change).await else {
                break;
            };
            self.apply(change, false)?;
        }
        self.lives.done().await;
        Ok(!self.has_cut.get())
    }

    /// Looks at open connections whenever what we trust has changed.
    fn follow_trust(&self) {
        let (runtime, trust) = (self.runtime.clone(), self.trust.clone());
        let (pool, over) = (Rc::clone(&self.pool), self.over.clone());
        self.runtime.spawn(async move {
            let following = trust.follow(&runtime, || {
                pool.close_unfit();
                // With it goes the last of a key that is not ours any more.
                pool.dialer().forget();
            });
            over.wait().or(following).await;
        });
    }

    /// Makes a configuration the one that runs. What is open stays open as
    /// long as its entry point does.
    fn apply(&mut self, change: Change, is_first: bool) -> io::Result<()> {
        let Change {
            config,
            mut sockets,
            applied: _applied,
        } = change;
        // Before anything is served by it.
        self.trust.configure(&config);
        self.dialer.forget();
        let mut services: Vec<Rc<Service<R>>> = Vec::new();
        let mut before = std::mem::take(&mut self.entries);
        for entry in &config.entry_points {
            let key = Key::of(entry);
            if let Some(index) = before.iter().position(|it| it.key == key) {
                let kept = before.swap_remove(index);
                self.renew(&kept, entry, &mut services);
                self.entries.push(kept);
                continue;
            }
            let bound = sockets.iter().position(|(of, _)| *of == key);
            let bound = bound.map(|index| sockets.swap_remove(index).1);
            // The control side has bound one for each.
            let bound = bound.ok_or_else(|| io::Error::other(format!("no socket: {key:?}")))?;
            let opened = self.open(key, entry, bound, &mut services);
            match opened {
                Ok(()) => {}
                Err(error) if is_first => return Err(error),
                // What runs goes on; the other workers may have had more luck.
                Err(error) => error!("{}: a worker cannot open it: {error}", entry.name),
            }
        }
        for gone in before {
            gone.terms.is_removed.set(true);
            gone.terms.drain.stop();
        }
        let used: Vec<Rc<Slot<R>>> = services
            .iter()
            .flat_map(|service| service.slots())
            .map(Rc::clone)
            .collect();
        self.pool.keep_only(&used);
        Ok(())
    }

    /// The service of this configuration, made once however many routes lead
    /// to it.
    fn service(&self, known: &mut Vec<Rc<Service<R>>>, of: &Arc<HttpService>) -> Rc<Service<R>> {
        if let Some(known) = known.iter().find(|known| known.is_for(of)) {
            return Rc::clone(known);
        }
        let service = Rc::new(Service::new(of, &self.pool));
        known.push(Rc::clone(&service));
        service
    }

    fn http_plan(
        &self,
        name: &str,
        entry: &Arc<HttpEntry>,
        services: &mut Vec<Rc<Service<R>>>,
    ) -> Plan<R> {
        let service = |of: &Arc<HttpService>| self.service(services, of);
        Plan::new(name, entry, service, &self.recorder)
    }

    /// An entry point that stays.
    fn renew(&self, kept: &Entry<R>, entry: &EntryPoint, services: &mut Vec<Rc<Service<R>>>) {
        self.set_terms(&kept.terms, entry);
        match (&kept.serves, &entry.serves) {
            (Serving::Http(http), Serves::Http(config)) => {
                http.replace(self.http_plan(&entry.name, config, services));
            }
            (Serving::Tcp(tcp), Serves::Tcp(service)) => {
                tcp.replace(tcp::Plan::new(&entry.name, service, &self.recorder));
            }
            // The kind is part of the key.
            _ => {}
        }
    }

    fn set_terms(&self, terms: &Terms, entry: &EntryPoint) {
        let max = entry.connections_max.div_ceil(self.state.workers.max(1));
        terms.connections_max.set(max);
        terms.accept_grace.set(entry.accept_grace);
        terms.grace.set(entry.grace);
        terms.drain.recheck();
    }

    /// An entry point that is new.
    fn open(
        &mut self,
        key: Key,
        entry: &EntryPoint,
        bound: Bound,
        services: &mut Vec<Rc<Service<R>>>,
    ) -> io::Result<()> {
        let is_shared = bound.is_shared;
        let listener = (self.runtime.listener(bound.listen()?)?, is_shared);
        let terms = Rc::new(Terms {
            drain: Drain::default(),
            connections_max: Cell::new(1),
            accept_grace: Cell::new(Duration::ZERO),
            grace: Cell::new(Duration::ZERO),
            is_removed: Cell::new(false),
        });
        self.set_terms(&terms, entry);
        let name = entry.name.as_str();
        let counts = Counts::new(&self.recorder, name);
        let serves = match &entry.serves {
            Serves::Http(config) => {
                let plan = self.http_plan(name, config, services);
                let (pool, hop) = (Rc::clone(&self.pool), Rc::clone(&self.hop));
                let http = Rc::new(Http::new(name, plan, pool, hop, counts.panics.clone()));
                let served = Rc::clone(&http);
                self.start(name, &terms, listener, move |stream, peer, running| {
                    Rc::clone(&served).serve(stream, peer, running)
                });
                Serving::Http(http)
            }
            Serves::Tcp(service) => {
                let plan = tcp::Plan::new(name, service, &self.recorder);
                let tcp = Rc::new(Tcp::new(name, plan, Rc::clone(&self.dialer)));
                let served = Rc::clone(&tcp);
                self.start(name, &terms, listener, move |stream, peer, running| {
                    Rc::clone(&served).serve(stream, peer, running)
                });
                Serving::Tcp(tcp)
            }
        };
        self.entries.push(Entry { key, terms, serves });
        Ok(())
    }

    /// Starts the task of an entry point: it accepts until the drain begins,
    /// gives what is open its time, and cuts the rest.
    fn start<F: Future<Output = ()> + 'static>(
        &self,
        name: &str,
        terms: &Rc<Terms>,
        (listener, is_shared): (R::Listener, bool),
        serve: impl Fn(R::Stream, SocketAddr, Running) -> F + 'static,
    ) {
        let (runtime, name, terms) = (self.runtime.clone(), Rc::from(name), Rc::clone(terms));
        let (state, over) = (Arc::clone(&self.state), self.over.clone());
        let (life, has_cut) = (self.lives.enter(), Rc::clone(&self.has_cut));
        let counts = Counts::new(&self.recorder, &name);
        self.runtime.spawn(async move {
            let drain = &terms.drain;
            let told = async {
                state.stop.wait().await;
                sleep(&runtime, terms.accept_grace.get()).await;
                drain.stop();
                std::future::pending().await
            };
            let entry = Accept {
                name: &name,
                connections_max: &terms.connections_max,
                drain,
                counts: &counts,
                is_shared,
            };
            let ended = async {
                accept(&runtime, &listener, &entry, serve).or(told).await;
                drop(listener);
                // Those that have nothing to do end in a turn.
                yield_now().await;
                let grace = Some(terms.grace.get());
                within(&runtime, grace, drain.done()).await;
            };
            // Without its worker nobody looks after what is open.
            over.wait().or(ended).await;
            let left = drain.in_flight();
            if left > 0 {
                warn!("{name}: {left} connections were still open when graceTimeOut was over");
                // Nobody asks about an entry point that a reload took away.
                has_cut.set(has_cut.get() || !terms.is_removed.get());
            }
            drain.cut();
            drain.done().await;
            drop(life);
        });
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
