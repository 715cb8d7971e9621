//! Ending: the time in which everything goes on, the drain, the cut.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::support::backend::{Backend, echo_bytes, read_head};
use crate::support::eventually;
use crate::support::proxy::{On, Running, echoes, read_to_end};

crate::on_both!(
    readyz_is_503_at_once_while_accepting_goes_on,
    tunnels_and_upgrades_may_end_by_themselves,
    what_is_left_when_the_grace_is_over_is_reset,
    each_entry_point_has_a_grace_of_its_own,
    idle_connections_are_nothing_that_is_left,
    a_connection_that_came_in_late_is_still_served,
    empty_lines_give_a_late_connection_no_more_time,
);

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// An HTTP and a TCP entry point, each with keys of its `lifeCycle`.
fn start(on: On, http: (&Backend, &str), tcp: (&Backend, &str)) -> Running {
    let text = format!(
        r#"
admin.address = "127.0.0.1:0"
[entryPoints.web]
address = "127.0.0.1:0"
transport.lifeCycle = {{ {} }}
[entryPoints.db]
address = "127.0.0.1:0"
transport.lifeCycle = {{ {} }}
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{}" }}]
[tcp.routers.db]
entryPoints = ["db"]
rule = "HostSNI(`*`)"
service = "db"
[tcp.services.db.loadBalancer]
servers = [{{ address = "{}" }}]
"#,
        http.1, tcp.1, http.0.address, tcp.0.address
    );
    Running::start(on, &text)
}

/// Answers; `/upgrade` becomes an echo; `/wait` waits until it is let go,
/// `/part` does so in the middle of a body that ends with the connection.
fn backend() -> (Backend, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (told, is_asked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (told, released) = (Mutex::new(told), Mutex::new(released));
    let backend = Backend::plain(move |wire| {
        let wait = || {
            let _told = told.lock().unwrap().send(());
            released.lock().unwrap().recv().is_ok()
        };
        while let Some(head) = read_head(wire) {
            if head.starts_with("GET /upgrade ") {
                wire.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
                    .unwrap();
                return echo_bytes(wire);
            }
            if head.starts_with("GET /part ") {
                wire.write_all(b"HTTP/1.1 200 OK\r\n\r\npart").unwrap();
                wait();
                return;
            }
            if head.starts_with("GET /wait ") && !wait() {
                return;
            }
            if wire
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .is_err()
            {
                return;
            }
        }
    });
    (backend, is_asked, release)
}

fn send(client: &mut TcpStream, path: &str, version: &str) {
    let request = format!("GET {path} HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
}

fn upgrade(proxy: &Running) -> TcpStream {
    let mut client = proxy.connect("web");
    client
        .write_all(
            b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

fn readyz_is_503_at_once_while_accepting_goes_on(on: On) {
    let (api, _is_asked, _release) = backend();
    let db = Backend::plain(echo_bytes);
    let accept = "requestAcceptGraceTimeout = \"1s\"";
    let proxy = start(on, (&api, accept), (&db, accept));
    let mut kept = proxy.connect("web");
    let (web, begin) = (proxy.address("web"), Instant::now());
    proxy.stop();
    let ready = proxy.admin("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    // Nothing else has changed: connections come and stay.
    send(&mut kept, "/", "1.1");
    assert_eq!(
        read_head(&mut kept).unwrap(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    );
    kept.read_exact(&mut [0; 2]).unwrap();
    assert!(proxy.get("web", "/").starts_with(OK));
    echoes(&mut proxy.connect("db"), b"still");
    // Then the idle one is closed, and the address is free.
    assert_eq!(read_to_end(&mut kept), "");
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(proxy.end().unwrap());
    assert!(TcpStream::connect(web).is_err());
}

fn tunnels_and_upgrades_may_end_by_themselves(on: On) {
    let (api, is_asked, release) = backend();
    let db = Backend::plain(echo_bytes);
    let proxy = start(on, (&api, ""), (&db, ""));
    let mut tunnels = [upgrade(&proxy), proxy.connect("db")];
    for tunnel in &mut tunnels {
        echoes(tunnel, b"before");
    }
    let mut client = proxy.connect("web");
    send(&mut client, "/wait", "1.1");
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    proxy.stop();
    let web = proxy.address("web");
    eventually("nothing more is accepted", || TcpStream::connect(web).err());
    for tunnel in &mut tunnels {
        echoes(tunnel, b"after");
        tunnel.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_end(tunnel), "");
    }
    release.send(()).unwrap();
    assert_eq!(
        read_to_end(&mut client),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    assert!(proxy.end().unwrap());
}

fn what_is_left_when_the_grace_is_over_is_reset(on: On) {
    let (api, is_asked, _release) = backend();
    let db = Backend::plain(echo_bytes);
    let grace = "graceTimeOut = \"100ms\"";
    let proxy = start(on, (&api, grace), (&db, grace));
    let mut tunnels = [upgrade(&proxy), proxy.connect("db")];
    for tunnel in &mut tunnels {
        echoes(tunnel, b"open");
    }
    // One whose response has not begun, and one of HTTP/1.0, whose end is the
    // end of the connection: it must not look whole.
    let mut waiting = proxy.connect("web");
    send(&mut waiting, "/wait", "1.1");
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut part = proxy.connect("web");
    send(&mut part, "/part", "1.0");
    let head = read_head(&mut part).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut body = [0; 4];
    part.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"part");
    proxy.stop();
    for client in tunnels.iter_mut().chain([&mut waiting, &mut part]) {
        assert_eq!(read_to_end(client), "<reset>");
    }
    assert!(!proxy.end().unwrap());
}

fn each_entry_point_has_a_grace_of_its_own(on: On) {
    let (api, _is_asked, _release) = backend();
    let db = Backend::plain(echo_bytes);
    let short = "graceTimeOut = \"0s\"";
    let proxy = start(on, (&api, short), (&db, "graceTimeOut = \"20s\""));
    let mut upgraded = upgrade(&proxy);
    let mut tunnel = proxy.connect("db");
    echoes(&mut upgraded, b"open");
    echoes(&mut tunnel, b"open");
    proxy.stop();
    assert_eq!(read_to_end(&mut upgraded), "<reset>");
    echoes(&mut tunnel, b"still");
    drop(tunnel);
    // One of the two was cut.
    assert!(!proxy.end().unwrap());
}

fn idle_connections_are_nothing_that_is_left(on: On) {
    for grace in ["graceTimeOut = \"0s\"", "graceTimeOut = \"500ms\""] {
        let (api, _is_asked, _release) = backend();
        let db = Backend::plain(echo_bytes);
        let proxy = start(on, (&api, grace), (&db, grace));
        let mut idle = proxy.connect("web");
        send(&mut idle, "/", "1.1");
        read_head(&mut idle).unwrap();
        idle.read_exact(&mut [0; 2]).unwrap();
        assert!(proxy.end().unwrap(), "{grace}");
        assert_eq!(read_to_end(&mut idle), "");
    }
}

/// A client that was accepted before the drain, with its request still on the
/// way.
fn late_client(proxy: &Running) -> TcpStream {
    let open = "svidgate_connections_open{entrypoint=\"web\"}";
    let late = proxy.connect("web");
    eventually("it is accepted", || {
        (proxy.metric(open) >= Some(1.0)).then_some(())
    });
    proxy.stop();
    let web = proxy.address("web");
    eventually("the drain has begun", || TcpStream::connect(web).err());
    late
}

fn a_connection_that_came_in_late_is_still_served(on: On) {
    let (api, _is_asked, _release) = backend();
    let db = Backend::plain(echo_bytes);
    let proxy = start(on, (&api, ""), (&db, ""));
    let mut late = late_client(&proxy);
    send(&mut late, "/", "1.1");
    assert_eq!(
        read_to_end(&mut late),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    // One that never asks is not waited for as long as that.
    let begin = Instant::now();
    assert!(proxy.end().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(8));
}

fn empty_lines_give_a_late_connection_no_more_time(on: On) {
    let (api, _is_asked, _release) = backend();
    let db = Backend::plain(echo_bytes);
    let proxy = start(on, (&api, ""), (&db, ""));
    let begin = Instant::now();
    let mut late = late_client(&proxy);
    for piece in [b"\r", b"\n"] {
        late.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    // It has asked for nothing, and is not counted as cut.
    assert_eq!(read_to_end(&mut late), "");
    assert!(proxy.end().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(8));
}
