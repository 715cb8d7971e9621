//! `/metrics` and `/status`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::Value;

use crate::support::agent::Answer;
use crate::support::backend::{echo_bytes, echo_heads};
use crate::support::eventually;
use crate::support::pki::Authority;
use crate::support::proxy::{On, Running, read_to_end};
use crate::world::{OWN_ID, World, issued};

crate::on_both!(
    metrics_count_what_has_happened,
    every_line_of_the_metrics_is_one_that_prometheus_reads,
    status_tells_who_we_are_and_where_requests_go,
    status_tells_what_is_wrong,
);

/// HTTP to `/` (a good backend) and `/rogue` (one with another ID), and TCP.
fn start(on: On, world: &World) -> (Running, impl Sized) {
    let api = world.backend("spiffe://example.org/api", echo_heads);
    let rogue = world.backend("spiffe://example.org/rogue", echo_heads);
    let db = world.backend("spiffe://example.org/db", echo_bytes);
    let text = format!(
        r#"{}
[entryPoints.web]
address = "127.0.0.1:0"
[entryPoints.db]
address = "127.0.0.1:0"
[http.routers.api]
rule = "Path(`/`)"
service = "api"
[http.routers.rogue]
rule = "Path(`/rogue`)"
service = "rogue"
[http.services.api.loadBalancer]
serversTransport = "backend"
servers = [{{ url = "https://{}" }}]
[http.services.rogue.loadBalancer]
serversTransport = "backend"
servers = [{{ url = "https://{}", weight = 3 }}]
[http.serversTransports.backend.spiffe]
ids = ["spiffe://example.org/api"]
[tcp.routers.db]
entryPoints = ["db"]
rule = "HostSNI(`*`)"
service = "db"
[tcp.services.db.loadBalancer]
serversTransport = "db"
servers = [{{ address = "{}", tls = true }}]
[tcp.serversTransports.db.tls.spiffe]
trustDomain = "example.org"
"#,
        world.spiffe_table(),
        api.address,
        rogue.address,
        db.address
    );
    (Running::start(on, &text), (api, rogue, db))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// Sample by name and labels.
fn samples(proxy: &Running) -> BTreeMap<String, f64> {
    let answer = proxy.admin("/metrics");
    assert!(
        answer.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{answer}"
    );
    body(&answer)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn metrics_count_what_has_happened(on: On) {
    let world = World::new();
    let (proxy, _backends) = start(on, &world);
    for _ in 0..3 {
        assert!(proxy.get("web", "/").starts_with("HTTP/1.1 200 "));
    }
    assert!(proxy.get("web", "/rogue").starts_with("HTTP/1.1 502 "));
    assert!(proxy.get("web", "/nowhere").starts_with("HTTP/1.1 404 "));
    assert!(
        proxy
            .talk("web", "nonsense\r\n\r\n")
            .starts_with("HTTP/1.1 400 ")
    );
    // Not counted for the service that the connection had used before.
    let second = proxy.talk("web", "GET / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n");
    assert!(second.contains("HTTP/1.1 400 "), "{second}");
    let mut tunnel = proxy.connect("db");
    tunnel.write_all(b"twelve bytes").unwrap();
    tunnel.read_exact(&mut [0; 12]).unwrap();
    // While it is open they are counted already.
    let up = "svidgate_tcp_bytes_total{entrypoint=\"db\",service=\"db\",direction=\"up\"}";
    assert_eq!(samples(&proxy).get(up), Some(&12.0));
    tunnel.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut tunnel), "");
    let whole = "svidgate_tcp_sessions_total{entrypoint=\"db\",service=\"db\",end=\"whole\"}";
    // The other is that of the look whether the proxy listens.
    let seen = eventually("the session's end", || {
        let seen = samples(&proxy);
        (seen.get(whole) >= Some(&1.0)).then_some(seen)
    });
    let requests = |service: &str, class: &str| {
        let labels = format!("entrypoint=\"web\",service=\"{service}\",class=\"{class}\"");
        seen.get(&format!("svidgate_requests_total{{{labels}}}"))
            .copied()
    };
    assert_eq!(requests("api", "2xx"), Some(4.0));
    assert_eq!(requests("api", "4xx"), Some(0.0));
    assert_eq!(requests("api", "5xx"), Some(0.0));
    assert_eq!(requests("rogue", "5xx"), Some(1.0));
    assert_eq!(requests("", "4xx"), Some(3.0));
    let value = |series: &str| {
        *seen
            .get(series)
            .unwrap_or_else(|| panic!("{series} {seen:#?}"))
    };
    for (series, expected) in [
        (
            "svidgate_request_duration_seconds_count{entrypoint=\"web\",service=\"api\"}",
            4.0,
        ),
        (
            "svidgate_request_duration_seconds_bucket{entrypoint=\"web\",service=\"api\",le=\"+Inf\"}",
            4.0,
        ),
        (
            "svidgate_handshakes_total{transport=\"http.serversTransports.backend\",outcome=\"ok\"}",
            1.0,
        ),
        (
            "svidgate_handshakes_total{transport=\"http.serversTransports.backend\",outcome=\"peer_not_allowed\"}",
            1.0,
        ),
        ("svidgate_identity_generation", 1.0),
        ("svidgate_identity_updates_total{kind=\"issued\"}", 1.0),
        ("svidgate_identity_updates_total{kind=\"failed\"}", 0.0),
        ("svidgate_workload_api_connected", 1.0),
        // 2050-01-01
        ("svidgate_svid_not_after_timestamp_seconds", 2_524_608_000.0),
        (
            "svidgate_bundle_authorities{trust_domain=\"example.org\"}",
            1.0,
        ),
        (
            "svidgate_bundle_not_after_timestamp_seconds{trust_domain=\"example.org\"}",
            2_524_608_000.0,
        ),
        ("svidgate_reloads_total{outcome=\"applied\"}", 0.0),
        ("svidgate_panics_total{entrypoint=\"web\"}", 0.0),
        ("svidgate_ready", 1.0),
    ] {
        assert_eq!(value(series), expected, "{series}");
    }
    assert!(
        value("svidgate_request_duration_seconds_sum{entrypoint=\"web\",service=\"api\"}") > 0.0
    );
    assert!(value("svidgate_connections_accepted_total{entrypoint=\"web\"}") >= 6.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") > 8.0);
    let idle: Vec<(&String, &f64)> = seen
        .iter()
        .filter(|(series, _)| series.starts_with("svidgate_pool_idle_connections{"))
        .collect();
    assert_eq!(
        idle.iter().map(|(_, value)| **value).sum::<f64>(),
        1.0,
        "{idle:?}"
    );
    let reused: f64 = seen
        .iter()
        .filter(|(series, _)| series.starts_with("svidgate_pool_reused_total{"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(reused, 3.0);
}

fn every_line_of_the_metrics_is_one_that_prometheus_reads(on: On) {
    let world = World::new();
    let (proxy, _backends) = start(on, &world);
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 200 "));
    world.agent.answer(Answer::End);
    eventually("a failure", || {
        proxy.metric("svidgate_workload_api_errors_total{code=\"ended\"}")
    });
    let answer = proxy.admin("/metrics");
    let mut families = BTreeMap::new();
    let mut last = "";
    let mut described = 0;
    for line in body(&answer).lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty());
            described += 1;
            last = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, last, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            // Each family stands in one place.
            assert_eq!(families.insert(name, kind), None, "{line}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let kind = families[last];
            let is_counter = name.ends_with("_total");
            match kind {
                "histogram" => assert!(
                    ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|end| name == format!("{last}{end}")),
                    "{line}"
                ),
                _ => assert_eq!((name, is_counter), (last, kind == "counter"), "{line}"),
            }
        }
    }
    assert_eq!(described, families.len());
    assert!(families.len() > 20, "{families:?}");
    // Each that the README names is there or documented as coming later.
    let readme = include_str!("../../README.md");
    for name in families.keys() {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}

fn status(proxy: &Running) -> Value {
    let answer = proxy.admin("/status");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("\r\nContent-Type: application/json\r\n"),
        "{answer}"
    );
    serde_json::from_str(body(&answer)).unwrap()
}

fn status_tells_who_we_are_and_where_requests_go(on: On) {
    let world = World::new();
    let (proxy, _backends) = start(on, &world);
    let partner = Authority::new("partner.org");
    let mut federated = issued(&world.ca, OWN_ID);
    federated
        .federated_bundles
        .insert("spiffe://partner.org".to_owned(), partner.der().to_vec());
    world.agent.answer(Answer::Send(federated));
    let status = eventually("the update", || {
        Some(status(&proxy)).filter(|it| it["identity"]["generation"] == 2)
    });
    assert_eq!(status["ready"], true);
    assert_eq!(status["notReady"], Value::Null);
    let identity = &status["identity"];
    assert_eq!(identity["svid"]["id"], OWN_ID);
    assert_eq!(identity["svid"]["notAfter"], "2050-01-01T00:00:00Z");
    assert_eq!(identity["svid"]["expired"], false);
    let serial = proxy.identity.current().unwrap().svid().serial().to_owned();
    assert_eq!(identity["svid"]["serial"], serial);
    let bundles = identity["bundles"].as_object().unwrap();
    assert_eq!(
        bundles.keys().collect::<Vec<_>>(),
        ["example.org", "partner.org"]
    );
    let bundle = &bundles["partner.org"];
    assert_eq!(bundle["earliestExpiry"], "2050-01-01T00:00:00Z");
    assert_eq!(
        bundle["authorities"][0]["subject"],
        "O=SPIFFE, CN=partner.org"
    );
    assert_eq!(bundle["authorities"].as_array().unwrap().len(), 1);
    assert_eq!(identity["connected"], true);
    assert_eq!(identity["lastError"], Value::Null);
    assert!(identity["lastUpdate"].as_str().unwrap().ends_with('Z'));
    let configuration = &status["configuration"];
    let entry_points = configuration["entryPoints"].as_array().unwrap();
    let names: Vec<&Value> = entry_points.iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["db", "web"]);
    let routes = entry_points[1]["routes"].as_array().unwrap();
    assert_eq!(routes[0]["router"], "rogue");
    assert_eq!(routes[0]["servers"][0]["weight"], 3);
    assert_eq!(routes[1]["transport"], "http.serversTransports.backend");
    assert_eq!(entry_points[0]["routes"][0]["servers"][0]["tls"], true);
    let transports = configuration["transports"].as_array().unwrap();
    let allowed = transports
        .iter()
        .find(|it| it["name"] == "http.serversTransports.backend");
    assert_eq!(allowed.unwrap()["spiffe"], "ids spiffe://example.org/api");
    // It tells of no key.
    let text = status.to_string().to_lowercase();
    assert!(!text.contains("key"), "{text}");
}

fn status_tells_what_is_wrong(on: On) {
    let world = World::answering(|_| Answer::Hang);
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, "trustDomain = \"example.org\"");
    let proxy = Running::start_not_ready(on, &text);
    assert_eq!(status(&proxy)["identity"]["svid"], Value::Null);
    let denied = tonic::Status::permission_denied("no identity issued");
    world.agent.answer(Answer::Refuse(denied));
    let status = eventually("the reason", || {
        Some(status(&proxy)).filter(|it| it["identity"]["lastError"].is_string())
    });
    assert_eq!(status["ready"], false);
    let why = status["notReady"].as_str().unwrap();
    assert!(
        why.contains("PermissionDenied: no identity issued"),
        "{why}"
    );
    assert_eq!(status["identity"]["connected"], false);
    let withdrawn = proxy.metric("svidgate_identity_updates_total{kind=\"withdrawn\"}");
    assert!(withdrawn >= Some(1.0), "{withdrawn:?}");
}
