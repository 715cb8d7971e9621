//! Clients that speak HTTP/2 by prior knowledge, in front of HTTP/1.1 backends.

use super::*;

crate::on_both!(
    a_request_becomes_one_of_http_1_1,
    requests_run_beside_each_other,
    a_body_flows_both_ways_with_and_without_a_length,
    trailers_are_carried_between_versions,
    interim_responses_are_carried_between_versions,
    responses_without_content_have_none,
    what_http_1_1_could_not_carry_is_refused_and_other_streams_go_on,
    content_that_is_not_what_was_announced_is_never_completed,
    a_response_that_breaks_off_is_reset_not_ended,
    a_client_that_takes_its_request_back_ends_it_upstream,
    connect_and_extended_connect_are_refused_cleanly,
    the_last_request_of_a_connection_is_told,
    a_stop_lets_streams_finish_and_exits_in_time,
    an_idle_connection_is_closed,
    more_streams_than_allowed_are_refused,
    a_slow_reader_holds_up_the_backend_not_memory,
    an_answer_of_our_own_is_framed_for_http_2,
    what_a_slow_reader_has_been_promised_is_delivered_after_a_goodbye,
    a_slow_reader_that_stops_is_not_waited_for_for_ever,
    streams_that_are_taken_back_at_once_end_the_connection,
    a_blocked_upload_that_is_taken_back_is_let_go,
    trailers_that_cannot_be_taken_are_refused,
    what_a_connection_may_send_ahead_is_configured,
);

/// RFC 9113, section 8.3.1 and 8.2.3; RFC 9110, section 7.6.3.
fn a_request_becomes_one_of_http_1_1(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let request = with(h2::get("/a%20b?q=1"), "cookie", "a=1");
    let request = with(with(request, "cookie", "b=2"), "x-own", "kept");
    let request = with(request, "x-forwarded-for", "6.6.6.6");
    let request = with(request, "te", "trailers");
    let answer = client(&proxy).ask(request, &[], None).unwrap();
    assert_eq!(answer.status(), 200);
    let name = rustix::system::uname();
    let server = name.nodename().to_str().unwrap();
    assert_eq!(
        answer.text(),
        format!(
            "GET /a%20b?q=1 HTTP/1.1\r\nHost: api.test\r\nx-own: kept\r\ncookie: a=1; b=2\r\nVia: 2.0 svidgate\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-Ip: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Server: {server}\r\nX-Forwarded-Host: api.test\r\nX-Forwarded-Port: 80\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        )
    );
    let length = answer.body.len().to_string();
    assert_eq!(
        field(answer.head.headers(), "content-length"),
        Some(length.as_str())
    );
    assert_eq!(field(answer.head.headers(), "transfer-encoding"), None);
    assert!(answer.head.headers().contains_key("date"));
}

fn requests_run_beside_each_other(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        while let Some(head) = read_head(wire) {
            if head.starts_with("GET /slow") {
                released.lock().unwrap().recv().unwrap();
            }
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = client(&proxy);
    let mut send = client.send.clone();
    let (slow, _) = send.send_request(h2::get("/slow"), true).unwrap();
    for _ in 0..20 {
        assert_eq!(client.get("/").unwrap().text(), "ok");
    }
    release.send(()).unwrap();
    assert_eq!(client.run(h2::answer(slow)).unwrap().text(), "ok");
}

fn a_body_flows_both_ways_with_and_without_a_length(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let mut body = Vec::new();
            if head.contains("Content-Length: 3000000\r\n") {
                body = vec![0; 3_000_000];
                wire.read_exact(&mut body).unwrap();
            } else {
                assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
                read_chunks(wire, &mut body);
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            wire.write_all(head.as_bytes()).unwrap();
            wire.write_all(&body).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = client(&proxy);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let announced = with(post("/"), "content-length", "3000000");
    for request in [announced, post("/")] {
        let answer = client.ask(request, &body, None).unwrap();
        assert!(answer.body == body, "{}", answer.body.len());
    }
}

/// Reads a chunked body, and returns what is behind it.
fn read_chunks(wire: &mut dyn Wire, body: &mut Vec<u8>) -> String {
    let line = |wire: &mut dyn Wire| {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            wire.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    };
    loop {
        let size = usize::from_str_radix(line(wire).trim_end(), 16).unwrap();
        if size == 0 {
            let mut trailers = String::new();
            loop {
                let next = line(wire);
                if next == "\r\n" {
                    return trailers;
                }
                trailers.push_str(&next);
            }
        }
        let at = body.len();
        body.resize(at + size, 0);
        wire.read_exact(&mut body[at..]).unwrap();
        assert_eq!(line(wire), "\r\n");
    }
}

/// RFC 9110, section 6.5; RFC 9113, section 8.1.
fn trailers_are_carried_between_versions(on: On) {
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let mut body = Vec::new();
            let trailers = read_chunks(wire, &mut body);
            assert_eq!(body, b"up");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{trailers}\r\n"
            );
            wire.write_all(answer.as_bytes()).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut trailers = HeaderMap::new();
    trailers.append("x-sum", "abc".parse().unwrap());
    let request = with(post("/"), "trailer", "x-sum");
    let answer = client(&proxy)
        .ask(request, b"up", Some(trailers.clone()))
        .unwrap();
    assert_eq!(field(answer.head.headers(), "trailer"), Some("x-sum"));
    assert_eq!(
        (answer.text().as_str(), answer.trailers),
        ("ok", Some(trailers))
    );
    // Names that frame, route or authenticate are no trailers.
    let mut bad = HeaderMap::new();
    bad.append("content-length", "5".parse().unwrap());
    let answer = client(&proxy).ask(post("/"), b"up", Some(bad));
    assert!(answer.is_err() || answer.unwrap().status() == 400);
}

/// RFC 9110, section 15.2.
fn interim_responses_are_carried_between_versions(on: On) {
    let backend = Backend::plain(|wire| {
        if read_head(wire).is_some() {
            wire.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(on, &backend, "");
    let answer = client(&proxy).get("/").unwrap();
    let interim: Vec<_> = answer
        .interim
        .iter()
        .map(|it| (it.status().as_u16(), field(it.headers(), "link")))
        .collect();
    assert_eq!(interim, [(103, Some("</a>")), (102, None)]);
    assert_eq!(answer.text(), "ok");
}

/// RFC 9110, section 8.6.
fn responses_without_content_have_none(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let answer = if head.starts_with("HEAD") {
                "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
            } else if head.contains("/304") {
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"
            } else {
                "HTTP/1.1 204 No Content\r\n\r\n"
            };
            wire.write_all(answer.as_bytes()).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = client(&proxy);
    let mut head = h2::get("/");
    *head.method_mut() = http::Method::HEAD;
    for (request, status, length) in [
        (head, 200, Some("1234")),
        (h2::get("/304"), 304, Some("99")),
        (h2::get("/204"), 204, None),
    ] {
        let answer = client.ask(request, &[], None).unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(field(answer.head.headers(), "content-length"), length);
        assert!(answer.body.is_empty());
    }
    assert_eq!(backend.accepted(), 1);
}

/// RFC 9113, sections 8.1.1, 8.2, 8.2.2 and 8.3.1. The lesson of
/// CVE-2021-39240 and its like.
fn what_http_1_1_could_not_carry_is_refused_and_other_streams_go_on(on: On) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        while let Some(head) = read_head(wire) {
            if head.starts_with("POST") {
                read_chunks(wire, &mut Vec::new());
            }
            log.lock().unwrap().push(head);
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let method = (":method", "GET");
    let scheme = (":scheme", "http");
    let authority = (":authority", "api.test");
    let path = (":path", "/");
    let good = [method, scheme, authority, path];
    let plus = |name, value| [method, scheme, authority, path, (name, value)].to_vec();
    let cases: Vec<Vec<(&str, &str)>> = vec![
        plus("connection", "close"),
        plus("keep-alive", "5"),
        plus("proxy-connection", "close"),
        plus("transfer-encoding", "chunked"),
        plus("upgrade", "websocket"),
        plus("te", "gzip"),
        plus("host", "other.test"),
        plus("X-Upper", "1"),
        plus("bad name", "1"),
        plus("", "1"),
        plus("x", "a\r\nb: c"),
        plus("x", "a\0b"),
        plus("x", " space around "),
        plus("content-length", "+0"),
        plus("content-length", "0x0"),
        plus("content-length", "5"),
        plus(":path", "/again"),
        plus(":unknown", "1"),
        plus(":status", "200"),
        vec![method, scheme, authority],
        vec![scheme, authority, path],
        vec![method, authority, path],
        vec![method, scheme, path],
        vec![method, scheme, authority, (":path", "")],
        vec![method, scheme, authority, (":path", "nope")],
        vec![method, scheme, authority, (":path", "/a b")],
        vec![method, scheme, authority, (":path", "/a\r\nX: y")],
        vec![method, scheme, authority, (":path", "/../admin")],
        vec![method, scheme, authority, (":path", "/%2e%2e/admin")],
        vec![method, scheme, authority, (":path", "http://b/")],
        vec![method, scheme, authority, (":path", "*")],
        vec![method, scheme, (":authority", "a@b"), path],
        vec![method, scheme, (":authority", "a/b"), path],
        vec![method, scheme, (":authority", "a b"), path],
        vec![method, scheme, (":authority", ""), path],
        vec![(":method", "GET / HTTP/1.1\r\nX:"), scheme, authority, path],
        vec![(":method", "TRACE"), scheme, authority, path],
        vec![method, scheme, ("x", "1"), authority, path],
    ];
    // What no HPACK decoder of the crate takes ends the client's connection.
    let is_fatal = |case: &[(&str, &str)]| {
        case.iter().any(|(name, value)| {
            *name == "X-Upper"
                || *name == ":unknown"
                || *name == "bad name"
                || name.is_empty()
                || value.contains(['\r', '\0'])
        })
    };
    for case in &cases {
        let mut client = frames(&proxy);
        // One that goes on beside it.
        client.head(1, &[(":method", "POST"), scheme, authority, path], false);
        client.head(3, case, true);
        let end = client.find(|it| {
            it.kind == h2::GOAWAY
                || it.stream == 3 && matches!(it.kind, h2::HEADERS | h2::RST_STREAM)
        });
        let end = end.unwrap_or_else(|| panic!("{case:?} has ended the connection"));
        match end.kind {
            h2::GOAWAY => {
                assert!(is_fatal(case), "{case:?}");
                continue;
            }
            h2::RST_STREAM => assert_eq!(end.code(), 1, "{case:?}"),
            // Refused, as the backend has seen nothing of it.
            _ => {}
        }
        client.head(5, &good, true);
        assert_eq!(client.end_of(5), Some(Ok(())), "{case:?}");
        client.send(h2::DATA, h2::END_STREAM, 1, b"");
        assert_eq!(client.end_of(1), Some(Ok(())), "{case:?}");
        let seen: Vec<String> = std::mem::take(&mut *seen.lock().unwrap());
        let mut lines: Vec<&str> = seen.iter().filter_map(|it| it.lines().next()).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["GET / HTTP/1.1", "POST / HTTP/1.1"],
            "{case:?} {seen:?}"
        );
    }
}

/// RFC 9113, section 8.1.1: the sum of the DATA is what was announced.
fn content_that_is_not_what_was_announced_is_never_completed(on: On) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        let mut body = Vec::new();
        if read_head(wire).is_some() {
            drop(wire.read_to_end(&mut body));
        }
        log.lock().unwrap().push(String::from_utf8(body).unwrap());
    });
    let proxy = plain_http(on, &backend, "");
    for (data, ends) in [("hel", true), ("hello!", true), ("hello!", false)] {
        let mut client = frames(&proxy);
        let mut fields = h2::request("POST", "/").to_vec();
        fields.push(("content-length", "5"));
        client.head(1, &fields, false);
        let flags = if ends { h2::END_STREAM } else { 0 };
        client.send(h2::DATA, flags, 1, data.as_bytes());
        assert_eq!(client.end_of(1), Some(Err(1)), "{data}");
    }
    // Whatever has come through, it is not five bytes.
    let bodies = eventually("the backend has seen the ends", || {
        let seen = seen.lock().unwrap().clone();
        (seen.len() == backend.accepted()).then_some(seen)
    });
    assert!(bodies.iter().all(|body| body.len() < 5), "{bodies:?}");
}

fn a_response_that_breaks_off_is_reset_not_ended(on: On) {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let backend = Backend::plain(move |wire| {
            if read_head(wire).is_some() {
                wire.write_all(answer.as_bytes()).unwrap();
                wire.finish();
                drop(wire.read(&mut [0]));
            }
        });
        let proxy = plain_http(on, &backend, "");
        let mut client = frames(&proxy);
        client.get(1, "/");
        assert_eq!(client.end_of(1), Some(Err(2)), "{answer}");
    }
}

/// RFC 9113, section 5.4.2: and gRPC's cancellation.
fn a_client_that_takes_its_request_back_ends_it_upstream(on: On) {
    let ends = Arc::new(Mutex::new(0));
    let log = Arc::clone(&ends);
    let backend = Backend::plain(move |wire| {
        if let Some(head) = read_head(wire) {
            if head.contains("/begun") {
                wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun")
                    .unwrap();
            }
            drop(wire.read(&mut [0]));
            *log.lock().unwrap() += 1;
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = frames(&proxy);
    client.get(1, "/waiting");
    client.get(3, "/begun");
    client
        .find(|it| it.kind == h2::DATA && it.stream == 3)
        .unwrap();
    for stream in [1, 3] {
        client.send(h2::RST_STREAM, 0, stream, &8u32.to_be_bytes());
    }
    eventually("both have ended", || {
        (*ends.lock().unwrap() == 2).then_some(())
    });
}

/// RFC 9110, section 9.3.6; RFC 8441.
fn connect_and_extended_connect_are_refused_cleanly(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let mut client = client(&proxy);
    let request = Request::builder()
        .method("CONNECT")
        .uri("api.test:443")
        .body(())
        .unwrap();
    assert_eq!(client.ask(request, &[], None).unwrap().status(), 501);
    let mut raw = frames(&proxy);
    raw.head(
        1,
        &[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", "api.test"),
            (":path", "/chat"),
        ],
        false,
    );
    let end = raw.find(|it| it.stream == 1 && matches!(it.kind, h2::HEADERS | h2::RST_STREAM));
    assert!(end.is_some(), "the connection lives");
    raw.get(3, "/");
    assert_eq!(raw.end_of(3), Some(Ok(())));
    assert_eq!(client.get("/").unwrap().status(), 200);
}

fn the_last_request_of_a_connection_is_told(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "transport.keepAliveMaxRequests = 2");
    let mut client = frames(&proxy);
    client.get(1, "/1");
    assert_eq!(client.end_of(1), Some(Ok(())));
    client.get(3, "/2");
    let goaway = client.find(|it| it.kind == h2::GOAWAY).unwrap();
    assert_eq!(goaway.payload[4..8], [0; 4], "no error");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
    assert_eq!(
        answer.matches("Connection: close\r\n").count(),
        1,
        "{answer}"
    );
}

/// RFC 9113, section 6.8.
fn a_stop_lets_streams_finish_and_exits_in_time(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            released.lock().unwrap().recv().unwrap();
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut busy = frames(&proxy);
    let mut idle = frames(&proxy);
    busy.get(1, "/");
    eventually("it is under way", || {
        (backend.accepted() == 1).then_some(())
    });
    proxy.stop();
    assert_eq!(busy.find(|it| it.kind == h2::GOAWAY).unwrap().code(), 0);
    assert_eq!(idle.find(|it| it.kind == h2::GOAWAY).unwrap().code(), 0);
    release.send(()).unwrap();
    assert_eq!(busy.end_of(1), Some(Ok(())));
    // Neither answers the ping that goes with it, nor closes.
    assert!(proxy.end().unwrap(), "all that was in flight has finished");
}

fn an_idle_connection_is_closed(on: On) {
    let backend = Backend::plain(echo_heads);
    let limits =
        "transport.respondingTimeouts = { readTimeout = \"100ms\", idleTimeout = \"100ms\" }";
    let proxy = plain_http(on, &backend, limits);
    // Silent from the start, after a request, within a head.
    let mut silent = frames(&proxy);
    let mut used = frames(&proxy);
    used.get(1, "/");
    assert_eq!(used.end_of(1), Some(Ok(())));
    let mut dribbling = frames(&proxy);
    dribbling.send(h2::HEADERS, 0, 1, &h2::block(&h2::request("GET", "/")));
    for mut client in [
        silent.0.try_clone(),
        used.0.try_clone(),
        dribbling.0.try_clone(),
    ]
    .map(Result::unwrap)
    {
        drop(client.read_to_end(&mut Vec::new()));
    }
    drop((silent.next(), used.next(), dribbling.next()));
    // A preface that does not go on.
    let mut half = proxy.connect("web");
    half.write_all(b"PRI * HTT").unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

/// RFC 9113, section 5.1.2.
fn more_streams_than_allowed_are_refused(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_http(on, &backend, "http2.maxConcurrentStreams = 2");
    let mut client = frames(&proxy);
    let settings = client.find(|it| it.kind == h2::SETTINGS).unwrap();
    let has = |id: u16, value: u32| {
        settings
            .payload
            .chunks(6)
            .any(|it| it[..2] == id.to_be_bytes() && it[2..] == value.to_be_bytes())
    };
    assert!(has(3, 2), "{settings:?}");
    for stream in [1, 3, 5] {
        client.get(stream, "/");
    }
    assert_eq!(client.end_of(5), Some(Err(7)), "REFUSED_STREAM");
}

/// RFC 9113, section 5.2.
fn a_slow_reader_holds_up_the_backend_not_memory(on: On) {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
            wire.write_all(head).unwrap();
            while wire.write_all(&[b'x'; 10_000]).is_ok() {
                count.fetch_add(10_000, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = frames(&proxy);
    client.get(1, "/");
    client.find(|it| it.kind == h2::DATA).unwrap();
    // The window of the stream is not opened again; sockets on loopback take
    // some megabytes between them.
    let mut last = 0;
    eventually("it stands still", || {
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        let stands = now == last && now > 0;
        last = now;
        #[allow(clippy::disallowed_methods, reason = "to see that nothing moves")]
        std::thread::sleep(std::time::Duration::from_millis(50));
        stands.then_some(())
    });
    assert!(last < 30_000_000, "{last}");
    // Another stream is not held up by the first, but for the window of the
    // connection.
    client.send(h2::WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes());
    client.head(3, &h2::request("POST", "/../x"), true);
    assert_eq!(client.end_of(3), Some(Ok(())));
}

fn an_answer_of_our_own_is_framed_for_http_2(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let mut client = client(&proxy);
    let answer = client.get("/%2e%2e/x").unwrap();
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (400, "400 Bad Request\n")
    );
    let headers = answer.head.headers();
    assert_eq!(
        field(headers, "proxy-status"),
        Some("svidgate; error=http_request_error")
    );
    assert_eq!(field(headers, "content-length"), Some("16"));
    assert_eq!(field(headers, "connection"), None);
    let mut head = h2::get("/%2e%2e/x");
    *head.method_mut() = http::Method::HEAD;
    let answer = client.ask(head, &[], None).unwrap();
    assert_eq!((answer.status(), answer.body.len()), (400, 0));
}

/// What came after a head, and whether the stream has ended well.
fn content_of(client: &mut Frames<std::net::TcpStream>, streams: &[u32]) -> Vec<(usize, bool)> {
    let mut all = vec![(0, false); streams.len()];
    while all.iter().any(|(_, ended)| !ended) {
        let Some(frame) = client.find(|it| matches!(it.kind, h2::DATA | h2::RST_STREAM)) else {
            break;
        };
        let Some(index) = streams.iter().position(|it| *it == frame.stream) else {
            continue;
        };
        assert_ne!(frame.kind, h2::RST_STREAM, "{frame:?}");
        all[index].0 += frame.payload.len();
        all[index].1 |= frame.flags & h2::END_STREAM != 0;
    }
    all
}

/// A client with windows as large as they can be, whose socket takes little.
fn generous(proxy: &Running) -> Frames<std::net::TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(&proxy.address("web").into()).unwrap();
    let stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut client = Frames::client(stream);
    client.send(h2::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    client.send(h2::WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
    client
}

/// RFC 9113, section 6.8: streams that are under way are finished.
fn what_a_slow_reader_has_been_promised_is_delivered_after_a_goodbye(on: On) {
    const EACH: usize = 60_000;
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {EACH}\r\n\r\n");
            wire.write_all(head.as_bytes()).unwrap();
            wire.write_all(&[b'x'; EACH]).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "transport.keepAliveMaxRequests = 40");
    let mut client = generous(&proxy);
    let streams: Vec<u32> = (0..40).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        client.get(*stream, "/");
    }
    // Longer than an idle connection is kept after its goodbye.
    #[allow(clippy::disallowed_methods, reason = "it is slow")]
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(content_of(&mut client, &streams), [(EACH, true); 40]);
}

fn a_slow_reader_that_stops_is_not_waited_for_for_ever(on: On) {
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n";
            wire.write_all(head.as_bytes()).unwrap();
            wire.write_all(&[b'x'; 60_000]).unwrap();
        }
    });
    let limits = "transport.respondingTimeouts.writeTimeout = \"300ms\"";
    let proxy = plain_http(on, &backend, limits);
    let mut client = generous(&proxy);
    for n in 0..40 {
        client.get(2 * n + 1, "/");
    }
    eventually("it is cut", || {
        // A reset tells even those who do not read.
        client.0.take_error().unwrap().map(|error| {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        })
    });
}

/// CVE-2023-44487, by a client that waits until each request has been begun.
fn streams_that_are_taken_back_at_once_end_the_connection(on: On) {
    let ended = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let backend = Backend::plain(move |wire| {
        drop(wire.read_to_end(&mut Vec::new()));
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = frames(&proxy);
    let mut begun = 0;
    for n in 0..600 {
        client.get(2 * n + 1, "/");
        // Its turn is over when the ping is answered.
        client.send(h2::PING, 0, 0, &[7; 8]);
        let answered = client.find(|it| it.kind == h2::GOAWAY || it.kind == h2::PING);
        if answered.is_none_or(|it| it.kind == h2::GOAWAY) {
            break;
        }
        begun = n + 1;
        client.send(h2::RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes());
    }
    assert!((500..=510).contains(&begun), "{begun}");
    // What it did not want is not waited for upstream.
    eventually("the backend is let go", || {
        let ended = ended.load(std::sync::atomic::Ordering::SeqCst);
        (ended >= 500 && ended == backend.accepted()).then_some(())
    });
}

/// RFC 9110, section 6.5.1; RFC 9113, section 8.1.
fn trailers_that_cannot_be_taken_are_refused(on: On) {
    let backend = Backend::plain(|wire| {
        // All that comes, and never a whole request.
        let mut all = Vec::new();
        drop(wire.read_to_end(&mut all));
        assert!(!String::from_utf8(all).unwrap().contains("\r\n0\r\n"));
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = frames(&proxy);
    client.head(1, &h2::request("POST", "/"), false);
    client.send(h2::DATA, 0, 1, b"abc");
    client.head(1, &[("content-length", "3")], true);
    let head = client.find(|it| it.kind == h2::HEADERS).unwrap();
    assert_eq!((head.stream, head.payload[0]), (1, 0x8c), ":status: 400");
    assert_eq!(client.end_of(1), Some(Ok(())));
}

fn what_a_connection_may_send_ahead_is_configured(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "http2.maxBufferedBytes = 100000");
    let mut client = frames(&proxy);
    let opened = client.find(|it| it.kind == h2::WINDOW_UPDATE && it.stream == 0);
    assert_eq!(
        opened.unwrap().payload,
        (100_000_u32 - 65_535).to_be_bytes()
    );
}

fn a_blocked_upload_that_is_taken_back_is_let_go(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        drop(read_head(wire));
        let _released = released.lock().unwrap().recv();
    });
    let proxy = plain_http(on, &backend, "[admin]\naddress = \"127.0.0.1:0\"");
    let client = client(&proxy);
    let mut send = client.send.clone();
    let (_response, mut stream) = send.send_request(post("/"), false).unwrap();
    let silence = std::time::Duration::from_secs(1);
    client.run(async {
        loop {
            stream.reserve_capacity(10_000);
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let Ok(Some(Ok(room))) = tokio::time::timeout(silence, room).await else {
                break;
            };
            stream.send_data(Bytes::from(vec![0; room]), false).unwrap();
        }
        stream.send_reset(::h2::Reason::CANCEL);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    });
    let gone = "svidgate_requests_total{entrypoint=\"web\",service=\"api\",class=\"gone\"} ";
    eventually("it is noticed while the backend takes nothing", || {
        (proxy.metric(gone) == Some(1.0)).then_some(())
    });
    drop(release);
}
