//! TOML text to [`Config`]: Traefik's keys, checked whole.
//!
//! Two types, one crossing. [`raw`] is the file as written; [`Config`] has no
//! string that still has to be parsed and nothing that could be wrong. Every
//! problem of a file is reported at once, with its key, its line and what to
//! write instead. Nothing falls back to something else.

mod duration;
mod problem;
mod raw;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use spiffe::transport::Endpoint;
use spiffe::{SpiffeId, TrustDomain};
use toml::Spanned;
use toml::de::DeTable;

use crate::dial::{Address, Host};
use crate::http::h1::head;
use crate::http::h1::request::is_authority;
use crate::identity::endpoint;
use crate::net::IpRange;
use crate::rule::{Layer, Rule};
use crate::tls;
use crate::transport::{
    Allowlist, Authentication, ClientCertificate, HttpTransport, Names, TcpTransport, TlsVersions,
    Transport,
};
use problem::Problems;
pub use problem::{ConfigError, Problem};
use raw::{Field, Signed};

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Where our identity comes from.
    pub spiffe: Spiffe,
    /// Where `/livez` and `/readyz` are.
    pub admin: Option<AdminAddress>,
    /// The least severe level that is logged; `RUST_LOG` wins.
    pub log_level: LevelFilter,
    /// What to listen on, and what to do there.
    pub entry_points: Vec<EntryPoint>,
    /// What is odd but not wrong.
    pub warnings: Vec<Problem>,
}

/// Where our identity comes from.
#[derive(Debug)]
pub struct Spiffe {
    /// The Workload API. `None`: nothing in the file needs it.
    pub endpoint: Option<Endpoint>,
    /// How long the start may wait for the first SVID. `None`: for ever.
    pub startup_timeout: Option<Duration>,
    /// Whether entry points listen only once there is a SVID.
    pub wait_for_svid: bool,
    /// Picks among several SVIDs. `None`: the first.
    pub hint: Option<String>,
}

/// Where the admin endpoint listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AdminAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

/// A listening address, its limits, and what it serves.
#[derive(Debug)]
pub struct EntryPoint {
    /// As in the file.
    pub name: String,
    /// `[::]` stands for every address, IPv4 included.
    pub address: SocketAddr,
    /// Open connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// How long open exchanges may take once the proxy is told to end.
    pub grace: Duration,
    /// What is done with a connection.
    pub serves: Serves,
}

/// What an entry point does with a connection.
#[derive(Debug)]
pub enum Serves {
    /// Reads requests from it.
    Http(Arc<HttpEntry>),
    /// Passes its bytes on.
    Tcp(Arc<TcpService>),
}

/// An entry point for HTTP.
#[derive(Debug)]
pub struct HttpEntry {
    /// In the order in which they are tried.
    pub routes: Vec<Route>,
    /// Of request heads.
    pub head: head::Limits,
    /// Of request bodies, in bytes. `None`: no limit.
    pub body_max: Option<u64>,
    /// For a whole head, and between two reads of a body. `None`: no limit.
    pub read_timeout: Option<Duration>,
    /// Between two writes. `None`: no limit.
    pub write_timeout: Option<Duration>,
    /// Between two requests. `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// Whose forwarding headers are believed.
    pub trusted: Trusted,
}

/// Whose forwarding headers are believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Trusted {
    /// Everyone's (`forwardedHeaders.insecure`).
    All,
    /// Those of peers in these ranges.
    Only(Vec<IpRange>),
}

impl Trusted {
    /// Whether this peer's are.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Only(ranges) => ranges.iter().any(|range| range.contains(peer)),
        }
    }
}

/// A rule and where it leads.
#[derive(Debug)]
pub struct Route {
    /// The router's name.
    pub name: String,
    /// What it admits.
    pub rule: Rule,
    /// Higher is tried first; ties by name.
    pub priority: i64,
    /// Where it leads.
    pub service: Arc<HttpService>,
}

/// Servers that are as good as each other.
#[derive(Debug)]
pub struct HttpService {
    /// As in the file.
    pub name: String,
    /// At least one, and one with a weight.
    pub servers: Vec<HttpServer>,
    /// Whether the client's `Host` is passed on.
    pub pass_host: bool,
    /// How to reach them.
    pub transport: Arc<HttpTransport>,
}

/// One HTTP server.
#[derive(Debug)]
pub struct HttpServer {
    /// Where it is.
    pub address: Address,
    /// `https`.
    pub tls: bool,
    /// Host and port as in its url: the `Host` that it gets without
    /// `passHostHeader`.
    pub authority: String,
    /// Its share of the requests. 0: none.
    pub weight: u32,
}

/// Servers that are as good as each other.
#[derive(Debug)]
pub struct TcpService {
    /// As in the file.
    pub name: String,
    /// At least one, and one with a weight.
    pub servers: Vec<TcpServer>,
    /// How to reach them.
    pub transport: Arc<TcpTransport>,
}

/// One TCP server.
#[derive(Debug)]
pub struct TcpServer {
    /// Where it is.
    pub address: Address,
    /// Whether it is spoken to through TLS.
    pub tls: bool,
    /// Its share of the connections. 0: none.
    pub weight: u32,
}

/// What the command line and the environment say.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--workload-api-addr`: wins over the file.
    pub workload_api_addr: Option<String>,
    /// `SPIFFE_ENDPOINT_SOCKET`: used when nothing else gives an address.
    pub endpoint_socket: Option<String>,
}

/// The longest TLS handshake with a server.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const HTTP_KEEP_ALIVE: Duration = Duration::from_secs(30);
const IDLE_CONN_TIMEOUT: Duration = Duration::from_secs(90);
const IDLE_PER_HOST: usize = 200;
const DIAL_KEEP_ALIVE: Duration = Duration::from_secs(15);
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);
const GRACE: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 16_384;
/// Far enough for any timer, and near enough for any clock.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl Config {
    /// Reads and checks a file. Paths in it are relative to the working
    /// directory, as in Traefik.
    ///
    /// # Errors
    /// Every problem, or the one that it cannot be read.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let whole = |what: String| ConfigError {
            problems: vec![Problem {
                key: String::new(),
                line: None,
                what,
            }],
        };
        let bytes = std::fs::read(path)
            .map_err(|error| whole(format!("{} cannot be read: {error}", path.display())))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| whole(format!("{} is not UTF-8", path.display())))?;
        Self::parse_from(&text, overrides, Some(path))
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// Every problem.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse_from(text, overrides, None)
    }

    fn parse_from(
        text: &str,
        overrides: &Overrides,
        path: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Problems::new(text);
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                problems.error("", error.span(), format!("not TOML: {}", error.message()));
                return problems.finish::<Self>(None).map(|(config, _)| config);
            }
        };
        let misplaced = problems.has_errors();
        schema::walk(table.get_ref(), schema::ROOT, "", &mut problems);
        let file = match toml::from_str::<raw::File>(text) {
            Ok(file) => file,
            Err(error) => {
                // A table where a value belongs, or the other way round: the
                // walk has told. If it has not, this is all there is to say.
                if !problems.has_errors() || misplaced {
                    problems.error("", error.span(), error.message());
                }
                return problems.finish::<Self>(None).map(|(config, _)| config);
            }
        };
        let config = Reader {
            problems: &mut problems,
            overrides,
            path,
        }
        .config(&file);
        let (mut config, warnings) = problems.finish(Some(config))?;
        config.warnings = warnings;
        Ok(config)
    }

    /// Whether some connection needs our SVID.
    #[must_use]
    pub fn needs_identity(&self) -> bool {
        self.spiffe.endpoint.is_some()
    }
}

/// What transports have in common, as the file gives it.
struct RawTls<'r> {
    insecure_skip_verify: &'r Option<Field<bool>>,
    root_cas: &'r Option<Field<Vec<String>>>,
    certificates: &'r [raw::Certificate],
    peer_cert_uri: &'r Option<Field<String>>,
    spiffe: &'r Option<Spanned<raw::SpiffePeers>>,
}

impl<'r> RawTls<'r> {
    fn of_http(raw: &'r raw::HttpTransport) -> Self {
        Self {
            insecure_skip_verify: &raw.insecure_skip_verify,
            root_cas: &raw.root_cas,
            certificates: &raw.certificates,
            peer_cert_uri: &raw.peer_cert_uri,
            spiffe: &raw.spiffe,
        }
    }

    fn of_tcp(raw: &'r raw::TcpTransport) -> Self {
        Self {
            insecure_skip_verify: &raw.tls.insecure_skip_verify,
            root_cas: &raw.tls.root_cas,
            certificates: &raw.tls.certificates,
            peer_cert_uri: &raw.tls.peer_cert_uri,
            spiffe: &raw.tls.spiffe,
        }
    }

    /// Whether it says who proves what: then nothing of it is inherited.
    fn authenticates(&self) -> bool {
        self.spiffe.is_some()
            || self.root_cas.is_some()
            || self.insecure_skip_verify.is_some()
            || self.peer_cert_uri.is_some()
            || !self.certificates.is_empty()
    }
}

struct Reader<'p, 't> {
    problems: &'p mut Problems<'t>,
    overrides: &'p Overrides,
    path: Option<&'p Path>,
}

impl Reader<'_, '_> {
    fn config(&mut self, file: &raw::File) -> Config {
        let http_transports = self.http_transports(file);
        let tcp_transports = self.tcp_transports(file);
        let http_services = self.http_services(file, &http_transports);
        let tcp_services = self.tcp_services(file, &tcp_transports);
        let entry_points = self.entry_points(file, &http_services, &tcp_services);
        let http_spiffe = http_transports
            .iter()
            .filter(|(_, t)| t.base.is_spiffe())
            .map(|(name, _)| name.as_str());
        let tcp_spiffe = tcp_transports
            .iter()
            .filter(|(_, t)| t.base.is_spiffe())
            .map(|(name, _)| name.as_str());
        let needs_identity: Vec<&str> = http_spiffe.chain(tcp_spiffe).collect();
        let spiffe = self.spiffe(file.spiffe.as_ref(), &needs_identity);
        self.providers(file);
        Config {
            spiffe,
            admin: self.admin(file.admin.as_ref()),
            log_level: self.log(&file.log),
            entry_points,
            warnings: Vec::new(),
        }
    }

    /// A field's value; what is wrong with it is reported.
    fn value<'f, T>(&mut self, key: &str, field: &'f Option<Field<T>>) -> Option<&'f T> {
        let field = field.as_ref()?;
        match &field.value {
            Ok(value) => Some(value),
            Err(why) => {
                self.problems.error(key, field.span.clone(), why);
                None
            }
        }
    }

    /// A field's value that has to be parsed further.
    fn parsed<T, U>(
        &mut self,
        key: &str,
        field: &Option<Field<T>>,
        parse: impl FnOnce(&T) -> Result<U, String>,
    ) -> Option<U> {
        let value = self.value(key, field)?;
        match parse(value) {
            Ok(value) => Some(value),
            Err(why) => {
                let span = field.as_ref().map(|field| field.span.clone());
                self.problems.error(key, span, why);
                None
            }
        }
    }

    /// A duration for which zero and absence mean what the caller says.
    fn limit(
        &mut self,
        key: &str,
        field: &Option<Field<Signed>>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let limit = self.parsed(key, field, |value| match value {
            Signed::Positive(Duration::ZERO) => Ok(None),
            Signed::Positive(limit) if *limit > DURATION_MAX => {
                Err("this is more than a year; write 0 for no limit".to_owned())
            }
            Signed::Positive(limit) => Ok(Some(*limit)),
            Signed::Negative => Err("a negative duration; write 0 for no limit".to_owned()),
        });
        limit.unwrap_or(default)
    }

    fn count(
        &mut self,
        key: &str,
        field: &Option<Field<i64>>,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> usize {
        let count = self.parsed(key, field, |value| {
            usize::try_from(*value)
                .ok()
                .filter(|value| range.contains(value))
                .ok_or_else(|| format!("write {} to {}", range.start(), range.end()))
        });
        count.unwrap_or(default)
    }

    fn spiffe(&mut self, raw: Option<&Spanned<raw::Spiffe>>, needed_by: &[&str]) -> Spiffe {
        let empty = raw::Spiffe::default();
        let table = raw.map_or(&empty, |raw| raw.get_ref());
        let from_file = self.parsed("spiffe.workloadAPIAddr", &table.workload_api_addr, |text| {
            endpoint::parse(text)
        });
        let other = |problems: &mut Problems<'_>, name: &str, text: &Option<String>| {
            let parsed = text.as_deref().filter(|text| !text.is_empty())?;
            match endpoint::parse(parsed) {
                Ok(endpoint) => Some(endpoint),
                Err(why) => {
                    problems.error(name, None, why);
                    None
                }
            }
        };
        let from_arguments = other(
            self.problems,
            "--workload-api-addr",
            &self.overrides.workload_api_addr,
        );
        let wanted = raw.is_some() || !needed_by.is_empty();
        let from_environment = if wanted && from_file.is_none() && from_arguments.is_none() {
            other(
                self.problems,
                endpoint::ENDPOINT_VARIABLE,
                &self.overrides.endpoint_socket,
            )
        } else {
            None
        };
        let endpoint = from_arguments.or(from_file).or(from_environment);
        if endpoint.is_none() && wanted && table.workload_api_addr.is_none() {
            let why = match needed_by.first() {
                Some(name) => format!("{name} asks for it"),
                None => "the table is there".to_owned(),
            };
            self.problems.error(
                "spiffe.workloadAPIAddr",
                raw.map(Spanned::span),
                format!(
                    "no Workload API is given, and {why}; write workloadAPIAddr = \"unix:///path/of/agent.sock\", or set {}",
                    endpoint::ENDPOINT_VARIABLE
                ),
            );
        }
        Spiffe {
            endpoint: endpoint.filter(|_| wanted || self.overrides.workload_api_addr.is_some()),
            startup_timeout: self.limit("spiffe.startupTimeout", &table.startup_timeout, None),
            wait_for_svid: *self
                .value("spiffe.waitForSVID", &table.wait_for_svid)
                .unwrap_or(&true),
            hint: self
                .value("spiffe.hint", &table.hint)
                .filter(|hint| !hint.is_empty())
                .cloned(),
        }
    }

    fn providers(&mut self, file: &raw::File) {
        let Some(provider) = &file.providers.file else {
            return;
        };
        let (span, provider) = (provider.span(), provider.get_ref());
        if let Some(name) = self.value("providers.file.filename", &provider.filename)
            && self.path.is_none_or(|path| Path::new(name) != path)
        {
            self.problems.warning(
                "providers.file.filename",
                provider.filename.as_ref().map(|field| field.span.clone()),
                format!(
                    "{name} is not read: svidgate has one file, the one given with --config; routers and services stand in it too"
                ),
            );
        }
        if self.value("providers.file.watch", &provider.watch) == Some(&true) {
            self.problems.warning(
                "providers.file.watch",
                span,
                "reloading is not built yet: a change of the file takes a restart",
            );
        }
    }

    fn admin(&mut self, raw: Option<&Spanned<raw::Admin>>) -> Option<AdminAddress> {
        let raw = raw?;
        if raw.get_ref().address.is_none() {
            self.problems.error(
                "admin.address",
                raw.span(),
                "it is missing; write address = \"127.0.0.1:8082\" or \"unix:/run/svidgate/admin.sock\"",
            );
        }
        self.parsed("admin.address", &raw.get_ref().address, |text| {
            if let Some(path) = text.strip_prefix("unix:") {
                let path = path.strip_prefix("//").unwrap_or(path);
                return if path.starts_with('/') && path.len() > 1 {
                    Ok(AdminAddress::Unix(PathBuf::from(path)))
                } else {
                    Err(format!("the path of \"{text}\" is not absolute"))
                };
            }
            listen_address(text).map(AdminAddress::Tcp)
        })
    }

    fn log(&mut self, raw: &raw::Log) -> LevelFilter {
        self.parsed("log.format", &raw.format, |format| match format.as_str() {
            "common" => Ok(()),
            "json" => Err("json is documented and not built yet; write \"common\"".to_owned()),
            _ => Err("write \"common\"".to_owned()),
        });
        let level = self.parsed("log.level", &raw.level, |level| {
            level.parse::<LevelFilter>().map_err(|_| {
                format!("\"{level}\" is not a level; write ERROR, WARN, INFO, DEBUG, TRACE or OFF")
            })
        });
        level.unwrap_or(LevelFilter::Info)
    }

    // Transports.

    fn http_transports(&mut self, file: &raw::File) -> BTreeMap<String, Arc<HttpTransport>> {
        let mut all = BTreeMap::new();
        let root = &file.servers_transport;
        let default = self.http_transport("serversTransport", root, None);
        for (name, raw) in &file.http.servers_transports {
            let at = format!("http.serversTransports.{}", name.get_ref());
            let transport = self.http_transport(&at, raw, Some(root));
            all.insert(name.get_ref().clone(), Arc::new(transport));
        }
        all.insert(DEFAULT.to_owned(), Arc::new(default));
        all
    }

    /// `root` gives what `raw` leaves out.
    fn http_transport(
        &mut self,
        at: &str,
        raw: &raw::HttpTransport,
        root: Option<&raw::HttpTransport>,
    ) -> HttpTransport {
        let key = |name: &str| format!("{at}.{name}");
        // Problems of the root are reported where the root is read.
        let root = root.unwrap_or(raw);
        let own = RawTls::of_http(raw);
        let (tls_at, tls) = if own.authenticates() {
            (at, own)
        } else {
            ("serversTransport", RawTls::of_http(root))
        };
        let authentication = self.authentication(tls_at, &tls);
        if let Some(false) = self.value(&key("disableHTTP2"), &raw.disable_http2) {
            let span = raw.disable_http2.as_ref().map(|field| field.span.clone());
            self.problems.error(
                key("disableHTTP2"),
                span,
                "HTTP/2 to backends is documented and not built yet; write true, or leave it out",
            );
        }
        let timeouts = &raw.forwarding_timeouts;
        let inherited = &root.forwarding_timeouts;
        let pick = |own: &'static str| key(&format!("forwardingTimeouts.{own}"));
        let dial_timeout = self.limit(
            &pick("dialTimeout"),
            first(&timeouts.dial_timeout, &inherited.dial_timeout),
            Some(DIAL_TIMEOUT),
        );
        let response_header_timeout = self.limit(
            &pick("responseHeaderTimeout"),
            first(
                &timeouts.response_header_timeout,
                &inherited.response_header_timeout,
            ),
            None,
        );
        let idle_conn_timeout = self.limit(
            &pick("idleConnTimeout"),
            first(&timeouts.idle_conn_timeout, &inherited.idle_conn_timeout),
            Some(IDLE_CONN_TIMEOUT),
        );
        let max_idle = self.count(
            &key("maxIdleConnsPerHost"),
            first(&raw.max_idle_conns_per_host, &root.max_idle_conns_per_host),
            IDLE_PER_HOST,
            0..=65_536,
        );
        HttpTransport {
            base: Transport {
                name: at.to_owned(),
                authentication,
                server_name: self.server_name(at, first(&raw.server_name, &root.server_name)),
                versions: self.versions(
                    at,
                    first(&raw.min_version, &root.min_version),
                    first(&raw.max_version, &root.max_version),
                ),
                alpn: &[b"http/1.1"],
                dial_timeout,
                handshake_timeout: HANDSHAKE_TIMEOUT,
                keep_alive: Some(HTTP_KEEP_ALIVE),
            },
            max_idle_per_host: if max_idle == 0 {
                IDLE_PER_HOST
            } else {
                max_idle
            },
            response_header_timeout,
            idle_conn_timeout,
        }
    }

    fn tcp_transports(&mut self, file: &raw::File) -> BTreeMap<String, Arc<TcpTransport>> {
        let mut all = BTreeMap::new();
        let root = &file.tcp_servers_transport;
        let default = self.tcp_transport("tcpServersTransport", root, None);
        for (name, raw) in &file.tcp.servers_transports {
            let at = format!("tcp.serversTransports.{}", name.get_ref());
            let transport = self.tcp_transport(&at, raw, Some(root));
            all.insert(name.get_ref().clone(), Arc::new(transport));
        }
        all.insert(DEFAULT.to_owned(), Arc::new(default));
        all
    }

    fn tcp_transport(
        &mut self,
        at: &str,
        raw: &raw::TcpTransport,
        root: Option<&raw::TcpTransport>,
    ) -> TcpTransport {
        let key = |name: &str| format!("{at}.{name}");
        let root = root.unwrap_or(raw);
        let own = RawTls::of_tcp(raw);
        let tls_at = if own.authenticates() {
            at
        } else {
            "tcpServersTransport"
        };
        let tls = if own.authenticates() {
            own
        } else {
            RawTls::of_tcp(root)
        };
        let tls_at = format!("{tls_at}.tls");
        let authentication = self.authentication(&tls_at, &tls);
        let keep_alive = first(&raw.dial_keep_alive, &root.dial_keep_alive);
        let keep_alive = match self.value(&key("dialKeepAlive"), keep_alive) {
            None | Some(Signed::Positive(Duration::ZERO)) => Some(DIAL_KEEP_ALIVE),
            Some(Signed::Negative) => None,
            // The kernel counts whole seconds, 32767 of them at most.
            Some(Signed::Positive(period)) => {
                Some((*period).clamp(Duration::from_secs(1), Duration::from_secs(32_767)))
            }
        };
        let delay = first(&raw.termination_delay, &root.termination_delay);
        let termination_delay = match self.value(&key("terminationDelay"), delay) {
            None | Some(Signed::Negative) => None,
            Some(Signed::Positive(delay)) => Some((*delay).min(DURATION_MAX)),
        };
        TcpTransport {
            base: Transport {
                name: at.to_owned(),
                authentication,
                server_name: self.server_name(
                    &format!("{at}.tls"),
                    first(&raw.tls.server_name, &root.tls.server_name),
                ),
                versions: TlsVersions::Both,
                alpn: &[],
                dial_timeout: self.limit(
                    &key("dialTimeout"),
                    first(&raw.dial_timeout, &root.dial_timeout),
                    Some(DIAL_TIMEOUT),
                ),
                handshake_timeout: HANDSHAKE_TIMEOUT,
                keep_alive,
            },
            termination_delay,
            idle_timeout: self.limit(
                &key("idleTimeout"),
                first(&raw.idle_timeout, &root.idle_timeout),
                Some(TCP_IDLE_TIMEOUT),
            ),
        }
    }

    fn server_name(
        &mut self,
        at: &str,
        field: &Option<Field<String>>,
    ) -> Option<ServerName<'static>> {
        self.parsed(&format!("{at}.serverName"), field, |name| {
            ServerName::try_from(name.clone())
                .map_err(|_| format!("\"{name}\" is neither a DNS name nor an IP address"))
        })
    }

    fn versions(
        &mut self,
        at: &str,
        min: &Option<Field<String>>,
        max: &Option<Field<String>>,
    ) -> TlsVersions {
        let parse = |text: &String| match text.as_str() {
            "VersionTLS12" => Ok(12),
            "VersionTLS13" => Ok(13),
            "VersionTLS10" | "VersionTLS11" => Err(format!(
                "{text} is not safe and not offered; write VersionTLS12 or VersionTLS13"
            )),
            _ => Err("write VersionTLS12 or VersionTLS13".to_owned()),
        };
        let low = self.parsed(&format!("{at}.minVersion"), min, parse);
        let high = self.parsed(&format!("{at}.maxVersion"), max, parse);
        match (low.unwrap_or(12), high.unwrap_or(13)) {
            (12, 12) => TlsVersions::Only12,
            (13, 13) => TlsVersions::Only13,
            (13, 12) => {
                let span = min.as_ref().map(|field| field.span.clone());
                self.problems.error(
                    format!("{at}.minVersion"),
                    span,
                    "minVersion is above maxVersion",
                );
                TlsVersions::Both
            }
            _ => TlsVersions::Both,
        }
    }

    /// Who proves what. What cannot go together is an error, and nothing is
    /// put in its place.
    fn authentication(&mut self, at: &str, raw: &RawTls<'_>) -> Authentication {
        let key = |name: &str| format!("{at}.{name}");
        let insecure = *self
            .value(&key("insecureSkipVerify"), raw.insecure_skip_verify)
            .unwrap_or(&false);
        let roots = self.root_cas(&key("rootCAs"), raw.root_cas);
        let certificate = self.certificates(&key("certificates"), raw.certificates);
        let uri = self.value(&key("peerCertURI"), raw.peer_cert_uri).cloned();
        if let Some(spiffe) = raw.spiffe {
            for (name, is_there) in [
                ("insecureSkipVerify", insecure),
                ("rootCAs", raw.root_cas.is_some()),
                ("certificates", !raw.certificates.is_empty()),
                ("peerCertURI", raw.peer_cert_uri.is_some()),
            ] {
                if is_there {
                    self.problems.error(
                        key(name),
                        spiffe.span(),
                        format!(
                            "{name} cannot stand beside spiffe, which brings its own trust; remove one of them"
                        ),
                    );
                }
            }
            return Authentication::Spiffe(self.allowlist(&key("spiffe"), spiffe));
        }
        if insecure && uri.is_none() {
            self.problems.warning(
                key("insecureSkipVerify"),
                raw.insecure_skip_verify.as_ref().map(|f| f.span.clone()),
                "whoever answers is believed: anyone on the way can read and change everything",
            );
        }
        Authentication::Names(Box::new(Names {
            roots,
            certificate,
            insecure_skip_verify: insecure,
            peer_cert_uri: uri,
        }))
    }

    fn allowlist(&mut self, at: &str, raw: &Spanned<raw::SpiffePeers>) -> Allowlist {
        let (span, raw) = (raw.span(), raw.get_ref());
        let mut ids = BTreeSet::new();
        let listed = self.value(&format!("{at}.ids"), &raw.ids);
        let has_ids = listed.is_some_and(|ids| !ids.is_empty());
        for text in listed.into_iter().flatten() {
            match spiffe_id(text) {
                Ok(id) => {
                    ids.insert(id);
                }
                Err(why) => {
                    let span = raw.ids.as_ref().map(|field| field.span.clone());
                    self.problems.error(format!("{at}.ids"), span, why);
                }
            }
        }
        let domain = self.parsed(&format!("{at}.trustDomain"), &raw.trust_domain, |text| {
            trust_domain(text)
        });
        let any = *self
            .value(&format!("{at}.allowAny"), &raw.allow_any)
            .unwrap_or(&false);
        if any && (has_ids || raw.trust_domain.is_some()) {
            self.problems.error(
                format!("{at}.allowAny"),
                span.clone(),
                "allowAny cannot stand beside ids or trustDomain; remove one of them",
            );
        }
        if let Some(domain) = &domain {
            for id in ids.iter().filter(|id| !id.is_member_of(domain)) {
                self.problems.warning(
                    format!("{at}.ids"),
                    span.clone(),
                    format!("{id} is outside trustDomain {domain}; ids win, so it is admitted"),
                );
            }
        }
        if has_ids {
            Allowlist::Ids(ids)
        } else if let Some(domain) = domain {
            Allowlist::TrustDomain(domain)
        } else if any {
            Allowlist::Any
        } else {
            self.problems.warning(
                at,
                span,
                "neither ids nor trustDomain: every workload of our own trust domain is admitted (Traefik: of any)",
            );
            Allowlist::OwnTrustDomain
        }
    }

    fn root_cas(
        &mut self,
        key: &str,
        field: &Option<Field<Vec<String>>>,
    ) -> Option<Vec<CertificateDer<'static>>> {
        self.parsed(key, field, |entries| {
            let mut roots = Vec::new();
            for entry in entries {
                let pem = file_or_pem(entry)?;
                let before = roots.len();
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate =
                        certificate.map_err(|error| format!("{}: {error}", short(entry)))?;
                    webpki::anchor_from_trusted_cert(&certificate)
                        .map_err(|error| format!("{}: {error}", short(entry)))?;
                    roots.push(certificate);
                }
                if roots.len() == before {
                    return Err(format!("{} has no certificate in PEM form", short(entry)));
                }
            }
            if roots.is_empty() {
                return Err("it is empty; leave it out for the platform's roots".to_owned());
            }
            Ok(roots)
        })
    }

    fn certificates(&mut self, key: &str, raw: &[raw::Certificate]) -> Option<ClientCertificate> {
        if raw.len() > 1 {
            let span = raw.get(1).and_then(|second| second.cert_file.as_ref());
            self.problems.error(
                key,
                span.map(|field| field.span.clone()),
                "several client certificates are not built yet; write one",
            );
        }
        let raw = raw.first()?;
        let chain = self.parsed(&format!("{key}.certFile"), &raw.cert_file, |entry| {
            let pem = file_or_pem(entry)?;
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            match chain {
                Ok(chain) if !chain.is_empty() => Ok(chain),
                Ok(_) => Err(format!("{} has no certificate in PEM form", short(entry))),
                Err(error) => Err(format!("{}: {error}", short(entry))),
            }
        });
        let private = self.parsed(&format!("{key}.keyFile"), &raw.key_file, |entry| {
            let pem = file_or_pem(entry)?;
            PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|error| format!("the key file has no private key: {error}"))
        });
        for (name, field) in [("certFile", &raw.cert_file), ("keyFile", &raw.key_file)] {
            if field.is_none() {
                let other = raw.cert_file.as_ref().or(raw.key_file.as_ref());
                self.problems.error(
                    format!("{key}.{name}"),
                    other.map(|field| field.span.clone()),
                    "it is missing: certFile and keyFile go together",
                );
            }
        }
        match CertifiedKey::from_der(chain?, private?, &tls::provider()) {
            Ok(certified) => Some(ClientCertificate(Arc::new(certified))),
            Err(error) => {
                let span = raw.key_file.as_ref().map(|field| field.span.clone());
                self.problems.error(
                    format!("{key}.keyFile"),
                    span,
                    format!("the key does not fit the certificate: {error}"),
                );
                None
            }
        }
    }

    // Services.

    fn http_services(
        &mut self,
        file: &raw::File,
        transports: &BTreeMap<String, Arc<HttpTransport>>,
    ) -> BTreeMap<String, Option<Arc<HttpService>>> {
        let mut all = BTreeMap::new();
        for (name, raw) in &file.http.services {
            let service = self.http_service(name, raw, transports);
            all.insert(name.get_ref().clone(), service.map(Arc::new));
        }
        all
    }

    fn http_service(
        &mut self,
        name: &Spanned<String>,
        raw: &raw::Service<raw::HttpServer>,
        transports: &BTreeMap<String, Arc<HttpTransport>>,
    ) -> Option<HttpService> {
        let at = format!("http.services.{}.loadBalancer", name.get_ref());
        let balancer = self.balancer(&at, name, raw)?;
        let transport = self.transport(&at, balancer, transports);
        let pass_host = *self
            .value(&format!("{at}.passHostHeader"), &balancer.pass_host_header)
            .unwrap_or(&true);
        let servers: Vec<HttpServer> = balancer
            .servers
            .iter()
            .filter_map(|raw| {
                let key = format!("{at}.servers.url");
                let weight = self.weight(&format!("{at}.servers.weight"), &raw.weight);
                if raw.url.is_none() {
                    self.problems
                        .error(&key, name.span(), "a server without a url");
                }
                let mut server = self.parsed(&key, &raw.url, |url| http_server(url))?;
                server.weight = weight;
                if let Some(transport) = &transport
                    && transport.base.is_spiffe()
                    && !server.tls
                {
                    let span = raw.url.as_ref().map(|field| field.span.clone());
                    self.problems.error(
                        &key,
                        span,
                        format!(
                            "{} asks for SPIFFE, and http:// would send in plaintext; write https://",
                            transport.base.name
                        ),
                    );
                }
                Some(server)
            })
            .collect();
        self.check_weights(&at, name, servers.iter().map(|server| server.weight));
        Some(HttpService {
            name: name.get_ref().clone(),
            servers,
            pass_host,
            transport: transport?,
        })
    }

    fn tcp_services(
        &mut self,
        file: &raw::File,
        transports: &BTreeMap<String, Arc<TcpTransport>>,
    ) -> BTreeMap<String, Option<Arc<TcpService>>> {
        let mut all = BTreeMap::new();
        for (name, raw) in &file.tcp.services {
            let service = self.tcp_service(name, raw, transports);
            all.insert(name.get_ref().clone(), service.map(Arc::new));
        }
        all
    }

    fn tcp_service(
        &mut self,
        name: &Spanned<String>,
        raw: &raw::Service<raw::TcpServer>,
        transports: &BTreeMap<String, Arc<TcpTransport>>,
    ) -> Option<TcpService> {
        let at = format!("tcp.services.{}.loadBalancer", name.get_ref());
        let balancer = self.balancer(&at, name, raw)?;
        let transport = self.transport(&at, balancer, transports);
        let servers: Vec<TcpServer> = balancer
            .servers
            .iter()
            .filter_map(|raw| {
                let key = format!("{at}.servers.address");
                let weight = self.weight(&format!("{at}.servers.weight"), &raw.weight);
                let tls = *self
                    .value(&format!("{at}.servers.tls"), &raw.tls)
                    .unwrap_or(&false);
                if raw.address.is_none() {
                    self.problems
                        .error(&key, name.span(), "a server without an address");
                }
                let address = self.parsed(&key, &raw.address, |text| server_address(text))?;
                if let Some(transport) = &transport
                    && transport.base.is_spiffe()
                    && !tls
                {
                    let span = raw.address.as_ref().map(|field| field.span.clone());
                    self.problems.error(
                        format!("{at}.servers.tls"),
                        span,
                        format!(
                            "{} asks for SPIFFE, and a server without TLS would get plaintext; write tls = true",
                            transport.base.name
                        ),
                    );
                }
                Some(TcpServer {
                    address,
                    tls,
                    weight,
                })
            })
            .collect();
        self.check_weights(&at, name, servers.iter().map(|server| server.weight));
        Some(TcpService {
            name: name.get_ref().clone(),
            servers,
            transport: transport?,
        })
    }

    fn balancer<'r, S>(
        &mut self,
        at: &str,
        name: &Spanned<String>,
        raw: &'r raw::Service<S>,
    ) -> Option<&'r raw::LoadBalancer<S>> {
        let Some(balancer) = &raw.load_balancer else {
            self.problems.error(
                at,
                name.span(),
                "it is missing: a service has a loadBalancer",
            );
            return None;
        };
        self.parsed(
            &format!("{at}.strategy"),
            &balancer.strategy,
            |strategy| match strategy.as_str() {
                "wrr" => Ok(()),
                _ => Err("there is \"wrr\" only, weighted round robin".to_owned()),
            },
        );
        if balancer.servers.is_empty() {
            self.problems.error(
                format!("{at}.servers"),
                name.span(),
                "it has no servers; write at least one",
            );
        }
        Some(balancer)
    }

    fn transport<S, T>(
        &mut self,
        at: &str,
        balancer: &raw::LoadBalancer<S>,
        transports: &BTreeMap<String, Arc<T>>,
    ) -> Option<Arc<T>> {
        if balancer.servers_transport.is_none() {
            return transports.get(DEFAULT).cloned();
        }
        let key = format!("{at}.serversTransport");
        self.parsed(&key, &balancer.servers_transport, |name| {
            let bare = name.strip_suffix("@file").unwrap_or(name);
            transports
                .get(bare)
                .filter(|_| bare != DEFAULT)
                .cloned()
                .ok_or_else(|| no_such("serversTransport", bare, transports.keys()))
        })
    }

    fn weight(&mut self, key: &str, field: &Option<Field<i64>>) -> u32 {
        let weight = self.parsed(key, field, |weight| {
            u32::try_from(*weight)
                .ok()
                .filter(|weight| *weight <= 1_000_000)
                .ok_or_else(|| "write 0 to 1000000".to_owned())
        });
        weight.unwrap_or(1)
    }

    fn check_weights(
        &mut self,
        at: &str,
        name: &Spanned<String>,
        weights: impl Iterator<Item = u32>,
    ) {
        let weights: Vec<u32> = weights.collect();
        if !weights.is_empty() && weights.iter().all(|weight| *weight == 0) {
            self.problems.error(
                format!("{at}.servers.weight"),
                name.span(),
                "every server has the weight 0, so none would be used",
            );
        }
    }

    // Entry points and routers.

    fn entry_points(
        &mut self,
        file: &raw::File,
        http_services: &BTreeMap<String, Option<Arc<HttpService>>>,
        tcp_services: &BTreeMap<String, Option<Arc<TcpService>>>,
    ) -> Vec<EntryPoint> {
        let names: Vec<&str> = file
            .entry_points
            .keys()
            .map(|n| n.get_ref().as_str())
            .collect();
        if names.is_empty() {
            self.problems.error(
                "entryPoints",
                None,
                "there is none; write [entryPoints.web] and address = \":8080\", say",
            );
        }
        // TCP routers claim their entry points; HTTP has the others.
        let mut tcp: BTreeMap<&str, (String, Arc<TcpService>)> = BTreeMap::new();
        let mut claimed: BTreeSet<&str> = BTreeSet::new();
        for (name, raw) in &file.tcp.routers {
            let at = format!("tcp.routers.{}", name.get_ref());
            let router = self.router(&at, name, raw, Layer::Tcp);
            let service = self.service(&at, name, raw, tcp_services);
            let wanted = self.entry_point_names(&at, raw, &names);
            if raw.entry_points.is_none() {
                self.problems.error(
                    format!("{at}.entryPoints"),
                    name.span(),
                    "it is missing: a TCP router names its entry points",
                );
            }
            for entry in wanted {
                claimed.insert(entry);
                let (Some(_), Some(service)) = (&router, &service) else {
                    continue;
                };
                let new = (name.get_ref().clone(), Arc::clone(service));
                if let Some((first, _)) = tcp.insert(entry, new) {
                    self.problems.error(
                        &at,
                        name.span(),
                        format!(
                            "entry point {entry} has the TCP router {first} already, and without TLS there is nothing to tell them apart by"
                        ),
                    );
                }
            }
        }
        let mut http: BTreeMap<&str, Vec<Route>> = BTreeMap::new();
        for (name, raw) in &file.http.routers {
            let at = format!("http.routers.{}", name.get_ref());
            let router = self.router(&at, name, raw, Layer::Http);
            let service = self.service(&at, name, raw, http_services);
            let mut wanted = self.entry_point_names(&at, raw, &names);
            if raw.entry_points.is_none() {
                wanted = names
                    .iter()
                    .copied()
                    .filter(|n| !claimed.contains(n))
                    .collect();
                if wanted.is_empty() && !names.is_empty() {
                    self.problems.error(
                        format!("{at}.entryPoints"),
                        name.span(),
                        "no entry point is left for HTTP: TCP routers have them all",
                    );
                }
            }
            for entry in wanted {
                if claimed.contains(entry) {
                    self.problems.error(
                        format!("{at}.entryPoints"),
                        name.span(),
                        format!("entry point {entry} has a TCP router, which takes every connection; use another"),
                    );
                }
                if let (Some((rule, priority)), Some(service)) = (&router, &service) {
                    http.entry(entry).or_default().push(Route {
                        name: name.get_ref().clone(),
                        rule: rule.clone(),
                        priority: *priority,
                        service: Arc::clone(service),
                    });
                }
            }
        }
        if file.http.routers.is_empty() && file.tcp.routers.is_empty() && !names.is_empty() {
            self.problems.error(
                "http.routers",
                None,
                "there is no router, so nothing would be served; write [http.routers.NAME] or [tcp.routers.NAME] into this file",
            );
        }
        let mut addresses: BTreeMap<SocketAddr, &str> = BTreeMap::new();
        let mut entry_points = Vec::new();
        for (name, raw) in &file.entry_points {
            let at = format!("entryPoints.{}", name.get_ref());
            if raw.address.is_none() {
                self.problems.error(
                    format!("{at}.address"),
                    name.span(),
                    "it is missing; write address = \":8080\", say",
                );
            }
            let address = self.parsed(&format!("{at}.address"), &raw.address, |text| {
                let tcp = text.strip_suffix("/tcp").unwrap_or(text);
                if tcp.ends_with("/udp") {
                    return Err("svidgate does not proxy UDP".to_owned());
                }
                listen_address(tcp)
            });
            if let Some(address) = address
                && address.port() != 0
                && let Some(other) = addresses.insert(address, name.get_ref())
            {
                self.problems.error(
                    format!("{at}.address"),
                    raw.address.as_ref().map(|field| field.span.clone()),
                    format!("entry point {other} listens on {address} already"),
                );
            }
            let limits = self.http_entry(&at, raw);
            let tcp_service = tcp.remove(name.get_ref().as_str());
            let routes = http.remove(name.get_ref().as_str()).unwrap_or_default();
            if tcp_service.is_none()
                && routes.is_empty()
                && !claimed.contains(name.get_ref().as_str())
            {
                self.problems.warning(
                    &at,
                    name.span(),
                    "no router uses it, so every request gets 404",
                );
            }
            let serves = match tcp_service {
                Some((_, service)) => Serves::Tcp(service),
                None => Serves::Http(Arc::new(HttpEntry {
                    routes: in_order(routes),
                    ..limits
                })),
            };
            let connections_max = self.count(
                &format!("{at}.transport.maxConnections"),
                &raw.transport.max_connections,
                CONNECTIONS_MAX,
                1..=1_000_000,
            );
            let grace = self.parsed(
                &format!("{at}.transport.lifeCycle.graceTimeOut"),
                &raw.transport.life_cycle.grace_time_out,
                |value| match value {
                    Signed::Positive(grace) if *grace <= DURATION_MAX => Ok(*grace),
                    _ => Err("write 0 or more, below a year".to_owned()),
                },
            );
            if let Some(address) = address {
                entry_points.push(EntryPoint {
                    name: name.get_ref().clone(),
                    address,
                    connections_max,
                    grace: grace.unwrap_or(GRACE),
                    serves,
                });
            }
        }
        entry_points
    }

    /// The limits of an entry point, as if it served HTTP.
    fn http_entry(&mut self, at: &str, raw: &raw::EntryPoint) -> HttpEntry {
        let key = |name: &str| format!("{at}.{name}");
        let timeouts = &raw.transport.responding_timeouts;
        let defaults = head::Limits::default();
        let insecure = *self
            .value(
                &key("forwardedHeaders.insecure"),
                &raw.forwarded_headers.insecure,
            )
            .unwrap_or(&false);
        let ranges = self.parsed(
            &key("forwardedHeaders.trustedIPs"),
            &raw.forwarded_headers.trusted_ips,
            |ips| ips.iter().map(|ip| IpRange::parse(ip)).collect(),
        );
        let body_max = self.count(
            &key("http.maxRequestBodyBytes"),
            &raw.http.max_request_body_bytes,
            0,
            0..=usize::MAX / 2,
        );
        HttpEntry {
            routes: Vec::new(),
            head: head::Limits {
                line_max: self.count(
                    &key("http.maxRequestLineBytes"),
                    &raw.http.max_request_line_bytes,
                    defaults.line_max,
                    64..=1 << 20,
                ),
                bytes_max: self.count(
                    &key("http.maxHeaderBytes"),
                    &raw.http.max_header_bytes,
                    defaults.bytes_max,
                    256..=1 << 20,
                ),
                fields_max: self.count(
                    &key("http.maxHeaderFields"),
                    &raw.http.max_header_fields,
                    defaults.fields_max,
                    1..=head::FIELDS_MAX,
                ),
            },
            body_max: u64::try_from(body_max).ok().filter(|max| *max > 0),
            read_timeout: self.limit(
                &key("transport.respondingTimeouts.readTimeout"),
                &timeouts.read_timeout,
                Some(READ_TIMEOUT),
            ),
            write_timeout: self.limit(
                &key("transport.respondingTimeouts.writeTimeout"),
                &timeouts.write_timeout,
                Some(WRITE_TIMEOUT),
            ),
            idle_timeout: self.limit(
                &key("transport.respondingTimeouts.idleTimeout"),
                &timeouts.idle_timeout,
                Some(IDLE_TIMEOUT),
            ),
            trusted: if insecure {
                Trusted::All
            } else {
                Trusted::Only(ranges.unwrap_or_default())
            },
        }
    }

    fn router(
        &mut self,
        at: &str,
        name: &Spanned<String>,
        raw: &raw::Router,
        layer: Layer,
    ) -> Option<(Rule, i64)> {
        if raw.rule.is_none() {
            self.problems.error(
                format!("{at}.rule"),
                name.span(),
                match layer {
                    Layer::Http => "it is missing; write rule = \"Host(`api.test`)\", say",
                    Layer::Tcp => "it is missing; write rule = \"HostSNI(`*`)\"",
                },
            );
        }
        let priority = self
            .value(&format!("{at}.priority"), &raw.priority)
            .copied();
        let text = self.value(&format!("{at}.rule"), &raw.rule)?;
        let length = i64::try_from(text.len()).unwrap_or(i64::MAX);
        let rule = self.parsed(&format!("{at}.rule"), &raw.rule, |text| {
            Rule::parse(text, layer)
        })?;
        // As in Traefik, 0 means computed.
        Some((rule, priority.filter(|it| *it != 0).unwrap_or(length)))
    }

    fn service<S>(
        &mut self,
        at: &str,
        name: &Spanned<String>,
        raw: &raw::Router,
        services: &BTreeMap<String, Option<Arc<S>>>,
    ) -> Option<Arc<S>> {
        let key = format!("{at}.service");
        if raw.service.is_none() {
            self.problems.error(&key, name.span(), "it is missing");
        }
        self.parsed(&key, &raw.service, |name| {
            let bare = name.strip_suffix("@file").unwrap_or(name);
            services
                .get(bare)
                .cloned()
                .ok_or_else(|| no_such("service", bare, services.keys()))
        })
        .flatten()
    }

    fn entry_point_names<'n>(
        &mut self,
        at: &str,
        raw: &raw::Router,
        known: &[&'n str],
    ) -> Vec<&'n str> {
        let key = format!("{at}.entryPoints");
        let mut found = Vec::new();
        let span = raw.entry_points.as_ref().map(|field| field.span.clone());
        for name in self.value(&key, &raw.entry_points).into_iter().flatten() {
            match known.iter().find(|known| *known == name) {
                Some(known) if found.contains(known) => {}
                Some(known) => found.push(*known),
                None => {
                    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                    let why = no_such("entry point", name, known.iter());
                    self.problems.error(&key, span.clone(), why);
                }
            }
        }
        if found.is_empty()
            && raw
                .entry_points
                .as_ref()
                .is_some_and(|f| f.value.as_ref().is_ok_and(Vec::is_empty))
        {
            self.problems
                .error(&key, span, "it is empty; name at least one");
        }
        found
    }
}

/// The name under which the default transport is kept. No table can have it.
const DEFAULT: &str = "";

fn first<'f, T>(
    own: &'f Option<Field<T>>,
    inherited: &'f Option<Field<T>>,
) -> &'f Option<Field<T>> {
    if own.is_some() { own } else { inherited }
}

fn no_such<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n String> + Clone) -> String {
    let known = known.map(String::as_str).filter(|name| !name.is_empty());
    match schema::nearest(name, known.clone()) {
        Some(near) => format!("there is no {what} \"{name}\"; is \"{near}\" meant?"),
        None => {
            let all: Vec<&str> = known.collect();
            if all.is_empty() {
                format!("there is no {what} \"{name}\", nor any other")
            } else {
                format!(
                    "there is no {what} \"{name}\"; there are {}",
                    all.join(", ")
                )
            }
        }
    }
}

fn in_order(mut routes: Vec<Route>) -> Vec<Route> {
    routes.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.name.cmp(&b.name))
    });
    routes
}

/// `host:port`, `[v6]:port` or `:port`. Hosts are IP addresses.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not an address to listen on; write \":8080\", \"127.0.0.1:8080\" or \"[::1]:8080\""
        )
    };
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| wrong())?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port.parse().map_err(|_| wrong())?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| wrong())
}

/// `host:port` of a server.
fn server_address(text: &str) -> Result<Address, String> {
    let wrong = || format!("\"{text}\" is not host:port");
    if !is_authority(text.as_bytes()) {
        return Err(wrong());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) => Host::Ip(ip),
        Err(_) => Host::Name(host.to_ascii_lowercase()),
    };
    Ok(Address { host, port })
}

fn http_server(url: &str) -> Result<HttpServer, String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| format!("\"{url}\" is not a URL; write \"https://host:port\""))?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        "h2c" => {
            return Err(
                "h2c is documented and not built yet; write http:// or https://".to_owned(),
            );
        }
        _ => return Err(format!("the scheme \"{scheme}\" is not http or https")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(format!(
            "\"{url}\" has a path, which would not be used: a request's path is forwarded as it came; remove it"
        ));
    }
    if authority.contains('@') {
        return Err(format!(
            "\"{url}\" has a user, which would not be used; remove it"
        ));
    }
    let ipv6_end = authority.rfind(']').unwrap_or(0);
    let has_port = authority
        .get(ipv6_end..)
        .is_some_and(|end| end.contains(':'));
    let with_port = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{}", if tls { 443 } else { 80 })
    };
    Ok(HttpServer {
        address: server_address(&with_port)?,
        tls,
        authority: authority.to_owned(),
        weight: 1,
    })
}

/// A SPIFFE ID as it must be written in a file: canonical, and of a workload.
fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    let id = SpiffeId::new(text).map_err(|error| {
        format!("\"{text}\" is not a SPIFFE ID ({error}); write \"spiffe://trust.domain/path\"")
    })?;
    if id.to_string() != text {
        return Err(format!(
            "\"{text}\" is not in lower case where it must be; is \"{id}\" meant?"
        ));
    }
    if id.path().is_empty() {
        return Err(format!(
            "\"{text}\" is a trust domain, not a workload; write trustDomain = \"{}\" instead",
            id.trust_domain_name()
        ));
    }
    Ok(id)
}

/// `example.org` or `spiffe://example.org`.
fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let name = text.strip_prefix("spiffe://").unwrap_or(text);
    if let Some((name, _)) = name.split_once('/') {
        return Err(format!(
            "\"{text}\" has a path; write \"{name}\", or put the whole ID into ids"
        ));
    }
    let domain = TrustDomain::new(name).map_err(|error| {
        format!("\"{text}\" is not a trust domain ({error}); write \"example.org\", say")
    })?;
    if domain.as_str() != name {
        return Err(format!(
            "\"{text}\" is not in lower case; is \"{domain}\" meant?"
        ));
    }
    Ok(domain)
}

/// The PEM text itself, or the content of the file that is named.
fn file_or_pem(entry: &str) -> Result<Vec<u8>, String> {
    if entry.contains("-----BEGIN ") {
        return Ok(entry.as_bytes().to_vec());
    }
    std::fs::read(entry).map_err(|error| format!("{entry} cannot be read: {error}"))
}

/// A path as it is; PEM text not at all.
fn short(entry: &str) -> &str {
    if entry.contains("-----BEGIN ") {
        "the inline PEM"
    } else {
        entry
    }
}
