//! Open connections over time: what a rotation, a loss of trust, a withdrawal
//! and an expiry do to them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tonic::Status;

use crate::support::agent::{Answer, Response};
use crate::support::backend::{Backend, Wire, echo_bytes, echo_heads, read_head, server_config};
use crate::support::eventually;
use crate::support::pki::{Authority, leaf};
use crate::support::proxy::{On, Running, ask, echoes, read_to_end};
use crate::world::{OWN_ID, World, issued, svid, trusting};

crate::on_both!(
    rotations_under_load_fail_no_request_and_close_nothing,
    idle_connections_are_closed_when_their_authority_is_gone,
    an_exchange_under_way_finishes_and_its_connection_is_not_used_again,
    an_exchange_that_outlasts_the_grace_is_ended,
    a_tunnel_is_reset_after_the_grace,
    an_upgrade_is_reset_after_the_grace,
    a_withdrawn_identity_ends_what_is_open_and_comes_back,
    a_lost_federated_bundle_ends_its_tunnels_alone,
    a_handshake_that_began_before_the_loss_does_not_succeed,
    connections_made_under_another_id_are_not_used_again,
    a_tunnel_outlives_its_certificates_and_an_idle_connection_does_not,
    close_on_expiry_ends_a_tunnel_with_its_certificates,
);

const API: &str = "ids = [\"spiffe://example.org/api\"]";
const DB: &str = "ids = [\"spiffe://example.org/db\"]";
const OK: &str = "HTTP/1.1 200 OK\r\n";

/// A backend whose leaf another authority than ours has issued.
fn foreign(world: &World, ca: &Authority, id: &str, script: fn(&mut dyn Wire)) -> Backend {
    Backend::tls(
        server_config(&leaf(ca, id, |_| {}), &[world.ca.der()]),
        script,
    )
}

fn with_spiffe(text: &str, keys: &str) -> String {
    text.replace("[spiffe]\n", &format!("[spiffe]\n{keys}\n"))
}

/// Reads what is left of a connection that is to be reset.
#[track_caller]
fn is_reset(mut client: TcpStream) {
    assert_eq!(read_to_end(&mut client), "<reset>");
}

fn closed(proxy: &Running, transport: &str, usage: &str) -> Option<f64> {
    proxy.metric(&format!(
        "svidgate_trust_loss_closed_total{{transport=\"{transport}\",use=\"{usage}\"}}"
    ))
}

const HTTP: &str = "http.serversTransports.backend";
const TCP: &str = "tcp.serversTransports.db";

fn rotations_under_load_fail_no_request_and_close_nothing(on: On) {
    let world = World::new();
    let api = world.backend("spiffe://example.org/api", echo_heads);
    let db = world.backend("spiffe://example.org/db", echo_bytes);
    let tcp = world.tcp_text(&db, DB);
    let text = format!(
        "{}{}",
        world.http_text(&api, API),
        tcp.split_once("[entryPoints.db]")
            .map(|(_, rest)| format!("[entryPoints.db]{rest}"))
            .unwrap()
    );
    let proxy = Running::start(on, &text);
    let mut tunnels: Vec<TcpStream> = (0..4).map(|_| proxy.connect("db")).collect();
    for tunnel in &mut tunnels {
        echoes(tunnel, b"before");
    }
    let done = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = proxy.connect("web");
            let (done, sent) = (Arc::clone(&done), Arc::clone(&sent));
            std::thread::spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let head = ask(&mut client).0;
                    assert!(head.starts_with(OK), "{head}");
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    eventually("load", || (sent.load(Ordering::SeqCst) > 8).then_some(()));
    let new = Authority::new("example.org");
    for round in 0..20 {
        let before = proxy.identity.generation();
        if round % 2 == 0 {
            world.trust(&[&world.ca]);
        } else {
            world.trust(&[&world.ca, &new]);
        }
        eventually("rotated", || {
            (proxy.identity.generation() > before).then_some(())
        });
        let so_far = sent.load(Ordering::SeqCst);
        eventually("more load", || {
            (sent.load(Ordering::SeqCst) > so_far + 8).then_some(())
        });
    }
    for tunnel in &mut tunnels {
        echoes(tunnel, b"after");
    }
    done.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    // No connection was made that was not needed before.
    assert!(api.accepted() <= 4, "{}", api.accepted());
    // The fifth is that of the look whether the proxy listens.
    assert_eq!(db.accepted(), 5);
    let page = proxy.admin("/metrics");
    assert!(!page.contains("svidgate_trust_loss_closed_total"), "{page}");
    assert!(!page.contains("svidgate_expiry_closed_total"), "{page}");
}

fn idle_connections_are_closed_when_their_authority_is_gone(on: On) {
    let (told, is_closed) = mpsc::channel();
    let told = Mutex::new(told);
    let world = World::new();
    let other = Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let own = leaf(&other, "spiffe://example.org/api", |_| {});
    let backend = Backend::tls(server_config(&own, &[world.ca.der()]), move |wire| {
        echo_heads(wire);
        // At the end of the test nobody listens.
        let _told = told.lock().unwrap().send(());
    });
    let proxy = world.http(on, &backend, API);
    assert!(proxy.get("web", "/").starts_with(OK));
    assert!(is_closed.try_recv().is_err());
    world.trust(&[&world.ca]);
    // Without a request that would look at it.
    is_closed.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(closed(&proxy, HTTP, "idle"), Some(1.0));
    let answer = proxy.get("web", "/");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(
        answer.contains("error=tls_certificate_error\r\n"),
        "{answer}"
    );
}

/// A backend that waits before it answers, and a way to let it go on.
fn waiting(
    world: &World,
    ca: &Authority,
    before: &'static [u8],
    after: &'static [u8],
) -> (Backend, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (told, is_asked) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let (told, released) = (Mutex::new(told), Mutex::new(released));
    let own = leaf(ca, "spiffe://example.org/api", |_| {});
    let backend = Backend::tls(server_config(&own, &[world.ca.der()]), move |wire| {
        while read_head(wire).is_some() {
            wire.write_all(before).unwrap();
            told.lock().unwrap().send(()).unwrap();
            if released.lock().unwrap().recv().is_err() {
                return;
            }
            wire.write_all(after).unwrap();
        }
    });
    (backend, is_asked, release)
}

fn an_exchange_under_way_finishes_and_its_connection_is_not_used_again(on: On) {
    let world = World::new();
    let other = Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let (backend, is_asked, release) = waiting(
        &world,
        &other,
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi",
        b"ne",
    );
    let proxy = world.http(on, &backend, API);
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    let before = proxy.identity.generation();
    world.trust(&[&world.ca]);
    eventually("the update", || {
        (proxy.identity.generation() > before).then_some(())
    });
    release.send(()).unwrap();
    assert_eq!(
        read_head(&mut client).unwrap(),
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    );
    let mut body = [0; 4];
    client.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"fine");
    // The client's connection is as good as ever; the other is not.
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let answer = read_to_end(&mut client);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(closed(&proxy, HTTP, "idle"), Some(1.0));
    assert_eq!(closed(&proxy, HTTP, "exchange"), None);
}

fn an_exchange_that_outlasts_the_grace_is_ended(on: On) {
    for (before, answer) in [
        // No byte of a response yet: it can be told.
        (&b""[..], "HTTP/1.1 502 Bad Gateway\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi", OK),
    ] {
        let world = World::new();
        let other = Authority::new("example.org");
        world.trust(&[&world.ca, &other]);
        let (backend, is_asked, _release) = waiting(&world, &other, before, b"");
        let text = world.http_text(&backend, API);
        let proxy = Running::start(on, &with_spiffe(&text, "trustLossGrace = \"50ms\""));
        let mut client = proxy.connect("web");
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
        world.trust(&[&world.ca]);
        let seen = read_to_end(&mut client);
        assert!(seen.starts_with(answer), "{seen}");
        if before.is_empty() {
            assert!(seen.contains("error=tls_certificate_error\r\n"), "{seen}");
        } else {
            assert!(seen.ends_with("\r\n\r\nfi<reset>"), "{seen}");
        }
        assert_eq!(closed(&proxy, HTTP, "exchange"), Some(1.0));
    }
}

fn a_tunnel_is_reset_after_the_grace(on: On) {
    let world = World::new();
    let other = Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let backend = foreign(&world, &other, "spiffe://example.org/db", echo_bytes);
    let text = world.tcp_text(&backend, DB);
    let proxy = Running::start(on, &with_spiffe(&text, "trustLossGrace = \"50ms\""));
    let mut tunnel = proxy.connect("db");
    echoes(&mut tunnel, b"trusted");
    world.trust(&[&world.ca]);
    is_reset(tunnel);
    assert_eq!(closed(&proxy, TCP, "tunnel"), Some(1.0));
    // Nor is there another.
    is_reset(proxy.connect("db"));
    let refused =
        format!("svidgate_handshakes_total{{transport=\"{TCP}\",outcome=\"peer_untrusted\"}}");
    assert_eq!(proxy.metric(&refused), Some(1.0));
    world.trust(&[&world.ca, &other]);
    eventually("trusted again", || {
        let mut tunnel = proxy.connect("db");
        tunnel.write_all(b"x").ok()?;
        tunnel.read_exact(&mut [0]).ok()
    });
}

fn an_upgrade_is_reset_after_the_grace(on: On) {
    let world = World::new();
    let other = Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let backend = foreign(&world, &other, "spiffe://example.org/api", |wire| {
        read_head(wire).unwrap();
        wire.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .unwrap();
        echo_bytes(wire);
    });
    let text = world.http_text(&backend, API);
    let proxy = Running::start(on, &with_spiffe(&text, "trustLossGrace = \"50ms\""));
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        .unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    echoes(&mut client, b"trusted");
    world.trust(&[&world.ca]);
    is_reset(client);
    assert_eq!(closed(&proxy, HTTP, "upgrade"), Some(1.0));
}

fn a_withdrawn_identity_ends_what_is_open_and_comes_back(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", echo_bytes);
    let text = world.tcp_text(&backend, DB);
    let proxy = Running::start(on, &with_spiffe(&text, "trustLossGrace = \"50ms\""));
    for withdrawn in [
        Answer::Refuse(Status::permission_denied("no identity issued")),
        Answer::Send(Response::default()),
    ] {
        let mut tunnel = proxy.connect("db");
        echoes(&mut tunnel, b"trusted");
        let dialled = backend.accepted();
        world.agent.answer(withdrawn);
        is_reset(tunnel);
        // Refused before a packet is sent.
        is_reset(proxy.connect("db"));
        assert_eq!(backend.accepted(), dialled);
        let ready = proxy.admin("/readyz");
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
        eventually("ready", || {
            proxy.admin("/readyz").starts_with(OK).then_some(())
        });
    }
    assert_eq!(closed(&proxy, TCP, "tunnel"), Some(2.0));
    echoes(&mut proxy.connect("db"), b"as before");
}

fn a_lost_federated_bundle_ends_its_tunnels_alone(on: On) {
    let world = World::new();
    let partner = Authority::new("partner.org");
    let federated = || {
        let mut response = issued(&world.ca, OWN_ID);
        let (name, bundle) = ("spiffe://partner.org", partner.der().to_vec());
        response.federated_bundles.insert(name.to_owned(), bundle);
        response
    };
    world.agent.answer(Answer::Send(federated()));
    let ours = world.backend("spiffe://example.org/db", echo_bytes);
    let theirs = foreign(&world, &partner, "spiffe://partner.org/db", echo_bytes);
    let text = world.tcp_text(&ours, "allowAny = true").replace(
        "servers = [",
        &format!(
            "servers = [{{ address = \"{}\", tls = true }}, ",
            theirs.address
        ),
    );
    let proxy = Running::start(on, &with_spiffe(&text, "trustLossGrace = \"50ms\""));
    // Turn by turn, whoever begins.
    let mut tunnels: Vec<TcpStream> = (0..2).map(|_| proxy.connect("db")).collect();
    for tunnel in &mut tunnels {
        echoes(tunnel, b"trusted");
    }
    // The third is that of the look whether the proxy listens.
    assert_eq!(ours.accepted() + theirs.accepted(), 3);
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("one is closed", || {
        closed(&proxy, TCP, "tunnel").filter(|count| *count > 0.0)
    });
    let alive = tunnels
        .iter_mut()
        .filter_map(|tunnel| {
            tunnel.write_all(b"x").ok()?;
            tunnel.read_exact(&mut [0]).ok()
        })
        .count();
    assert_eq!(alive, 1);
    assert_eq!(closed(&proxy, TCP, "tunnel"), Some(1.0));
}

fn a_handshake_that_began_before_the_loss_does_not_succeed(on: On) {
    let (told, is_dialled) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (told, released) = (Mutex::new(told), Mutex::new(released));
    let world = World::new();
    let other = Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let own = leaf(&other, "spiffe://example.org/api", |_| {});
    let config = server_config(&own, &[world.ca.der()]);
    let backend = Backend::plain(move |wire| {
        let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        // The client's hello is here: the handshake has begun.
        let mut wire = wire;
        session.read_tls(&mut wire).unwrap();
        session.process_new_packets().unwrap();
        told.lock().unwrap().send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        while session.is_handshaking() {
            if session.complete_io(&mut wire).is_err() {
                return;
            }
        }
        // Nothing may come: it would be a request to a peer not trusted.
        let mut stream = rustls::Stream::new(&mut session, &mut wire);
        assert!(read_head(&mut stream).is_none());
    });
    let proxy = world.http(on, &backend, API);
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    is_dialled.recv_timeout(Duration::from_secs(20)).unwrap();
    let before = proxy.identity.generation();
    world.trust(&[&world.ca]);
    eventually("the update", || {
        (proxy.identity.generation() > before).then_some(())
    });
    release.send(()).unwrap();
    let answer = read_to_end(&mut client);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let lost = format!("svidgate_handshakes_total{{transport=\"{HTTP}\",outcome=\"trust_lost\"}}");
    assert_eq!(proxy.metric(&lost), Some(1.0));
}

fn connections_made_under_another_id_are_not_used_again(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, API);
    assert!(proxy.get("web", "/").starts_with(OK));
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(backend.accepted(), 1);
    let other = "spiffe://example.org/another";
    world.agent.answer(Answer::Send(issued(&world.ca, other)));
    eventually("the idle one is closed", || closed(&proxy, HTTP, "idle"));
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(backend.accepted(), 2);
}

/// Our SVID, good for so many seconds.
fn short(world: &World, seconds: u64) -> Answer {
    let own = leaf(&world.ca, OWN_ID, |params| {
        params.not_after = time::OffsetDateTime::now_utc() + Duration::from_secs(seconds);
    });
    let mut response = trusting(&world.ca, &[&world.ca]);
    response.svids[0] = svid(&world.ca, OWN_ID, &own);
    Answer::Send(response)
}

fn short_backend(world: &World, id: &str, seconds: u64, script: fn(&mut dyn Wire)) -> Backend {
    let own = leaf(&world.ca, id, |params| {
        params.not_after = time::OffsetDateTime::now_utc() + Duration::from_secs(seconds);
    });
    Backend::tls(server_config(&own, &[world.ca.der()]), script)
}

/// Takes its time: only a clock that really runs shows what outlives what.
fn a_tunnel_outlives_its_certificates_and_an_idle_connection_does_not(on: On) {
    let world = World::answering(|_| Answer::Hang);
    world.agent.answer(short(&world, 5));
    let db = short_backend(&world, "spiffe://example.org/db", 5, echo_bytes);
    let api = world.backend("spiffe://example.org/api", echo_heads);
    let http = world.http_text(&api, API);
    let tcp = world.tcp_text(&db, DB);
    let (_, tcp) = tcp.split_once("[entryPoints.db]").unwrap();
    let proxy = Running::start(on, &format!("{http}[entryPoints.db]{tcp}"));
    let mut tunnel = proxy.connect("db");
    let mut client = proxy.connect("web");
    let begin = Instant::now();
    let mut rotated = 0;
    while begin.elapsed() < Duration::from_secs(20) {
        if begin.elapsed().as_secs() / 2 > rotated {
            rotated += 1;
            world.agent.answer(short(&world, 5));
        }
        echoes(&mut tunnel, b"alive");
        let head = ask(&mut client).0;
        assert!(head.starts_with(OK), "{head}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(rotated >= 9, "{rotated}");
    // The other is that of the look whether the proxy listens.
    assert_eq!(db.accepted(), 2);
    // Each connection serves until our own leaf of its handshake is over: five
    // seconds at most, three at least.
    assert!((4..=8).contains(&api.accepted()), "{}", api.accepted());
    let retired = format!("svidgate_expiry_closed_total{{transport=\"{HTTP}\",use=\"idle\"}}");
    let retired = proxy.metric(&retired).unwrap();
    // The last one may have been swept since.
    let left = api.accepted() - retired as usize;
    assert!(left <= 1, "{left}");
    let page = proxy.admin("/metrics");
    assert!(!page.contains("svidgate_trust_loss_closed_total"), "{page}");
}

fn close_on_expiry_ends_a_tunnel_with_its_certificates(on: On) {
    let world = World::new();
    let backend = short_backend(&world, "spiffe://example.org/db", 2, echo_bytes);
    let text = world.tcp_text(&backend, DB);
    let proxy = Running::start(on, &with_spiffe(&text, "closeOnExpiry = true"));
    let mut tunnel = proxy.connect("db");
    echoes(&mut tunnel, b"valid");
    is_reset(tunnel);
    let expired = format!("svidgate_expiry_closed_total{{transport=\"{TCP}\",use=\"tunnel\"}}");
    assert_eq!(proxy.metric(&expired), Some(1.0));
    assert_eq!(closed(&proxy, TCP, "tunnel"), None);
}
