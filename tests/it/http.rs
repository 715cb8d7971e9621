//! HTTP/1.1 through the proxy. Wire text is written out in full.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use crate::support::backend::{Backend, Wire, echo_bytes, echo_heads, read_head};
use crate::support::eventually;
use crate::support::proxy::{On, Running, read_to_end};
use crate::world::{World, plain_http};

crate::on_both!(
    a_request_reaches_a_spiffe_backend_with_the_proxys_fields,
    hop_by_hop_fields_and_what_connection_names_are_removed,
    forwarding_claims_of_strangers_are_replaced,
    forwarding_claims_of_trusted_peers_are_kept_and_extended,
    requests_on_one_connection_share_an_upstream_connection,
    pipelined_requests_are_answered_in_order,
    a_body_with_a_length_is_streamed_both_ways,
    a_chunked_body_is_decoded_and_framed_anew,
    a_close_delimited_response_becomes_chunked,
    a_1_0_client_gets_a_response_without_chunks_and_a_close,
    responses_without_a_body_keep_the_connection,
    interim_responses_are_forwarded,
    expect_continue_waits_for_the_backend,
    an_early_answer_is_delivered_while_the_body_is_still_coming,
    an_upgrade_becomes_a_tunnel_after_101_only,
    an_unasked_101_is_a_bad_gateway,
    a_truncated_response_is_never_completed,
    a_truncated_request_is_never_completed,
    a_malformed_response_is_a_bad_gateway,
    a_stale_connection_is_replaced_for_an_idempotent_request,
    a_stale_connection_fails_a_post,
    the_next_server_is_tried_when_one_refuses,
    servers_take_turns_by_weight,
    no_router_is_404_and_the_connection_goes_on,
    a_request_that_could_be_read_in_two_ways_is_refused,
    a_head_that_does_not_come_is_408,
    a_body_over_the_limit_is_413,
    a_response_head_that_does_not_come_is_504,
    every_split_of_a_conversation_gives_the_same_result,
    a_wrong_identity_is_502_and_no_request_is_sent,
    in_flight_requests_finish_when_the_proxy_stops,
    what_does_not_finish_in_time_is_reported,
    h2c_is_not_offered_to_a_backend,
    a_204_has_no_length_even_to_head,
    a_connection_that_has_spoken_is_not_stale,
    a_client_that_has_gone_does_not_wait_for_a_silent_backend,
    a_backend_that_takes_no_request_is_504,
    an_answer_reaches_a_client_that_is_still_sending,
    a_body_sent_where_none_may_be_is_not_the_next_response,
    a_foreign_client_and_a_foreign_origin_understand_each_other,
);

const IDS: &str = "ids = [\"spiffe://example.org/api\"]";

/// The body of the one response in `text`, and its status line.
fn split(text: &str) -> (&str, &str, &str) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    (line, fields, body)
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_str().unwrap().to_owned()
}

fn forwarded(host: &str, port: &str) -> String {
    format!(
        "Via: 1.1 svidgate\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Server: {}\r\nX-Real-Ip: 127.0.0.1\r\nX-Forwarded-Host: {host}\r\nX-Forwarded-Port: {port}\r\n\r\n",
        host_name()
    )
}

/// A backend that reads one head per connection and answers with this.
fn answering(answer: &'static str) -> Backend {
    Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            wire.write_all(answer.as_bytes()).unwrap();
            wire.finish();
            drop(wire.read(&mut [0; 1024]));
        }
    })
}

fn a_request_reaches_a_spiffe_backend_with_the_proxys_fields(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let answer = proxy.talk(
        "web",
        "GET /v1/a%2Fb?q=1&r HTTP/1.1\r\nhOST: api.test:8080\r\nX-Odd: \u{e9}\tb\r\nConnection: close\r\n\r\n",
    );
    let (line, _, body) = split(&answer);
    assert_eq!(line, "HTTP/1.1 200 OK");
    let expected = format!(
        "GET /v1/a%2Fb?q=1&r HTTP/1.1\r\nHost: api.test:8080\r\nX-Odd: \u{e9}\tb\r\n{}",
        forwarded("api.test:8080", "8080")
    );
    assert_eq!(body, expected);
}

fn hop_by_hop_fields_and_what_connection_names_are_removed(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Private, X-Forwarded-Host\r\nX-Private: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: secret\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nContent_Length: 9\r\nX_Forwarded_For: 6.6.6.6\r\nX-Public: 2\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Public: 2\r\n{}",
            forwarded("a", "80")
        )
    );
}

fn forwarding_claims_of_strangers_are_replaced(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /admin\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}", forwarded("a", "80"))
    );
}

fn forwarding_claims_of_trusted_peers_are_kept_and_extended(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        on,
        &backend,
        "forwardedHeaders.trustedIPs = [\"127.0.0.0/8\"]",
    );
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Real-Ip: 192.0.2.1\r\nX-Forwarded-Host: b\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Real-Ip: 192.0.2.1\r\nX-Forwarded-Host: b\r\nVia: 1.1 svidgate\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\nX-Forwarded-Server: {}\r\n\r\n",
            host_name()
        )
    );
}

fn requests_on_one_connection_share_an_upstream_connection(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let mut client = proxy.connect("web");
    for _ in 0..5 {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let head = read_head(&mut client).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\nContent-Length: "),
            "{head}"
        );
        let length: usize = head
            .split("Content-Length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next())
            .and_then(|digits| digits.parse().ok())
            .unwrap();
        client.read_exact(&mut vec![0; length]).unwrap();
    }
    assert_eq!(backend.accepted(), 1);
}

fn pipelined_requests_are_answered_in_order(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let path = head.split(' ').nth(1).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
                path.len()
            );
            wire.write_all(answer.as_bytes()).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/1HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/2HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n/3"
            .replace("OK\r\nConnection: close", "OK\r\nContent-Length: 2\r\nConnection: close")
    );
}

/// Reads a request with this many bytes of body, and sends them back.
fn echo_length(wire: &mut dyn Wire) {
    while let Some(head) = read_head(wire) {
        let length: usize = head
            .split("Content-Length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next())
            .and_then(|digits| digits.parse().ok())
            .unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        wire.write_all(head.as_bytes()).unwrap();
        let mut left = length;
        let mut buf = [0; 8192];
        while left > 0 {
            let n = wire.read(&mut buf[..left.min(8192)]).unwrap();
            assert!(n > 0);
            wire.write_all(&buf[..n]).unwrap();
            left -= n;
        }
    }
}

fn a_body_with_a_length_is_streamed_both_ways(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_length);
    let proxy = world.http(on, &backend, IDS);
    let body: Vec<u8> = (0..3_000_000u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let client = proxy.connect("web");
    let (mut reader, mut writer) = (client.try_clone().unwrap(), client);
    let sent = body.clone();
    let sender = std::thread::spawn(move || {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            sent.len()
        );
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&sent).unwrap();
        writer
    });
    let head = read_head(&mut reader).unwrap();
    assert!(head.contains("Content-Length: 3000000\r\n"), "{head}");
    let mut got = vec![0; body.len()];
    reader.read_exact(&mut got).unwrap();
    assert!(got == body);
    drop(sender.join().unwrap());
}

fn a_chunked_body_is_decoded_and_framed_anew(on: On) {
    let backend = Backend::plain(|wire| {
        let head = read_head(wire).unwrap();
        assert!(
            head.contains("\r\nTransfer-Encoding: chunked\r\n"),
            "{head}"
        );
        assert!(!head.contains("Content-Length"), "{head}");
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            wire.read_exact(&mut byte).unwrap();
            body.push(byte[0]);
        }
        let data: String = String::from_utf8(body)
            .unwrap()
            .split("\r\n")
            .enumerate()
            .filter(|(index, _)| index % 2 == 1)
            .map(|(_, part)| part)
            .collect();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:X};x=\"y;z\"\r\n{data}\r\n0\r\nX-T: 1\r\n\r\n",
            data.len()
        );
        wire.write_all(answer.as_bytes()).unwrap();
        drop(wire.read(&mut [0]));
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext\r\nhello\r\n006\r\n world\r\n0\r\nX-Trailer: dropped\r\n\r\n",
    );
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nb\r\nhello world\r\n0\r\n\r\n"
    );
}

fn a_close_delimited_response_becomes_chunked(on: On) {
    let backend = answering("HTTP/1.1 200 OK\r\nX: y\r\n\r\nall of it");
    let proxy = plain_http(on, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let expected =
        "HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nall of it\r\n0\r\n\r\n";
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

fn a_1_0_client_gets_a_response_without_chunks_and_a_close(on: On) {
    let backend = answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    let proxy = plain_http(on, &backend, "");
    assert_eq!(
        proxy.talk("web", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"
    );
}

fn responses_without_a_body_keep_the_connection(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let answer = if head.starts_with("HEAD") {
                "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
            } else if head.contains("/304") {
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n"
            } else {
                "HTTP/1.1 204 No Content\r\n\r\n"
            };
            wire.write_all(answer.as_bytes()).unwrap();
        }
    });
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(backend.accepted(), 1);
}

fn interim_responses_are_forwarded(on: On) {
    let backend = answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = plain_http(on, &backend, "");
    assert_eq!(
        proxy.get("web", "/"),
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    assert_eq!(
        proxy.talk("web", "GET / HTTP/1.0\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
}

fn expect_continue_waits_for_the_backend(on: On) {
    let backend = Backend::plain(|wire| {
        let head = read_head(wire).unwrap();
        assert!(head.contains("\r\nExpect: 100-continue\r\n"), "{head}");
        wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 5];
        wire.read_exact(&mut body).unwrap();
        wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            .unwrap();
        wire.write_all(&body).unwrap();
        drop(wire.read(&mut [0]));
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        .unwrap();
    assert_eq!(
        read_head(&mut client).unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.write_all(b"hello").unwrap();
    assert_eq!(
        read_to_end(&mut client),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    );
}

fn an_early_answer_is_delivered_while_the_body_is_still_coming(on: On) {
    let backend = Backend::plain(|wire| {
        read_head(wire).unwrap();
        wire.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n")
            .unwrap();
        wire.finish();
        drop(wire.read(&mut [0; 100]));
    });
    let proxy = plain_http(on, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nonly this much")
        .unwrap();
    assert_eq!(
        read_to_end(&mut client),
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
    );
}

fn an_upgrade_becomes_a_tunnel_after_101_only(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", |wire| {
        let head = read_head(wire).unwrap();
        assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"), "{head}");
        wire.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nearly ")
            .unwrap();
        echo_bytes(wire);
    });
    let proxy = world.http(on, &backend, IDS);
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nfirst ")
        .unwrap();
    assert_eq!(
        read_head(&mut client).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    );
    client.write_all(b"second").unwrap();
    let mut got = [0; 18];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early first second");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), "");
}

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
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
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

fn every_split_of_a_conversation_gives_the_same_result(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let chunked = head.contains("chunked");
            let mut body = Vec::new();
            while chunked && !body.ends_with(b"0\r\n\r\n") {
                let mut byte = [0];
                wire.read_exact(&mut byte).unwrap();
                body.push(byte[0]);
            }
            let answer =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            for byte in answer.bytes() {
                wire.write_all(&[byte]).unwrap();
            }
        }
    });
    let proxy = plain_http(on, &backend, "");
    let request = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nT: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let normal = |answer: &str| {
        // How a body falls into chunks depends on how it came.
        answer.replace("1\r\no\r\n1\r\nk\r\n", "2\r\nok\r\n")
    };
    let whole = normal(&proxy.talk("web", request));
    assert_eq!(whole.matches("HTTP/1.1 200 OK").count(), 2, "{whole}");
    for cut in 1..request.len() {
        let mut client = proxy.connect("web");
        let (first, second) = request.split_at(cut);
        client.write_all(first.as_bytes()).unwrap();
        client.flush().unwrap();
        std::thread::yield_now();
        client.write_all(second.as_bytes()).unwrap();
        assert_eq!(normal(&read_to_end(&mut client)), whole, "cut at {cut}");
    }
    let mut client = proxy.connect("web");
    for byte in request.bytes() {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(normal(&read_to_end(&mut client)), whole);
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

fn h2c_is_not_offered_to_a_backend(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nGET / HTTP/1.0\r\nHost: a\r\n\r\n")
        .unwrap();
    let answers = read_to_end(&mut client);
    assert!(
        !answers.to_ascii_lowercase().contains("upgrade"),
        "{answers}"
    );
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

fn a_204_has_no_length_even_to_head(on: On) {
    let backend = answering("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
    let proxy = plain_http(on, &backend, "");
    assert_eq!(
        proxy.talk(
            "web",
            "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ),
        "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    );
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

/// async-h1 on both sides: neither knows anything of our codec.
fn a_foreign_client_and_a_foreign_origin_understand_each_other(on: On) {
    use crate::support::foreign::Shared;
    use async_io::Async;

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = Shared::new(Async::new(stream.unwrap()).unwrap());
            std::thread::spawn(move || {
                async_io::block_on(async_h1::accept(stream, |mut request| async move {
                    let body = request.body_string().await?;
                    let mut response = http_types::Response::new(201);
                    response.set_body(format!("{} {} {body}", request.method(), request.url()));
                    response.insert_header("x-origin", "async-h1");
                    Ok(response)
                }))
            });
        }
    });
    let proxy = Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "Host(`api.test`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{address}" }}]
"#
        ),
    );
    for body in ["", "some words", &"x".repeat(200_000)] {
        let stream = Shared::new(Async::new(proxy.connect("web")).unwrap());
        let (status, origin, text) = async_io::block_on(async {
            let url = http_types::Url::parse("http://api.test/a?b=c").unwrap();
            let mut request = http_types::Request::new(http_types::Method::Post, url);
            request.set_body(body);
            let mut response = async_h1::connect(stream, request).await.unwrap();
            let text = response.body_string().await.unwrap();
            let origin = response.header("x-origin").unwrap().last().to_string();
            (u16::from(response.status()), origin, text)
        });
        assert_eq!((status, origin.as_str()), (201, "async-h1"));
        assert!(
            text == format!("POST http://api.test/a?b=c {body}"),
            "{}",
            text.len()
        );
    }
}
