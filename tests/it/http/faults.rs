//! Upstreams and clients that fail, and the end of the proxy.

use super::*;
use crate::support::h2::{self, Frames};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

crate::on_both!(
    a_truncated_response_is_never_completed,
    a_truncated_request_is_never_completed,
    a_stale_connection_is_replaced_for_an_idempotent_request,
    a_stale_connection_fails_a_post,
    the_next_server_is_tried_when_one_refuses,
    servers_take_turns_by_weight,
    in_flight_requests_finish_when_the_proxy_stops,
    what_does_not_finish_in_time_is_reported,
    a_connection_that_has_spoken_is_not_stale,
    a_client_that_has_gone_does_not_wait_for_a_silent_backend,
    a_body_sent_where_none_may_be_is_not_the_next_response,
    a_client_that_goes_away_is_not_dialled_for,
    so_many_requests_may_be_sent_ahead,
);

/// Serves one request per connection and then closes without saying so.
fn closes_after_one(wire: &mut dyn Wire) {
    if read_head(wire).is_some() {
        wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        // Only once the next request is on its way, so that it is lost.
        drop(wire.read(&mut [0]));
        wire.cut();
    }
}

fn two_servers(on: On, first: &str, second: &str) -> Running {
    Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{first}", weight = 3 }}, {{ url = "http://{second}", weight = 1 }}]
"#
        ),
    )
}

fn a_truncated_response_is_never_completed(on: On) {
    for (answer, seen) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
        ),
    ] {
        let backend = answering(answer);
        let proxy = plain_http(on, &backend, "");
        let got = proxy.get("web", "/");
        // A reset may overtake what was sent; what arrives is never whole.
        assert!(got.is_empty() || got.ends_with("<reset>"), "{got}");
        assert!(got == "<reset>" || got.starts_with(seen), "{got}");
        assert!(
            !got.contains("0\r\n\r\n<reset>") || got.contains("10\r\n\r\n"),
            "{got}"
        );
    }
}

fn a_truncated_request_is_never_completed(on: On) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        read_head(wire).unwrap();
        let mut body = Vec::new();
        // The proxy cuts its side; a clean end would look like a whole body.
        let end = wire.read_to_end(&mut body).is_ok();
        log.lock()
            .unwrap()
            .push((String::from_utf8(body).unwrap(), end));
    });
    let proxy = plain_http(on, &backend, "");
    for body in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let mut client = proxy.connect("web");
        client
            .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes())
            .unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client).replace("<reset>", ""), "");
    }
    let seen = eventually("three requests", || {
        let seen = seen.lock().unwrap();
        (seen.len() == 3).then(|| seen.clone())
    });
    for (body, _) in seen {
        assert!(body == "hello" || body == "5\r\nhello\r\n", "{body}");
    }
}

fn a_stale_connection_is_replaced_for_an_idempotent_request(on: On) {
    let backend = Backend::plain(closes_after_one);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert_eq!(backend.accepted(), 2);
}

fn a_stale_connection_fails_a_post(on: On) {
    let backend = Backend::plain(closes_after_one);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    );
    assert!(answer.contains("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert_eq!(backend.accepted(), 1);
}

fn the_next_server_is_tried_when_one_refuses(on: On) {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let backend = Backend::plain(echo_heads);
    let proxy = two_servers(on, &gone, &backend.address.to_string());
    for _ in 0..4 {
        assert!(proxy.get("web", "/").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    let nobody = two_servers(on, &gone, &gone);
    let answer = nobody.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("Proxy-Status: svidgate; error=connection_refused\r\n"),
        "{answer}"
    );
}

fn servers_take_turns_by_weight(on: On) {
    let (a, b) = (Backend::plain(echo_heads), Backend::plain(echo_heads));
    let proxy = two_servers(on, &a.address.to_string(), &b.address.to_string());
    for _ in 0..8 {
        proxy.talk("web", "GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    }
    // Connections are kept, so each server has one.
    assert_eq!((a.accepted(), b.accepted()), (1, 1));
}

fn in_flight_requests_finish_when_the_proxy_stops(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        read_head(wire).unwrap();
        wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            .unwrap();
        released.lock().unwrap().recv().unwrap();
        wire.write_all(b"cd").unwrap();
        drop(wire.read(&mut [0]));
    });
    let proxy = plain_http(on, &backend, "");
    let mut idle = proxy.connect("web");
    let mut busy = proxy.connect("web");
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    read_head(&mut busy).unwrap();
    proxy.stop();
    // An idle connection ends at once, a new one is refused.
    assert_eq!(read_to_end(&mut idle), "");
    let address = proxy.address("web");
    eventually("the port is closed", || {
        std::net::TcpStream::connect(address).err()
    });
    release.send(()).unwrap();
    assert_eq!(read_to_end(&mut busy), "abcd");
    assert!(proxy.end().unwrap());
}

fn what_does_not_finish_in_time_is_reported(on: On) {
    let backend = Backend::plain(|wire| {
        read_head(wire).unwrap();
        drop(wire.read_to_end(&mut Vec::new()));
    });
    let proxy = plain_http(on, &backend, "transport.lifeCycle.graceTimeOut = \"50ms\"");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    eventually("the backend has it", || {
        (backend.accepted() == 1).then_some(())
    });
    assert!(!proxy.end().unwrap());
}

fn a_connection_that_has_spoken_is_not_stale(on: On) {
    let backend = Backend::plain(|wire| {
        read_head(wire).unwrap();
        wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        read_head(wire).unwrap();
        wire.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").unwrap();
        wire.finish();
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(
        answer.contains("103 Early Hints\r\n\r\nHTTP/1.1 502 Bad Gateway"),
        "{answer}"
    );
    assert_eq!(backend.accepted(), 1);
}

fn a_client_that_has_gone_does_not_wait_for_a_silent_backend(on: On) {
    let (tell, told) = std::sync::mpsc::channel();
    let backend = Backend::plain(move |wire| {
        read_head(wire).unwrap();
        // Ends only when the proxy lets go.
        drop(wire.read_to_end(&mut Vec::new()));
        tell.send(()).unwrap();
    });
    let proxy = plain_http(
        on,
        &backend,
        "transport.respondingTimeouts.idleTimeout = \"100ms\"",
    );
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    told.recv_timeout(crate::support::DEADLINE).unwrap();
}

fn a_body_sent_where_none_may_be_is_not_the_next_response(on: On) {
    let backend = Backend::plain(|wire| {
        while read_head(wire).is_some() {
            let sent = wire.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            );
            if sent.is_err() {
                return;
            }
        }
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(backend.accepted(), 2);
}

/// A client that has gone at once, with a reset: of its stream, or of all.
fn come_and_go(proxy: &Running, http2: bool) {
    let mut stream = proxy.connect("web");
    if http2 {
        let mut client = Frames::client(stream);
        client.head(1, &h2::request("POST", "/"), false);
        client.send(h2::DATA, 0, 1, b"content");
        client.send(h2::PING, 0, 0, &[1; 8]);
        client.find(|it| it.kind == h2::PING).unwrap();
        client.send(h2::RST_STREAM, 0, 1, &8u32.to_be_bytes());
        client.send(h2::PING, 0, 0, &[2; 8]);
        client.find(|it| it.payload == [2; 8]).unwrap();
    } else {
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\ncontent")
            .unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
}

/// What is known of a backend's connections: how many have a first byte, and
/// how many have ended.
#[derive(Default)]
struct Seen {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

fn a_client_that_goes_away_is_not_dialled_for(on: On) {
    let seen = Arc::new(Seen::default());
    let told = Arc::clone(&seen);
    // It never answers the first message of TLS.
    let backend = Backend::plain(move |wire| {
        drop(wire.read(&mut [0]));
        told.begun.fetch_add(1, Ordering::SeqCst);
        drop(wire.read_to_end(&mut Vec::new()));
        told.ended.fetch_add(1, Ordering::SeqCst);
    });
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
serversTransport = "t"
servers = [{{ url = "https://{0}" }}, {{ url = "https://{0}" }}]
[http.serversTransports.t]
rootCAs = ["fixtures/pki/ca.pem"]
"#,
            backend.address
        ),
    );
    for http2 in [false, true] {
        let begun = seen.begun.load(Ordering::SeqCst);
        come_and_go(&proxy, http2);
        eventually("it is dialled", || {
            (seen.begun.load(Ordering::SeqCst) > begun).then_some(())
        });
        let since = Instant::now();
        eventually("it is let go", || {
            (seen.ended.load(Ordering::SeqCst) > begun).then_some(())
        });
        // A handshake may take 10 s.
        assert!(since.elapsed().as_secs() < 8, "{:?}", since.elapsed());
        assert_eq!(seen.begun.load(Ordering::SeqCst), begun + 1, "no other");
    }
}

fn so_many_requests_may_be_sent_ahead(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "transport.maxPipelinedRequests = 3");
    let requests: String = (0..6)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    let answer = proxy.talk("web", &requests);
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answer}");
    assert_eq!(
        answer.matches("Connection: close\r\n").count(),
        1,
        "{answer}"
    );
    // One after the other there may be more.
    let mut client = proxy.connect("web");
    for _ in 0..6 {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let (head, _) = crate::support::proxy::answer(&mut client);
        assert!(!head.contains("Connection: close"), "{head}");
    }
}
