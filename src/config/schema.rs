//! Every key of the file, in one table: what it holds, and whether it is
//! built. What is not in the table is an unknown key.
//!
//! The walk over a parsed file reports unknown, unbuilt and misplaced keys,
//! all of them; after it the mirror in [`raw`](super::raw) cannot fail.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problems;

/// What a key holds.
#[derive(Debug)]
pub(super) enum Kind {
    /// A value; [`raw`](super::raw) knows its type.
    Value,
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table whose keys are names, each a table with these keys.
    Named(&'static [Key]),
    /// An array of tables with these keys.
    List(&'static [Key]),
    /// Known, not built yet. Why, or when.
    Planned(&'static str),
    /// Traefik's, and not ours. What to do instead.
    Foreign(&'static str),
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

use Kind::{Foreign, List, Named, Planned, Table, Value};

pub(super) const ROOT: &[Key] = &[
    key("spiffe", Table(SPIFFE)),
    key("admin", Table(&[key("address", Value)])),
    key("log", Table(&[key("level", Value), key("format", Value)])),
    key("providers", Table(PROVIDERS)),
    key("entryPoints", Named(ENTRY_POINT)),
    key("serversTransport", Table(HTTP_TRANSPORT)),
    key("tcpServersTransport", Table(TCP_TRANSPORT)),
    key("http", Table(HTTP)),
    key("tcp", Table(TCP)),
    key("udp", Foreign("svidgate does not proxy UDP")),
    key(
        "tls",
        Foreign("entry points with TLS are not built yet; certificates will stand there"),
    ),
    key("api", Foreign("use [admin]")),
    key("ping", Foreign("use [admin], which has /livez and /readyz")),
    key(
        "metrics",
        Foreign("use [admin], which has /metrics; it is always on"),
    ),
    key("accessLog", Planned("an access log")),
    key("tracing", Foreign("svidgate has no tracing")),
    key(
        "global",
        Foreign("svidgate sends nothing home; leave it out"),
    ),
    key("certificatesResolvers", Foreign("svidgate has no ACME")),
    key("experimental", Foreign("svidgate has no plugins")),
    key("hostResolver", Foreign("names are resolved by the system")),
];

const SPIFFE: &[Key] = &[
    key("workloadAPIAddr", Value),
    key("startupTimeout", Value),
    key("waitForSVID", Value),
    key("hint", Value),
    key("trustLossGrace", Value),
    key("closeOnExpiry", Value),
];

const PROVIDERS: &[Key] = &[
    key(
        "file",
        Table(&[
            key("filename", Value),
            key("watch", Value),
            key(
                "directory",
                Foreign("svidgate reads the one file given with --config"),
            ),
            key(
                "debugLogGeneratedTemplate",
                Foreign("the file is not a template"),
            ),
        ]),
    ),
    key("docker", Foreign("svidgate has the file provider only")),
    key(
        "kubernetesCRD",
        Foreign("svidgate has the file provider only"),
    ),
    key(
        "kubernetesIngress",
        Foreign("svidgate has the file provider only"),
    ),
    key("consul", Foreign("svidgate has the file provider only")),
    key("etcd", Foreign("svidgate has the file provider only")),
    key("redis", Foreign("svidgate has the file provider only")),
    key("http", Foreign("svidgate has the file provider only")),
];

const ENTRY_POINT: &[Key] = &[
    key("address", Value),
    key(
        "transport",
        Table(&[
            key(
                "lifeCycle",
                Table(&[
                    key("graceTimeOut", Value),
                    key("requestAcceptGraceTimeout", Value),
                ]),
            ),
            key(
                "respondingTimeouts",
                Table(&[
                    key("readTimeout", Value),
                    key("writeTimeout", Value),
                    key("idleTimeout", Value),
                ]),
            ),
            key("maxConnections", Value),
            key("keepAliveMaxTime", Value),
            key("keepAliveMaxRequests", Value),
            key("maxPipelinedRequests", Value),
        ]),
    ),
    key(
        "forwardedHeaders",
        Table(&[key("insecure", Value), key("trustedIPs", Value)]),
    ),
    key(
        "http",
        Table(&[
            key("maxHeaderBytes", Value),
            key("maxHeaderFields", Value),
            key("maxRequestLineBytes", Value),
            key("maxRequestBodyBytes", Value),
            key("minBodyRate", Value),
            key("tls", Planned("entry points with TLS")),
            key("middlewares", Foreign("svidgate has no middlewares")),
            key("redirections", Foreign("svidgate has no redirections")),
        ]),
    ),
    key("tls", Planned("entry points with TLS")),
    key(
        "http2",
        Table(&[
            key("maxConcurrentStreams", Value),
            key("maxBufferedBytes", Value),
            key(
                "maxDecoderHeaderTableSize",
                Foreign("the table for field compression has the standard's 4096 bytes"),
            ),
            key(
                "maxEncoderHeaderTableSize",
                Foreign("the table for field compression has the standard's 4096 bytes"),
            ),
        ]),
    ),
    key("http3", Foreign("svidgate has no HTTP/3")),
    key("udp", Foreign("svidgate does not proxy UDP")),
    key("proxyProtocol", Planned("the PROXY protocol")),
    key(
        "reusePort",
        Foreign("entry points always set SO_REUSEPORT; leave it out"),
    ),
    key(
        "asDefault",
        Foreign("an HTTP router without entryPoints serves every HTTP entry point"),
    ),
];

const SPIFFE_PEERS: &[Key] = &[
    key("ids", Value),
    key("trustDomain", Value),
    key("allowAny", Value),
];

const CERTIFICATE: &[Key] = &[key("certFile", Value), key("keyFile", Value)];

const HTTP_TRANSPORT: &[Key] = &[
    key("serverName", Value),
    key("insecureSkipVerify", Value),
    key("rootCAs", Value),
    key("certificates", List(CERTIFICATE)),
    key("maxIdleConnsPerHost", Value),
    key("disableHTTP2", Value),
    key("peerCertURI", Value),
    key("minVersion", Value),
    key("maxVersion", Value),
    key(
        "cipherSuites",
        Foreign("rustls has safe suites only, and no choice among them is offered"),
    ),
    key(
        "forwardingTimeouts",
        Table(&[
            key("dialTimeout", Value),
            key("responseHeaderTimeout", Value),
            key("idleConnTimeout", Value),
            key("streamIdleTimeout", Value),
            key("readIdleTimeout", Value),
            key("pingTimeout", Value),
        ]),
    ),
    key("spiffe", Table(SPIFFE_PEERS)),
];

const TCP_TRANSPORT: &[Key] = &[
    key("dialTimeout", Value),
    key("dialKeepAlive", Value),
    key("terminationDelay", Value),
    key("idleTimeout", Value),
    key("proxyProtocol", Planned("the PROXY protocol")),
    key(
        "tls",
        Table(&[
            key("serverName", Value),
            key("insecureSkipVerify", Value),
            key("rootCAs", Value),
            key("certificates", List(CERTIFICATE)),
            key("peerCertURI", Value),
            key("spiffe", Table(SPIFFE_PEERS)),
        ]),
    ),
];

const ROUTER: &[Key] = &[
    key("entryPoints", Value),
    key("rule", Value),
    key("service", Value),
    key("priority", Value),
    key("ruleSyntax", Foreign("there is Traefik's v3 syntax only")),
    key("middlewares", Foreign("svidgate has no middlewares")),
    key("tls", Planned("entry points with TLS")),
    key("observability", Foreign("it is the same for all routers")),
];

const HTTP: &[Key] = &[
    key("routers", Named(ROUTER)),
    key(
        "services",
        Named(&[
            key(
                "loadBalancer",
                Table(&[
                    key(
                        "servers",
                        List(&[
                            key("url", Value),
                            key("weight", Value),
                            key(
                                "preservePath",
                                Foreign(
                                    "a server's url has no path; the request's is forwarded as it came",
                                ),
                            ),
                        ]),
                    ),
                    key("serversTransport", Value),
                    key("passHostHeader", Value),
                    key("healthCheck", Planned("health checks")),
                    key("passiveHealthCheck", Planned("health checks")),
                    key("sticky", Foreign("svidgate has no sticky sessions")),
                    key("strategy", Value),
                    key(
                        "responseForwarding",
                        Foreign("a response is forwarded as it comes, never held back"),
                    ),
                ]),
            ),
            key(
                "weighted",
                Foreign("put the servers into one loadBalancer with weights"),
            ),
            key("failover", Foreign("svidgate has loadBalancer only")),
            key("mirroring", Foreign("svidgate has loadBalancer only")),
            key(
                "highestRandomWeight",
                Foreign("svidgate has loadBalancer only"),
            ),
        ]),
    ),
    key("serversTransports", Named(HTTP_TRANSPORT)),
    key("middlewares", Foreign("svidgate has no middlewares")),
];

const TCP: &[Key] = &[
    key("routers", Named(ROUTER)),
    key(
        "services",
        Named(&[
            key(
                "loadBalancer",
                Table(&[
                    key(
                        "servers",
                        List(&[
                            key("address", Value),
                            key("tls", Value),
                            key("weight", Value),
                        ]),
                    ),
                    key("serversTransport", Value),
                    key("healthCheck", Planned("health checks")),
                    key("proxyProtocol", Planned("the PROXY protocol")),
                    key(
                        "terminationDelay",
                        Foreign("put it into a tcp.serversTransports table"),
                    ),
                ]),
            ),
            key(
                "weighted",
                Foreign("put the servers into one loadBalancer with weights"),
            ),
        ]),
    ),
    key("serversTransports", Named(TCP_TRANSPORT)),
    key("middlewares", Foreign("svidgate has no middlewares")),
];

/// Reports every key that is not in its place.
pub(super) fn walk(table: &DeTable<'_>, keys: &[Key], path: &str, problems: &mut Problems<'_>) {
    for (name, value) in table {
        let at = join(path, name.get_ref());
        let Some(key) = keys.iter().find(|key| key.name == name.get_ref()) else {
            problems.error(&at, name.span(), unknown(name.get_ref(), keys));
            continue;
        };
        match &key.kind {
            Value => {}
            Table(keys) => with_table(value, &at, problems, |table, problems| {
                walk(table, keys, &at, problems);
            }),
            Named(keys) => with_table(value, &at, problems, |table, problems| {
                for (name, value) in table {
                    if name.get_ref().is_empty() {
                        problems.error(&at, name.span(), "a name is empty; write one");
                    }
                    let at = join(&at, name.get_ref());
                    with_table(value, &at, problems, |table, problems| {
                        walk(table, keys, &at, problems);
                    });
                }
            }),
            List(keys) => match value.get_ref().as_array() {
                Some(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                    for item in items.iter() {
                        with_table(item, &at, problems, |table, problems| {
                            walk(table, keys, &at, problems);
                        });
                    }
                }
                _ => problems.error(
                    &at,
                    value.span(),
                    format!("this must be an array of tables; write [[{at}]]"),
                ),
            },
            Planned(what) => problems.error(
                &at,
                name.span(),
                format!("this key is documented and not built yet ({what}); leave it out"),
            ),
            Foreign(instead) => problems.error(
                &at,
                name.span(),
                format!("Traefik has this key and svidgate has not: {instead}"),
            ),
        }
    }
}

fn with_table(
    value: &Spanned<DeValue<'_>>,
    at: &str,
    problems: &mut Problems<'_>,
    then: impl FnOnce(&DeTable<'_>, &mut Problems<'_>),
) {
    match value.get_ref().as_table() {
        Some(table) => then(table, problems),
        None => problems.error(
            at,
            value.span(),
            format!("this must be a table; write [{at}]"),
        ),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn unknown(name: &str, keys: &[Key]) -> String {
    let ours = keys
        .iter()
        .filter(|key| !matches!(key.kind, Foreign(_) | Planned(_)))
        .map(|key| key.name);
    match nearest(name, ours.clone()) {
        Some(near) => format!("there is no such key; is {near} meant?"),
        None => format!(
            "there is no such key; there are {}",
            ours.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The known name that is most like this one, if one is like it at all.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_ascii_lowercase();
    known
        .into_iter()
        .map(|known| {
            let distance = strsim::damerau_levenshtein(&name, &known.to_ascii_lowercase());
            (distance, known)
        })
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key that is built, as a dotted path with `<name>` for names.
    fn built(keys: &[Key], path: &str, all: &mut Vec<String>) {
        for key in keys {
            let at = join(path, key.name);
            match &key.kind {
                Value => all.push(at),
                Table(keys) | List(keys) => built(keys, &at, all),
                Named(keys) => built(keys, &format!("{at}.<name>"), all),
                Planned(_) | Foreign(_) => {}
            }
        }
    }

    #[test]
    fn every_built_key_has_a_row_in_the_readme() {
        let readme = include_str!("../../README.md");
        let mut keys = Vec::new();
        built(ROOT, "", &mut keys);
        assert!(keys.len() > 60, "{}", keys.len());
        let missing: Vec<&String> = keys
            .iter()
            .filter(|key| !readme.contains(&format!("`{key}`")))
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }
}
