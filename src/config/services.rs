//! `http.services` and `tcp.services`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use super::raw::{self, Field};
use super::reader::{Reader, no_such};
use super::transports::DEFAULT;
use super::{HttpServer, HttpService, Scheme, TcpServer, TcpService};
use crate::http::message::request::is_authority;
use crate::net::{Address, Host};
use crate::transport::{Authentication, HttpTransport, TcpTransport, Transport};

impl Reader<'_, '_> {
    pub(super) fn http_services(
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

    pub(super) fn http_service(
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
                let is_plain = server.scheme != Scheme::Https;
                if let Some(transport) = &transport
                    && is_plain
                {
                    let span = raw.url.as_ref().map(|field| field.span.clone());
                    self.warn_of_plaintext(&key, span, &transport.base);
                }
                if let Some(transport) = &transport
                    && transport.base.is_spiffe()
                    && is_plain
                {
                    let span = raw.url.as_ref().map(|field| field.span.clone());
                    self.problems.error(
                        &key,
                        span,
                        format!(
                            "{} asks for SPIFFE, and {}:// would send in plaintext; write https://",
                            transport.base.name, server.scheme
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

    pub(super) fn tcp_services(
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

    pub(super) fn tcp_service(
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
                    && !tls
                {
                    let span = raw.address.as_ref().map(|field| field.span.clone());
                    self.warn_of_plaintext(&key, span, &transport.base);
                }
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

    /// Keys about TLS do nothing for a server that is spoken to without.
    fn warn_of_plaintext(&mut self, key: &str, span: Option<Range<usize>>, transport: &Transport) {
        if let Authentication::Names(names) = &transport.authentication
            && (names.roots.is_some()
                || names.certificate.is_some()
                || names.peer_cert_uri.is_some()
                || names.insecure_skip_verify)
        {
            let name = &transport.name;
            self.problems.warning(
                key,
                span,
                format!("{name} has keys about TLS, and this server gets plaintext"),
            );
        }
    }

    pub(super) fn balancer<'r, S>(
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

    pub(super) fn transport<S, T>(
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

    pub(super) fn weight(&mut self, key: &str, field: &Option<Field<i64>>) -> u32 {
        let weight = self.parsed(key, field, |weight| {
            u32::try_from(*weight)
                .ok()
                .filter(|weight| *weight <= 1_000_000)
                .ok_or_else(|| "write 0 to 1000000".to_owned())
        });
        weight.unwrap_or(1)
    }

    pub(super) fn check_weights(
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
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        "h2c" => Scheme::H2c,
        _ => return Err(format!("the scheme \"{scheme}\" is not https, http or h2c")),
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
        format!(
            "{authority}:{}",
            if scheme == Scheme::Https { 443 } else { 80 }
        )
    };
    Ok(HttpServer {
        address: server_address(&with_port)?,
        scheme,
        authority: authority.to_owned(),
        weight: 1,
    })
}
