//! The one place that turns a transport and an address into a connection:
//! resolve, connect, handshake, verified peer. Both forwarders use it, so they
//! cannot differ in whom they trust.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use rustls::pki_types::{ServerName, UnixTime};

use crate::metrics::{HANDSHAKES, Recorder};
use crate::net::{Address, Host};
use crate::runtime::{Runtime, Splice, Stream, within};
use crate::tls::verifier::{PeerError, Role};
use crate::tls::{self, unix_now};
use crate::transport::Transport;
pub use crate::trust::{Admission, Loss};
use crate::trust::{Grounds, Trust};

/// Why no upstream connection could be had.
#[derive(Debug)]
pub enum DialError {
    /// We have no SVID, or it was withdrawn.
    NoIdentity(String),
    /// Ours has expired and is not presented.
    IdentityExpired,
    /// The transport cannot be used.
    Config(String),
    /// The name has no address.
    Resolve(io::Error),
    /// TCP says no.
    Connect(io::Error),
    /// No connection within `dialTimeout`.
    DialTimeout(Duration),
    /// No TLS within its limit.
    HandshakeTimeout(Duration),
    /// The peer is not one that we trust or want.
    Peer(PeerError),
    /// It was, when the handshake began, and is no longer.
    Lost(Loss),
    /// The handshake failed in another way.
    Handshake(io::Error),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentity(why) => write!(f, "we have no SVID to present: {why}"),
            Self::IdentityExpired => f.write_str("our SVID has expired and is not presented"),
            Self::Config(why) => f.write_str(why),
            Self::Resolve(error) => write!(f, "the name does not resolve: {error}"),
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::DialTimeout(limit) => write!(f, "not connected after {limit:?} (dialTimeout)"),
            Self::HandshakeTimeout(limit) => {
                write!(f, "the TLS handshake was not done after {limit:?}")
            }
            Self::Peer(error) => write!(f, "the peer is refused: {error}"),
            Self::Lost(loss) => write!(f, "trust was lost during the handshake: {loss}"),
            Self::Handshake(error) => write!(f, "the TLS handshake failed: {error}"),
        }
    }
}

impl std::error::Error for DialError {}

impl DialError {
    /// What an HTTP client is told, with the error type of RFC 9209. A TCP
    /// client only ever sees a close.
    #[must_use]
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Self::NoIdentity(_) | Self::IdentityExpired => (503, "destination_unavailable"),
            Self::Config(_) => (500, "proxy_configuration_error"),
            Self::Resolve(_) => (502, "dns_error"),
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => (502, "connection_refused"),
                io::ErrorKind::TimedOut => (504, "connection_timeout"),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    (502, "destination_ip_unroutable")
                }
                _ => (502, "connection_terminated"),
            },
            Self::DialTimeout(_) | Self::HandshakeTimeout(_) => (504, "connection_timeout"),
            Self::Peer(_) => (502, "tls_certificate_error"),
            Self::Lost(loss) => loss.status(),
            Self::Handshake(error) => (502, tls_error_type(error)),
        }
    }

    /// One word for a counter.
    fn reason(&self) -> &'static str {
        match self {
            Self::NoIdentity(_) => "no_identity",
            Self::IdentityExpired => "identity_expired",
            Self::Config(_) => "configuration",
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::DialTimeout(_) => "connect_timeout",
            Self::HandshakeTimeout(_) => "handshake_timeout",
            Self::Peer(error) => match error {
                PeerError::Malformed(_) | PeerError::NotAnSvid(_) => "peer_malformed",
                PeerError::NoBundle { .. } => "peer_without_bundle",
                PeerError::Untrusted { .. } => "peer_untrusted",
                PeerError::NotAllowed { .. } => "peer_not_allowed",
            },
            Self::Lost(_) => "trust_lost",
            Self::Handshake(error) => tls_error_type(error),
        }
    }
}

/// The error type of RFC 9209 for a failure on a TLS connection.
pub(crate) fn tls_error_type(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(_)) => "tls_alert_received",
        Some(rustls::Error::InvalidCertificate(_)) => "tls_certificate_error",
        Some(_) => "tls_protocol_error",
        None => "connection_terminated",
    }
}

/// Bytes to and from an upstream, in plaintext or through TLS.
#[derive(Debug)]
pub enum Channel<S> {
    /// `http://`, or TCP without `tls = true`.
    Plain(S),
    /// TLS.
    Tls(Box<TlsStream<S>>),
}

impl<S: Stream> Channel<S> {
    /// What was agreed upon (ALPN).
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The socket beneath.
    pub(crate) fn inner(&self) -> &S {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl<S: Stream> AsyncRead for Channel<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: Stream> AsyncWrite for Channel<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_close(cx),
            Self::Tls(stream) => Pin::new(stream).poll_close(cx),
        }
    }
}

/// What TLS says passes through us.
impl<S> Splice for TlsStream<S> {}

/// A connection to an upstream, and on what grounds it was admitted.
#[derive(Debug)]
pub struct Upstream<S> {
    /// The bytes.
    pub channel: Channel<S>,
    /// Of a SPIFFE transport.
    pub admission: Option<Admission>,
}

/// Makes connections for the forwarders of one worker.
#[derive(Debug)]
pub struct Dialer<R> {
    runtime: R,
    trust: Trust,
    recorder: Rc<Recorder>,
    /// By transport name and what is offered; each is of one policy and one
    /// generation.
    clients: RefCell<HashMap<String, Vec<Prepared>>>,
}

/// A TLS configuration, and what it was made of.
#[derive(Debug)]
struct Prepared {
    transport: Arc<Transport>,
    generation: u64,
    offer: Offer,
    client: tls::Client,
}

/// Protocols offered over TLS (ALPN), the preferred one first.
type Offer = &'static [&'static [u8]];

impl<R: Runtime> Dialer<R> {
    pub(crate) fn new(runtime: R, trust: Trust, recorder: Rc<Recorder>) -> Self {
        Self {
            runtime,
            trust,
            recorder,
            clients: RefCell::default(),
        }
    }

    /// Forgets what was made for transports and identities that may be gone.
    pub(crate) fn forget(&self) {
        self.clients.borrow_mut().clear();
    }

    pub(crate) fn runtime(&self) -> &R {
        &self.runtime
    }

    /// Opens a connection; with TLS as the transport says, offering these
    /// protocols, or without TLS.
    ///
    /// # Errors
    /// See [`DialError`]. No byte has been sent to a peer that is refused but
    /// those of the handshake.
    pub async fn dial(
        &self,
        transport: &Arc<Transport>,
        address: &Address,
        tls: Option<Offer>,
    ) -> Result<Upstream<R::Stream>, DialError> {
        let dialed = self.try_dial(transport, address, tls).await;
        let outcome = match &dialed {
            Ok(_) => "ok",
            Err(error) => error.reason(),
        };
        let labels = [transport.name.as_str(), outcome];
        self.recorder.counter(&HANDSHAKES, &labels).add(1);
        dialed
    }

    async fn try_dial(
        &self,
        transport: &Arc<Transport>,
        address: &Address,
        tls: Option<Offer>,
    ) -> Result<Upstream<R::Stream>, DialError> {
        // Before any packet: without an identity the peer never sees us.
        if let Some(offer) = tls {
            self.client(transport, offer)?;
        }
        let connecting = self.connect(address);
        let socket = within(&self.runtime, transport.dial_timeout, connecting)
            .await
            .unwrap_or_else(|| {
                Err(DialError::DialTimeout(
                    transport.dial_timeout.unwrap_or_default(),
                ))
            })?;
        set_options(&socket, transport.keep_alive).map_err(DialError::Connect)?;
        let Some(offer) = tls else {
            return Ok(Upstream {
                channel: Channel::Plain(socket),
                admission: None,
            });
        };
        // Connecting may have taken long: the handshake is made with what is
        // true now.
        let client = self.client(transport, offer)?;
        self.handshake(transport, address, client, socket).await
    }

    async fn connect(&self, address: &Address) -> Result<R::Stream, DialError> {
        let addresses = match &address.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, address.port)],
            Host::Name(name) => {
                let (name, port) = (name.clone(), address.port);
                let found = smol::unblock(move || {
                    (name.as_str(), port)
                        .to_socket_addrs()
                        .map(Iterator::collect::<Vec<_>>)
                });
                found.await.map_err(DialError::Resolve)?
            }
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match self.runtime.connect(address).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect(last))
    }

    async fn handshake(
        &self,
        transport: &Arc<Transport>,
        address: &Address,
        client: tls::Client,
        socket: R::Stream,
    ) -> Result<Upstream<R::Stream>, DialError> {
        let name = match (&transport.server_name, &address.host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::from(*ip),
            (None, Host::Name(name)) => ServerName::try_from(name.clone())
                .map_err(|error| DialError::Config(format!("server name \"{name}\": {error}")))?,
        };
        // One that timed out after it was refused may have left its reason.
        if let Some(verifier) = &client.svid_verifier {
            verifier.take_refusal();
        }
        let at = UnixTime::since_unix_epoch(seconds(unix_now()));
        let connector = TlsConnector::from(Arc::clone(&client.config));
        let limit = transport.handshake_timeout;
        let handshake = connector.connect(name, socket);
        let stream = within(&self.runtime, Some(limit), handshake)
            .await
            .ok_or(DialError::HandshakeTimeout(limit))?
            .map_err(|error| {
                let refusal = client.svid_verifier.as_ref().and_then(|v| v.take_refusal());
                refusal.map_or_else(|| DialError::Handshake(error), DialError::Peer)
            })?;
        let admission = match client.svid_verifier {
            None => None,
            Some(verifier) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let verified = verifier.verified(chain, Role::Server, at);
                let grounds = Grounds {
                    verified: verified.map_err(DialError::Peer)?,
                    chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
                    transport: Arc::clone(transport),
                    snapshot: Arc::clone(verifier.snapshot()),
                };
                Some(self.trust.admit(grounds).map_err(DialError::Lost)?)
            }
        };
        Ok(Upstream {
            channel: Channel::Tls(Box::new(stream)),
            admission,
        })
    }

    /// The TLS configuration of a transport under the current snapshot.
    fn client(&self, transport: &Arc<Transport>, offer: Offer) -> Result<tls::Client, DialError> {
        let now = unix_now();
        let snapshot = if transport.is_spiffe() {
            let Some(snapshot) = self.trust.identity().current() else {
                let why = self.trust.identity().problem();
                let why = why.unwrap_or_else(|| "the Workload API has not answered yet".to_owned());
                return Err(DialError::NoIdentity(why));
            };
            if snapshot.svid().is_expired(now) {
                return Err(DialError::IdentityExpired);
            }
            Some(snapshot)
        } else {
            None
        };
        let generation = snapshot.as_ref().map_or(0, |s| s.generation());
        let mut clients = self.clients.borrow_mut();
        let known = clients.entry(transport.name.clone()).or_default();
        known.retain(|it| it.generation == generation && it.transport == *transport);
        if let Some(known) = known.iter().find(|it| it.offer == offer) {
            return Ok(known.client.clone());
        }
        let made = tls::client(transport, snapshot.as_ref(), now, offer);
        let client = made.map_err(|error| match error {
            tls::ConfigError::NoIdentity => DialError::NoIdentity(String::new()),
            tls::ConfigError::IdentityExpired => DialError::IdentityExpired,
            tls::ConfigError::Unusable(why) => DialError::Config(why),
        })?;
        let made = Prepared {
            transport: Arc::clone(transport),
            generation,
            offer,
            client: client.clone(),
        };
        known.push(made);
        Ok(client)
    }
}

fn seconds(unix: i64) -> Duration {
    Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}

/// What a socket may hold that the kernel could not send yet. Left alone it
/// takes megabytes for each peer that does not read, and all memory that the
/// kernel has for TCP for a thousand of them.
#[cfg(target_os = "linux")]
const NOT_SENT_MAX: u32 = 128 << 10;

/// What every proxied socket is set to.
pub(crate) fn set_options<S: Stream>(socket: &S, keep_alive: Option<Duration>) -> io::Result<()> {
    use rustix::net::sockopt;
    // Each write is a whole message or all there is: nothing to wait for.
    sockopt::set_tcp_nodelay(socket.socket(), true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket.socket()).set_tcp_notsent_lowat(NOT_SENT_MAX)?;
    if let Some(period) = keep_alive {
        sockopt::set_socket_keepalive(socket.socket(), true)?;
        sockopt::set_tcp_keepidle(socket.socket(), period)?;
        sockopt::set_tcp_keepintvl(socket.socket(), period)?;
    }
    Ok(())
}
