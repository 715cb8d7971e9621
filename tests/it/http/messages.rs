//! Messages through the proxy: connections, bodies, interim responses, upgrades.

use super::*;
use crate::support::proxy::length_of;

crate::on_both!(
    requests_on_one_connection_share_an_upstream_connection,
    pipelined_requests_are_answered_in_order,
    a_body_with_a_length_is_streamed_both_ways,
    a_body_of_any_size_about_that_of_a_buffer_arrives_whole,
    a_body_until_the_close_arrives_whole_and_ends,
    a_chunked_body_is_decoded_and_framed_anew,
    a_close_delimited_response_becomes_chunked,
    a_1_0_client_gets_a_response_without_chunks_and_a_close,
    responses_without_a_body_keep_the_connection,
    interim_responses_are_forwarded,
    expect_continue_waits_for_the_backend,
    an_early_answer_is_delivered_while_the_body_is_still_coming,
    an_upgrade_becomes_a_tunnel_after_101_only,
    a_silent_upgrade_or_response_is_ended,
    every_split_of_a_conversation_gives_the_same_result,
    a_foreign_client_and_a_foreign_origin_understand_each_other,
);

/// Reads a request with this many bytes of body, and sends them back.
fn echo_length(wire: &mut dyn Wire) {
    while let Some(head) = read_head(wire) {
        let length = length_of(&head);
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
        let length = length_of(&head);
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

fn a_body_with_a_length_is_streamed_both_ways(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_length);
    let proxy = world.http(on, &backend, IDS);
    let body = content(3_000_000);
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

/// Bytes of which each tells where it was.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| at.to_le_bytes()[at % 3] ^ 0x5a)
        .collect()
}

/// Sizes where what is copied and what is passed on as it is meet, and where
/// buffers are full.
fn sizes() -> impl Iterator<Item = usize> {
    [8 << 10, 16 << 10, 32 << 10, 48 << 10, 64 << 10]
        .into_iter()
        .flat_map(|size| [size - 100, size - 1, size, size + 1, size + 100])
}

fn a_body_of_any_size_about_that_of_a_buffer_arrives_whole(on: On) {
    // The backend answers with the whole at once; a connection serves all, so
    // that nothing but the length can end one.
    let script = |wire: &mut dyn Wire| {
        while let Some(head) = read_head(wire) {
            let length = length_of(&head);
            let mut got = vec![0; length];
            wire.read_exact(&mut got).unwrap();
            let mut answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            answer.extend(got);
            wire.write_all(&answer).unwrap();
        }
    };
    let world = World::new();
    let tls = world.backend("spiffe://example.org/api", script);
    let plain = Backend::plain(script);
    for proxy in [world.http(on, &tls, IDS), plain_http(on, &plain, "")] {
        let mut client = proxy.connect("web");
        for size in sizes() {
            let body = content(size);
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
            client
                .write_all(&[head.as_bytes(), &body].concat())
                .unwrap();
            let head = read_head(&mut client).unwrap();
            assert_eq!(
                head,
                format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
            );
            let mut got = vec![0; size];
            client.read_exact(&mut got).unwrap();
            assert!(got == body, "of {size} bytes some are not what was sent");
        }
    }
    assert_eq!((tls.accepted(), plain.accepted()), (1, 1));
}

fn a_body_until_the_close_arrives_whole_and_ends(on: On) {
    // By the path, so many bytes, and the end.
    let backend = Backend::plain(|wire| {
        let head = read_head(wire).unwrap();
        let size = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.extend(content(size));
        wire.write_all(&answer).unwrap();
        wire.finish();
    });
    let proxy = plain_http(on, &backend, "");
    for size in sizes() {
        let mut client = proxy.connect("web");
        let head = format!("GET /{size} HTTP/1.0\r\nHost: a\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        let head = read_head(&mut client).unwrap();
        assert_eq!(head, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == content(size), "{} of {size} bytes", got.len());
    }
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
        while !body.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            wire.read_exact(&mut byte).unwrap();
            body.push(byte[0]);
        }
        let body = String::from_utf8(body).unwrap();
        let content = body.strip_suffix("0\r\nX-Trailer: kept\r\n\r\n").unwrap();
        let data: String = content
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
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext\r\nhello\r\n006\r\n world\r\n0\r\nX-Trailer: kept\r\n\r\n",
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
    assert_eq!(
        read_head(&mut client).unwrap(),
        "HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut got = [0; 19];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"9\r\nall of it\r\n0\r\n\r\n");
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

/// `streamIdleTimeout`, and what is counted of an upgrade.
fn a_silent_upgrade_or_response_is_ended(on: On) {
    let backend = Backend::plain(|wire| {
        let head = read_head(wire).unwrap();
        let answer = if head.contains("Upgrade") {
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi"
        };
        wire.write_all(answer.as_bytes()).unwrap();
        drop(wire.read(&mut [0]));
    });
    let proxy = Running::start(
        on,
        &format!(
            r#"
[admin]
address = "127.0.0.1:0"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "http://{}" }}]
[http.serversTransports.t.forwardingTimeouts]
streamIdleTimeout = "100ms"
"#,
            backend.address
        ),
    );
    for upgrade in ["", "Connection: upgrade\r\nUpgrade: websocket\r\n"] {
        let mut client = proxy.connect("web");
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n");
        client.write_all(request.as_bytes()).unwrap();
        let answer = read_to_end(&mut client);
        assert!(answer.ends_with("<reset>"), "{answer}");
    }
    let count = |class: &str| {
        let series = format!(
            "svidgate_requests_total{{entrypoint=\"web\",service=\"api\",class=\"{class}\"}}"
        );
        proxy.metric(&series)
    };
    assert_eq!((count("1xx"), count("cut")), (Some(1.0), Some(1.0)));
}

fn every_split_of_a_conversation_gives_the_same_result(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let chunked = head.contains("chunked");
            let mut body = Vec::new();
            while chunked && !body.ends_with(b"\r\n\r\n") {
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
