//! Named policy for reaching an upstream: whom to trust, and for how long to
//! wait. Pure data, parsed once; both forwarders consult it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use spiffe::{SpiffeId, TrustDomain};

/// Which peers a transport will talk to.
///
/// The default of a file that names nobody is the proxy's own trust domain;
/// anyone at all has to be asked for by name (`allowAny = true`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowlist {
    /// Exactly these SPIFFE IDs. Case matters.
    Ids(BTreeSet<SpiffeId>),
    /// Every SPIFFE ID of this trust domain.
    TrustDomain(TrustDomain),
    /// Every SPIFFE ID of the trust domain that our own SVID is of.
    OwnTrustDomain,
    /// Every SPIFFE ID of every trust domain whose bundle the Workload API
    /// delivers, federated ones included.
    Any,
}

impl Allowlist {
    /// Whether `peer`, already authenticated, may be talked to. `own` is the
    /// trust domain of our own SVID.
    #[must_use]
    pub fn permits(&self, peer: &SpiffeId, own: &TrustDomain) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(peer),
            Self::TrustDomain(domain) => peer.is_member_of(domain),
            Self::OwnTrustDomain => peer.is_member_of(own),
            Self::Any => true,
        }
    }
}

/// The rule in words, for a log line.
impl fmt::Display for Allowlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ids(ids) => {
                f.write_str("ids ")?;
                for (index, id) in ids.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{id}")?;
                }
                Ok(())
            }
            Self::TrustDomain(domain) => write!(f, "trustDomain {domain}"),
            Self::OwnTrustDomain => f.write_str("our own trust domain (no ids, no trustDomain)"),
            Self::Any => f.write_str("allowAny"),
        }
    }
}

/// How the two ends of a TLS connection prove who they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Authentication {
    /// X509-SVIDs on both sides.
    Spiffe(Allowlist),
    /// Certificates for names, as browsers know them.
    Names(Box<Names>),
}

/// TLS without SPIFFE.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// The authorities to trust; `None`: the platform's.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Our certificate, for servers that ask for one.
    pub certificate: Option<ClientCertificate>,
    /// Takes any certificate. Written out in the file, and warned about.
    pub insecure_skip_verify: bool,
    /// A URI that must be among the peer's SANs, on top of all else.
    pub peer_cert_uri: Option<String>,
}

/// A certificate chain with its key.
#[derive(Clone)]
pub struct ClientCertificate(pub(crate) Arc<CertifiedKey>);

/// Two are equal when their certificates are: each was checked to fit its key,
/// and a certificate names one key.
impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.cert == other.0.cert
    }
}

impl Eq for ClientCertificate {}

/// Never shows the key.
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate")
    }
}

/// The TLS versions that a connection may use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    Both,
    /// 1.2 alone (`maxVersion = "VersionTLS12"`).
    Only12,
    /// 1.3 alone (`minVersion = "VersionTLS13"`).
    Only13,
}

/// What both kinds of transport have in common.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transport {
    /// As in the file, for log lines: `http.serversTransports.NAME`.
    pub name: String,
    /// Who proves what to whom.
    pub authentication: Authentication,
    /// The name to ask for (SNI), and to verify where names are verified.
    /// `None`: the host of the server's address.
    pub server_name: Option<ServerName<'static>>,
    /// The versions to offer.
    pub versions: TlsVersions,
    /// From the first packet to a TCP connection. `None`: no limit.
    pub dial_timeout: Option<Duration>,
    /// From a TCP connection to a TLS connection.
    pub handshake_timeout: Duration,
    /// Between TCP keep-alive probes. `None`: no probes.
    pub keep_alive: Option<Duration>,
}

impl Transport {
    /// Whether a connection needs our SVID.
    #[must_use]
    pub fn is_spiffe(&self) -> bool {
        self.allowlist().is_some()
    }

    /// The peers of a SPIFFE transport.
    #[must_use]
    pub fn allowlist(&self) -> Option<&Allowlist> {
        match &self.authentication {
            Authentication::Spiffe(allowlist) => Some(allowlist),
            Authentication::Names(_) => None,
        }
    }
}

/// Policy for HTTP upstreams.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpTransport {
    /// Connecting and TLS.
    pub base: Arc<Transport>,
    /// Whether HTTP/2 is offered over TLS.
    pub http2: bool,
    /// Idle connections kept per worker and server address.
    pub max_idle_per_host: usize,
    /// From the request's last byte to the response's head. `None`: no limit.
    pub response_header_timeout: Option<Duration>,
    /// How long an idle connection is kept. `None`: as long as it lasts.
    pub idle_conn_timeout: Option<Duration>,
    /// How long a response body or an upgraded connection may be silent.
    /// `None`: no limit.
    pub stream_idle_timeout: Option<Duration>,
    /// Silence after which an HTTP/2 connection is asked for a sign of life.
    /// `None`: it is not.
    pub read_idle_timeout: Option<Duration>,
    /// How long that may take.
    pub ping_timeout: Duration,
}

/// Policy for TCP upstreams.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TcpTransport {
    /// Connecting and TLS.
    pub base: Arc<Transport>,
    /// How long the open direction may stay silent once the other has ended.
    /// `None`: as long as `idle_timeout` allows.
    pub termination_delay: Option<Duration>,
    /// How long both directions may stay silent. `None`: no limit.
    pub idle_timeout: Option<Duration>,
}
