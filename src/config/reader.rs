//! The crossing from the file's mirror to [`Config`]: what is common to all
//! tables, and the tables that are not about traffic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use toml::Spanned;

use super::entry_points::overlap;
use super::problem::Problems;
use super::raw::{self, Field, Signed};
use super::source::Stamps;
use super::{AdminAddress, Config, Overrides, Spiffe, schema};
use crate::identity::endpoint;

pub(super) struct Reader<'p, 't> {
    pub(super) problems: &'p mut Problems<'t>,
    pub(super) overrides: &'p Overrides,
    pub(super) path: Option<&'p Path>,
    /// Those that were read, or could not be.
    pub(super) files: Stamps,
}

impl Reader<'_, '_> {
    pub(super) fn config(&mut self, file: &raw::File) -> Config {
        let http_transports = self.http_transports(file);
        let tcp_transports = self.tcp_transports(file);
        let http_services = self.http_services(file, &http_transports);
        let tcp_services = self.tcp_services(file, &tcp_transports);
        let entry_points = self.entry_points(file, &http_services, &tcp_services);
        let admin = self.admin(file.admin.as_ref());
        if let Some(AdminAddress::Tcp(address)) = admin
            && let Some(taken) = entry_points.iter().find(|it| overlap(it.address, address))
        {
            self.problems.error(
                "admin.address",
                file.admin.as_ref().map(Spanned::span),
                format!("entry point {} listens on that already", taken.name),
            );
        }
        let http = http_transports.values().map(|transport| &transport.base);
        let tcp = tcp_transports.values().map(|transport| &transport.base);
        let transports: Vec<_> = http.chain(tcp).map(Arc::clone).collect();
        let needs_identity: Vec<&str> = transports
            .iter()
            .filter(|transport| transport.is_spiffe())
            .map(|transport| transport.name.as_str())
            .collect();
        let spiffe = self.spiffe(file.spiffe.as_ref(), &needs_identity);
        Config {
            watch: self.providers(&file.providers.file),
            spiffe,
            admin,
            log_level: self.log(&file.log),
            entry_points,
            transports,
            files: std::mem::take(&mut self.files),
            warnings: Vec::new(),
        }
    }

    /// A field's value; what is wrong with it is reported.
    pub(super) fn value<'f, T>(&mut self, key: &str, field: &'f Option<Field<T>>) -> Option<&'f T> {
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
    pub(super) fn parsed<T, U>(
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
    pub(super) fn limit(
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

    /// A duration for which zero means at once.
    pub(super) fn grace(
        &mut self,
        key: &str,
        field: &Option<Field<Signed>>,
        default: Duration,
    ) -> Duration {
        let grace = self.parsed(key, field, |value| match value {
            Signed::Positive(grace) if *grace <= DURATION_MAX => Ok(*grace),
            _ => Err("write 0 or more, below a year".to_owned()),
        });
        grace.unwrap_or(default)
    }

    pub(super) fn count(
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

    pub(super) fn spiffe(
        &mut self,
        raw: Option<&Spanned<raw::Spiffe>>,
        needed_by: &[&str],
    ) -> Spiffe {
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
        let waits = self.value("spiffe.waitForSVID", &table.wait_for_svid);
        if waits == Some(&false) && table.startup_timeout.is_some() {
            self.problems.warning(
                "spiffe.startupTimeout",
                table
                    .startup_timeout
                    .as_ref()
                    .map(|field| field.span.clone()),
                "it has no effect beside waitForSVID = false",
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
            trust_loss_grace: self.grace(
                "spiffe.trustLossGrace",
                &table.trust_loss_grace,
                TRUST_LOSS_GRACE,
            ),
            close_on_expiry: *self
                .value("spiffe.closeOnExpiry", &table.close_on_expiry)
                .unwrap_or(&false),
        }
    }

    /// Whether a change of the file is to be followed.
    pub(super) fn providers(&mut self, provider: &raw::FileProvider) -> bool {
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
        *self
            .value("providers.file.watch", &provider.watch)
            .unwrap_or(&true)
    }

    pub(super) fn admin(&mut self, raw: Option<&Spanned<raw::Admin>>) -> Option<AdminAddress> {
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

    pub(super) fn log(&mut self, raw: &raw::Log) -> LevelFilter {
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
}

pub(super) fn first<'f, T>(
    own: &'f Option<Field<T>>,
    inherited: &'f Option<Field<T>>,
) -> &'f Option<Field<T>> {
    if own.is_some() { own } else { inherited }
}

pub(super) fn no_such<'n>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'n String> + Clone,
) -> String {
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

/// `host:port`, `[v6]:port` or `:port`. Hosts are IP addresses.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
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

/// How long exchanges and tunnels outlive the trust in their peer.
const TRUST_LOSS_GRACE: Duration = Duration::from_secs(30);

/// Far enough for any timer, and near enough for any clock.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
