//! The TCP forwarder: one accepted socket, one dialled, bytes both ways.

pub(crate) mod copy;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use log::{debug, warn};

use crate::balance::Balancer;
use crate::config::TcpService;
use crate::dial::{Channel, Dialer};
use crate::http::wire::ReadBuf;
use crate::runtime::Runtime;
use copy::{Limits, relay, reset};

/// A TCP entry point on one worker.
#[derive(Debug)]
pub(crate) struct Tcp<R> {
    name: String,
    service: Arc<TcpService>,
    balancer: RefCell<Balancer>,
    dialer: Rc<Dialer<R>>,
}

impl<R: Runtime> Tcp<R> {
    pub(crate) fn new(name: &str, service: &Arc<TcpService>, dialer: Rc<Dialer<R>>) -> Self {
        let weights = service.servers.iter().map(|server| server.weight);
        Self {
            name: name.to_owned(),
            balancer: RefCell::new(Balancer::new(weights)),
            service: Arc::clone(service),
            dialer,
        }
    }

    /// Serves a client connection to its end.
    pub(crate) async fn serve(&self, mut stream: R::Stream, peer: SocketAddr) {
        let Some(mut channel) = self.dial(peer).await else {
            // No byte of an answer was given; a reset says that it failed.
            reset(stream);
            return;
        };
        let transport = &self.service.transport;
        let limits = Limits {
            idle: transport.idle_timeout,
            termination: transport.termination_delay,
        };
        let relayed = relay(
            self.dialer.runtime(),
            (&mut stream, &mut ReadBuf::default()),
            (&mut channel, &mut ReadBuf::default()),
            limits,
        )
        .await;
        let (up, down) = (relayed.up, relayed.down);
        match relayed.end {
            Ok(()) => debug!("{}: {peer}: done, {up} bytes up, {down} down", self.name),
            Err(why) => {
                debug!("{}: {peer}: {why}; {up} bytes up, {down} down", self.name);
                // Neither side may take what it has for the whole.
                reset(stream);
                if let Channel::Plain(socket) = channel {
                    reset(socket);
                }
            }
        }
    }

    /// The first server that can be had, each tried once.
    async fn dial(&self, peer: SocketAddr) -> Option<Channel<R::Stream>> {
        let mut tried = Vec::new();
        loop {
            let index = self.balancer.borrow_mut().next(&tried)?;
            let server = self.service.servers.get(index)?;
            let transport = &self.service.transport.base;
            let dialed = self.dialer.dial(transport, &server.address, server.tls);
            match dialed.await {
                Ok(upstream) => {
                    if let Some(admission) = &upstream.admission {
                        debug!("{}: {peer}: to {}", self.name, admission.peer().id());
                    }
                    return Some(upstream.channel);
                }
                Err(error) => warn!(
                    "{}: {peer}: service {}, server {}, {}: {error}",
                    self.name, self.service.name, server.address, transport.name
                ),
            }
            tried.push(index);
        }
    }
}
