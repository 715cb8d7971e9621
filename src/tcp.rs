//! The TCP forwarder: one accepted socket, one dialled, bytes both ways.

pub(crate) mod copy;
mod splice;
pub(crate) mod tunnel;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures_lite::FutureExt;
use log::{debug, warn};

use crate::balance::Balancer;
use crate::config::TcpService;
use crate::dial::{Dialer, Upstream};
use crate::drain::Running;
use crate::http::wire::ReadBuf;
use crate::metrics::{Counter, Recorder, TCP_BYTES, TCP_SESSIONS};
use crate::runtime::Runtime;
use copy::{Bytes, Limits, Unfinished};

/// A TCP entry point on one worker.
#[derive(Debug)]
pub(crate) struct Tcp<R> {
    name: String,
    /// Replaced by a reload. A connection stays with the one it began with.
    plan: RefCell<Rc<Plan>>,
    dialer: Rc<Dialer<R>>,
}

/// What a configuration makes of an entry point.
#[derive(Debug)]
pub(crate) struct Plan {
    service: Arc<TcpService>,
    balancer: RefCell<Balancer>,
    whole: Counter,
    cut: Counter,
    refused: Counter,
    up: Counter,
    down: Counter,
}

impl Plan {
    pub(crate) fn new(name: &str, service: &Arc<TcpService>, recorder: &Recorder) -> Self {
        let weights = service.servers.iter().map(|server| server.weight);
        let ended = |end| recorder.counter(&TCP_SESSIONS, &[name, &service.name, end]);
        let bytes = |way| recorder.counter(&TCP_BYTES, &[name, &service.name, way]);
        Self {
            balancer: RefCell::new(Balancer::new(weights)),
            whole: ended("whole"),
            cut: ended("cut"),
            refused: ended("refused"),
            up: bytes("up"),
            down: bytes("down"),
            service: Arc::clone(service),
        }
    }
}

impl<R: Runtime> Tcp<R> {
    pub(crate) fn new(name: &str, plan: Plan, dialer: Rc<Dialer<R>>) -> Self {
        Self {
            name: name.to_owned(),
            plan: RefCell::new(Rc::new(plan)),
            dialer,
        }
    }

    /// Serves every connection that comes from now on by another plan.
    pub(crate) fn replace(&self, plan: Plan) {
        *self.plan.borrow_mut() = Rc::new(plan);
    }

    /// Serves a client connection to its end.
    pub(crate) async fn serve(
        self: Rc<Self>,
        stream: R::Stream,
        peer: SocketAddr,
        running: Running,
    ) {
        let plan = Rc::clone(&self.plan.borrow());
        let cut = async {
            running.cut().await;
            debug!("{}: {peer}: cut, there is no time left", self.name);
            &plan.cut
        };
        let ended = self.session(&plan, stream, peer).or(cut).await;
        ended.add(1);
    }

    /// Returns what has to count the session.
    async fn session<'p>(
        &self,
        plan: &'p Plan,
        stream: R::Stream,
        peer: SocketAddr,
    ) -> &'p Counter {
        // Until all is said and done, an end of this task is a reset.
        let mut client = Unfinished::new(stream);
        // Boxed: a tunnel does not hold the room that dialling takes.
        let Some(upstream) = Box::pin(self.dial(plan, peer)).await else {
            return &plan.refused;
        };
        let Some(stream) = client.get() else {
            return &plan.cut;
        };
        let transport = &plan.service.transport;
        let terms = tunnel::Terms {
            limits: Limits {
                idle: transport.idle_timeout,
                termination: transport.termination_delay,
            },
            usage: "tunnel",
            bytes: Some(Bytes {
                up: &plan.up,
                down: &plan.down,
            }),
        };
        let (mut ahead, mut behind) = (ReadBuf::default(), ReadBuf::default());
        let from = (stream, &mut ahead);
        let to = (upstream, &mut behind);
        let relayed = tunnel::run(self.dialer.runtime(), from, to, terms).await;
        match relayed.end {
            Ok(()) => {
                let (up, down) = (relayed.up, relayed.down);
                debug!("{}: {peer}: done, {up} bytes up, {down} down", self.name);
                client.finish();
                &plan.whole
            }
            Err(why) => {
                debug!("{}: {peer}: {why}", self.name);
                &plan.cut
            }
        }
    }

    /// The first server that can be had, each tried once.
    async fn dial(&self, plan: &Plan, peer: SocketAddr) -> Option<Upstream<R::Stream>> {
        let service = &plan.service;
        let mut tried = Vec::new();
        loop {
            let index = plan.balancer.borrow_mut().next(&tried)?;
            let server = service.servers.get(index)?;
            let transport = &service.transport.base;
            let dialed = self
                .dialer
                .dial(transport, &server.address, server.tls.then_some(&[]));
            match dialed.await {
                Ok(upstream) => {
                    if let Some(admission) = &upstream.admission {
                        debug!("{}: {peer}: to {}", self.name, admission.peer().id());
                    }
                    return Some(upstream);
                }
                Err(error) => warn!(
                    "{}: {peer}: service {}, server {}, {}: {error}",
                    self.name, service.name, server.address, transport.name
                ),
            }
            tried.push(index);
        }
    }
}
