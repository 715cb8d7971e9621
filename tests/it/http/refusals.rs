//! What is refused, and with which status.

use super::*;

crate::on_both!(
    an_unasked_101_is_a_bad_gateway,
    a_malformed_response_is_a_bad_gateway,
    no_router_is_404_and_the_connection_goes_on,
    a_request_that_could_be_read_in_two_ways_is_refused,
    a_head_that_does_not_come_is_408,
    an_empty_line_in_pieces_is_not_the_beginning_of_a_head,
    a_body_over_the_limit_is_413,
    a_response_head_that_does_not_come_is_504,
    a_wrong_identity_is_502_and_no_request_is_sent,
    a_backend_that_takes_no_request_is_504,
    an_answer_reaches_a_client_that_is_still_sending,
    a_body_that_trickles_is_408,
    a_response_that_is_taken_too_slowly_is_cut,
    a_trailer_that_can_only_be_a_field_is_refused,
    a_request_that_runs_in_a_circle_is_508,
    options_that_are_not_to_go_further_are_answered,
);

fn an_unasked_101_is_a_bad_gateway(on: On) {
    let backend = answering(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: evil\r\n\r\n",
    );
    let proxy = plain_http(on, &backend, "");
    let (line, fields, body) = {
        let answer = proxy.get("web", "/");
        let (line, fields, body) = split(&answer);
        (line.to_owned(), fields.to_owned(), body.to_owned())
    };
    assert_eq!(
        (line.as_str(), body.as_str()),
        ("HTTP/1.1 502 Bad Gateway", "502 Bad Gateway\n")
    );
    assert!(
        fields.contains("Proxy-Status: svidgate; error=http_protocol_error\r\n"),
        "{fields}"
    );
}

fn a_malformed_response_is_a_bad_gateway(on: On) {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 No\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
    ] {
        let backend = answering(answer);
        let proxy = plain_http(on, &backend, "");
        let got = proxy.get("web", "/");
        let (line, _, body) = split(&got);
        assert_eq!(
            (line, body),
            ("HTTP/1.1 502 Bad Gateway", "502 Bad Gateway\n"),
            "{answer}"
        );
    }
}

fn no_router_is_404_and_the_connection_goes_on(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "Host(`api.test`) && PathPrefix(`/v1`) && !Method(`DELETE`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{}" }}]
"#,
            backend.address
        ),
    );
    let answer = proxy.talk(
        "web",
        "GET /v1 HTTP/1.1\r\nHost: other.test\r\n\r\nDELETE /v1 HTTP/1.1\r\nHost: api.test\r\n\r\nGET /v1 HTTP/1.1\r\nHost: API.test.:80\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(
        answer.matches("HTTP/1.1 404 Not Found\r\n").count(),
        2,
        "{answer}"
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 1, "{answer}");
    // An encoded slash could mean another path to the backend.
    let answer = proxy.get("web", "/v1%2f..%2fadmin");
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
}

fn a_request_that_could_be_read_in_two_ways_is_refused(on: On) {
    let backend = Backend::plain(|_| panic!("nothing may reach the backend"));
    let proxy = plain_http(on, &backend, "");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET foo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a/..;x=y/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        ("GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\na",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\na",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 1\r\n\r\na",
            417,
        ),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("GET /\r\n\r\n", 400),
    ] {
        let answer = proxy.talk("web", request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert!(
            answer.contains("Proxy-Status: svidgate; error=http_request_error\r\n"),
            "{answer}"
        );
    }
    let long = "x".repeat(9000);
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                format!("X: {long}\r\n").repeat(4)
            ),
            431,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "X: y\r\n".repeat(101)
            ),
            431,
        ),
    ] {
        let answer = proxy.talk("web", &request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    assert_eq!(backend.accepted(), 0);
}

fn a_head_that_does_not_come_is_408(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(
        on,
        &backend,
        "transport.respondingTimeouts.readTimeout = \"100ms\"",
    );
    let answer = proxy.talk("web", "GET / HTTP/1.1\r\nHost:");
    assert!(
        answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{answer}"
    );
    let answer = proxy.talk(
        "web",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe",
    );
    assert!(
        answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{answer}"
    );
}

/// The time of the next head counts from its own first byte.
fn an_empty_line_in_pieces_is_not_the_beginning_of_a_head(on: On) {
    let backend = Backend::plain(echo_heads);
    let read_timeout = "transport.respondingTimeouts.readTimeout = \"2s\"";
    let proxy = plain_http(on, &backend, read_timeout);
    let mut client = proxy.connect("web");
    let pieces = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n\r", 50),
        ("\n", 2100),
        ("GET / HTTP/1.1\r\nHo", 50),
        ("st: a\r\nConnection: close\r\n\r\n", 0),
    ];
    for (piece, pause) in pieces {
        client.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
    let answers = read_to_end(&mut client);
    assert_eq!(
        answers.matches("HTTP/1.1 200 OK\r\n").count(),
        2,
        "{answers}"
    );
    assert!(!answers.contains("HTTP/1.1 408 "), "{answers}");
}

fn a_body_over_the_limit_is_413(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(on, &backend, "http.maxRequestBodyBytes = 4");
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    ] {
        let answer = proxy.talk("web", request);
        assert!(
            answer.starts_with("HTTP/1.1 413 Content Too Large\r\n"),
            "{answer}"
        );
    }
}

fn a_response_head_that_does_not_come_is_504(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{}" }}]
[serversTransport.forwardingTimeouts]
responseHeaderTimeout = "50ms"
"#,
            backend.address
        ),
    );
    let answer = proxy.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("error=http_response_timeout\r\n"),
        "{answer}"
    );
}

fn a_wrong_identity_is_502_and_no_request_is_sent(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/rogue", |wire| {
        assert!(read_head(wire).is_none(), "a request reached the rogue");
    });
    let proxy = world.http(on, &backend, IDS);
    let answer = proxy.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("Proxy-Status: svidgate; error=tls_certificate_error\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n502 Bad Gateway\n"), "{answer}");
}

fn a_backend_that_takes_no_request_is_504(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |_| {
        let _closed = released.lock().unwrap().recv();
    });
    let proxy = plain_http(
        on,
        &backend,
        "transport.respondingTimeouts.writeTimeout = \"200ms\"",
    );
    let client = proxy.connect("web");
    let (mut reader, mut writer) = (client.try_clone().unwrap(), client);
    let sender = std::thread::spawn(move || {
        drop(writer.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"));
        while writer.write_all(&[0; 65536]).is_ok() {}
    });
    let head = read_head(&mut reader).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"),
        "{head}"
    );
    assert!(
        head.contains("error=connection_write_timeout\r\n"),
        "{head}"
    );
    drop(release);
    drop(reader.shutdown(std::net::Shutdown::Both));
    sender.join().unwrap();
}

fn an_answer_reaches_a_client_that_is_still_sending(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(on, &backend, "http.maxRequestBodyBytes = 1000");
    let client = proxy.connect("web");
    let (mut reader, mut writer) = (client.try_clone().unwrap(), client);
    let sender = std::thread::spawn(move || {
        drop(writer.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
        // Far more than is drained: a client that reads only afterwards.
        for _ in 0..64 {
            if writer.write_all(b"4000\r\n").is_err()
                || writer.write_all(&[b'x'; 0x4000]).is_err()
                || writer.write_all(b"\r\n").is_err()
            {
                return;
            }
        }
    });
    let head = read_head(&mut reader).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 413 Content Too Large\r\n"),
        "{head}"
    );
    sender.join().unwrap();
}

/// After ten seconds of waiting for it; what came early counts.
fn a_body_that_trickles_is_408(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(on, &backend, "http.minBodyRate = 1000000");
    let mut client = proxy.connect("web");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        .unwrap();
    let mut writer = client.try_clone().unwrap();
    // Never silent for as long as readTimeout.
    let trickle = std::thread::spawn(move || {
        while writer.write_all(b"x").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    let began = std::time::Instant::now();
    let answer = read_to_end(&mut client);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(began.elapsed() >= std::time::Duration::from_secs(9));
    drop(client.shutdown(std::net::Shutdown::Both));
    trickle.join().unwrap();
}

fn a_response_that_is_taken_too_slowly_is_cut(on: On) {
    let (cut, was_cut) = std::sync::mpsc::channel();
    let cut = Mutex::new(cut);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
            wire.write_all(head).unwrap();
            while wire.write_all(&[0; 65536]).is_ok() {}
            cut.lock().unwrap().send(()).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "http.minBodyRate = 1000000000");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    // It takes a little now and then, so that no write is without progress.
    let mut some = [0; 20_000];
    let until = std::time::Instant::now() + crate::support::DEADLINE;
    while was_cut.try_recv().is_err() {
        assert!(std::time::Instant::now() < until, "it is never cut");
        drop(client.read(&mut some));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// RFC 9110, section 6.5.1.
fn a_trailer_that_can_only_be_a_field_is_refused(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(on, &backend, "");
    for name in [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: evil.test",
        "Authorization: Bearer x",
        "Cookie: a=b",
        "Content-Type: text/evil",
        "Connection: close",
        "TE: trailers",
        "X-Forwarded-For: 1.2.3.4",
        "X_Forwarded_For: 1.2.3.4",
        "Forwarded: for=1.2.3.4",
    ] {
        let answer = proxy.talk(
            "web",
            &format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{name}\r\n\r\n"),
        );
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
    }
    // Of a response it is never completed.
    let backend = Backend::plain(|wire| {
        if read_head(wire).is_some() {
            wire.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
                .unwrap();
            wire.write_all(b"0\r\nContent-Length: 5\r\n\r\n").unwrap();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.get("web", "/");
    assert!(
        answer.ends_with("<reset>") || answer.starts_with("HTTP/1.1 502 "),
        "{answer}"
    );
}

/// RFC 9110, section 7.6.3.
fn a_request_that_runs_in_a_circle_is_508(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let ask = |hops: usize| {
        let via = vec!["1.1 svidgate, 1.0 other (svidgate)"; hops].join(", ");
        proxy.talk(
            "web",
            &format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nVia: {via}\r\n\r\n"),
        )
    };
    assert!(ask(15).starts_with("HTTP/1.1 200 "));
    let answer = ask(16);
    assert!(
        answer.starts_with("HTTP/1.1 508 Loop Detected\r\n"),
        "{answer}"
    );
    assert!(answer.contains("error=proxy_loop_detected\r\n"), "{answer}");
}

/// RFC 9110, section 7.6.2.
fn options_that_are_not_to_go_further_are_answered(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let ask = |method: &str, left: &str| {
        proxy.talk(
            "web",
            &format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nMax-Forwards: {left}\r\n\r\n"),
        )
    };
    let answer = ask("OPTIONS", "0");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nAllow: GET, HEAD, POST,"), "{answer}");
    assert!(answer.contains("\r\nContent-Length: 0\r\n"), "{answer}");
    assert_eq!(backend.accepted(), 0);
    assert!(ask("OPTIONS", "3").contains("\r\nMax-Forwards: 2\r\n"));
    assert!(ask("GET", "0").contains("\r\nMax-Forwards: 0\r\n"));
}
