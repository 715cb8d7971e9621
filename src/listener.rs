//! Listening sockets, and the loop that accepts from them. It hands sockets
//! on and never handshakes or reads: one slow client delays nobody.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use log::{error, warn};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::dial::set_options;
use crate::drain::{Drain, Running};
use crate::runtime::{Runtime, sleep};

/// Connections that the kernel may hold for us.
const BACKLOG: i32 = 4096;
/// The waits after a failed accept, from the first to the longest: without
/// descriptors left, a loop that tries at once would spin.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A socket that has its address, and does not listen yet: until it does,
/// clients are refused rather than left hanging.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    pub(crate) address: SocketAddr,
}

impl Bound {
    /// Takes an address, together with the other workers of this process.
    /// `[::]` means every address, IPv4 too.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        match Self::bind(address) {
            // A machine without IPv6 still has every IPv4 address.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
                    && address.ip().is_unspecified() =>
            {
                Self::bind(SocketAddr::new(
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    address.port(),
                ))
            }
            bound => bound,
        }
    }

    fn bind(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        }
        rustix::net::bind(&socket, &address)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        Ok(Self { socket, address })
    }

    /// Starts to listen.
    pub(crate) fn listen(self) -> io::Result<TcpListener> {
        rustix::net::listen(&self.socket, BACKLOG)?;
        Ok(TcpListener::from(self.socket))
    }
}

/// Connections that ended by a panic, on this worker.
pub(crate) type Panics = Rc<Cell<u64>>;

/// Accepts for ever. `serve` makes the future of one connection; it runs in a
/// task of its own, and its panic ends it alone.
pub(crate) async fn accept<R: Runtime, F: Future<Output = ()> + 'static>(
    runtime: &R,
    name: &str,
    listener: &R::Listener,
    connections_max: usize,
    drain: &Drain,
    panics: &Panics,
    serve: impl Fn(R::Stream, SocketAddr, Running) -> F,
) {
    let mut backoff = BACKOFF.0;
    let mut in_a_row = 0u32;
    loop {
        // Before accept, not after: at the limit new clients wait in the
        // kernel's queue, where they cost no descriptor and no task.
        drain.fewer_than(connections_max).await;
        let (stream, peer) = match runtime.accept(listener).await {
            Ok(accepted) => accepted,
            // Of that one connection, which is gone.
            Err(error) if is_about_one_connection(&error) => continue,
            Err(error) => {
                warn!("{name}: cannot accept: {error}; next try in {backoff:?}");
                sleep(runtime, backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
                continue;
            }
        };
        backoff = BACKOFF.0;
        if let Err(error) = set_options(&stream, None) {
            warn!("{name}: {peer}: {error}");
            continue;
        }
        let running = drain.enter();
        let connection = AssertUnwindSafe(serve(stream, peer, running));
        let (panics, name) = (Rc::clone(panics), name.to_owned());
        runtime.spawn(async move {
            if connection.catch_unwind().await.is_err() {
                panics.set(panics.get() + 1);
                error!(
                    "{name}: {peer}: this connection ended by a panic, the {}. of this worker; the others go on",
                    panics.get()
                );
            }
        });
        // A flood of new connections must leave the old ones their turns.
        in_a_row = in_a_row.wrapping_add(1);
        if in_a_row.is_multiple_of(16) {
            futures_lite::future::yield_now().await;
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
