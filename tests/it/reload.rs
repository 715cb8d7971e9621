//! Another configuration while the proxy runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use svidgate::ReloadError;

use crate::support::agent::{Agent, Answer};
use crate::support::backend::{Backend, echo_bytes, echo_heads, named, read_head};
use crate::support::eventually;
use crate::support::proxy::{On, Running, answer, ask, read_to_end};
use crate::support::scratch::Scratch;
use crate::world::{OWN_ID, World, issued};

crate::on_both!(
    the_next_request_on_a_connection_takes_the_new_route,
    an_exchange_under_way_ends_by_what_it_began_with,
    a_new_entry_point_listens_and_one_that_is_gone_drains,
    an_address_that_is_taken_refuses_the_whole,
    pools_of_unchanged_transports_stay_warm_and_others_are_closed,
    a_narrower_allowlist_counts_at_once,
    a_transport_that_is_gone_ends_its_tunnels,
    limits_and_trusted_addresses_change_with_it,
    an_identity_may_be_needed_from_then_on_and_no_longer,
    another_agent_is_followed,
    it_works_while_the_first_svid_is_waited_for,
    an_entry_point_may_change_its_kind,
    many_reloads_leave_no_descriptor_behind,
    a_proxy_that_is_ending_takes_none,
    idle_connections_that_a_narrower_allowlist_closes_are_counted,
    new_limits_count_for_the_next_request,
);

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// Entry points, and one route from all of them to a backend.
fn plain(entry_points: &[(&str, &str)], backend: &Backend) -> String {
    let mut text = "admin.address = \"127.0.0.1:0\"\n".to_owned();
    for (name, keys) in entry_points {
        text += &format!("[entryPoints.{name}]\n{keys}\n");
    }
    text + &format!(
        r#"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{}" }}]
"#,
        backend.address
    )
}

const WEB: (&str, &str) = ("web", "address = \"127.0.0.1:0\"");

#[track_caller]
fn refused(address: SocketAddr) {
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn the_next_request_on_a_connection_takes_the_new_route(on: On) {
    let (one, two) = (named("one"), named("two"));
    let proxy = Running::start(on, &plain(&[WEB], &one));
    let address = proxy.address("web");
    let mut client = proxy.connect("web");
    assert_eq!(ask(&mut client).1, "one");
    proxy.reload(&plain(&[WEB], &two)).unwrap();
    assert_eq!(ask(&mut client).1, "two");
    assert_eq!(proxy.address("web"), address);
    let applied = proxy.metric("svidgate_reloads_total{outcome=\"applied\"}");
    assert_eq!(applied, Some(1.0));
}

fn an_exchange_under_way_ends_by_what_it_began_with(on: On) {
    let (told, is_asked) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let (told, released) = (Mutex::new(told), Mutex::new(released));
    let one = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            told.lock().unwrap().send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
                .unwrap();
        }
    });
    let two = named("two");
    let proxy = Running::start(on, &plain(&[WEB], &one));
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    proxy.reload(&plain(&[WEB], &two)).unwrap();
    release.send(()).unwrap();
    assert_eq!(answer(&mut client).1, "one");
    assert_eq!(ask(&mut client).1, "two");
}

fn a_new_entry_point_listens_and_one_that_is_gone_drains(on: On) {
    let (told, is_asked) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let (told, released) = (Mutex::new(told), Mutex::new(released));
    let backend = Backend::plain(move |wire| {
        while let Some(head) = read_head(wire) {
            if head.starts_with("GET /slow ") {
                told.lock().unwrap().send(()).unwrap();
                released.lock().unwrap().recv().unwrap();
            }
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    });
    let proxy = Running::start(on, &plain(&[WEB], &backend));
    let old = proxy.address("web");
    let (mut idle, mut busy) = (proxy.connect("web"), proxy.connect("web"));
    assert_eq!(ask(&mut idle).1, "ok");
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    is_asked.recv_timeout(Duration::from_secs(20)).unwrap();
    let other = ("other", "address = \"127.0.0.1:0\"");
    proxy.reload(&plain(&[other], &backend)).unwrap();
    // Idle ones are closed, others finish, none is accepted.
    assert_eq!(read_to_end(&mut idle), "");
    eventually("closed", || TcpStream::connect(old).err());
    refused(old);
    release.send(()).unwrap();
    assert_eq!(
        read_to_end(&mut busy),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    assert_eq!(ask(&mut proxy.connect("other")).1, "ok");
    // And back.
    proxy.reload(&plain(&[WEB, other], &backend)).unwrap();
    assert_eq!(ask(&mut proxy.connect("web")).1, "ok");
    assert_eq!(ask(&mut proxy.connect("other")).1, "ok");
    assert!(proxy.end().unwrap());
}

fn an_address_that_is_taken_refuses_the_whole(on: On) {
    // Without SO_REUSEPORT it is nobody else's.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let (one, two) = (named("one"), named("two"));
    let proxy = Running::start(on, &plain(&[WEB], &one));
    let free = ("free", "address = \"127.0.0.1:0\"");
    let other = format!("address = \"{taken}\"");
    let error = proxy
        .reload(&plain(&[free, ("other", &other)], &two))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("entryPoints.other: cannot listen on {taken}: ")),
        "{error}"
    );
    assert_eq!(ask(&mut proxy.connect("web")).1, "one");
    assert_eq!(proxy.handle.address("free"), None);
    let refused = proxy.metric("svidgate_reloads_total{outcome=\"refused\"}");
    assert_eq!(refused, Some(1.0));
}

fn pools_of_unchanged_transports_stay_warm_and_others_are_closed(on: On) {
    let world = World::new();
    let (told, is_closed) = mpsc::channel();
    let told = Mutex::new(told);
    let backend = world.backend("spiffe://example.org/api", move |wire| {
        echo_heads(wire);
        // At the end of the test nobody listens.
        let _told = told.lock().unwrap().send(());
    });
    let text = world.http_text(&backend, "trustDomain = \"example.org\"");
    let proxy = Running::start(on, &text);
    assert!(proxy.get("web", "/").starts_with(OK));
    // The service changes, its transport does not.
    let same = text.replace("servers = [", "passHostHeader = false\nservers = [");
    proxy.reload(&same).unwrap();
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(backend.accepted(), 1);
    assert!(is_closed.try_recv().is_err());
    let other = format!("{same}\n[http.serversTransports.backend]\nmaxIdleConnsPerHost = 7\n");
    proxy.reload(&other).unwrap();
    is_closed.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(backend.accepted(), 2);
}

fn a_narrower_allowlist_counts_at_once(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", echo_bytes);
    let wide = world.tcp_text(&backend, "trustDomain = \"example.org\"");
    let wide = wide.replace("[spiffe]\n", "[spiffe]\ntrustLossGrace = \"50ms\"\n");
    let proxy = Running::start(on, &wide);
    let mut kept = proxy.connect("db");
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    // What still admits the peer ends nothing.
    let same = wide.replace(
        "trustDomain = \"example.org\"",
        "ids = [\"spiffe://example.org/db\", \"spiffe://example.org/db2\"]",
    );
    proxy.reload(&same).unwrap();
    kept.write_all(b"y").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    let narrow = same.replace("\"spiffe://example.org/db\", ", "");
    proxy.reload(&narrow).unwrap();
    assert_eq!(read_to_end(&mut kept), "<reset>");
    assert_eq!(read_to_end(&mut proxy.connect("db")), "<reset>");
    let lost =
        "svidgate_trust_loss_closed_total{transport=\"tcp.serversTransports.db\",use=\"tunnel\"}";
    assert_eq!(proxy.metric(lost), Some(1.0));
}

fn a_transport_that_is_gone_ends_its_tunnels(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", echo_bytes);
    let text = world.tcp_text(&backend, "trustDomain = \"example.org\"");
    let text = text.replace("[spiffe]\n", "[spiffe]\ntrustLossGrace = \"50ms\"\n");
    let proxy = Running::start(on, &text);
    let mut tunnel = proxy.connect("db");
    tunnel.write_all(b"x").unwrap();
    tunnel.read_exact(&mut [0]).unwrap();
    let renamed = text
        .replace("serversTransport = \"db\"", "serversTransport = \"new\"")
        .replace("serversTransports.db.", "serversTransports.new.");
    assert_ne!(renamed, text);
    proxy.reload(&renamed).unwrap();
    assert_eq!(read_to_end(&mut tunnel), "<reset>");
    let mut tunnel = proxy.connect("db");
    tunnel.write_all(b"x").unwrap();
    tunnel.read_exact(&mut [0]).unwrap();
}

fn limits_and_trusted_addresses_change_with_it(on: On) {
    let backend = Backend::plain(echo_heads);
    let keys = |more: &str| format!("address = \"127.0.0.1:0\"\n{more}");
    let one = keys("transport.maxConnections = 1");
    let proxy = Running::start(on, &plain(&[("web", &one)], &backend));
    let mut first = proxy.connect("web");
    let forwarded = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    first.write_all(forwarded).unwrap();
    assert!(
        answer(&mut first)
            .1
            .contains("X-Forwarded-For: 127.0.0.1\r\n")
    );
    // It waits in the kernel's queue, until there is room.
    let mut second = proxy.connect("web");
    second
        .write_all(b"GET /a-long-path HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let more = keys("transport.maxConnections = 2\nforwardedHeaders.insecure = true");
    proxy.reload(&plain(&[("web", &more)], &backend)).unwrap();
    assert!(answer(&mut second).1.starts_with("GET /a-long-path "));
    first.write_all(forwarded).unwrap();
    let seen = answer(&mut first).1;
    assert!(
        seen.contains("X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\n"),
        "{seen}"
    );
}

fn an_identity_may_be_needed_from_then_on_and_no_longer(on: On) {
    let world = World::new();
    let plainly = named("plain");
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let without = plain(&[WEB], &plainly);
    let proxy = Running::start(on, &without);
    assert_eq!(world.agent.calls(), 0);
    let with = world.http_text(&backend, "trustDomain = \"example.org\"");
    let mut client = proxy.connect("web");
    assert_eq!(ask(&mut client).1, "plain");
    proxy.reload(&with).unwrap();
    eventually("an identity", || proxy.identity.current());
    assert!(ask(&mut client).1.starts_with("GET / HTTP/1.1\r\n"));
    proxy.reload(&without).unwrap();
    assert_eq!(ask(&mut client).1, "plain");
    eventually("it is given up", || {
        proxy.identity.current().is_none().then_some(())
    });
    assert!(proxy.admin("/readyz").starts_with(OK));
}

fn another_agent_is_followed(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, "trustDomain = \"example.org\"");
    let proxy = Running::start(on, &text);
    let scratch = Scratch::new();
    // It says nothing yet: what we have stays.
    let agent = Agent::start(&scratch.path().join("other.sock"), Answer::Hang);
    proxy
        .reload(&text.replace(&world.agent.endpoint(), &agent.endpoint()))
        .unwrap();
    eventually("it is asked", || (agent.calls() > 0).then_some(()));
    assert!(proxy.get("web", "/").starts_with(OK));
    let other = "spiffe://example.org/another";
    agent.answer(Answer::Send(issued(&world.ca, other)));
    eventually("it is heard", || {
        let own = proxy.identity.current()?.svid().id().to_string();
        (own == other).then_some(())
    });
    // The first is not, any more.
    let generation = proxy.identity.generation();
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(proxy.identity.generation(), generation);
}

fn it_works_while_the_first_svid_is_waited_for(on: On) {
    let world = World::answering(|_| Answer::Hang);
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let other = named("plain");
    let text = world.http_text(&backend, "trustDomain = \"example.org\"");
    let proxy = Running::start_not_ready(on, &text);
    let old = proxy.address("web");
    refused(old);
    // Another address, and still no identity.
    let moved = text.replace("[entryPoints.web]", "[entryPoints.moved]");
    proxy.handle.address("web").unwrap();
    let config = svidgate::Config::parse(&moved, &svidgate::Overrides::default()).unwrap();
    async_io::block_on(proxy.handle.reload(config)).unwrap();
    refused(proxy.address("moved"));
    // Nothing that needs one: it listens.
    let without = plain(&[("moved", WEB.1)], &other);
    proxy.reload(&without).unwrap();
    eventually("it listens", || {
        TcpStream::connect(proxy.address("moved")).ok()
    });
    assert_eq!(ask(&mut proxy.connect("moved")).1, "plain");
    refused(old);
}

fn an_entry_point_may_change_its_kind(on: On) {
    let backend = Backend::plain(echo_heads);
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let keys = format!("address = \"{address}\"");
    let http = plain(&[("web", &keys)], &backend);
    let tcp = format!(
        "admin.address = \"127.0.0.1:0\"\n[entryPoints.web]\n{keys}\n\
         tcp.routers.r = {{ entryPoints = [\"web\"], rule = \"HostSNI(`*`)\", service = \"s\" }}\n\
         tcp.services.s.loadBalancer.servers = [{{ address = \"{}\" }}]\n",
        backend.address
    );
    // The keys behind a table's header belong to it.
    let tcp = tcp.replace("tcp.routers.r", "[tcp.routers]\nr").replace(
        "tcp.services.s.loadBalancer.servers",
        "[tcp.services.s.loadBalancer]\nservers",
    );
    let proxy = Running::start(on, &http);
    assert!(
        ask(&mut proxy.connect("web"))
            .1
            .contains("Via: 1.1 svidgate\r\n")
    );
    for _ in 0..3 {
        proxy.reload(&tcp).unwrap();
        eventually("it passes bytes", || {
            let mut client = TcpStream::connect(address).ok()?;
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .ok()?;
            let head = read_head(&mut client)?;
            let body = read_head(&mut client)?;
            (head.starts_with(OK) && !body.contains("Via: ")).then_some(())
        });
        proxy.reload(&http).unwrap();
        eventually("it is HTTP again", || {
            let mut client = TcpStream::connect(address).ok()?;
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .ok()?;
            read_head(&mut client)?;
            read_head(&mut client)?.contains("Via: ").then_some(())
        });
    }
}

fn many_reloads_leave_no_descriptor_behind(on: On) {
    let backend = named("one");
    let proxy = Running::start(on, &plain(&[WEB], &backend));
    // Other tests of this process open and close theirs meanwhile, so the
    // sockets are counted that listen where this proxy does.
    let text = |round: usize| {
        let other = format!("other{round}");
        plain(&[WEB, (&other, "address = \"127.0.0.1:0\"")], &backend)
    };
    let mut gone = Vec::new();
    for round in 0..20 {
        proxy.reload(&text(round)).unwrap();
        gone.push(proxy.address(&format!("other{round}")));
        assert_eq!(ask(&mut proxy.connect("web")).1, "one");
    }
    let last = gone.pop().unwrap();
    assert!(TcpStream::connect(last).is_ok());
    for address in gone {
        eventually("it is closed", || {
            // Another test may have been given the port since.
            match TcpStream::connect(address) {
                Err(_) => Some(()),
                Ok(mut stream) => {
                    stream
                        .set_read_timeout(Some(Duration::from_millis(200)))
                        .unwrap();
                    stream
                        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                        .ok()?;
                    let head = read_head(&mut stream).unwrap_or_default();
                    (!head.contains("Content-Length: 3\r\n")).then_some(())
                }
            }
        });
    }
    let page = proxy.admin("/metrics");
    let series = page
        .matches("svidgate_requests_total{entrypoint=\"web\"")
        .count();
    assert_eq!(series, 14, "{page}");
}

fn a_proxy_that_is_ending_takes_none(on: On) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        read_head(wire);
        let _ended = released.lock().unwrap().recv();
    });
    let text = plain(&[WEB], &backend);
    let proxy = Running::start(on, &text);
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    eventually("it is in flight", || {
        (backend.accepted() == 1).then_some(())
    });
    proxy.stop();
    let error = proxy.reload(&text).unwrap_err();
    assert!(matches!(error, ReloadError::Stopping), "{error}");
    drop(client);
    drop(release);
    assert!(proxy.end().unwrap());
}

fn idle_connections_that_a_narrower_allowlist_closes_are_counted(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, "trustDomain = \"example.org\"");
    let proxy = Running::start(on, &text);
    assert!(proxy.get("web", "/").starts_with(OK));
    let narrow = "ids = [\"spiffe://example.org/other\"]";
    proxy.reload(&world.http_text(&backend, narrow)).unwrap();
    let lost = "svidgate_trust_loss_closed_total{transport=\"http.serversTransports.backend\",use=\"idle\"}";
    assert_eq!(proxy.metric(lost), Some(1.0));
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 502 "));
}

#[test]
fn a_reload_that_meets_the_stop_does_not_wait_for_ever() {
    let backend = named("one");
    let text = plain(&[WEB], &backend);
    let config = || svidgate::Config::parse(&text, &svidgate::Overrides::default()).unwrap();
    // Its worker never runs, so nobody applies what it is given.
    let proxy = svidgate::Proxy::bind(config(), 1).unwrap();
    let handle = proxy.handle();
    let another = config();
    let reloading = std::thread::spawn(move || async_io::block_on(handle.reload(another)));
    let handle = proxy.handle();
    handle.stop();
    let error = reloading.join().unwrap().unwrap_err();
    assert!(matches!(error, ReloadError::Stopping), "{error}");
}

#[test]
fn one_address_handed_over_twice_is_refused() {
    let backend = named("one");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let keys = format!("address = \"{address}\"");
    let text = plain(&[("web", &keys)], &backend);
    let config = svidgate::Config::parse(&text, &svidgate::Overrides::default()).unwrap();
    let again = listener.try_clone().unwrap();
    let error = svidgate::Proxy::bind_with(config, 1, vec![listener, again]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("two sockets for {address} were handed over")),
        "{error}"
    );
}

fn new_limits_count_for_the_next_request(on: On) {
    let backend = named("one");
    let keys = "address = \"127.0.0.1:0\"\nhttp.maxHeaderBytes = 256";
    let proxy = Running::start(on, &plain(&[("web", keys)], &backend));
    let mut client = proxy.connect("web");
    assert_eq!(ask(&mut client).1, "one");
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(500)
    );
    // It waits for a request while its limits change.
    proxy.reload(&plain(&[WEB], &backend)).unwrap();
    client.write_all(long.as_bytes()).unwrap();
    assert_eq!(answer(&mut client).1, "one");
    proxy.reload(&plain(&[("web", keys)], &backend)).unwrap();
    client.write_all(long.as_bytes()).unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
}
