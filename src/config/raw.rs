//! The file as written: serde's mirror, without meaning. Only this file
//! derives `Deserialize`.
//!
//! A value of the wrong type does not stop the reading: each value is a
//! [`Field`], which remembers what was wrong and where.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::duration;

/// A value with its place, or what is wrong with it.
#[derive(Debug)]
pub(super) struct Field<T> {
    pub(super) value: Result<T, String>,
    pub(super) span: Range<usize>,
}

/// A type that a single value can have.
pub(super) trait Leaf: Sized {
    const EXPECTED: &'static str;
    /// `None`: another type. `Some(Err)`: the right type, and not good.
    fn read(value: &toml::Value) -> Option<Result<Self, String>>;
}

impl<'de, T: Leaf> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Spanned::<toml::Value>::deserialize(deserializer)?;
        let read = T::read(value.get_ref()).unwrap_or_else(|| {
            Err(format!(
                "expected {}, found {}",
                T::EXPECTED,
                match value.get_ref() {
                    toml::Value::String(_) => "a string",
                    toml::Value::Integer(_) => "a number",
                    toml::Value::Float(_) => "a fraction",
                    toml::Value::Boolean(_) => "true or false",
                    toml::Value::Datetime(_) => "a date",
                    toml::Value::Array(_) => "an array",
                    toml::Value::Table(_) => "a table",
                }
            ))
        });
        Ok(Self {
            value: read,
            span: value.span(),
        })
    }
}

impl Leaf for bool {
    const EXPECTED: &'static str = "true or false";
    fn read(value: &toml::Value) -> Option<Result<Self, String>> {
        value.as_bool().map(Ok)
    }
}

impl Leaf for i64 {
    const EXPECTED: &'static str = "a whole number";
    fn read(value: &toml::Value) -> Option<Result<Self, String>> {
        value.as_integer().map(Ok)
    }
}

impl Leaf for String {
    const EXPECTED: &'static str = "a string";
    fn read(value: &toml::Value) -> Option<Result<Self, String>> {
        value.as_str().map(|text| Ok(text.to_owned()))
    }
}

impl Leaf for Vec<String> {
    const EXPECTED: &'static str = "an array of strings";
    fn read(value: &toml::Value) -> Option<Result<Self, String>> {
        let items = value.as_array()?;
        items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map(Ok)
    }
}

/// A duration of either sign, as Traefik writes them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signed {
    /// Zero included.
    Positive(Duration),
    /// Below zero, which a few keys take for "without limit".
    Negative,
}

impl Leaf for Signed {
    const EXPECTED: &'static str = "a duration such as \"30s\" or a number of seconds";
    fn read(value: &toml::Value) -> Option<Result<Self, String>> {
        match value {
            toml::Value::Integer(seconds) => Some(Ok(match u64::try_from(*seconds) {
                Ok(seconds) => Self::Positive(Duration::from_secs(seconds)),
                Err(_) => Self::Negative,
            })),
            toml::Value::String(text) => Some(match text.strip_prefix('-') {
                Some(text) => duration::parse(text).map(|_| Self::Negative),
                None => duration::parse(text).map(Self::Positive),
            }),
            _ => None,
        }
    }
}

/// Tables whose keys are names.
pub(super) type Named<T> = BTreeMap<Spanned<String>, T>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) spiffe: Option<Spanned<Spiffe>>,
    pub(super) admin: Option<Spanned<Admin>>,
    pub(super) log: Log,
    pub(super) providers: Providers,
    pub(super) entry_points: Named<EntryPoint>,
    pub(super) servers_transport: HttpTransport,
    pub(super) tcp_servers_transport: TcpTransport,
    pub(super) http: Http,
    pub(super) tcp: Tcp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spiffe {
    #[serde(rename = "workloadAPIAddr")]
    pub(super) workload_api_addr: Option<Field<String>>,
    pub(super) startup_timeout: Option<Field<Signed>>,
    #[serde(rename = "waitForSVID")]
    pub(super) wait_for_svid: Option<Field<bool>>,
    pub(super) hint: Option<Field<String>>,
    pub(super) trust_loss_grace: Option<Field<Signed>>,
    pub(super) close_on_expiry: Option<Field<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Admin {
    pub(super) address: Option<Field<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Option<Field<String>>,
    pub(super) format: Option<Field<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Providers {
    pub(super) file: FileProvider,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileProvider {
    pub(super) filename: Option<Field<String>>,
    pub(super) watch: Option<Field<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EntryPoint {
    pub(super) address: Option<Field<String>>,
    pub(super) transport: EntryTransport,
    pub(super) forwarded_headers: ForwardedHeaders,
    pub(super) http: EntryHttp,
    pub(super) http2: EntryHttp2,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EntryTransport {
    pub(super) life_cycle: LifeCycle,
    pub(super) responding_timeouts: RespondingTimeouts,
    pub(super) max_connections: Option<Field<i64>>,
    pub(super) keep_alive_max_time: Option<Field<Signed>>,
    pub(super) keep_alive_max_requests: Option<Field<i64>>,
    pub(super) max_pipelined_requests: Option<Field<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LifeCycle {
    #[serde(rename = "graceTimeOut")]
    pub(super) grace_time_out: Option<Field<Signed>>,
    #[serde(rename = "requestAcceptGraceTimeout")]
    pub(super) request_accept_grace_timeout: Option<Field<Signed>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RespondingTimeouts {
    pub(super) read_timeout: Option<Field<Signed>>,
    pub(super) write_timeout: Option<Field<Signed>>,
    pub(super) idle_timeout: Option<Field<Signed>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ForwardedHeaders {
    pub(super) insecure: Option<Field<bool>>,
    #[serde(rename = "trustedIPs")]
    pub(super) trusted_ips: Option<Field<Vec<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EntryHttp {
    pub(super) max_header_bytes: Option<Field<i64>>,
    pub(super) max_header_fields: Option<Field<i64>>,
    pub(super) max_request_line_bytes: Option<Field<i64>>,
    pub(super) max_request_body_bytes: Option<Field<i64>>,
    pub(super) min_body_rate: Option<Field<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EntryHttp2 {
    pub(super) max_concurrent_streams: Option<Field<i64>>,
    pub(super) max_buffered_bytes: Option<Field<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct HttpTransport {
    pub(super) server_name: Option<Field<String>>,
    pub(super) insecure_skip_verify: Option<Field<bool>>,
    #[serde(rename = "rootCAs")]
    pub(super) root_cas: Option<Field<Vec<String>>>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) max_idle_conns_per_host: Option<Field<i64>>,
    #[serde(rename = "disableHTTP2")]
    pub(super) disable_http2: Option<Field<bool>>,
    #[serde(rename = "peerCertURI")]
    pub(super) peer_cert_uri: Option<Field<String>>,
    pub(super) min_version: Option<Field<String>>,
    pub(super) max_version: Option<Field<String>>,
    pub(super) forwarding_timeouts: ForwardingTimeouts,
    pub(super) spiffe: Option<Spanned<SpiffePeers>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ForwardingTimeouts {
    pub(super) dial_timeout: Option<Field<Signed>>,
    pub(super) response_header_timeout: Option<Field<Signed>>,
    pub(super) idle_conn_timeout: Option<Field<Signed>>,
    pub(super) stream_idle_timeout: Option<Field<Signed>>,
    pub(super) read_idle_timeout: Option<Field<Signed>>,
    pub(super) ping_timeout: Option<Field<Signed>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Certificate {
    pub(super) cert_file: Option<Field<String>>,
    pub(super) key_file: Option<Field<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SpiffePeers {
    pub(super) ids: Option<Field<Vec<String>>>,
    pub(super) trust_domain: Option<Field<String>>,
    pub(super) allow_any: Option<Field<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TcpTransport {
    pub(super) dial_timeout: Option<Field<Signed>>,
    pub(super) dial_keep_alive: Option<Field<Signed>>,
    pub(super) termination_delay: Option<Field<Signed>>,
    pub(super) idle_timeout: Option<Field<Signed>>,
    pub(super) tls: TcpTls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TcpTls {
    pub(super) server_name: Option<Field<String>>,
    pub(super) insecure_skip_verify: Option<Field<bool>>,
    #[serde(rename = "rootCAs")]
    pub(super) root_cas: Option<Field<Vec<String>>>,
    pub(super) certificates: Vec<Certificate>,
    #[serde(rename = "peerCertURI")]
    pub(super) peer_cert_uri: Option<Field<String>>,
    pub(super) spiffe: Option<Spanned<SpiffePeers>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Http {
    pub(super) routers: Named<Router>,
    pub(super) services: Named<Service<HttpServer>>,
    pub(super) servers_transports: Named<HttpTransport>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Tcp {
    pub(super) routers: Named<Router>,
    pub(super) services: Named<Service<TcpServer>>,
    pub(super) servers_transports: Named<TcpTransport>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Router {
    pub(super) entry_points: Option<Field<Vec<String>>>,
    pub(super) rule: Option<Field<String>>,
    pub(super) service: Option<Field<String>>,
    pub(super) priority: Option<Field<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service<S> {
    pub(super) load_balancer: Option<LoadBalancer<S>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LoadBalancer<S> {
    #[serde(default = "Vec::new")]
    pub(super) servers: Vec<S>,
    pub(super) servers_transport: Option<Field<String>>,
    pub(super) pass_host_header: Option<Field<bool>>,
    pub(super) strategy: Option<Field<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HttpServer {
    pub(super) url: Option<Field<String>>,
    pub(super) weight: Option<Field<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TcpServer {
    pub(super) address: Option<Field<String>>,
    pub(super) tls: Option<Field<bool>>,
    pub(super) weight: Option<Field<i64>>,
}
