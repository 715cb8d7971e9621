use super::*;

struct Request {
    host: &'static str,
    path: &'static str,
    method: &'static str,
    query: Option<&'static str>,
    field: (&'static str, &'static str),
    ip: &'static str,
}

const REQUEST: Request = Request {
    host: "api.example.org",
    path: "/v1/users",
    method: "GET",
    query: Some("a=1&b=two+words&c"),
    field: ("X-Team", "red"),
    ip: "192.0.2.7",
};

impl Subject for Request {
    fn host(&self) -> &str {
        self.host
    }
    fn path(&self) -> &str {
        self.path
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn query(&self) -> Option<&[u8]> {
        self.query.map(str::as_bytes)
    }
    fn has_field(&self, name: &str, value: &str) -> bool {
        self.field.0.eq_ignore_ascii_case(name) && self.field.1 == value
    }
    fn client_ip(&self) -> IpAddr {
        self.ip.parse().unwrap()
    }
}

#[track_caller]
fn check(rule: &str, expected: bool) {
    let rule = Rule::parse(rule, Layer::Http).unwrap();
    assert_eq!(rule.matches(&REQUEST), expected);
}

#[track_caller]
fn refused(rule: &str, layer: Layer, expected: &str) {
    assert_eq!(Rule::parse(rule, layer), Err(expected.to_owned()));
}

#[test]
fn each_matcher_looks_at_its_part() {
    check("Host(`api.example.org`)", true);
    check("Host(`API.Example.Org.`)", true);
    check("host(\"api.example.org\")", true);
    check("HOST(`other.example.org`)", false);
    check("Host(`*`)", true);
    check("Host(`*.example.org`)", true);
    check("Host(`*.org`)", false);
    check("Path(`/v1/users`)", true);
    check("Path(`/v1`)", false);
    check("PathPrefix(`/v1`)", true);
    check("PathPrefix(`/v1/us`)", true);
    check("Pathprefix(`/v2`)", false);
    check("Method(`get`)", true);
    check("Method(`POST`)", false);
    check("Header(`x-team`, `red`)", true);
    check("Header(`x-team`, `blue`)", false);
    check("Query(`a`)", true);
    check("Query(`c`)", true);
    check("Query(`a`, `1`)", true);
    check("Query(`b`, `two words`)", true);
    check("Query(`a`, `2`)", false);
    check("ClientIP(`192.0.2.0/24`)", true);
    check("ClientIP(`192.0.2.8`)", false);
}

#[test]
fn and_binds_closer_than_or_and_not_closest() {
    check("Host(`no`) && Path(`/no`) || Method(`GET`)", true);
    check("Host(`no`) && (Path(`/no`) || Method(`GET`))", false);
    check("!Host(`no`) && Method(`GET`)", true);
    check("!(Host(`no`) || Method(`GET`))", false);
    check("!!Method(`GET`)", true);
}

#[test]
fn a_path_is_matched_with_unreserved_escapes_undone() {
    assert_eq!(match_form("/%61%2fb%c3%A9"), "/a%2Fb%C3%A9");
    assert_eq!(match_form("/plain"), "/plain");
    assert_eq!(match_form("/%7euser/%41"), "/~user/A");
}

#[test]
fn what_is_no_rule_is_explained() {
    let http = Layer::Http;
    refused("", http, "it ends where a matcher is expected");
    refused("Host", http, "write Host(`…`)");
    refused(
        "Host(api.test)",
        http,
        "the arguments of Host are strings in backticks",
    );
    refused(
        "Host(`a`",
        http,
        "a `)` is missing after the arguments of Host",
    );
    refused("(Host(`a`)", http, "a `)` is missing");
    refused(
        "Host(`a`) Host(`b`)",
        http,
        "`Host` is not expected after a complete rule",
    );
    refused("Host(`a`) & Host(`b`)", http, "`&` is not part of a rule");
    refused(
        "Host(`a`, `b`)",
        http,
        "Host takes one argument, not 2; join several with ||",
    );
    refused("Host(``)", http, "an argument of Host is empty");
    refused(
        "Host(`a:80`)",
        http,
        "\"a:80\" has a port; a Host matcher takes the name alone",
    );
    refused(
        "HostRegexp(`.*`)",
        http,
        "the matcher HostRegexp is not known; there are Host, Path, PathPrefix, Method, Header, Query, ClientIP",
    );
    refused("HostSNI(`*`)", http, "HostSNI is for tcp.routers");
    refused(
        "PathPrefix(`v1`)",
        http,
        "the path \"v1\" does not begin with a slash",
    );
    refused("Host(`a", http, "a string that begins with ` does not end");
    refused(
        "HostSNI(`db.test`)",
        Layer::Tcp,
        "an entry point without TLS sees no server name; write HostSNI(`*`)",
    );
    refused(
        "Host(`a`)",
        Layer::Tcp,
        "Host is for http.routers; without TLS write HostSNI(`*`)",
    );
    let deep = format!("{}Method(`GET`)", "!".repeat(40));
    refused(&deep, http, "it nests deeper than 32");
    let long = vec!["Method(`GET`)"; 1001].join(" || ");
    refused(
        &long,
        http,
        "it has more than 1000 matchers; write several routers",
    );
    refused(
        "Path(`/a/../b`)",
        http,
        "no request with the path \"/a/../b\" is let in: the target's path has a dot segment",
    );
    refused(
        "Method(`G ET`)",
        http,
        "\"G ET\" is not a name that a request could have",
    );
}

/// The index is a short cut and nothing else.
#[test]
fn the_index_finds_the_rule_that_asking_each_would_find() {
    const HOSTS: [&str; 5] = ["a.test", "B.test", "*.test", "*", "c.a.test"];
    const PATHS: [&str; 6] = ["/", "/v1", "/v1/", "/v1/users", "/v2", "/v"];
    const METHODS: [&str; 2] = ["GET", "POST"];
    fn rule(random: &mut fastrand::Rng, depth: u8) -> String {
        let kind = random.u8(0..if depth == 0 { 4 } else { 7 });
        let mut pick = |from: &[&str]| (*random.choice(from).unwrap()).to_owned();
        match kind {
            0 => format!("Host(`{}`)", pick(&HOSTS)),
            1 => format!("PathPrefix(`{}`)", pick(&PATHS)),
            2 => format!("Path(`{}`)", pick(&PATHS)),
            3 => format!("Method(`{}`)", pick(&METHODS)),
            4 => format!("!({})", rule(random, depth - 1)),
            _ => {
                let (a, b) = (rule(random, depth - 1), rule(random, depth - 1));
                format!("({a} {} {b})", if kind == 5 { "&&" } else { "||" })
            }
        }
    }
    let mut random = fastrand::Rng::with_seed(3);
    let (mut found, mut not) = (0, 0);
    for _ in 0..2_000 {
        let rules: Vec<Rule> = (0..random.usize(0..24))
            .map(|_| Rule::parse(&rule(&mut random, 3), Layer::Http).unwrap())
            .collect();
        let index = index::Index::new(&rules);
        for _ in 0..10 {
            let subject = Request {
                host: random
                    .choice(["a.test", "A.Test", "b.test", "c.a.test", "d.test", ""])
                    .unwrap(),
                path: random
                    .choice([
                        "/",
                        "/v1",
                        "/v1x",
                        "/v1/users",
                        "/v1/users/7",
                        "/v2",
                        "*",
                        "",
                    ])
                    .unwrap(),
                method: random.choice(METHODS).unwrap(),
                ..REQUEST
            };
            let expected = rules.iter().position(|rule| rule.matches(&subject));
            let first = index.first(&subject, |place| rules[place].matches(&subject));
            assert_eq!(
                first, expected,
                "{} {}: {rules:?}",
                subject.host, subject.path
            );
            *(if expected.is_some() {
                &mut found
            } else {
                &mut not
            }) += 1;
        }
    }
    assert!(found > 5_000 && not > 1_000, "{found} {not}");
}

/// Of a thousand rules, those of other hosts and paths are not asked.
#[test]
fn the_index_asks_few() {
    let text = |n| match n % 3 {
        0 => format!("Host(`{n}.test`) && PathPrefix(`/`)"),
        1 => format!("PathPrefix(`/{n}/`)"),
        _ => format!("Host(`{n}.test`) || (Host(`other{n}.test`) && Method(`GET`))"),
    };
    let rules: Vec<Rule> = (0..1_000)
        .map(|n| Rule::parse(&text(n), Layer::Http).unwrap())
        .collect();
    let index = index::Index::new(&rules);
    for (host, path, expected) in [
        ("998.test", "/", Some(998)),
        ("OTHER500.test", "/", Some(500)),
        ("nobody.test", "/997/x", Some(997)),
        ("nobody.test", "/", None),
    ] {
        let asked = std::cell::Cell::new(0);
        let subject = Request {
            host,
            path,
            ..REQUEST
        };
        let first = index.first(&subject, |place| {
            asked.set(asked.get() + 1);
            rules[place].matches(&subject)
        });
        assert_eq!(first, expected, "{host} {path}");
        assert!(asked.get() <= 2, "{host} {path}: {} asked", asked.get());
    }
}
