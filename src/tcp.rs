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
use copy::{Limits, Unfinished, relay};

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
    pub(crate) async fn serve(&self, stream: R::Stream, peer: SocketAddr) {
        // Until all is said and done, an end of this task is a reset.
        let mut client = Unfinished::new(stream);
        let Some(channel) = self.dial(peer).await else {
            return;
        };
        // TLS tells a cut by itself: there is no close_notify.
        let (mut plain, mut tls) = match channel {
            Channel::Plain(socket) => (Some(Unfinished::new(socket)), None),
            tls => (None, Some(tls)),
        };
        let transport = &self.service.transport;
        let limits = Limits {
            idle: transport.idle_timeout,
            termination: transport.termination_delay,
        };
        let runtime = self.dialer.runtime();
        let (mut ahead, mut behind) = (ReadBuf::default(), ReadBuf::default());
        let Some(stream) = client.get() else {
            return;
        };
        let first = (stream, &mut ahead);
        let relayed = match (plain.as_mut().and_then(Unfinished::get), tls.as_mut()) {
            (Some(socket), _) => relay(runtime, first, (socket, &mut behind), limits).await,
            (None, Some(tls)) => relay(runtime, first, (tls, &mut behind), limits).await,
            (None, None) => return,
        };
        let (up, down) = (relayed.up, relayed.down);
        match relayed.end {
            Ok(()) => {
                debug!("{}: {peer}: done, {up} bytes up, {down} down", self.name);
                client.finish();
                if let Some(plain) = plain {
                    plain.finish();
                }
            }
            Err(why) => debug!("{}: {peer}: {why}; {up} bytes up, {down} down", self.name),
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
