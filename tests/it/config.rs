//! Files in, problems out; and what a good file means.

use svidgate::config::{AdminAddress, Serves, Trusted};
use svidgate::transport::{Allowlist, Authentication, TlsVersions};
use svidgate::{Config, Overrides};

use crate::support::pki::{Authority, leaf};
use crate::support::scratch::Scratch;

/// A good file to spoil: `more` goes below it.
fn with(more: &str) -> String {
    format!(
        r#"[spiffe]
workloadAPIAddr = "unix:///run/agent.sock"
[entryPoints.web]
address = ":8080"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://10.0.0.7" }}]
{more}"#
    )
}

const FIRST_LINE: usize = 11;

/// All problems of a file; `{n}` in `expected` is the n-th line of `more`.
#[track_caller]
fn problems(more: &str, expected: &[&str]) {
    let error = Config::parse(&with(more), &Overrides::default()).unwrap_err();
    let found: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    let expected: Vec<String> = expected
        .iter()
        .map(|line| {
            (0..12).fold((*line).to_owned(), |line, n| {
                line.replace(&format!("{{{n}}}"), &format!("line {}", FIRST_LINE + n))
            })
        })
        .collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn good(text: &str) -> Config {
    Config::parse(text, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn transport(config: &Config) -> std::sync::Arc<svidgate::transport::HttpTransport> {
    let Serves::Http(http) = &config.entry_points[0].serves else {
        panic!("not HTTP");
    };
    http.routes[0].service.transport.clone()
}

#[test]
fn every_problem_is_reported_at_once_with_key_line_and_remedy() {
    problems(
        r#"[http.serversTransports.t]
serverNam = "x"
maxIdleConnsPerHost = "many"
minVersion = "VersionTLS10"
[http.serversTransports.t.spiffe]
ids = ["spiffe://Example.org/a", "example.org"]
trustDomain = "spiffe://example.org/path"
[http.routers.two]
rule = "Hots(`a`)"
service = "ap"
entryPoints = ["wed"]
"#,
        &[
            "{1}: http.serversTransports.t.serverNam: there is no such key; is serverName meant?",
            "{2}: http.serversTransports.t.maxIdleConnsPerHost: expected a whole number, found a string",
            "{3}: http.serversTransports.t.minVersion: VersionTLS10 is not safe and not offered; write VersionTLS12 or VersionTLS13",
            "{5}: http.serversTransports.t.spiffe.ids: \"spiffe://Example.org/a\" is not in lower case where it must be; is \"spiffe://example.org/a\" meant?",
            "{5}: http.serversTransports.t.spiffe.ids: \"example.org\" is not a SPIFFE ID (scheme is missing or invalid); write \"spiffe://trust.domain/path\"",
            "{6}: http.serversTransports.t.spiffe.trustDomain: \"spiffe://example.org/path\" has a path; write \"example.org\", or put the whole ID into ids",
            "{8}: http.routers.two.rule: the matcher Hots is not known; there are Host, Path, PathPrefix, Method, Header, Query, ClientIP",
            "{9}: http.routers.two.service: there is no service \"ap\"; is \"api\" meant?",
            "{10}: http.routers.two.entryPoints: there is no entry point \"wed\"; is \"web\" meant?",
        ],
    );
}

#[test]
fn spiffe_never_becomes_plaintext() {
    let text = with("[http.serversTransports.t.spiffe]\nallowAny = true\n")
        .replace("https://10.0.0.7", "http://10.0.0.7");
    let error = Config::parse(&text, &Overrides::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 10: http.services.api.loadBalancer.servers.url: http.serversTransports.t asks for SPIFFE, and http:// would send in plaintext; write https://"
    );
    problems(
        r#"[http.serversTransports.t]
[entryPoints.db]
address = ":5432"
[tcp.routers.db]
entryPoints = ["db"]
rule = "HostSNI(`*`)"
service = "db"
[tcp.services.db.loadBalancer]
serversTransport = "d"
servers = [{ address = "10.0.0.8:5432" }]
[tcp.serversTransports.d.tls.spiffe]
allowAny = true
"#,
        &[
            "{9}: tcp.services.db.loadBalancer.servers.tls: tcp.serversTransports.d asks for SPIFFE, and a server without TLS would get plaintext; write tls = true",
        ],
    );
}

#[test]
fn spiffe_beside_other_trust_is_refused_and_beside_a_server_name_is_not() {
    let ca = Authority::new("example.org");
    let pem = ca.pem();
    problems(
        &format!(
            "[http.serversTransports.t]\ninsecureSkipVerify = true\npeerCertURI = \"x\"\nrootCAs = ['''{}''']\n[http.serversTransports.t.spiffe]\nallowAny = true\n",
            pem.trim_end()
        ),
        &[
            "LINE: http.serversTransports.t.insecureSkipVerify: insecureSkipVerify cannot stand beside spiffe, which brings its own trust; remove one of them",
            "LINE: http.serversTransports.t.rootCAs: rootCAs cannot stand beside spiffe, which brings its own trust; remove one of them",
            "LINE: http.serversTransports.t.peerCertURI: peerCertURI cannot stand beside spiffe, which brings its own trust; remove one of them",
        ]
        .map(|line| line.replace("LINE", &format!("line {}", FIRST_LINE + 4 + pem.trim_end().lines().count() - 1)))
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>(),
    );
    let config = good(&with(
        "[http.serversTransports.t]\nserverName = \"api.test\"\n[http.serversTransports.t.spiffe]\nallowAny = true\n",
    ));
    let transport = transport(&config);
    assert!(transport.base.is_spiffe());
    assert!(transport.base.server_name.is_some());
}

#[test]
fn ids_win_over_the_trust_domain_and_the_own_one_is_the_default() {
    let allowlist = |spiffe: &str| {
        let config = good(&with(&format!(
            "[http.serversTransports.t.spiffe]\n{spiffe}\n"
        )));
        let Authentication::Spiffe(allowlist) = transport(&config).base.authentication.clone()
        else {
            panic!("not SPIFFE");
        };
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        (allowlist, warnings.join("\n"))
    };
    let id = spiffe::SpiffeId::new("spiffe://a.org/x").unwrap();
    let ids = Allowlist::Ids([id].into());
    assert_eq!(
        allowlist("ids = [\"spiffe://a.org/x\"]"),
        (ids.clone(), String::new())
    );
    assert_eq!(
        allowlist("ids = [\"spiffe://a.org/x\"]\ntrustDomain = \"b.org\""),
        (ids, "line 11: http.serversTransports.t.spiffe.ids: spiffe://a.org/x is outside trustDomain b.org; ids win, so it is admitted".to_owned())
    );
    let domain = spiffe::TrustDomain::new("b.org").unwrap();
    assert_eq!(
        allowlist("trustDomain = \"spiffe://b.org\""),
        (Allowlist::TrustDomain(domain), String::new())
    );
    assert_eq!(
        allowlist("allowAny = true"),
        (Allowlist::Any, String::new())
    );
    assert_eq!(
        allowlist(""),
        (Allowlist::OwnTrustDomain, "line 11: http.serversTransports.t.spiffe: neither ids nor trustDomain: every workload of our own trust domain is admitted (Traefik: of any)".to_owned())
    );
    problems(
        "[http.serversTransports.t.spiffe]\nallowAny = true\ntrustDomain = \"b.org\"\n",
        &[
            "{0}: http.serversTransports.t.spiffe.allowAny: allowAny cannot stand beside ids or trustDomain; remove one of them",
        ],
    );
}

#[test]
fn a_file_that_is_not_there_is_not_taken_for_pem() {
    problems(
        "[http.serversTransports.t]\nrootCAs = [\"/nowhere/ca.pem\"]\n[[http.serversTransports.t.certificates]]\ncertFile = \"/nowhere/c.pem\"\n",
        &[
            "{1}: http.serversTransports.t.rootCAs: /nowhere/ca.pem cannot be read: No such file or directory (os error 2)",
            "{3}: http.serversTransports.t.certificates.certFile: /nowhere/c.pem cannot be read: No such file or directory (os error 2)",
            "{3}: http.serversTransports.t.certificates.keyFile: it is missing: certFile and keyFile go together",
        ],
    );
    let scratch = Scratch::new();
    let empty = scratch.file("empty.pem", "no PEM in here\n");
    let empty = empty.display();
    problems(
        &format!("[http.serversTransports.t]\nrootCAs = [\"{empty}\"]\n"),
        &[&format!(
            "{{1}}: http.serversTransports.t.rootCAs: {empty} has no certificate in PEM form"
        )],
    );
    // Traefik's documentation shows this form, and Traefik takes it for an
    // empty list.
    problems(
        "[http.serversTransports.t]\ncertificates = [\"/path/cert1.pem\"]\n",
        &[
            "{1}: http.serversTransports.t.certificates: this must be an array of tables; write [[http.serversTransports.t.certificates]]",
        ],
    );
}

#[test]
fn a_key_must_fit_its_certificate() {
    let ca = Authority::new("example.org");
    let (a, b) = (
        leaf(&ca, "spiffe://example.org/a", |_| {}),
        leaf(&ca, "spiffe://example.org/b", |_| {}),
    );
    let scratch = Scratch::new();
    let cert = scratch.file("a.pem", &a.chain_pem());
    let key = scratch.file("b.key", &b.key_pem());
    problems(
        &format!(
            "[http.serversTransports.t]\n[[http.serversTransports.t.certificates]]\ncertFile = \"{}\"\nkeyFile = \"{}\"\n",
            cert.display(),
            key.display()
        ),
        &[
            "{3}: http.serversTransports.t.certificates.keyFile: the key does not fit the certificate: keys may not be consistent: KeyMismatch",
        ],
    );
}

#[test]
fn the_workload_api_address_is_explained() {
    let text = with("[http.serversTransports.t.spiffe]\nallowAny = true\n");
    let error = Config::parse(
        &text.replace("unix:///run/agent.sock", "localhost"),
        &Overrides::default(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "line 2: spiffe.workloadAPIAddr: \"localhost\" has no scheme; Traefik's documentation shows \"localhost\", which Traefik does not take either; write \"unix:///absolute/path\" or \"tcp://IP:port\""
    );
    let without = text.replace("workloadAPIAddr = \"unix:///run/agent.sock\"\n", "");
    let error = Config::parse(&without, &Overrides::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1: spiffe.workloadAPIAddr: no Workload API is given, and http.serversTransports.t asks for it; write workloadAPIAddr = \"unix:///path/of/agent.sock\", or set SPIFFE_ENDPOINT_SOCKET"
    );
    // The environment fills in; the command line wins.
    let overrides = |argument: Option<&str>, variable: Option<&str>| Overrides {
        workload_api_addr: argument.map(str::to_owned),
        endpoint_socket: variable.map(str::to_owned),
    };
    let endpoint = |text: &str, overrides: &Overrides| {
        format!(
            "{:?}",
            Config::parse(text, overrides)
                .unwrap()
                .spiffe
                .endpoint
                .unwrap()
        )
    };
    assert_eq!(
        endpoint(&without, &overrides(None, Some("unix:///env"))),
        "Unix(\"/env\")"
    );
    assert_eq!(
        endpoint(&text, &overrides(None, Some("unix:///env"))),
        "Unix(\"/run/agent.sock\")"
    );
    assert_eq!(
        endpoint(&text, &overrides(Some("unix:///arg"), Some("unix:///env"))),
        "Unix(\"/arg\")"
    );
    let error = Config::parse(&text, &overrides(Some("nope"), None)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("--workload-api-addr: \"nope\" has no scheme; "),
        "{error}"
    );
}

#[test]
fn what_is_not_built_and_what_is_traefiks_alone_is_said_so() {
    problems(
        r#"[http.serversTransports.t]
[entryPoints.tls]
address = ":8443"
tls = {}
[http.middlewares.m]
[log]
format = "json"
[api]
"#,
        &[
            "{3}: entryPoints.tls.tls: this key is documented and not built yet (entry points with TLS); leave it out",
            "{4}: http.middlewares: Traefik has this key and svidgate has not: svidgate has no middlewares",
            "{6}: log.format: json is documented and not built yet; write \"common\"",
            "{7}: api: Traefik has this key and svidgate has not: use [admin]",
        ],
    );
}

#[test]
fn routers_and_services_that_cannot_work_are_refused() {
    problems(
        r#"[http.serversTransports.t]
[http.services.none.loadBalancer]
servers = []
[http.services.zero.loadBalancer]
servers = [{ url = "https://a/path" }, { url = "h3://a" }, { url = "https://b", weight = 0 }]
[tcp.routers.claims]
entryPoints = ["web"]
rule = "HostSNI(`*`)"
service = "nobody"
"#,
        &[
            "line 5: http.routers.api.entryPoints: no entry point is left for HTTP: TCP routers have them all",
            "{1}: http.services.none.loadBalancer.servers: it has no servers; write at least one",
            "{3}: http.services.zero.loadBalancer.servers.weight: every server has the weight 0, so none would be used",
            "{4}: http.services.zero.loadBalancer.servers.url: \"https://a/path\" has a path, which would not be used: a request's path is forwarded as it came; remove it",
            "{4}: http.services.zero.loadBalancer.servers.url: the scheme \"h3\" is not https, http or h2c",
            "{8}: tcp.routers.claims.service: there is no service \"nobody\", nor any other",
        ],
    );
}

#[test]
fn a_table_where_a_value_belongs_is_an_error_and_so_is_no_toml() {
    problems(
        "[http.serversTransports.t]\nhttp = 3\n",
        &[
            "{1}: http.serversTransports.t.http: there is no such key; there are serverName, insecureSkipVerify, rootCAs, certificates, maxIdleConnsPerHost, disableHTTP2, peerCertURI, minVersion, maxVersion, forwardingTimeouts, spiffe",
        ],
    );
    let error = Config::parse("http = 3\n", &Overrides::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1: http: this must be a table; write [http]"
    );
    let error = Config::parse("[a\nb", &Overrides::default()).unwrap_err();
    assert!(
        error.to_string().starts_with("line 1: not TOML: "),
        "{error}"
    );
}

#[test]
fn defaults_and_inheritance() {
    let config = good(&with(
        r#"[http.serversTransports.t]
maxVersion = "VersionTLS12"
maxIdleConnsPerHost = 0
[http.serversTransports.t.forwardingTimeouts]
dialTimeout = 0
[serversTransport]
insecureSkipVerify = true
[serversTransport.forwardingTimeouts]
idleConnTimeout = "1m"
dialTimeout = "5s"
[admin]
address = "unix:/run/admin.sock"
"#,
    ));
    assert_eq!(
        config.admin,
        Some(AdminAddress::Unix("/run/admin.sock".into()))
    );
    let transport = transport(&config);
    assert_eq!(transport.max_idle_per_host, 200);
    assert_eq!(transport.base.versions, TlsVersions::Only12);
    assert_eq!(transport.base.dial_timeout, None);
    assert_eq!(
        transport.idle_conn_timeout,
        Some(std::time::Duration::from_secs(60))
    );
    assert_eq!(transport.response_header_timeout, None);
    let Authentication::Names(names) = &transport.base.authentication else {
        panic!("not by names");
    };
    assert!(names.insecure_skip_verify);
    let entry = &config.entry_points[0];
    assert_eq!(entry.address.to_string(), "[::]:8080");
    let Serves::Http(http) = &entry.serves else {
        panic!("not HTTP");
    };
    assert_eq!(http.trusted, Trusted::Only(vec![]));
    assert_eq!(http.body_max, None);
}

#[test]
fn routes_are_tried_by_priority_then_length_then_name() {
    let config = good(
        r#"
[entryPoints.web]
address = ":8080"
[http.services.s.loadBalancer]
servers = [{ url = "http://10.0.0.7" }]
[http.routers.short]
rule = "Path(`/`)"
service = "s"
[http.routers.long]
rule = "Path(`/a/longer/one`)"
service = "s"
[http.routers.b]
rule = "Path(`/same`)"
service = "s"
[http.routers.a]
rule = "Path(`/emas`)"
service = "s"
[http.routers.first]
rule = "Path(`/f`)"
service = "s@file"
priority = 1000
"#,
    );
    let Serves::Http(http) = &config.entry_points[0].serves else {
        panic!("not HTTP");
    };
    let order: Vec<&str> = http
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    assert_eq!(order, ["first", "long", "a", "b", "short"]);
}

/// The three examples of Traefik's documentation style, static and dynamic, in
/// one file; only addresses would be changed by a user.
#[test]
fn a_pasted_traefik_configuration_works() {
    let text = include_str!("../../fixtures/config/traefik.toml");
    let config = good(text);
    let names: Vec<(&str, bool)> = config
        .entry_points
        .iter()
        .map(|entry| (entry.name.as_str(), matches!(entry.serves, Serves::Http(_))))
        .collect();
    assert_eq!(names, [("db", false), ("web", true)]);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "line 14: providers.file.filename: /etc/traefik/dynamic.toml is not read: svidgate has one file, the one given with --config; routers and services stand in it too",
        ]
    );
}

#[test]
fn no_debug_output_shows_a_key() {
    let ca = Authority::new("example.org");
    let own = leaf(&ca, "spiffe://example.org/a", |_| {});
    let scratch = Scratch::new();
    let cert = scratch.file("a.pem", &own.chain_pem());
    let key = scratch.file("a.key", &own.key_pem());
    let config = good(&with(&format!(
        "[http.serversTransports.t]\n[[http.serversTransports.t.certificates]]\ncertFile = \"{}\"\nkeyFile = \"{}\"\n",
        cert.display(),
        key.display()
    )));
    let snapshot = svidgate::identity::Snapshot::for_tests(
        "spiffe://example.org/a",
        own.chain.clone(),
        own.key_pkcs8_der.clone(),
        vec![("example.org", vec![ca.der().to_vec()])],
    )
    .unwrap();
    let shown = format!("{config:?} {snapshot:?}");
    let secret = &own.key_pkcs8_der[36..68];
    let as_list = format!("{secret:?}");
    assert!(!shown.contains(as_list.trim_matches(['[', ']'])), "{shown}");
    assert!(!shown.contains("PRIVATE KEY"));
}

#[test]
fn a_key_that_cannot_be_read_is_not_shown() {
    for key in [
        "-----BEGIN PRIVATE KEY-----MIIESECRET-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY----- MIIESECRET",
        "MIIESECRET",
    ] {
        for (name, other) in [("keyFile", "certFile"), ("certFile", "keyFile")] {
            let text = with(&format!(
                "[http.serversTransports.t]\n[[http.serversTransports.t.certificates]]\n{name} = \"{key}\"\n{other} = \"/nowhere\"\n"
            ));
            let error = Config::parse(&text, &Overrides::default()).unwrap_err();
            let shown = error.to_string();
            assert!(
                !shown.contains("SECRET") && !shown.contains("83, 69, 67"),
                "{shown}"
            );
        }
        let text = with(&format!(
            "[http.serversTransports.t]\nrootCAs = [\"{key}\"]\n"
        ));
        let shown = Config::parse(&text, &Overrides::default())
            .unwrap_err()
            .to_string();
        assert!(
            !shown.contains("SECRET") && !shown.contains("83, 69, 67"),
            "{shown}"
        );
    }
}

#[test]
fn an_empty_list_or_a_default_written_out_does_not_widen_trust() {
    problems(
        "[http.serversTransports.t.spiffe]\nids = []\n",
        &[
            "{1}: http.serversTransports.t.spiffe.ids: it is empty, which would admit nobody; name at least one, or leave it out",
        ],
    );
    problems(
        "[http.serversTransports.t]\npeerCertURI = \"\"\n",
        &["{1}: http.serversTransports.t.peerCertURI: it is empty; write a URI, or leave it out"],
    );
    let root =
        "[serversTransport.spiffe]\nids = [\"spiffe://a.org/x\"]\n[http.serversTransports.t]\n";
    let config = good(&with(&format!("{root}insecureSkipVerify = false\n")));
    assert!(transport(&config).base.is_spiffe());
    let config = good(&with(&format!("{root}insecureSkipVerify = true\n")));
    assert!(!transport(&config).base.is_spiffe());
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings.contains(&"http.serversTransports.t: its own keys stand in place of the spiffe of the root table: its peers are not known by SPIFFE IDs".to_owned()),
        "{warnings:?}"
    );
}

#[test]
fn names_are_not_empty_and_addresses_do_not_overlap() {
    problems(
        "[http.serversTransports.t]\n[http.serversTransports.\"\"]\n[entryPoints.other]\naddress = \"127.0.0.1:8080\"\n",
        &[
            "line 4: entryPoints.web.address: entry point other listens on that already",
            "{1}: http.serversTransports: a name is empty; write one",
        ],
    );
    problems(
        "[http.serversTransports.t]\n[admin]\naddress = \":8080\"\n",
        &["{1}: admin.address: entry point web listens on that already"],
    );
}
