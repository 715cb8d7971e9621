//! `entryPoints`, and the routers that give them something to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::raw;
use super::reader::{Reader, listen_address, no_such};
use super::{EntryPoint, HttpEntry, HttpService, Route, Serves, TcpService, Trusted};
use crate::http::message::head;
use crate::net::IpRange;
use crate::rule::{Layer, Rule};

const READ_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);
const GRACE: Duration = Duration::from_secs(10);
/// Far below what any client manages that is alive.
const BODY_RATE_MIN: usize = 100;
const STREAMS_MAX: usize = 250;
/// Thirty-two streams that no backend takes anything of.
const BUFFERED_MAX: usize = 1 << 20;
const PIPELINED_MAX: usize = 1000;
const CONNECTIONS_MAX: usize = 16_384;

impl Reader<'_, '_> {
    pub(super) fn entry_points(
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
        let mut addresses: Vec<(SocketAddr, &str)> = Vec::new();
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
            if let Some(address) = address {
                let taken = addresses.iter().find(|(other, _)| overlap(*other, address));
                if let Some((_, other)) = taken {
                    self.problems.error(
                        format!("{at}.address"),
                        raw.address.as_ref().map(|field| field.span.clone()),
                        format!("entry point {other} listens on that already"),
                    );
                }
                addresses.push((address, name.get_ref()));
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
            let life_cycle = &raw.transport.life_cycle;
            let accept_grace = self.grace(
                &format!("{at}.transport.lifeCycle.requestAcceptGraceTimeout"),
                &life_cycle.request_accept_grace_timeout,
                Duration::ZERO,
            );
            let grace = self.grace(
                &format!("{at}.transport.lifeCycle.graceTimeOut"),
                &life_cycle.grace_time_out,
                GRACE,
            );
            if let Some(address) = address {
                entry_points.push(EntryPoint {
                    name: name.get_ref().clone(),
                    address,
                    connections_max,
                    accept_grace,
                    grace,
                    serves,
                });
            }
        }
        entry_points
    }

    /// The limits of an entry point, as if it served HTTP.
    pub(super) fn http_entry(&mut self, at: &str, raw: &raw::EntryPoint) -> HttpEntry {
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
        let rate_min = self.count(
            &key("http.minBodyRate"),
            &raw.http.min_body_rate,
            BODY_RATE_MIN,
            0..=1 << 30,
        );
        let requests_max = self.count(
            &key("transport.keepAliveMaxRequests"),
            &raw.transport.keep_alive_max_requests,
            0,
            0..=usize::MAX / 2,
        );
        let streams_max = self.count(
            &key("http2.maxConcurrentStreams"),
            &raw.http2.max_concurrent_streams,
            STREAMS_MAX,
            1..=65_536,
        );
        let buffered_max = self.count(
            &key("http2.maxBufferedBytes"),
            &raw.http2.max_buffered_bytes,
            BUFFERED_MAX,
            65_535..=0x7fff_ffff,
        );
        let pipelined_max = self.count(
            &key("transport.maxPipelinedRequests"),
            &raw.transport.max_pipelined_requests,
            PIPELINED_MAX,
            1..=1_000_000,
        );
        HttpEntry {
            routes: Vec::new(),
            pipelined_max: u32::try_from(pipelined_max).unwrap_or(u32::MAX),
            buffered_max: u32::try_from(buffered_max).unwrap_or(u32::MAX),
            rate_min: u64::try_from(rate_min).unwrap_or(u64::MAX),
            keep_alive_max_requests: u64::try_from(requests_max).ok().filter(|max| *max > 0),
            keep_alive_max_time: self.limit(
                &key("transport.keepAliveMaxTime"),
                &raw.transport.keep_alive_max_time,
                None,
            ),
            streams_max: u32::try_from(streams_max).unwrap_or(u32::MAX),
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

    pub(super) fn router(
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

    pub(super) fn service<S>(
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

    pub(super) fn entry_point_names<'n>(
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

fn in_order(mut routes: Vec<Route>) -> Vec<Route> {
    routes.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.name.cmp(&b.name))
    });
    routes
}

/// Whether one connection could belong to both.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (any || a.ip() == b.ip())
}
