//! `serversTransport`, `http.serversTransports` and their TCP twins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use spiffe::{SpiffeId, TrustDomain};
use toml::Spanned;
use zeroize::Zeroizing;

use super::raw::{self, Field, Signed};
use super::reader::{DURATION_MAX, Reader, first};
use super::source::{Stamp, Stamps};
use crate::tls;
use crate::transport::{
    Allowlist, Authentication, ClientCertificate, HttpTransport, Names, TcpTransport, TlsVersions,
    Transport,
};

/// The longest TLS handshake with a server.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const HTTP_KEEP_ALIVE: Duration = Duration::from_secs(30);
const IDLE_CONN_TIMEOUT: Duration = Duration::from_secs(90);
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_PER_HOST: usize = 200;
const DIAL_KEEP_ALIVE: Duration = Duration::from_secs(15);
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The name under which the default transport is kept. No table can have it.
pub(super) const DEFAULT: &str = "";

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
            || is(self.insecure_skip_verify, |it| *it)
            || self.peer_cert_uri.is_some()
            || !self.certificates.is_empty()
    }
}

impl Reader<'_, '_> {
    pub(super) fn http_transports(
        &mut self,
        file: &raw::File,
    ) -> BTreeMap<String, Arc<HttpTransport>> {
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
    pub(super) fn http_transport(
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
        self.warn_of_override(at, root.spiffe.is_some(), &authentication);
        let disable_http2 = self.value(
            &key("disableHTTP2"),
            first(&raw.disable_http2, &root.disable_http2),
        );
        let http2 = !disable_http2.copied().unwrap_or(false);
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
        let stream_idle_timeout = self.limit(
            &pick("streamIdleTimeout"),
            first(
                &timeouts.stream_idle_timeout,
                &inherited.stream_idle_timeout,
            ),
            Some(STREAM_IDLE_TIMEOUT),
        );
        let read_idle_timeout = self.limit(
            &pick("readIdleTimeout"),
            first(&timeouts.read_idle_timeout, &inherited.read_idle_timeout),
            None,
        );
        let ping_timeout = self.limit(
            &pick("pingTimeout"),
            first(&timeouts.ping_timeout, &inherited.ping_timeout),
            Some(PING_TIMEOUT),
        );
        let max_idle = self.count(
            &key("maxIdleConnsPerHost"),
            first(&raw.max_idle_conns_per_host, &root.max_idle_conns_per_host),
            IDLE_PER_HOST,
            0..=65_536,
        );
        HttpTransport {
            base: Arc::new(Transport {
                name: at.to_owned(),
                authentication,
                server_name: self.server_name(at, first(&raw.server_name, &root.server_name)),
                versions: self.versions(
                    at,
                    first(&raw.min_version, &root.min_version),
                    first(&raw.max_version, &root.max_version),
                ),
                dial_timeout,
                handshake_timeout: HANDSHAKE_TIMEOUT,
                keep_alive: Some(HTTP_KEEP_ALIVE),
            }),
            max_idle_per_host: if max_idle == 0 {
                IDLE_PER_HOST
            } else {
                max_idle
            },
            http2,
            response_header_timeout,
            idle_conn_timeout,
            stream_idle_timeout,
            read_idle_timeout,
            // 0 is the default, as in Traefik.
            ping_timeout: ping_timeout.unwrap_or(PING_TIMEOUT),
        }
    }

    pub(super) fn tcp_transports(
        &mut self,
        file: &raw::File,
    ) -> BTreeMap<String, Arc<TcpTransport>> {
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

    pub(super) fn tcp_transport(
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
        self.warn_of_override(at, root.tls.spiffe.is_some(), &authentication);
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
            base: Arc::new(Transport {
                name: at.to_owned(),
                authentication,
                server_name: self.server_name(
                    &format!("{at}.tls"),
                    first(&raw.tls.server_name, &root.tls.server_name),
                ),
                versions: TlsVersions::Both,
                dial_timeout: self.limit(
                    &key("dialTimeout"),
                    first(&raw.dial_timeout, &root.dial_timeout),
                    Some(DIAL_TIMEOUT),
                ),
                handshake_timeout: HANDSHAKE_TIMEOUT,
                keep_alive,
            }),
            termination_delay,
            idle_timeout: self.limit(
                &key("idleTimeout"),
                first(&raw.idle_timeout, &root.idle_timeout),
                Some(TCP_IDLE_TIMEOUT),
            ),
        }
    }

    /// A transport that leaves the root table's `spiffe` says so on purpose, or
    /// by mistake.
    fn warn_of_override(&mut self, at: &str, root_has_spiffe: bool, own: &Authentication) {
        if root_has_spiffe && matches!(own, Authentication::Names(_)) {
            self.problems.warning(
                at,
                None,
                "its own keys stand in place of the spiffe of the root table: its peers are not known by SPIFFE IDs",
            );
        }
    }

    pub(super) fn server_name(
        &mut self,
        at: &str,
        field: &Option<Field<String>>,
    ) -> Option<ServerName<'static>> {
        self.parsed(&format!("{at}.serverName"), field, |name| {
            ServerName::try_from(name.clone())
                .map_err(|_| format!("\"{name}\" is neither a DNS name nor an IP address"))
        })
    }

    pub(super) fn versions(
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
        let uri = self.parsed(&key("peerCertURI"), raw.peer_cert_uri, |uri| {
            if uri.is_empty() {
                return Err("it is empty; write a URI, or leave it out".to_owned());
            }
            Ok(uri.clone())
        });
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

    pub(super) fn allowlist(&mut self, at: &str, raw: &Spanned<raw::SpiffePeers>) -> Allowlist {
        let (span, raw) = (raw.span(), raw.get_ref());
        let mut ids = BTreeSet::new();
        let listed = self.value(&format!("{at}.ids"), &raw.ids);
        let has_ids = listed.is_some_and(|ids| !ids.is_empty());
        if listed.is_some_and(Vec::is_empty) {
            self.problems.error(
                format!("{at}.ids"),
                raw.ids.as_ref().map(|field| field.span.clone()),
                "it is empty, which would admit nobody; name at least one, or leave it out",
            );
        }
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
        if any && (raw.ids.is_some() || raw.trust_domain.is_some()) {
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

    pub(super) fn root_cas(
        &mut self,
        key: &str,
        field: &Option<Field<Vec<String>>>,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let mut files = Stamps::new();
        let roots = self.parsed(key, field, |entries| {
            let mut roots = Vec::new();
            for entry in entries {
                let pem = file_or_pem(entry, &mut files)?;
                let before = roots.len();
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|_| not_pem(entry))?;
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
        });
        self.files.extend(files);
        roots
    }

    pub(super) fn certificates(
        &mut self,
        key: &str,
        raw: &[raw::Certificate],
    ) -> Option<ClientCertificate> {
        if raw.len() > 1 {
            let span = raw.get(1).and_then(|second| second.cert_file.as_ref());
            self.problems.error(
                key,
                span.map(|field| field.span.clone()),
                "several client certificates are not built yet; write one",
            );
        }
        let raw = raw.first()?;
        let mut files = Stamps::new();
        let chain = self.parsed(&format!("{key}.certFile"), &raw.cert_file, |entry| {
            let pem = file_or_pem(entry, &mut files)?;
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            match chain {
                Ok(chain) if !chain.is_empty() => Ok(chain),
                Ok(_) => Err(format!("{} has no certificate in PEM form", short(entry))),
                Err(_) => Err(not_pem(entry)),
            }
        });
        let private = self.parsed(&format!("{key}.keyFile"), &raw.key_file, |entry| {
            let pem = file_or_pem(entry, &mut files).map_err(|_| {
                "it is neither PEM nor a file that can be read (not shown: it may be a key)"
                    .to_owned()
            })?;
            PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|_| "it holds no private key in PEM form".to_owned())
        });
        self.files.extend(files);
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
        match tls::certified(chain?, private?) {
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

/// Whether a field is there, good, and so.
fn is<T>(field: &Option<Field<T>>, so: impl FnOnce(&T) -> bool) -> bool {
    let value = field.as_ref().and_then(|field| field.value.as_ref().ok());
    value.is_some_and(so)
}

/// The PEM text itself, or the content of the file that is named. It may hold
/// a key, so it is wiped after use.
fn file_or_pem(entry: &str, files: &mut Stamps) -> Result<Zeroizing<Vec<u8>>, String> {
    if entry.contains("-----BEGIN ") {
        return Ok(Zeroizing::new(entry.as_bytes().to_vec()));
    }
    // Something too long to be a path is perhaps a key that was pasted.
    if entry.len() < 4096 {
        // Before it is read: what changes meanwhile, the next look sees.
        let path = PathBuf::from(entry);
        files.insert(path.clone(), Stamp::of(&path));
    }
    std::fs::read(entry)
        .map(Zeroizing::new)
        .map_err(|error| format!("{} cannot be read: {error}", short(entry)))
}

/// The parser's own words would show the text, and with it perhaps a key.
fn not_pem(entry: &str) -> String {
    format!("{} is not well-formed PEM", short(entry))
}

/// A path as it is. Anything that could be key material, not at all.
fn short(entry: &str) -> &str {
    let is_path = entry.len() <= 256 && (entry.contains('/') || entry.contains('.'));
    if entry.contains("-----BEGIN ") {
        "the inline PEM"
    } else if is_path {
        entry
    } else {
        "the entry"
    }
}
