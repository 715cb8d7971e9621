//! The checklist of what RFC 9110, 9112 and 9113 ask of a proxy, a test per
//! row. Where other tests go deeper, they are in the files beside this one.
//! Row 20 (421 for another name than the certificate's) waits for TLS from
//! clients, and so has none.

use super::*;

use crate::support::h2::{self, Client};

/// Each of these is answered with this status, and nothing reaches a backend.
fn refused(cases: &[(&str, u16)]) {
    let backend = Backend::plain(|_| panic!("nothing may reach a backend"));
    let proxy = plain_http(On::Epoll, &backend, "");
    for (request, status) in cases {
        let answer = proxy.talk("web", request);
        let line = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&line), "{request:?}: {answer}");
        assert!(
            answer.contains("\r\nConnection: close\r\n"),
            "{request:?}: {answer}"
        );
    }
    assert_eq!(backend.accepted(), 0);
}

/// What the backend gets of a request: its head.
fn passed(request: &str) -> String {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk("web", request);
    let (line, _, body) = split(&answer);
    assert_eq!(line, "HTTP/1.1 200 OK", "{request:?}: {answer}");
    body.to_owned()
}

/// What a client gets that asks for `/`, from a backend that says this and
/// closes.
fn answered(answer: &'static str) -> String {
    let backend = answering(answer);
    plain_http(On::Epoll, &backend, "").get("web", "/")
}

/// Each of these responses is a 502.
fn bad_gateway(answers: &[&'static str]) {
    for answer in answers {
        let got = answered(answer);
        assert!(got.starts_with("HTTP/1.1 502 "), "{answer:?}: {got}");
    }
}

/// Each of these responses is a 502; or, where it had begun, cut.
fn never_whole(answers: &[&'static str]) {
    for answer in answers {
        let got = answered(answer);
        assert!(
            got.starts_with("HTTP/1.1 502 ") || got.ends_with("<reset>"),
            "{answer:?}: {got}"
        );
    }
}

fn kept(text: String) -> &'static str {
    text.leak()
}

/// A proxy that asks this backend for the host `b` only, whatever the target.
fn routed_by_host(backend: &Backend) -> Running {
    Running::start(
        On::Epoll,
        &format!(
            "[entryPoints.web]\naddress = \"127.0.0.1:0\"\n[http.routers.r]\nrule = \"Host(`b`)\"\nservice = \"s\"\n[http.services.s.loadBalancer]\nservers = [{{ url = \"http://{}\" }}]\n",
            backend.address
        ),
    )
}

/// A head with these lines between `Host` and its end.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

fn post(lines: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}")
}

// Start line and target.

/// RFC 9112, section 2.2.
#[test]
fn r01_empty_lines_before_a_request_are_skipped_up_to_four() {
    assert!(
        passed(&format!("\r\n\r\n\r\n\r\n{}", get("Connection: close\r\n"))).starts_with("GET / ")
    );
    refused(&[(&format!("\r\n\r\n\r\n\r\n\r\n{}", get("")), 400)]);
}

/// RFC 9112, section 2.2.
#[test]
fn r02_white_space_before_the_first_field_is_refused() {
    refused(&[
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n", 400),
    ]);
    bad_gateway(&["HTTP/1.1 200 OK\r\n X: y\r\n\r\n"]);
}

/// RFC 9112, section 2.2.
#[test]
fn r03_a_bare_lf_is_refused() {
    refused(&[
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    ]);
    bad_gateway(&[
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nX: y\n\r\n",
    ]);
    never_whole(&[
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\n\r\n",
    ]);
}

/// RFC 9112, section 2.2.
#[test]
fn r04_a_bare_cr_is_refused() {
    refused(&[
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
        (&get("X: a\rb\r\n"), 400),
        (&get("X: a\r\r\n"), 400),
        ("GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
    ]);
}

/// RFC 9112, section 3.
#[test]
fn r05_a_request_line_has_two_single_spaces() {
    refused(&[
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

/// RFC 9112, section 3.2; RFC 3986.
#[test]
fn r06_a_target_has_the_characters_of_a_uri() {
    for byte in [
        "\0", "\u{1}", "\u{7f}", "\u{e9}", "<", ">", "\"", "{", "}", "^", "`", "\\",
    ] {
        refused(&[(&format!("GET /a{byte}b HTTP/1.1\r\nHost: a\r\n\r\n"), 400)]);
    }
    assert!(
        passed(
            "GET /-._~!$&'()*+,;=:@[]|?q={}`^\\/? HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        .starts_with("GET /-._~!$&'()*+,;=:@[]|?q={}`^\\/? ")
    );
}

/// RFC 9112, section 3.2.
#[test]
fn r07_a_fragment_is_refused() {
    refused(&[
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

/// RFC 9110, section 9.1.
#[test]
fn r08_methods_are_tokens_and_pass_byte_for_byte() {
    for method in ["get", "PURGE", "M-SEARCH", "X!#$%&'*+-.^_`|~9"] {
        let head = passed(&format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ));
        assert!(
            head.starts_with(&format!("{method} / HTTP/1.1\r\n")),
            "{head}"
        );
    }
    refused(&[
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

/// RFC 9110, section 6.2.
#[test]
fn r09_other_versions_are_505() {
    refused(&[
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1x\r\nHost: a\r\n\r\n", 400),
    ]);
    bad_gateway(&[
        "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ]);
}

/// RFC 9112, section 2.2; RFC 9113, section 3.4.
#[test]
fn r10_no_version_and_the_preface_of_http_2_out_of_place_are_refused() {
    refused(&[
        ("GET /\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 505),
        ("PRI * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!("{}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", get("")),
    );
    assert!(answer.contains("HTTP/1.1 505 "), "{answer}");
}

/// RFC 9110, section 15.5.15.
#[test]
fn r11_a_long_request_line_is_414() {
    refused(&[(
        &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9000)),
        414,
    )]);
}

/// RFC 9110, section 7.7.
#[test]
fn r12_a_path_passes_unchanged_or_not_at_all() {
    for target in ["/a//b/", "/%61?x=%2e%2e", "/A%2fb;c=d"] {
        let head = passed(&format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ));
        assert!(
            head.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
            "{head}"
        );
    }
    for target in [
        "/a/../b",
        "/a/%2e%2E/b",
        "/..;x/b",
        "/.",
        "/%zz",
        "/%",
        "/a%00",
        "/a%0d%0aX:",
    ] {
        refused(&[(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400)]);
    }
}

/// RFC 9112, section 3.2.2; RFC 9110, section 4.2.4.
#[test]
fn r13_an_absolute_target_wins_over_host() {
    let head = passed("GET HTTP://b:81/p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(
        head.starts_with("GET /p?q HTTP/1.1\r\nHost: b:81\r\n"),
        "{head}"
    );
    refused(&[
        ("GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://b:x/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

/// RFC 9112, section 3.2.4; RFC 9110, section 7.7.
#[test]
fn r14_an_absolute_target_without_a_path_asks_for_the_root() {
    assert!(
        passed("GET http://b HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
            .starts_with("GET / HTTP/1.1\r\n")
    );
    // Of OPTIONS it is the server itself that is meant.
    let backend = Backend::plain(echo_heads);
    let proxy = routed_by_host(&backend);
    let answer = proxy.talk(
        "web",
        "OPTIONS http://b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let (_, _, head) = split(&answer);
    assert!(
        head.starts_with("OPTIONS * HTTP/1.1\r\nHost: b\r\n"),
        "{answer}"
    );
}

/// RFC 9112, sections 3.2.3 and 3.2.4.
#[test]
fn r15_each_form_of_a_target_is_for_its_method() {
    refused(&[
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET foo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("OPTIONS foo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ]);
}

/// RFC 9110, section 9.3.6.
#[test]
fn r16_connect_is_refused() {
    refused(&[
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
        ("CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    ]);
}

/// RFC 9110, sections 7.6.2 and 9.3.7.
#[test]
fn r17_options_is_answered_where_it_is_to_stop() {
    let head =
        passed("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1\r\nConnection: close\r\n\r\n");
    assert!(head.contains("\r\nMax-Forwards: 0\r\n"), "{head}");
    let backend = Backend::plain(|_| panic!("nothing may reach a backend"));
    let proxy = plain_http(On::Epoll, &backend, "");
    for request in [
        "OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nConnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let answer = proxy.talk("web", request);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nAllow: "), "{answer}");
    }
    assert_eq!(backend.accepted(), 0);
    // Where a router takes it, it goes on as it is.
    let backend = Backend::plain(echo_heads);
    let proxy = routed_by_host(&backend);
    let answer = proxy.talk(
        "web",
        "OPTIONS * HTTP/1.1\r\nHost: b\r\nMax-Forwards: 5\r\nConnection: close\r\n\r\n",
    );
    let (_, _, head) = split(&answer);
    assert!(
        head.starts_with("OPTIONS * HTTP/1.1\r\nHost: b\r\nMax-Forwards: 4\r\n"),
        "{answer}"
    );
    // It is no one else's to count.
    let head = passed(&get("Max-Forwards: 0\r\nConnection: close\r\n"));
    assert!(head.contains("\r\nMax-Forwards: 0\r\n"), "{head}");
}

/// RFC 9110, section 9.3.8.
#[test]
fn r18_trace_is_refused() {
    refused(&[("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405)]);
}

/// RFC 9112, section 3.2; RFC 9110, section 7.2.
#[test]
fn r19_there_is_one_good_host() {
    refused(&[
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (&get("Host: a\r\n"), 400),
        (&get("hOST: b\r\n"), 400),
    ]);
    for host in [
        "", "a b", "a,b", "a/b", "u@a", "a:b", "a:65536", "[::1", "a\tb", "a?b", "a#b",
    ] {
        refused(&[(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400)]);
    }
    for host in ["a", "a:80", "[::1]:80", "127.0.0.1", "a_b.c-d."] {
        let head = passed(&format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ));
        assert!(head.contains(&format!("\r\nHost: {host}\r\n")), "{head}");
    }
    // HTTP/1.0 may leave it out; the backend is asked in 1.1, and gets one.
    let head = passed("GET / HTTP/1.0\r\n\r\n");
    assert!(
        head.starts_with("GET / HTTP/1.1\r\nHost: 127.0.0.1"),
        "{head}"
    );
}

// Fields.

/// RFC 9112, section 5.1.
#[test]
fn r21_no_white_space_before_a_colon() {
    refused(&[(&get("X : y\r\n"), 400), (&get("X\t: y\r\n"), 400)]);
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\t: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    ]);
}

/// RFC 9112, section 5.2.
#[test]
fn r22_folded_lines_are_refused() {
    refused(&[
        (&get("X: a\r\n b\r\n"), 400),
        (&get("X: a\r\n\tb\r\n"), 400),
    ]);
    bad_gateway(&["HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n"]);
}

/// RFC 9110, sections 5.1 and 5.6.2. The lesson of CVE-2023-25725 and
/// CVE-2021-40346.
#[test]
fn r23_names_are_tokens_of_any_length() {
    for name in [
        "", "a b", "a(b", "a/b", "a@b", "a[b", "a\"b", "a{b", "\u{e9}",
    ] {
        refused(&[(&get(&format!("{name}: x\r\n")), 400)]);
    }
    refused(&[(&get("no colon\r\n"), 400)]);
    for length in [255, 256, 270] {
        let name = "n".repeat(length);
        let head = passed(&get(&format!("{name}: x\r\nConnection: close\r\n")));
        assert!(head.contains(&format!("\r\n{name}: x\r\n")));
    }
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    ]);
}

/// RFC 9110, section 5.5.
#[test]
fn r24_no_control_character_in_a_value() {
    for byte in ["\0", "\u{1}", "\u{b}", "\u{1b}", "\u{7f}"] {
        refused(&[(&get(&format!("X: a{byte}b\r\n")), 400)]);
    }
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\u{7f}b\r\n\r\n",
    ]);
}

/// RFC 9110, section 5.5; RFC 9112, section 2.2.
#[test]
fn r25_other_bytes_pass_as_they_are() {
    let head = passed(&get("X: \u{e9}\ta \u{20ac}\r\nConnection: close\r\n"));
    assert!(head.contains("\r\nX: \u{e9}\ta \u{20ac}\r\n"), "{head}");
    let got = answered("HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 0\r\n\r\n");
    assert!(got.contains("\r\nX: \u{e9}\r\n"), "{got}");
    // No encoding is looked for: these bytes are no UTF-8.
    let line: &[u8] = b"\r\nX: \xe9\xff\x80\r\n";
    let has_line = |bytes: &[u8]| bytes.windows(line.len()).any(|part| part == line);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && wire.read(&mut byte).is_ok_and(|n| n > 0) {
            head.push(byte[0]);
        }
        *log.lock().unwrap() = head;
        wire.write_all(b"HTTP/1.1 200 OK\r\nX: \xe9\xff\x80\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        drop(wire.read(&mut [0]));
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\xff\x80\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(has_line(&got), "{}", got.escape_ascii());
    let seen = seen.lock().unwrap();
    assert!(has_line(&seen), "{}", seen.escape_ascii());
}

/// The lesson of CVE-2025-64484.
#[test]
fn r26_lookalikes_with_underscores_are_dropped() {
    let head = passed(&get(
        "X_Forwarded_For: 1\r\nContent_Length: 5\r\nX_Own: 1\r\nConnection: close\r\n",
    ));
    assert!(
        !head.contains("_Forwarded_") && !head.contains("_Length"),
        "{head}"
    );
    assert!(head.contains("\r\nX_Own: 1\r\n"), "{head}");
    assert_eq!(
        answered(
            "HTTP/1.1 200 OK\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Own: 1\r\nContent-Length: 0\r\n\r\n"
        ),
        "HTTP/1.1 200 OK\r\nX_Own: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

/// RFC 9110, sections 5.3 and 7.6.
#[test]
fn r27_lines_keep_their_order_and_are_not_merged() {
    let head = passed(&get("B: 1\r\nA: 2\r\nb: 3\r\nConnection: close\r\n"));
    assert!(head.contains("\r\nB: 1\r\nA: 2\r\nb: 3\r\n"), "{head}");
    let got = answered(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: y\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(
        got.contains("\r\nSet-Cookie: a=1\r\nX: y\r\nSet-Cookie: b=2\r\n"),
        "{got}"
    );
}

/// RFC 9110, section 5.4; RFC 6585, section 5.
#[test]
fn r28_too_many_or_too_large_fields_are_refused() {
    refused(&[
        (&get(&"A: b\r\n".repeat(100)), 431),
        (&get(&format!("A: {}\r\n", "b".repeat(40_000))), 431),
    ]);
    let many: &'static str = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(201)).leak();
    let large: &'static str =
        format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(70_000)).leak();
    bad_gateway(&[many, large]);
    let trailers = "T: x\r\n".repeat(65);
    refused_in_body(&format!("0\r\n{trailers}\r\n"));
    refused_in_body(&format!("0\r\nT: {}\r\n\r\n", "x".repeat(9000)));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    never_whole(&[kept(format!("{chunked}0\r\n{trailers}\r\n"))]);
}

/// A chunked body that is refused; the head has reached the backend by then.
fn refused_in_body(body: &str) {
    let completed = Arc::new(Mutex::new(false));
    let log = Arc::clone(&completed);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            let mut got = Vec::new();
            drop(wire.read_to_end(&mut got));
            *log.lock().unwrap() |= got.ends_with(b"0\r\n\r\n");
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk("web", &post("Transfer-Encoding: chunked\r\n", body));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    drop(proxy);
    assert!(!*completed.lock().unwrap(), "{body:?}");
}

/// RFC 9110, section 6.6.1.
#[test]
fn r29_a_date_is_added_where_there_is_none() {
    let backend = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(get("Connection: close\r\n").as_bytes())
        .unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    let date = got
        .split_once("\r\nDate: ")
        .unwrap()
        .1
        .split_once("\r\n")
        .unwrap()
        .0;
    assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
    let given =
        "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n";
    let backend = answering(given);
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(get("Connection: close\r\n").as_bytes())
        .unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got.matches("\r\nDate: ").count(), 1, "{got}");
    assert!(got.contains("1970"), "{got}");
}

/// RFC 9112, section 11.1.
#[test]
fn r30_what_we_build_has_no_line_end_from_outside() {
    // What comes from the client into fields of ours: its host, its address.
    let head =
        passed("GET / HTTP/1.1\r\nHost: a.b:80\r\nX-Real-Ip: 1\r\nConnection: close\r\n\r\n");
    assert_eq!(
        head.matches("\r\nX-Forwarded-Host: a.b:80\r\n").count(),
        1,
        "{head}"
    );
    assert_eq!(
        head.matches("\r\nX-Real-Ip: 127.0.0.1\r\n").count(),
        1,
        "{head}"
    );
    // And that no writer can: `a_written_line_has_no_line_end_inside`.
}

// Framing of requests.

/// RFC 9112, sections 6.1 and 6.3.
#[test]
fn r31_both_framings_are_refused() {
    refused(&[
        (
            &post(
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            400,
        ),
        (
            &post(
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
                "0\r\n\r\n",
            ),
            400,
        ),
    ]);
}

/// RFC 9112, section 6.3.
#[test]
fn r32_a_coding_that_does_not_end_in_chunked_is_refused() {
    refused(&[
        (&post("Transfer-Encoding: gzip\r\n", ""), 400),
        (&post("Transfer-Encoding: chunked, gzip\r\n", ""), 400),
        (&post("Transfer-Encoding: identity\r\n", ""), 400),
    ]);
}

/// RFC 9112, sections 6.1 and 7.
#[test]
fn r33_the_one_coding_is_chunked() {
    refused(&[
        (&post("Transfer-Encoding: gzip, chunked\r\n", ""), 501),
        (&post("Transfer-Encoding: chunked, chunked\r\n", ""), 400),
        (&post("Transfer-Encoding: ,chunked\r\n", ""), 400),
        (&post("Transfer-Encoding: chunked,\r\n", ""), 400),
        (&post("Transfer-Encoding: chunked;a=b\r\n", ""), 400),
        (&post("Transfer-Encoding: \"chunked\"\r\n", ""), 400),
        (&post("Transfer-Encoding: \u{b}chunked\r\n", ""), 400),
        (
            &post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "",
            ),
            400,
        ),
        (&post("Transfer-Encoding:\r\n", ""), 400),
    ]);
}

/// RFC 9112, section 6.1.
#[test]
fn r34_http_1_0_has_no_transfer_coding() {
    refused(&[(
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    )]);
}

/// RFC 9112, section 6.3; RFC 9110, section 8.6.
#[test]
fn r35_a_length_is_digits_once() {
    for length in [
        "+5",
        "-5",
        "0x5",
        "5 5",
        "",
        "5,5",
        "5, 6",
        "9223372036854775808",
        "5;a",
        "\u{664}",
    ] {
        refused(&[(
            &post(&format!("Content-Length: {length}\r\n"), "hello"),
            400,
        )]);
    }
    refused(&[(
        &post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        400,
    )]);
}

/// RFC 9112, section 6.3.
#[test]
fn r36_without_framing_there_is_no_body() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!("{}{}", post("", ""), get("Connection: close\r\n")),
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
    assert!(!answer.contains("Transfer-Encoding"), "{answer}");
}

/// RFC 9110, section 9.3.1.
#[test]
fn r37_the_body_of_a_get_is_framed_like_any_other() {
    for (method, framing, content) in [
        ("GET", "Content-Length: 5", "GET /"),
        ("DELETE", "Content-Length: 5", "GET /"),
        ("OPTIONS", "Content-Length: 5", "GET /"),
        ("HEAD", "Content-Length: 5", "GET /"),
        (
            "GET",
            "Transfer-Encoding: chunked",
            "5\r\nGET /\r\n0\r\n\r\n",
        ),
    ] {
        let backend = Backend::plain(move |wire| {
            let head = read_head(wire).unwrap();
            assert!(head.contains(&format!("\r\n{framing}\r\n")), "{head}");
            let mut body = vec![0; content.len()];
            wire.read_exact(&mut body).unwrap();
            assert_eq!(body, content.as_bytes());
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            drop(wire.read(&mut [0]));
        });
        let proxy = plain_http(On::Epoll, &backend, "");
        let answer = proxy.talk(
            "web",
            &format!(
                "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n{content}"
            ),
        );
        assert_eq!(
            answer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "{method}, {framing}"
        );
    }
}

/// RFC 9112, section 7.1.
#[test]
fn r38_a_chunk_size_is_hexadecimal_digits() {
    for size in [
        "",
        "+2",
        "-2",
        "0x2",
        "0_2",
        " 2",
        "g",
        "10000000000000000",
        "00000000000000002",
    ] {
        refused_in_body(&format!("{size}\r\nab\r\n0\r\n\r\n"));
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        never_whole(&[kept(format!("{head}{size}\r\nab\r\n0\r\n\r\n"))]);
    }
}

/// RFC 9112, section 7.1.1. The lesson of CVE-2023-39326.
#[test]
fn r39_chunk_extensions_are_checked_bounded_and_dropped() {
    for extension in [";", ";\0a", ";a\rb", ";a=\"b", ";a b", ";a=b=c", " "] {
        refused_in_body(&format!("2{extension}\r\nab\r\n0\r\n\r\n"));
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        never_whole(&[kept(format!("{head}2{extension}\r\nab\r\n0\r\n\r\n"))]);
    }
    refused_in_body(&format!("2;a={}\r\nab\r\n0\r\n\r\n", "x".repeat(5000)));
    refused_in_body("2;a\nab\r\n0\r\n\r\n");
    let (got, answer) = uploaded("2;a=b ; c=\"d;\\\"e\"\r\nab\r\n0\r\n\r\n");
    assert_eq!(got, "2\r\nab\r\n0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// What a backend gets of a chunked body, and what the client gets.
fn uploaded(body: &str) -> (String, String) {
    let got = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&got);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_none() {
            return;
        }
        let (mut read, mut byte) = (Vec::new(), [0]);
        while !read.ends_with(b"\r\n\r\n") && wire.read(&mut byte).is_ok_and(|n| n > 0) {
            read.push(byte[0]);
        }
        *log.lock().unwrap() = String::from_utf8(read).unwrap();
        drop(wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let head = "Connection: close\r\nTransfer-Encoding: chunked\r\n";
    let answer = proxy.talk("web", &post(head, body));
    let got = got.lock().unwrap().clone();
    (got, answer)
}

/// RFC 9112, section 7.1.
#[test]
fn r40_chunk_data_is_as_long_as_it_says() {
    refused_in_body("2\r\nabc\r\n0\r\n\r\n");
    refused_in_body("2\r\nab0\r\n\r\n");
    refused_in_body("2\r\nab\n0\r\n\r\n");
    refused_in_body("2\r\nab\rX0\r\n\r\n");
    never_whole(&[
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab0\r\n\r\n",
    ]);
}

/// RFC 9112, sections 6.3 and 8.
#[test]
fn r41_a_request_that_breaks_off_is_never_completed() {
    for (framing, body, passed_on) in [
        ("Content-Length: 10\r\n", "hello", "hello"),
        (
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n",
            "5\r\nhello\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n",
            "5\r\nhello\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\nT: x\r\n",
            "5\r\nhello\r\n",
        ),
    ] {
        let (seen, told) = std::sync::mpsc::channel();
        let seen = Mutex::new(seen);
        let backend = Backend::plain(move |wire| {
            if read_head(wire).is_some() {
                // A reset may end it as well.
                let mut got = Vec::new();
                drop(wire.read_to_end(&mut got));
                seen.lock().unwrap().send(got).unwrap();
            }
        });
        let proxy = plain_http(On::Epoll, &backend, "");
        let mut client = proxy.connect("web");
        client.write_all(post(framing, body).as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let got = told.recv_timeout(crate::support::DEADLINE).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), passed_on, "{body:?}");
        assert_eq!(read_to_end(&mut client).replace("<reset>", ""), "");
    }
}

/// RFC 9112, section 7.1.2; RFC 9110, section 6.5.
#[test]
fn r42_trailers_stay_apart_and_are_checked() {
    let (got, answer) = uploaded("2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(got, "2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for trailer in [
        "Content-Length: 5",
        "Host: b",
        "Authorization: x",
        "X : y",
        "X: a\nb: c",
        " X: y",
    ] {
        refused_in_body(&format!("0\r\n{trailer}\r\n\r\n"));
    }
    for trailer in ["Content-Length: 5", "Set-Cookie: a=b", "X : y"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        never_whole(&[kept(format!("{head}2\r\nok\r\n0\r\n{trailer}\r\n\r\n"))]);
    }
    // That the client takes them is said on in our own words.
    let head = passed(&get("TE: gzip, Trailers\r\nConnection: close, TE\r\n"));
    assert!(
        head.ends_with("\r\nTE: trailers\r\nConnection: TE\r\n\r\n"),
        "{head}"
    );
    // To whom has not asked for them there are none.
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSum: 1\r\n\r\n";
    assert!(answered(chunked).ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"));
    let backend = answering(chunked);
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk("web", &get("TE: trailers\r\nConnection: close, TE\r\n"));
    assert!(
        answer.ends_with("2\r\nok\r\n0\r\nSum: 1\r\n\r\n"),
        "{answer}"
    );
}

/// RFC 9112, section 8.
#[test]
fn r43_an_error_within_a_body_closes_both_connections() {
    let closed = Arc::new(Mutex::new(false));
    let log = Arc::clone(&closed);
    let backend = Backend::plain(move |wire| {
        drop(wire.read_to_end(&mut Vec::new()));
        *log.lock().unwrap() = true;
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &post("Transfer-Encoding: chunked\r\n", "2\r\nab\r\nzz\r\n"),
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    eventually("the upstream connection is closed", || {
        closed.lock().unwrap().then_some(())
    });
}

// Framing of responses.

/// RFC 9112, section 6.3; RFC 9110, section 8.6.
#[test]
fn r44_some_responses_have_no_body_whatever_they_say() {
    let head = |fields: &str| format!("HEAD / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    for (request, answer, expected) in [
        (
            head("Connection: close\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n",
        ),
        (
            head("Connection: close\r\n"),
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ),
        (
            head("Connection: close\r\n"),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
        ),
        (
            get("Connection: close\r\n"),
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ),
    ] {
        let backend = answering(answer);
        let proxy = plain_http(On::Epoll, &backend, "");
        assert_eq!(proxy.talk("web", &request), expected);
    }
}

/// RFC 9112, section 6.3.
#[test]
fn r45_a_response_with_unsound_framing_is_a_bad_gateway() {
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nab",
    ]);
    // And its connection is not used again; the client's may be.
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok";
            if wire.write_all(answer).is_err() {
                return;
            }
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!("{}{}", get(""), get("Connection: close\r\n")),
    );
    assert_eq!(answer.matches("HTTP/1.1 502 ").count(), 2, "{answer}");
    assert_eq!(backend.accepted(), 2);
}

/// RFC 9112, section 6.3.
#[test]
fn r46_chunks_are_decoded_and_framed_anew() {
    assert_eq!(
        answered("HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n02;x\r\nok\r\n000\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    );
}

/// RFC 9112, section 6.3.
#[test]
fn r47_another_coding_of_a_response_is_a_bad_gateway() {
    bad_gateway(&[
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ]);
}

/// RFC 9112, sections 6.3, 8 and 9.8.
#[test]
fn r48_a_response_that_ends_at_the_close_is_framed_for_its_client() {
    let answer = "HTTP/1.1 200 OK\r\n\r\nall of it";
    assert_eq!(
        answered(answer),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n9\r\nall of it\r\n0\r\n\r\n"
    );
    let backend = answering(answer);
    let proxy = plain_http(On::Epoll, &backend, "");
    assert_eq!(
        proxy.talk("web", "GET / HTTP/1.0\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"
    );
    // Over TLS the close needs its notice.
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", move |wire| {
        if read_head(wire).is_some() {
            wire.write_all(answer.as_bytes()).unwrap();
            wire.cut();
        }
    });
    let got = world.http(On::Epoll, &backend, IDS).get("web", "/");
    assert!(
        got.ends_with("<reset>") || got.starts_with("HTTP/1.1 502 "),
        "{got}"
    );
}

/// RFC 9112, section 8.
#[test]
fn r49_a_truncated_response_is_cut() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let got = answered(answer);
        assert!(got.ends_with("<reset>"), "{got}");
    }
    bad_gateway(&["HTTP/1.1 200 OK\r\nContent-Len", "HTTP/1.1 2"]);
}

/// RFC 9112, sections 6.3 and 9.2.
#[test]
fn r50_bytes_behind_a_response_are_never_the_next_one() {
    let backend = Backend::plain(|wire| {
        if let Some(head) = read_head(wire) {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                path.len()
            );
            wire.write_all(answer.as_bytes()).unwrap();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(
        !answer.contains("evil") && answer.ends_with("/2"),
        "{answer}"
    );
    assert_eq!(backend.accepted(), 2);
    // Nor is what comes while nothing is asked.
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (speak, spoken) = std::sync::mpsc::channel::<()>();
    let (asked, speak) = (Mutex::new(asked), Mutex::new(speak));
    let backend = Backend::plain(move |wire| {
        if let Some(head) = read_head(wire) {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{path}");
            wire.write_all(answer.as_bytes()).unwrap();
            if path == "/1" {
                asked.lock().unwrap().recv().unwrap();
                wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
                    .unwrap();
                speak.lock().unwrap().send(()).unwrap();
            }
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    read_head(&mut client).unwrap();
    client.read_exact(&mut [0; 2]).unwrap();
    ask.send(()).unwrap();
    spoken.recv_timeout(crate::support::DEADLINE).unwrap();
    client
        .write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(
        read_to_end(&mut client),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n/2"
    );
    assert_eq!(backend.accepted(), 2);
}

/// RFC 9112, section 6.1; RFC 9110, section 6.2.
#[test]
fn r51_a_1_0_response_is_taken_and_its_connection_is_not_kept() {
    let backend = Backend::plain(|wire| {
        if read_head(wire).is_some() {
            wire.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!("{}{}", get(""), get("Connection: close\r\n")),
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
    assert_eq!(backend.accepted(), 2);
    bad_gateway(&["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]);
    // Unless it says that it may be.
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let answer =
                b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok";
            if wire.write_all(answer).is_err() {
                return;
            }
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!("{}{}", get(""), get("Connection: close\r\n")),
    );
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    assert_eq!(backend.accepted(), 1);
}

/// RFC 9112, section 4; RFC 9110, section 15.
#[test]
fn r52_a_status_has_three_digits_from_100_to_599() {
    bad_gateway(&[
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 No\r\n\r\n",
        "HTTP/1.1 600 No\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "garbage\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
    ]);
    let got = answered("HTTP/1.1 499 Own Words\r\nContent-Length: 0\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 499 Own Words\r\n"), "{got}");
    for (answer, line) in [
        (
            "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 299 \r\n",
        ),
        // Many servers leave out the space before no reason.
        (
            "HTTP/1.1 299\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 299 \r\n",
        ),
    ] {
        let got = answered(answer);
        assert!(got.starts_with(line), "{got}");
    }
}

/// RFC 9110, section 15.2; RFC 8297.
#[test]
fn r53_interim_responses_pass_up_to_a_limit() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let some: &'static str = format!("{}{last}", interim.repeat(32)).leak();
    assert_eq!(answered(some).matches(interim).count(), 32);
    let many: &'static str = format!("{}{last}", interim.repeat(33)).leak();
    assert!(!answered(many).contains("200 OK"));
    let backend = answering(some);
    let proxy = plain_http(On::Epoll, &backend, "");
    assert!(
        proxy
            .talk("web", "GET / HTTP/1.0\r\n\r\n")
            .starts_with("HTTP/1.1 200 OK\r\n")
    );
}

/// RFC 9110, section 7.8.
#[test]
fn r54_an_unasked_101_is_a_bad_gateway() {
    bad_gateway(&["HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"]);
    let backend = answering(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    );
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &get("Connection: upgrade, close\r\nUpgrade: websocket\r\n"),
    );
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

/// RFC 9110, section 15.3.6.
#[test]
fn r55_other_statuses_have_the_body_that_they_declare() {
    for status in ["205 Reset Content", "416 Range Not Satisfiable", "500 No"] {
        let answer: &'static str =
            format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").leak();
        let got = answered(answer);
        assert!(
            got.starts_with(&format!("HTTP/1.1 {status}\r\n")) && got.ends_with("\r\n\r\nok"),
            "{got}"
        );
    }
}

/// RFC 9110, sections 15.6.3 and 15.6.5.
#[test]
fn r56_a_backend_that_fails_is_502_or_504() {
    let silent = Backend::plain(|wire| drop(read_head(wire)));
    let answer = plain_http(On::Epoll, &silent, "").talk(
        "web",
        &format!("{}{}", get(""), get("Connection: close\r\n")),
    );
    // Nothing of a body is left to be read: the connection goes on.
    assert_eq!(answer.matches("HTTP/1.1 502 ").count(), 2, "{answer}");
    let in_time = |address: std::net::SocketAddr| {
        Running::start(
            On::Epoll,
            &format!(
                "[entryPoints.web]\naddress = \"127.0.0.1:0\"\n[http.routers.r]\nrule = \"PathPrefix(`/`)\"\nservice = \"s\"\n[http.services.s.loadBalancer]\nserversTransport = \"t\"\nservers = [{{ url = \"http://{address}\" }}]\n[http.serversTransports.t]\nforwardingTimeouts.responseHeaderTimeout = \"100ms\"\n"
            ),
        )
    };
    let slow = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let answer = in_time(slow.address).get("web", "/");
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    // Where a body may be unread, no other request is.
    let answer = plain_http(On::Epoll, &silent, "").talk(
        "web",
        &format!("{}{}", post("Content-Length: 5\r\n", "hello"), get("")),
    );
    assert_eq!(answer.matches("HTTP/1.1 502 ").count(), 1, "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    let gone = Backend::plain(|_| {});
    let address = gone.address;
    drop(gone);
    let proxy = in_time(address);
    eventually("it is refused", || {
        let answer = proxy.get("web", "/");
        answer.contains("error=connection_refused").then_some(())
    });
}

// Connections and forwarding.

/// RFC 9110, section 7.6.1. The lesson of CVE-2024-45410 and CVE-2025-48865.
#[test]
fn r57_what_connection_names_goes_and_ours_stays() {
    let head = passed(&get(
        "X-A: 1\r\nX-B: 2\r\nConnection: close, x-a ,X-Forwarded-For\r\nConnection: x-b, via, host\r\n",
    ));
    assert!(!head.contains("X-A") && !head.contains("X-B"), "{head}");
    for ours in ["Host: a", "X-Forwarded-For: 127.0.0.1", "Via: 1.1 svidgate"] {
        assert!(head.contains(&format!("\r\n{ours}\r\n")), "{head}");
    }
    let head = passed(&post(
        "Connection: content-length, close\r\nContent-Length: 0\r\n",
        "",
    ));
    assert!(head.contains("\r\nContent-Length: 0\r\n"), "{head}");
    assert_eq!(
        answered(
            "HTTP/1.1 200 OK\r\nConnection: content-length, x-a\r\nConnection: X-B\r\nX-A: 1\r\nX-B: 2\r\nContent-Length: 2\r\n\r\nok"
        ),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
}

/// RFC 9110, section 7.6.1.
#[test]
fn r58_hop_by_hop_fields_go() {
    let head = passed(&get(
        "Connection: close\r\nProxy-Connection: x\r\nKeep-Alive: x\r\nTE: gzip\r\nUpgrade: h2c\r\nProxy-Authorization: x\r\nHTTP2-Settings: x\r\n",
    ));
    for name in [
        "Connection",
        "Keep-Alive",
        "TE:",
        "Upgrade",
        "Proxy-",
        "HTTP2",
    ] {
        assert!(!head.contains(name), "{name}: {head}");
    }
    let got = answered(
        "HTTP/1.1 200 OK\r\nKeep-Alive: x\r\nProxy-Connection: x\r\nConnection: x-a\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

/// RFC 9112, sections 9.3 and 9.6.
#[test]
fn r59_close_counts_wherever_it_stands_and_1_0_is_closed() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    for first in [
        get("Connection: x, CLOSE\r\n"),
        get("Connection: x\r\nConnection: close\r\n"),
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    ] {
        let answer = proxy.talk("web", &format!("{first}{}", get("")));
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 1, "{answer}");
    }
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            drop(wire.write_all(
                b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
            ));
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    proxy.talk(
        "web",
        &format!("{}{}", get(""), get("Connection: close\r\n")),
    );
    assert_eq!(backend.accepted(), 2);
}

/// RFC 9110, section 7.6.3.
#[test]
fn r60_via_is_added_with_the_version_received() {
    let head = passed(&get("Via: 1.0 fred\r\nConnection: close\r\n"));
    assert!(
        head.contains("\r\nVia: 1.0 fred\r\n") && head.contains("\r\nVia: 1.1 svidgate\r\n"),
        "{head}"
    );
    assert!(passed("GET / HTTP/1.0\r\nHost: a\r\n\r\n").contains("\r\nVia: 1.0 svidgate\r\n"));
    // A request that has come through us so often runs in a circle.
    let hops = |n| format!("{}Connection: close\r\n", "Via: 1.1 svidgate\r\n".repeat(n));
    assert_eq!(passed(&get(&hops(15))).matches("\r\nVia: ").count(), 16);
    refused(&[(&get(&hops(16)), 508)]);
}

/// RFC 7239, sections 4 to 6.
#[test]
fn r61_forwarding_claims_count_from_those_who_are_trusted() {
    let claims = "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /p\r\nForwarded: for=1.1.1.1\r\nForwarded: for=2.2.2.2\r\nX-Real-Ip: 1.1.1.1\r\nX_Forwarded_Proto: https\r\nConnection: close\r\n";
    let head = passed(&get(claims));
    assert!(
        !head.contains("1.1.1.1") && !head.contains("https") && !head.contains("/p"),
        "{head}"
    );
    assert!(!head.contains("\r\nForwarded:"), "{head}");
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        On::Epoll,
        &backend,
        "forwardedHeaders.trustedIPs = [\"127.0.0.1\"]",
    );
    let head = proxy.talk("web", &get(claims));
    for line in [
        "X-Forwarded-For: 1.1.1.1, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /p",
        "Forwarded: for=1.1.1.1, for=2.2.2.2, for=127.0.0.1;proto=http;host=\"a\"",
        "X-Real-Ip: 1.1.1.1",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(!head.contains("X_Forwarded"), "{head}");
}

/// What says who a client is never comes from a client.
#[test]
fn r62_identity_fields_of_strangers_go_in_every_spelling() {
    let head = passed(&get(
        "X-Forwarded-Client-Cert: x\r\nX_Forwarded_Client_Cert: x\r\nx-forwarded-tls-client-cert: x\r\nX-Forwarded-Tls_Client-Cert-Info: x\r\nX-Forwarded-User: x\r\nX-Forwarded-Preferred-User: x\r\nX-Forwarded_By-User: x\r\nConnection: close\r\n",
    ));
    assert!(
        !head.to_ascii_lowercase().contains("cert") && !head.contains("User"),
        "{head}"
    );
}

/// RFC 9112, section 9.3.2.
#[test]
fn r63_pipelined_requests_are_answered_in_order() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let requests: String = (0..20)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    let answer = proxy.talk(
        "web",
        &format!("{requests}{}", get("Connection: close\r\n")),
    );
    let order: Vec<usize> = (0..20)
        .map(|n| answer.find(&format!("GET /{n} ")).unwrap())
        .collect();
    assert!(order.is_sorted(), "{order:?}");
}

/// RFC 9110, section 10.1.1.
#[test]
fn r64_expect_is_the_backends_to_answer() {
    let backend = Backend::plain(|wire| {
        let head = read_head(wire).unwrap();
        assert!(head.contains("\r\nExpect: 100-Continue\r\n"), "{head}");
        wire.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        wire.finish();
        drop(wire.read_to_end(&mut Vec::new()));
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &post("Expect: 100-Continue\r\nContent-Length: 5\r\n", ""),
    );
    assert_eq!(
        answer,
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    refused(&[
        (&get("Expect: something\r\n"), 417),
        (&get("Expect: 100-continue, something\r\n"), 417),
    ]);
    // A client of 1.0 cannot mean it.
    let head = passed("GET / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n");
    assert!(!head.contains("Expect"), "{head}");
}

/// RFC 9112, sections 9.5 and 9.6.
#[test]
fn r65_an_early_answer_is_delivered_and_ends_the_connection() {
    let backend = Backend::plain(|wire| {
        read_head(wire).unwrap();
        wire.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        drop(wire.read_to_end(&mut Vec::new()));
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk("web", &post("Content-Length: 1000000\r\n", "some"));
    assert_eq!(
        answer,
        "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

/// RFC 9112, section 9.6.
#[test]
fn r66_a_client_that_has_closed_its_half_is_answered() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client.write_all(get("").as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&mut client).starts_with("HTTP/1.1 200 OK\r\n"));
}

/// RFC 9112, section 9.5.
#[test]
fn r67_a_client_that_has_gone_ends_the_exchange() {
    let (gone, told) = std::sync::mpsc::channel();
    let gone = Mutex::new(gone);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            drop(wire.read(&mut [0]));
            gone.lock().unwrap().send(()).unwrap();
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut client = proxy.connect("web");
    client.write_all(get("").as_bytes()).unwrap();
    eventually("it is under way", || {
        (backend.accepted() == 1).then_some(())
    });
    let zero = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&client, zero).unwrap();
    drop(client);
    told.recv_timeout(crate::support::DEADLINE).unwrap();
}

/// RFC 9110, section 9.2.2.
#[test]
fn r68_only_what_may_be_repeated_is_sent_again() {
    for (method, status) in [("GET", 200), ("DELETE", 200), ("POST", 502), ("PATCH", 502)] {
        let backend = Backend::plain(|wire| {
            if read_head(wire).is_some() {
                wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
                drop(wire.read(&mut [0]));
                wire.cut();
            }
        });
        let proxy = plain_http(On::Epoll, &backend, "");
        let second = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = proxy.talk("web", &format!("{}{second}", get("")));
        assert!(
            answer.contains(&format!("HTTP/1.1 {status} ")),
            "{method}: {answer}"
        );
        let last = answer.rfind("HTTP/1.1 ").unwrap();
        assert!(
            answer[last..].starts_with(&format!("HTTP/1.1 {status} ")),
            "{method}: {answer}"
        );
    }
    // What has a body is not sent again, and nothing is sent a third time.
    for (request, connections) in [
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
            1,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 2),
    ] {
        let is_first = std::sync::atomic::AtomicBool::new(true);
        let backend = Backend::plain(move |wire| {
            let asked = read_head(wire).is_some();
            if asked && is_first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
                // Only once the next request is on its way.
                drop(wire.read(&mut [0]));
            }
            wire.cut();
        });
        let proxy = plain_http(On::Epoll, &backend, "");
        let answer = proxy.talk("web", &format!("{}{request}", get("")));
        let last = answer.rfind("HTTP/1.1 ").unwrap();
        assert!(answer[last..].starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(backend.accepted(), connections, "{request:?}");
    }
}

/// RFC 9110, section 7.8; RFC 6455. The lesson of CVE-2026-2833 and
/// CVE-2024-23326.
#[test]
fn r69_a_tunnel_opens_after_a_101_that_was_asked_for() {
    for (lines, offered) in [
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", true),
        ("Upgrade: websocket\r\n", false),
        ("Connection: upgrade\r\n", false),
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", false),
        (
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
            false,
        ),
    ] {
        let head = {
            let backend = Backend::plain(echo_heads);
            let proxy = plain_http(On::Epoll, &backend, "");
            let mut client = proxy.connect("web");
            client.write_all(get(lines).as_bytes()).unwrap();
            if lines.contains("Content-Length") {
                client.write_all(b"x").unwrap();
            }
            read_head(&mut client).unwrap();
            let mut shown = [0; 60];
            client.read_exact(&mut shown).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            String::from_utf8_lossy(&shown).into_owned() + &read_to_end(&mut client)
        };
        assert_eq!(
            head.contains("\r\nUpgrade: websocket\r\n"),
            offered,
            "{lines}: {head}"
        );
    }
    // HTTP/1.0 cannot ask for it.
    let head =
        passed("GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(!head.contains("pgrade"), "{head}");
    // 200 is no agreement: what follows is the next request.
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        &format!(
            "{}{}",
            get("Connection: upgrade\r\nUpgrade: websocket\r\n"),
            get("Connection: close\r\n")
        ),
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
}

/// RFC 9110, section 9.3.2; RFC 9209.
#[test]
fn r70_answers_of_our_own_are_framed_and_say_nothing_of_the_inside() {
    let backend = Backend::plain(|_| {});
    let proxy = plain_http(On::Epoll, &backend, "");
    let answer = proxy.talk(
        "web",
        "HEAD /secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nContent-Length: 16\r\n") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nProxy-Status: svidgate; error=connection_terminated\r\n"),
        "{answer}"
    );
    let answer = proxy.get("web", "/secret");
    assert!(answer.ends_with("\r\n\r\n502 Bad Gateway\n"), "{answer}");
    for inside in ["secret", "127.0.0.1", "web"] {
        assert!(!answer.contains(inside), "{answer}");
    }
    // To HEAD there is no body either when the request itself is at fault.
    let answer = proxy.talk("web", "HEAD /#a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n")
            && answer.contains("\r\nContent-Length: 16\r\n")
            && answer.contains("\r\nConnection: close\r\n")
            && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let mut client = Client::connect(proxy.address("web"));
    assert_eq!(
        client.ask(h2::get("/secret"), &[], None).unwrap().status(),
        502
    );
}

// What reading the code against the rows has found.

/// Rows 1 and 66; RFC 9112, section 2.2. An empty line behind a body is an old
/// habit of clients. A connection with nothing but that is idle: a stop ends
/// it at once, and it is not what the proxy reports as unfinished.
#[test]
fn r01_an_empty_line_behind_a_request_leaves_its_connection_idle() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        On::Epoll,
        &backend,
        "transport.lifeCycle.graceTimeOut = \"50ms\"",
    );
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n")
        .unwrap();
    crate::support::proxy::answer(&mut client);
    proxy.stop();
    assert_eq!(read_to_end(&mut client), "");
    assert!(proxy.end().unwrap());
}

/// The same, by time: it ends by `idleTimeout` without a word, and not by
/// `readTimeout` with a 408 that answers nothing.
#[test]
fn r01_an_empty_line_is_not_the_beginning_of_a_request() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        On::Epoll,
        &backend,
        "transport.respondingTimeouts.readTimeout = \"100ms\"\ntransport.respondingTimeouts.idleTimeout = \"200ms\"",
    );
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n")
        .unwrap();
    crate::support::proxy::answer(&mut client);
    assert_eq!(read_to_end(&mut client), "");
}

/// Row 58; RFC 9110, section 15.5.22: a 426 must say what to upgrade to, on a
/// connection that closes as well.
#[test]
fn r58_a_426_says_what_to_upgrade_to_whether_it_closes_or_not() {
    let answer = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
    let got = plain_http(On::Epoll, &answering(answer), "").get("web", "/");
    assert!(got.contains("\r\nUpgrade: websocket\r\n"), "{got}");
    assert!(got.contains("close"), "{got}");
}

/// Row 64; RFC 9110, section 10.1.1: who waits for 100 is not slow, however
/// long the backend thinks.
#[test]
fn r64_a_client_that_waits_for_100_has_all_the_time_of_the_backend() {
    let backend = Backend::plain(|wire| {
        read_head(wire).unwrap();
        // Thinks for longer than the client's readTimeout.
        std::thread::sleep(std::time::Duration::from_millis(400));
        drop(wire.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"));
        drop(wire.read_to_end(&mut Vec::new()));
    });
    let proxy = plain_http(
        On::Epoll,
        &backend,
        "transport.respondingTimeouts.readTimeout = \"100ms\"",
    );
    let answer = proxy.talk(
        "web",
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 403 No\r\n"), "{answer}");
}

/// Row 61; RFC 9110, section 5.6.1.1: who sends a list sends no empty members.
#[test]
fn r61_an_empty_claim_of_a_trusted_peer_is_no_member() {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        On::Epoll,
        &backend,
        "forwardedHeaders.trustedIPs = [\"127.0.0.1\"]",
    );
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For:\r\nConnection: close\r\n\r\n",
    );
    assert!(
        answer.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        "{answer}"
    );
}
