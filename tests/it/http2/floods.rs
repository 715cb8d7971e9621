//! Peers that send what costs them little. Each flood must end, by an answer
//! or by the end of its connection, and nobody else may notice.

use super::*;

crate::on_both!(
    a_client_that_floods_hurts_nobody_else,
    a_backend_that_floods_hurts_nobody_else,
);

type Flood<W> = (&'static str, fn(&mut Frames<W>, u32) -> std::io::Result<()>);

/// Each sends one of many, the n-th.
fn floods<W: Read + Write>() -> Vec<Flood<W>> {
    vec![
        ("settings", |peer, _| {
            peer.try_send(h2::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])
        }),
        ("pings", |peer, _| peer.try_send(h2::PING, 0, 0, &[0; 8])),
        ("window updates", |peer, _| {
            peer.try_send(h2::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())
        }),
        ("unknown frames", |peer, _| {
            peer.try_send(99, 0, 0, &[0; 100])
        }),
    ]
}

/// Those that only clients have: streams of their own.
fn client_floods() -> Vec<Flood<std::net::TcpStream>> {
    let mut all = floods();
    all.push(("rapid resets, CVE-2023-44487", |client, n| {
        let stream = 2 * n + 1;
        let fields = h2::block(&h2::request("GET", "/"));
        let flags = h2::END_HEADERS | h2::END_STREAM;
        client.try_send(h2::HEADERS, flags, stream, &fields)?;
        client.try_send(h2::RST_STREAM, 0, stream, &8u32.to_be_bytes())
    }));
    all.push(("resets that are our own, CVE-2025-8671", |client, n| {
        let stream = 2 * n + 1;
        let fields = h2::block(&h2::request("GET", "/"));
        let flags = h2::END_HEADERS | h2::END_STREAM;
        client.try_send(h2::HEADERS, flags, stream, &fields)?;
        client.try_send(h2::WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes())
    }));
    all.push(("continuations, RUSTSEC-2024-0332", |client, n| {
        if n == 0 {
            let fields = h2::block(&h2::request("GET", "/"));
            return client.try_send(h2::HEADERS, h2::END_STREAM, 1, &fields);
        }
        let fields = h2::block(&[("x", &"y".repeat(1000))]);
        client.try_send(h2::CONTINUATION, 0, 1, &fields)
    }));
    all.push(("empty content, RUSTSEC-2026-0258", |client, n| {
        if n == 0 {
            client.head(1, &h2::request("POST", "/"), false);
        }
        client.try_send(h2::DATA, 0, 1, &[])
    }));
    all
}

fn a_client_that_floods_hurts_nobody_else(on: On) {
    let backend = Backend::plain(|wire| {
        while let Some(head) = read_head(wire) {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if head.starts_with("POST") || wire.write_all(answer.as_bytes()).is_err() {
                drop(wire.read_to_end(&mut Vec::new()));
                return;
            }
        }
    });
    let proxy = plain_http(on, &backend, "");
    for (what, send) in client_floods() {
        let mut flood = frames(&proxy);
        let mut reader = flood.0.try_clone().unwrap();
        // It reads, or it would be its own socket that holds it up.
        let drain = std::thread::spawn(move || {
            let mut waste = [0; 65536];
            while reader.read(&mut waste).is_ok_and(|n| n > 0) {}
        });
        let mut neighbour = client(&proxy);
        for n in 0..20_000 {
            if send(&mut flood, n).is_err() {
                break;
            }
            if n % 5_000 == 0 {
                assert_eq!(neighbour.get("/").unwrap().text(), "ok", "beside {what}");
            }
        }
        assert_eq!(neighbour.get("/").unwrap().text(), "ok", "after {what}");
        let answer = proxy.get("web", "/");
        assert!(answer.ends_with("\r\n\r\nok"), "after {what}: {answer}");
        drop(flood.0.shutdown(std::net::Shutdown::Both));
        drain.join().unwrap();
    }
}

fn a_backend_that_floods_hurts_nobody_else(on: On) {
    for index in 0..floods::<&mut dyn Wire>().len() {
        let backend = Backend::plain(move |wire| {
            let mut frames = Frames::server(wire);
            if frames.find(|it| it.kind == h2::HEADERS).is_none() {
                return;
            }
            // Never answers; whoever waits can go.
            let (_, send) = floods()[index];
            for n in 0..20_000 {
                if send(&mut frames, n).is_err() {
                    return;
                }
            }
            frames.find(|_| false);
        });
        let good = H2Backend::start(None, |_, respond| async move { say(respond, "ok") });
        let proxy = Running::start(
            on,
            &format!(
                r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.bad]
rule = "Path(`/bad`)"
service = "bad"
[http.routers.good]
rule = "Path(`/good`)"
service = "good"
[http.services.bad.loadBalancer]
servers = [{{ url = "h2c://{}" }}]
[http.services.good.loadBalancer]
servers = [{{ url = "h2c://{}" }}]
"#,
                backend.address, good.address
            ),
        );
        let mut victim = proxy.connect("web");
        victim
            .write_all(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut neighbour = client(&proxy);
        for _ in 0..20 {
            assert_eq!(neighbour.get("/good").unwrap().text(), "ok");
        }
    }
}
