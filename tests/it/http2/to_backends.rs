//! Backends that speak HTTP/2, behind HTTP/1.1 and HTTP/2 clients.

use super::*;
use std::time::Duration;

crate::on_both!(
    a_spiffe_backend_that_prefers_http_2_gets_it_on_one_connection,
    without_the_offer_or_the_choice_it_is_http_1_1,
    h2c_is_spoken_by_prior_knowledge,
    a_body_flows_both_ways,
    a_body_just_below_the_limit_is_taken,
    an_upload_that_the_backend_does_not_take_stops_and_is_504,
    trailers_and_interim_responses_come_through,
    what_was_refused_or_not_begun_is_sent_again_with_its_content,
    a_stream_that_is_reset_hurts_no_other,
    malformed_responses_are_a_bad_gateway,
    content_where_none_may_be_is_not_passed_on,
    a_backend_that_does_not_answer_a_ping_is_given_up,
    an_upgrade_goes_over_http_1_1,
    an_early_answer_is_delivered,
    a_silent_response_is_cut,
    lost_trust_ends_a_shared_connection_after_the_grace,
    a_connection_that_nobody_uses_is_closed,
    a_burst_shares_one_connection_from_the_start,
    a_client_that_goes_away_resets_its_stream_only,
    clients_that_do_not_read_hold_up_no_other,
    an_early_answer_right_before_the_end_is_whole,
    a_refused_exchange_goes_where_there_is_room,
    an_alert_of_the_backend_is_told_as_one,
);

fn path_of(request: &Request<::h2::RecvStream>) -> String {
    request.uri().path().to_owned()
}

fn spiffe_backend(world: &World, protocols: &[&[u8]]) -> H2Backend {
    let config = offering(&world.server_config("spiffe://example.org/api"), protocols);
    H2Backend::start(Some(config), |request, respond| async move {
        let authority = request.uri().authority().unwrap().to_string();
        let has = |name| request.headers().contains_key(name);
        let odd = ["connection", "host", "transfer-encoding", "keep-alive"];
        assert!(!odd.into_iter().any(has), "{request:?}");
        say(respond, format!("{} {authority}", path_of(&request)));
    })
}

fn spiffe(world: &World, on: On, address: std::net::SocketAddr, more: &str) -> Running {
    Running::start(
        on,
        &format!(
            r#"{}
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://{address}" }}]
[http.serversTransports.t]
{more}
[http.serversTransports.t.spiffe]
{IDS}
"#,
            world
                .spiffe_table()
                .replace("[admin]", "trustLossGrace = \"300ms\"\n[admin]")
        ),
    )
}

fn a_spiffe_backend_that_prefers_http_2_gets_it_on_one_connection(on: On) {
    let world = World::new();
    let backend = spiffe_backend(&world, &[b"h2", b"http/1.1"]);
    let proxy = spiffe(&world, on, backend.address, "");
    for path in ["/1", "/2"] {
        let answer = proxy.get("web", path);
        let body = format!("\r\n\r\n{:x}\r\n{path} api.test\r\n0\r\n\r\n", 11);
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&body),
            "{answer}"
        );
    }
    let mut client = client(&proxy);
    for _ in 0..20 {
        assert_eq!(client.get("/3").unwrap().text(), "/3 api.test");
    }
    assert_eq!(backend.accepted(), 1);
    let shared = "svidgate_pool_shared_connections{transport=\"http.serversTransports.t\"";
    let page = proxy.admin("/metrics");
    let line = page.lines().find(|line| line.starts_with(shared)).unwrap();
    assert!(line.ends_with(" 1"), "{line}");
}

fn without_the_offer_or_the_choice_it_is_http_1_1(on: On) {
    let world = World::new();
    let config = world.server_config("spiffe://example.org/api");
    for (protocols, more) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], "disableHTTP2 = true"),
        (&[b"http/1.1".as_slice()], ""),
        (&[], ""),
    ] {
        let backend = Backend::tls(offering(&config, protocols), echo_heads);
        let proxy = spiffe(&world, on, backend.address, more);
        let answer = proxy.talk(
            "web",
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        );
        assert!(answer.contains("GET /1 HTTP/1.1\r\n"), "{answer}");
        assert!(answer.contains("GET /2 HTTP/1.1\r\n"), "{answer}");
        assert_eq!(backend.accepted(), 1);
    }
}

fn h2c_is_spoken_by_prior_knowledge(on: On) {
    let backend = H2Backend::start(None, |request, respond| async move {
        assert_eq!(request.uri().scheme_str(), Some("http"));
        let via = field(request.headers(), "via").unwrap().to_owned();
        say(respond, via);
    });
    let proxy = h2c(on, backend.address, "");
    assert!(proxy.get("web", "/").contains("\r\n1.1 svidgate\r\n"));
    assert_eq!(client(&proxy).get("/").unwrap().text(), "2.0 svidgate");
}

fn echo() -> H2Backend {
    H2Backend::start(None, |request, mut respond| async move {
        let mut recv = request.into_body();
        let body = h2::read(&mut recv).await.unwrap();
        let trailers = recv.trailers().await.unwrap();
        let stream = respond.send_response(Response::new(()), false).unwrap();
        drop(h2::upload(stream, body.into(), trailers).await);
    })
}

fn a_body_flows_both_ways(on: On) {
    let backend = echo();
    let proxy = h2c(on, backend.address, "");
    let body: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let answer = client(&proxy).ask(post("/"), &body, None).unwrap();
    assert!(answer.body == body, "{}", answer.body.len());
    // From HTTP/1.1, twice on one connection, in both framings.
    let mut client = proxy.connect("web");
    let text = "x".repeat(200_000);
    for request in [
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n{text}"),
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n{text}\r\n0\r\n\r\n"
        ),
    ] {
        let mut writer = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(request.as_bytes()).unwrap());
        let head = read_head(&mut client).unwrap();
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        let mut got = 0;
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                line.push(byte[0]);
            }
            let line = String::from_utf8(line).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            client.read_exact(&mut vec![0; size + 2]).unwrap();
            if size == 0 {
                break;
            }
            got += size;
        }
        assert_eq!(got, 200_000);
        sender.join().unwrap();
    }
    assert_eq!(backend.accepted(), 1);
}

fn trailers_and_interim_responses_come_through(on: On) {
    let backend = H2Backend::start(None, |request, mut respond| async move {
        let mut hints = Response::new(());
        *hints.status_mut() = http::StatusCode::EARLY_HINTS;
        hints.headers_mut().append("link", "</a>".parse().unwrap());
        respond.send_informational(hints).unwrap();
        let mut recv = request.into_body();
        let body = h2::read(&mut recv).await.unwrap();
        let trailers = recv.trailers().await.unwrap();
        let stream = respond.send_response(Response::new(()), false).unwrap();
        drop(h2::upload(stream, body.into(), trailers).await);
    });
    let proxy = h2c(on, backend.address, "");
    let mut trailers = HeaderMap::new();
    trailers.append("x-sum", "abc".parse().unwrap());
    let answer = client(&proxy).ask(post("/"), b"up", Some(trailers.clone()));
    let answer = answer.unwrap();
    assert_eq!(answer.interim.len(), 1);
    assert_eq!(
        (answer.text().as_str(), answer.trailers),
        ("up", Some(trailers))
    );
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nup\r\n0\r\nX-Sum: abc\r\n\r\n";
    assert_eq!(
        proxy.talk("web", request),
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nup\r\n0\r\nx-sum: abc\r\n\r\n"
    );
    // Who does not take them gets none.
    let request = request.replace("TE: trailers\r\n", "");
    assert!(
        proxy
            .talk("web", &request)
            .ends_with("2\r\nup\r\n0\r\n\r\n")
    );
}

fn a_body_just_below_the_limit_is_taken(on: On) {
    let backend = echo();
    let limit = "[entryPoints.web.http]\nmaxRequestBodyBytes = 100000";
    let proxy = h2c(on, backend.address, limit);
    for size in [8_191, 8_192, 40_000, 60_000, 80_000, 100_000] {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        );
        let answer = proxy.talk("web", &(head + &"x".repeat(size)));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{size}: {answer:.100}");
        assert_eq!(answer.matches('x').count(), size);
    }
}

fn an_upload_that_the_backend_does_not_take_stops_and_is_504(on: On) {
    // It gives no more than the window that every stream begins with.
    let backend = Backend::plain(|wire| {
        Frames::server(wire).find(|_| false);
    });
    let limit = "[entryPoints.web.transport.respondingTimeouts]\nwriteTimeout = \"300ms\"";
    let proxy = h2c(on, backend.address, limit);
    let mut client = proxy.connect("web");
    let mut writer = client.try_clone().unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
    writer.write_all(head.as_bytes()).unwrap();
    // In pieces, and slowly: each was taken for progress once.
    let sender = std::thread::spawn(move || {
        let mut pieces = 0;
        while pieces < 3000 && writer.write_all(&[b'x'; 16 << 10]).is_ok() {
            pieces += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        pieces
    });
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    drop(client);
    assert!(sender.join().unwrap() < 3000);
}

/// RFC 9113, sections 6.8 and 8.7.
fn what_was_refused_or_not_begun_is_sent_again_with_its_content(on: On) {
    let tries = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&tries);
    let backend = Backend::plain(move |wire| {
        let nth = {
            let mut log = log.lock().unwrap();
            log.push(String::new());
            log.len()
        };
        let mut frames = Frames::server(wire);
        let Some(asked) = frames.find(|it| it.kind == h2::HEADERS) else {
            return;
        };
        let mut body = Vec::new();
        let mut ended = asked.flags & h2::END_STREAM != 0;
        while !ended {
            let Some(data) = frames.find(|it| it.kind == h2::DATA) else {
                return;
            };
            body.extend(data.payload);
            ended = data.flags & h2::END_STREAM != 0;
        }
        log.lock().unwrap()[nth - 1] = String::from_utf8(body).unwrap();
        match nth {
            1 => frames.send(h2::RST_STREAM, 0, asked.stream, &7u32.to_be_bytes()),
            2 => {
                frames.send(h2::GOAWAY, 0, 0, &[0; 8]);
                frames.find(|_| false);
            }
            _ => {
                frames.head(asked.stream, &[(":status", "204")], true);
                frames.find(|_| false);
            }
        }
    });
    let proxy = h2c(on, backend.address, "");
    let answer = client(&proxy).ask(post("/"), b"the content", None).unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(*tries.lock().unwrap(), ["the content"; 3]);
}

/// What has begun may have had an effect: it is not sent again.
fn a_stream_that_is_reset_hurts_no_other(on: On) {
    let (release, released) = tokio::sync::watch::channel(false);
    let count = Arc::new(Mutex::new(0));
    let log = Arc::clone(&count);
    let backend = H2Backend::start(None, move |request, mut respond| {
        let mut released = released.clone();
        let path = path_of(&request);
        if path == "/reset" {
            *log.lock().unwrap() += 1;
        }
        async move {
            match path.as_str() {
                "/reset" => respond.send_reset(::h2::Reason::INTERNAL_ERROR),
                "/late" => {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from("begun"), false).unwrap();
                    stream.send_reset(::h2::Reason::CANCEL);
                }
                _ => {
                    released.wait_for(|it| *it).await.unwrap();
                    say(respond, "ok");
                }
            }
        }
    });
    let proxy = h2c(on, backend.address, "");
    let mut client = client(&proxy);
    let mut send = client.send.clone();
    let (slow, _) = send.send_request(h2::get("/slow"), true).unwrap();
    assert_eq!(client.get("/reset").unwrap().status(), 502);
    // A reset may overtake what was sent before it.
    let late = client.get("/late");
    assert!(late.is_err() || late.unwrap().status() == 502);
    assert_eq!(*count.lock().unwrap(), 1);
    release.send(true).unwrap();
    assert_eq!(client.run(h2::answer(slow)).unwrap().text(), "ok");
    assert_eq!(backend.accepted(), 1);
}

/// RFC 9113, sections 8.1.1, 8.2, 8.3.2 and 8.6.
fn malformed_responses_are_a_bad_gateway(on: On) {
    let ok = (":status", "200");
    for fields in [
        vec![("x", "no status")],
        vec![(":status", "2000")],
        vec![(":status", "99")],
        vec![(":status", "600")],
        vec![(":status", "101"), ("upgrade", "websocket")],
        vec![ok, ("connection", "close")],
        vec![ok, ("transfer-encoding", "chunked")],
        vec![ok, ("upgrade", "x")],
        vec![ok, ("X-Upper", "1")],
        vec![ok, ("x", "a\r\nb: c")],
        vec![ok, ("x", "a\0b")],
        vec![ok, ("content-length", "-1")],
        vec![ok, ("content-length", "5"), ("content-length", "6")],
        vec![ok, ("content-length", "5")],
    ] {
        let copy = fields.clone();
        let backend = Backend::plain(move |wire| {
            let mut frames = Frames::server(wire);
            if let Some(asked) = frames.find(|it| it.kind == h2::HEADERS) {
                frames.head(asked.stream, &copy, true);
                frames.find(|_| false);
            }
        });
        let proxy = h2c(on, backend.address, "");
        let answer = proxy.get("web", "/");
        assert!(
            answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{fields:?}: {answer}"
        );
    }
    // Not HTTP/2 at all, and nothing at all.
    for words in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let backend = Backend::plain(move |wire| {
            drop(wire.read(&mut [0; 24]));
            wire.write_all(words.as_bytes()).unwrap();
            wire.finish();
            drop(wire.read_to_end(&mut Vec::new()));
        });
        let proxy = h2c(on, backend.address, "");
        let answer = proxy.get("web", "/");
        assert!(answer.starts_with("HTTP/1.1 502 "), "{words}: {answer}");
    }
}

/// RFC 9110, sections 6.4.1 and 8.6.
fn content_where_none_may_be_is_not_passed_on(on: On) {
    for (method, fields, data) in [
        (
            "HEAD",
            &[(":status", "200"), ("content-length", "5")][..],
            "hello",
        ),
        ("GET", &[(":status", "304")], "HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", &[(":status", "204")], "HTTP/1.1 200 OK\r\n\r\n"),
        (
            "GET",
            &[(":status", "200"), ("content-length", "2")],
            "hello",
        ),
    ] {
        let backend = Backend::plain(move |wire| {
            let mut frames = Frames::server(wire);
            if let Some(asked) = frames.find(|it| it.kind == h2::HEADERS) {
                frames.head(asked.stream, fields, false);
                frames.send(h2::DATA, h2::END_STREAM, asked.stream, data.as_bytes());
                frames.find(|_| false);
            }
        });
        let proxy = h2c(on, backend.address, "");
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut client = proxy.connect("web");
        client.write_all(request.as_bytes()).unwrap();
        let answer = crate::support::proxy::read_to_end(&mut client);
        assert!(!answer.contains(data), "{answer}");
        // Reset, or refused: never a whole answer and the connection kept.
        assert!(
            answer.ends_with("<reset>") || answer.starts_with("HTTP/1.1 502 "),
            "{method} {fields:?}: {answer}"
        );
    }
}

fn a_backend_that_does_not_answer_a_ping_is_given_up(on: On) {
    let pings = Arc::new(Mutex::new(0));
    let log = Arc::clone(&pings);
    let backend = Backend::plain(move |wire| {
        let mut frames = Frames::server(wire);
        while let Some(frame) = frames.next() {
            if frame.kind == h2::PING {
                *log.lock().unwrap() += 1;
                // The first one is answered.
                if *log.lock().unwrap() == 1 {
                    frames.send(h2::PING, h2::ACK, 0, &frame.payload);
                }
            }
        }
    });
    let timeouts = "forwardingTimeouts = { readIdleTimeout = \"50ms\", pingTimeout = \"100ms\" }";
    let proxy = h2c(on, backend.address, timeouts);
    let answer = proxy.get("web", "/");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(
        *pings.lock().unwrap() % 2,
        0,
        "one was answered, one was not"
    );
}

fn an_upgrade_goes_over_http_1_1(on: On) {
    let world = World::new();
    let config = world.server_config("spiffe://example.org/api");
    let config = offering(&config, &[b"h2", b"http/1.1"]);
    let backend = Backend::tls(config, |wire| {
        // Over HTTP/2 it would be the preface.
        let head = read_head(wire).unwrap();
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        wire.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi").unwrap();
        wire.finish();
        drop(wire.read(&mut [0]));
    });
    let proxy = spiffe(&world, on, backend.address, "");
    let answer = proxy.talk(
        "web",
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(
        answer,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
    );
}

fn an_early_answer_is_delivered(on: On) {
    let backend = H2Backend::start(None, |_, mut respond| async move {
        let mut head = Response::new(());
        *head.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
        respond.send_response(head, true).unwrap();
    });
    let proxy = h2c(on, backend.address, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nonly this")
        .unwrap();
    assert_eq!(
        crate::support::proxy::read_to_end(&mut client),
        "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = super::client(&proxy).ask(post("/"), &vec![0; 500_000], None);
    assert_eq!(answer.unwrap().status(), 413);
}

fn a_silent_response_is_cut(on: On) {
    let backend = H2Backend::start(None, |_, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from("begun"), false).unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let proxy = h2c(
        on,
        backend.address,
        "forwardingTimeouts.streamIdleTimeout = \"100ms\"",
    );
    let answer = proxy.get("web", "/");
    assert!(answer.ends_with("<reset>"), "{answer}");
    let mut client = frames(&proxy);
    client.get(1, "/");
    assert_eq!(client.end_of(1), Some(Err(2)));
}

fn lost_trust_ends_a_shared_connection_after_the_grace(on: On) {
    let world = World::new();
    let config = world.server_config("spiffe://example.org/api");
    let config = offering(&config, &[b"h2"]);
    let backend = H2Backend::start(Some(config), |request, mut respond| async move {
        if path_of(&request) == "/open" {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from("begun"), false).unwrap();
            std::future::pending::<()>().await;
            drop(stream);
        } else if path_of(&request) == "/waiting" {
            std::future::pending::<()>().await;
        }
        say(respond, "ok");
    });
    let proxy = spiffe(&world, on, backend.address, "");
    let mut client = frames(&proxy);
    client.get(1, "/open");
    client.find(|it| it.kind == h2::DATA).unwrap();
    client.get(3, "/waiting");
    let other = crate::support::pki::Authority::new("example.org");
    let before = std::time::Instant::now();
    world.trust(&[&other]);
    // The second had not begun: an answer says why.
    assert_eq!(client.ends_of([1, 3]), [Some(Err(2)), Some(Ok(()))]);
    assert!(before.elapsed() >= Duration::from_millis(200));
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 502 "));
    world.trust(&[&world.ca]);
    eventually("trusted again", || {
        proxy
            .get("web", "/")
            .starts_with("HTTP/1.1 200 ")
            .then_some(())
    });
}

fn a_connection_that_nobody_uses_is_closed(on: On) {
    let backend = echo();
    let proxy = h2c(
        on,
        backend.address,
        "forwardingTimeouts.idleConnTimeout = \"50ms\"",
    );
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 200 "));
    eventually("it is closed", || {
        let page = proxy.admin("/metrics");
        let line = page
            .lines()
            .find(|it| it.starts_with("svidgate_pool_shared_connections{"));
        line.unwrap().ends_with(" 0").then_some(())
    });
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 200 "));
    assert_eq!(backend.accepted(), 2);
}

fn a_burst_shares_one_connection_from_the_start(on: On) {
    let backend = H2Backend::start(None, |_, respond| async move { say(respond, "ok") });
    let proxy = h2c(on, backend.address, "");
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = proxy.connect("web");
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .unwrap();
            client
        })
        .collect();
    for mut client in clients {
        let answer = crate::support::proxy::read_to_end(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(backend.accepted(), 1);
}

fn a_client_that_goes_away_resets_its_stream_only(on: On) {
    let reset = Arc::new(Mutex::new(0));
    let log = Arc::clone(&reset);
    let backend = H2Backend::start(None, move |request, mut respond| {
        let log = Arc::clone(&log);
        async move {
            if path_of(&request) == "/waiting" {
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                assert_eq!(reason.unwrap(), ::h2::Reason::CANCEL);
                *log.lock().unwrap() += 1;
                return;
            }
            say(respond, "ok");
        }
    });
    let proxy = h2c(on, backend.address, "");
    let mut other = client(&proxy);
    assert_eq!(other.get("/").unwrap().text(), "ok");
    let mut client = frames(&proxy);
    client.get(1, "/waiting");
    client.get(3, "/");
    assert_eq!(client.end_of(3), Some(Ok(())));
    drop(client);
    eventually("its stream is reset", || {
        (*reset.lock().unwrap() == 1).then_some(())
    });
    assert_eq!(other.get("/").unwrap().text(), "ok");
    assert_eq!(backend.accepted(), 1);
}

/// They share a connection, and so its window.
fn clients_that_do_not_read_hold_up_no_other(on: On) {
    let backend = H2Backend::start(None, |request, mut respond| async move {
        if path_of(&request) == "/large" {
            let stream = respond.send_response(Response::new(()), false).unwrap();
            drop(h2::upload(stream, Bytes::from(vec![0; 20_000_000]), None).await);
            return;
        }
        say(respond, vec![b'x'; 50_000]);
    });
    let proxy = h2c(on, backend.address, "");
    let mut deaf = Vec::new();
    for _ in 0..40 {
        let mut client = proxy.connect("web");
        client
            .write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        // It has begun, and goes as far as it can.
        client.read_exact(&mut [0; 100]).unwrap();
        deaf.push(client);
    }
    let mut client = client(&proxy);
    for _ in 0..10 {
        assert_eq!(client.get("/small").unwrap().body.len(), 50_000);
    }
    assert_eq!(backend.accepted(), 1);
    drop(deaf);
}

/// RFC 9113, section 8.1: a backend need not wait for the whole request.
fn an_early_answer_right_before_the_end_is_whole(on: On) {
    let (noticed, was_noticed) = std::sync::mpsc::channel();
    let backend = Backend::plain(move |wire| {
        let mut frames = Frames::server(wire);
        let Some(asked) = frames.find(|it| it.kind == h2::HEADERS) else {
            return;
        };
        let fields = h2::block(&[(":status", "413"), ("content-length", "3")]);
        // In one piece with the end of the connection.
        let mut whole = Vec::new();
        for (kind, flags, payload) in [
            (h2::HEADERS, h2::END_HEADERS, fields.as_slice()),
            (h2::DATA, h2::END_STREAM, b"no!"),
        ] {
            whole.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
            whole.extend([kind, flags]);
            whole.extend(asked.stream.to_be_bytes());
            whole.extend(payload);
        }
        frames.0.write_all(&whole).unwrap();
        frames.0.finish();
        drop(frames.0.read_to_end(&mut Vec::new()));
        noticed.send(()).unwrap_or_default();
    });
    let proxy = h2c(on, backend.address, "");
    for _ in 0..20 {
        let mut client = proxy.connect("web");
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nonly this")
            .unwrap();
        assert_eq!(
            crate::support::proxy::read_to_end(&mut client),
            "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"
        );
        // The next request must not come before the end of this connection is
        // known: it would be sent on it, and a POST is not sent twice.
        was_noticed.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}

fn a_refused_exchange_goes_where_there_is_room(on: On) {
    let (release, released) = tokio::sync::watch::channel(0);
    let refusing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let refuses = Arc::clone(&refusing);
    let backend = H2Backend::start(None, move |request, mut respond| {
        let mut released = released.clone();
        let refused = path_of(&request) == "/refused"
            && refuses.swap(false, std::sync::atomic::Ordering::SeqCst);
        async move {
            if refused {
                respond.send_reset(::h2::Reason::REFUSED_STREAM);
                return;
            }
            if let Ok(number) = path_of(&request)[1..].parse::<u32>() {
                released.wait_for(|it| *it >= number).await.unwrap();
            }
            say(respond, "ok");
        }
    });
    let proxy = h2c(on, backend.address, "");
    let mut client = client(&proxy);
    let mut send = client.send.clone();
    let (one, _) = send.send_request(h2::get("/1"), true).unwrap();
    // Refused beside the first, it gets a connection of its own.
    assert_eq!(client.get("/refused").unwrap().text(), "ok");
    assert_eq!(backend.accepted(), 2);
    // Both have room: neither a third, nor the one that is full.
    let (two, _) = send.send_request(h2::get("/1"), true).unwrap();
    let (three, _) = send.send_request(h2::get("/1"), true).unwrap();
    release.send(1).unwrap();
    for asked in [one, two, three] {
        assert_eq!(client.run(h2::answer(asked)).unwrap().text(), "ok");
    }
    assert_eq!(backend.accepted(), 2);
}

/// In TLS 1.3 a server refuses a client's certificate after our handshake is
/// over: it is the first thing that a connection says.
fn an_alert_of_the_backend_is_told_as_one(on: On) {
    let world = World::new();
    let other = crate::support::pki::Authority::new("example.org");
    let own = world.leaf("spiffe://example.org/api");
    let config = crate::support::backend::server_config(&own, &[other.der()]);
    let config = offering(&config, &[b"h2"]);
    let backend = H2Backend::start(Some(config), |_, respond| async move { say(respond, "ok") });
    let proxy = spiffe(&world, on, backend.address, "");
    for _ in 0..5 {
        let answer = proxy.get("web", "/");
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("error=tls_alert_received\r\n"), "{answer}");
    }
}
