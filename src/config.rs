//! TOML text to [`Config`]: Traefik's keys, checked whole.
//!
//! Two types, one crossing. `raw` is the file as written; [`Config`] has no
//! string that still has to be parsed and nothing that could be wrong. Every
//! problem of a file is reported at once, with its key, its line and what to
//! write instead. Nothing falls back to something else.

mod duration;
mod entry_points;
mod problem;
mod raw;
mod reader;
mod schema;
mod services;
pub mod source;
mod transports;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use spiffe::transport::Endpoint;
use toml::de::DeTable;

use crate::http::message::head;
use crate::net::Address;
use crate::net::IpRange;
use crate::rule::Rule;
use crate::transport::{HttpTransport, TcpTransport, Transport};
use problem::Problems;
pub use problem::{ConfigError, Problem};
use reader::Reader;
use source::Stamps;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Where our identity comes from.
    pub spiffe: Spiffe,
    /// Where `/livez` and `/readyz` are.
    pub admin: Option<AdminAddress>,
    /// The least severe level that is logged; `RUST_LOG` wins.
    pub log_level: LevelFilter,
    /// Whether a change of the file is to be followed.
    pub watch: bool,
    /// What to listen on, and what to do there.
    pub entry_points: Vec<EntryPoint>,
    /// Every transport of the file, used or not.
    pub transports: Vec<Arc<Transport>>,
    /// The certificate and key files that were read, and how they looked
    /// before that.
    pub files: Stamps,
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
    /// How long open exchanges and tunnels outlive the trust in their peer.
    pub trust_loss_grace: Duration,
    /// Whether tunnels end with the certificates of their handshake.
    pub close_on_expiry: bool,
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
    /// How long it goes on accepting once the proxy is told to end.
    pub accept_grace: Duration,
    /// After that, how long open exchanges may take.
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
    /// Bytes a second that a client has to send of a body, or take of one,
    /// while it is waited for. 0: as few as it likes.
    pub rate_min: u64,
    /// Requests on one connection. `None`: no limit.
    pub keep_alive_max_requests: Option<u64>,
    /// How long a connection may go on taking requests. `None`: no limit.
    pub keep_alive_max_time: Option<Duration>,
    /// Requests in a row that a client may send ahead of the answers.
    pub pipelined_max: u32,
    /// Bytes of content that a client may send ahead over an HTTP/2
    /// connection, all its streams together.
    pub buffered_max: u32,
    /// Requests under way at once on an HTTP/2 connection.
    pub streams_max: u32,
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
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Host and port as in its url: the `Host` that it gets without
    /// `passHostHeader`.
    pub authority: String,
    /// Its share of the requests. 0: none.
    pub weight: u32,
}

/// How an HTTP server is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// In plaintext, HTTP/1.1.
    Http,
    /// Through TLS, in the version that it prefers.
    Https,
    /// In plaintext, HTTP/2.
    H2c,
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
        })
    }
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

impl Config {
    /// Reads and checks a file. Paths in it are relative to the working
    /// directory, as in Traefik.
    ///
    /// # Errors
    /// Every problem, or the one that it cannot be read.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse_from(&Self::read(path)?, overrides, Some(path))
    }

    fn read(path: &Path) -> Result<String, ConfigError> {
        let whole = |what: String| ConfigError {
            problems: vec![Problem {
                key: String::new(),
                line: None,
                what,
            }],
            files: Stamps::new(),
        };
        let bytes = std::fs::read(path)
            .map_err(|error| whole(format!("{} cannot be read: {error}", path.display())))?;
        String::from_utf8(bytes).map_err(|_| whole(format!("{} is not UTF-8", path.display())))
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
        schema::walk(table.get_ref(), schema::ROOT, "", &mut problems);
        let file = match toml::from_str::<raw::File>(text) {
            Ok(file) => file,
            Err(error) => {
                // A table where a value belongs, or the other way round: the
                // walk has told. If it has not, this is all there is to say.
                if !problems.has_errors() {
                    problems.error("", error.span(), error.message());
                }
                return problems.finish::<Self>(None).map(|(config, _)| config);
            }
        };
        let config = Reader {
            problems: &mut problems,
            overrides,
            path,
            files: Stamps::new(),
        }
        .config(&file);
        let files = config.files.clone();
        let (mut config, warnings) = problems
            .finish(Some(config))
            .map_err(|error| ConfigError { files, ..error })?;
        config.warnings = warnings;
        Ok(config)
    }

    /// Whether some connection needs our SVID.
    #[must_use]
    pub fn needs_identity(&self) -> bool {
        self.spiffe.endpoint.is_some()
    }
}
