//! `/metrics` and `/status`: the [`State`] in words.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::config::{Config, EntryPoint, Serves};
use crate::identity::bundle::Bundle;
use crate::identity::snapshot::utc;
use crate::identity::{Record, Snapshot};
use crate::metrics::{Kind, Text};
use crate::state::State;
use crate::tls::unix_now;
use crate::transport::Transport;

/// What has been counted, for Prometheus.
pub(super) fn metrics(state: &State) -> String {
    use Kind::{Counter, Gauge};
    let mut text = Text::default();
    text.family(
        "svidgate_build_info",
        "1, with the version of the program.",
        Gauge,
    );
    let version = ("version", env!("CARGO_PKG_VERSION"));
    text.sample("svidgate_build_info", &[version], 1);
    let ready = u8::from(state.not_ready().is_none());
    text.single(
        "svidgate_ready",
        "1 while the proxy serves, as /readyz says.",
        Gauge,
        ready,
    );
    state.metrics.write(&mut text);
    identity(&mut text, state);
    let reloads = &state.reloads;
    text.family(
        "svidgate_reloads_total",
        "New configurations since the start; refused: the one before went on.",
        Counter,
    );
    for (outcome, count) in [("applied", &reloads.applied), ("refused", &reloads.refused)] {
        let count = count.load(Ordering::Relaxed);
        text.sample("svidgate_reloads_total", &[("outcome", outcome)], count);
    }
    text.single(
        "svidgate_config_applied_timestamp_seconds",
        "When the configuration that runs was applied.",
        Gauge,
        reloads.at.load(Ordering::Relaxed),
    );
    process(&mut text);
    text.into_string()
}

fn identity(text: &mut Text, state: &State) {
    use Kind::{Counter, Gauge};
    let record = state.identity.record();
    let snapshot = state.identity.current();
    text.single(
        "svidgate_identity_generation",
        "Grows with each change of our identity or the bundles.",
        Gauge,
        state.identity.generation(),
    );
    text.single(
        "svidgate_svid_not_after_timestamp_seconds",
        "When our SVID expires; 0: there is none.",
        Gauge,
        snapshot.as_ref().map_or(0, |it| it.svid().not_after()),
    );
    text.single(
        "svidgate_identity_updated_timestamp_seconds",
        "When the last good message of the Workload API came; 0: none yet.",
        Gauge,
        record.updated_at.unwrap_or(0),
    );
    text.single(
        "svidgate_workload_api_connected",
        "1 while the stream of the Workload API is open.",
        Gauge,
        u8::from(record.is_connected),
    );
    text.family(
        "svidgate_identity_updates_total",
        "News from the Workload API.",
        Counter,
    );
    let failed: u64 = record.failed.values().sum();
    for (kind, count) in [
        ("issued", record.issued),
        ("withdrawn", record.withdrawn),
        ("failed", failed),
    ] {
        text.sample("svidgate_identity_updates_total", &[("kind", kind)], count);
    }
    if !record.failed.is_empty() {
        text.family(
            "svidgate_workload_api_errors_total",
            "Failures by gRPC code, or by a word of our own: connect, silent, ended, unusable.",
            Counter,
        );
    }
    for (code, count) in &record.failed {
        text.sample(
            "svidgate_workload_api_errors_total",
            &[("code", code)],
            count,
        );
    }
    let Some(snapshot) = snapshot else {
        return;
    };
    let name = "svidgate_bundle_authorities";
    let help = "Authorities of a trust domain's bundle, expired ones included.";
    text.family(name, help, Gauge);
    for (domain, bundle) in snapshot.bundles() {
        text.sample(name, &[("trust_domain", domain.as_str())], bundle.len());
    }
    let name = "svidgate_bundle_not_after_timestamp_seconds";
    let help = "When the first authority of a bundle expires; 0: it has none.";
    text.family(name, help, Gauge);
    for (domain, bundle) in snapshot.bundles() {
        let expiry = earliest(bundle).unwrap_or(0);
        text.sample(name, &[("trust_domain", domain.as_str())], expiry);
    }
}

fn earliest(bundle: &Bundle) -> Option<i64> {
    bundle.authorities().map(|it| it.not_after).min()
}

/// What every Prometheus client tells of its process, as far as /proc does.
fn process(text: &mut Text) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| {
        let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    if let Some(kib) = resident {
        text.single(
            "process_resident_memory_bytes",
            "Resident memory.",
            Kind::Gauge,
            kib * 1024,
        );
    }
    // One of them is that of the directory itself.
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        text.single(
            "process_open_fds",
            "Open file descriptors.",
            Kind::Gauge,
            open.count().saturating_sub(1),
        );
    }
}

/// What the proxy is, as JSON.
pub(super) fn status(state: &State) -> String {
    let record = state.identity.record();
    let snapshot = state.identity.current();
    let config = state.config();
    let reloads = &state.reloads;
    let not_ready = state.not_ready();
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": not_ready.is_none(),
        "notReady": not_ready,
        "workers": state.workers,
        "identity": identity_status(&record, snapshot.as_deref()),
        "configuration": {
            "appliedAt": utc(reloads.at.load(Ordering::Relaxed)),
            "reloads": {
                "applied": reloads.applied.load(Ordering::Relaxed),
                "refused": reloads.refused.load(Ordering::Relaxed),
            },
            "entryPoints": entry_points(&config),
            "transports": config.transports.iter().map(|it| transport(it)).collect::<Value>(),
        },
    });
    // A Value with string keys always can be written.
    let mut text = serde_json::to_string_pretty(&status).unwrap_or_default();
    text.push('\n');
    text
}

fn identity_status(record: &Record, snapshot: Option<&Snapshot>) -> Value {
    let svid = snapshot.map(|snapshot| {
        let svid = snapshot.svid();
        json!({
            "id": svid.id().to_string(),
            "serial": svid.serial(),
            "notAfter": utc(svid.not_after()),
            "expired": svid.is_expired(unix_now()),
        })
    });
    let bundles = snapshot.map(|snapshot| {
        let each = snapshot.bundles().map(|(domain, bundle)| {
            let authorities = bundle.authorities().map(|it| {
                json!({
                    "subject": it.subject,
                    "serial": it.serial,
                    "notBefore": utc(it.not_before),
                    "notAfter": utc(it.not_after),
                })
            });
            let facts = json!({
                "authorities": authorities.collect::<Value>(),
                "earliestExpiry": earliest(bundle).map(utc),
                "unusable": bundle.unusable(),
            });
            (domain.as_str().to_owned(), facts)
        });
        each.collect::<Value>()
    });
    json!({
        "svid": svid,
        "generation": snapshot.map(Snapshot::generation),
        "bundles": bundles,
        "connected": record.is_connected,
        "lastUpdate": record.updated_at.map(utc),
        "lastError": record.problem,
    })
}

fn entry_points(config: &Config) -> Value {
    let each = config.entry_points.iter().map(|entry: &EntryPoint| {
        let (kind, routes) = match &entry.serves {
            Serves::Http(http) => {
                let routes = http.routes.iter().map(|route| {
                    let service = &route.service;
                    json!({
                        "router": route.name,
                        "priority": route.priority,
                        "service": service.name,
                        "transport": service.transport.base.name,
                        "servers": service.servers.iter().map(|server| {
                            let scheme = server.scheme;
                            json!({
                                "url": format!("{scheme}://{}", server.address),
                                "weight": server.weight,
                            })
                        }).collect::<Value>(),
                    })
                });
                ("http", routes.collect::<Value>())
            }
            Serves::Tcp(service) => {
                let servers = service.servers.iter().map(|server| {
                    json!({
                        "address": server.address.to_string(),
                        "tls": server.tls,
                        "weight": server.weight,
                    })
                });
                let route = json!({
                    "service": service.name,
                    "transport": service.transport.base.name,
                    "servers": servers.collect::<Value>(),
                });
                ("tcp", json!([route]))
            }
        };
        json!({
            "name": entry.name,
            "address": entry.address.to_string(),
            "kind": kind,
            "routes": routes,
        })
    });
    each.collect()
}

fn transport(transport: &Transport) -> Value {
    json!({
        "name": transport.name,
        "spiffe": transport.allowlist().map(ToString::to_string),
    })
}
