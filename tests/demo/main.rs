//! `make demo`: svidgate in a small world that needs nothing installed.
//!
//! A Workload API with a throw-away CA issues SVIDs that live for 20 seconds
//! and are renewed every 5. An HTTP and a TCP backend demand mutual TLS; a
//! rogue has the wrong ID. `--once` tries everything and exits with 0 or 1.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code: a panic is how it fails, and it has no public surface"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a program of its own, on threads of its own"
)]

#[path = "../support/lib.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_io::Async;
use futures_rustls::TlsAcceptor;
use rustls::ServerConfig;
use support::agent::{Agent, Answer, Response, Svid};
use support::backend::{echo_bytes, server_config};
use support::foreign::Shared;
use support::pki::{Authority, Leaf, leaf};
use support::scratch::Scratch;

const OWN_ID: &str = "spiffe://demo.test/svidgate";
const LIFE: Duration = Duration::from_secs(20);
const RENEWAL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(binary), Some(config)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: demo SVIDGATE CONFIG [--once]");
        return ExitCode::from(64);
    };
    let once = arguments.next().as_deref() == Some("--once");

    let ca = Arc::new(Authority::new("demo.test"));
    let scratch = Scratch::new();
    let agent = Agent::start(&scratch.path().join("agent.sock"), Answer::Send(issue(&ca)));
    let endpoint = agent.endpoint();
    let renewing = Arc::clone(&ca);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(RENEWAL);
            agent.answer(Answer::Send(issue(&renewing)));
        }
    });
    http_backend(&ca, "127.0.0.1:18443", "spiffe://demo.test/api");
    http_backend(&ca, "127.0.0.1:18444", "spiffe://demo.test/rogue");
    tcp_backend(&ca, "127.0.0.1:15432", "spiffe://demo.test/db");

    let mut svidgate = Command::new(PathBuf::from(binary))
        .args(["--config", &config, "--workload-api-addr", &endpoint])
        .spawn()
        .unwrap();
    let passed = if once {
        let passed = try_everything(&mut svidgate);
        let pid = rustix::process::Pid::from_child(&svidgate);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        passed
    } else {
        println!(
            "\n  curl http://127.0.0.1:8080/          to the backend, through mutual TLS\n  \
               curl -i http://127.0.0.1:8080/rogue  refused: a backend with the wrong ID\n  \
               nc 127.0.0.1 8081                    an echo, through a TCP tunnel of mutual TLS\n  \
               curl http://127.0.0.1:8082/readyz    whether it serves\n\nCtrl-C ends it.\n"
        );
        true
    };
    let ended = svidgate.wait().unwrap();
    println!("svidgate ended with {ended}");
    if passed && ended.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A leaf that is soon over.
fn short_lived(ca: &Authority, id: &str) -> Leaf {
    leaf(ca, id, |params| {
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - Duration::from_secs(10);
        params.not_after = now + LIFE;
    })
}

fn issue(ca: &Authority) -> Response {
    let own = short_lived(ca, OWN_ID);
    Response {
        svids: vec![Svid {
            spiffe_id: OWN_ID.to_owned(),
            x509_svid: own.chain.iter().flat_map(|c| c.to_vec()).collect(),
            x509_svid_key: own.key_pkcs8_der,
            bundle: ca.der().to_vec(),
            hint: String::new(),
        }],
        ..Response::default()
    }
}

/// A new configuration for each connection, so that backends rotate too.
fn fresh(ca: &Authority, id: &str) -> Arc<ServerConfig> {
    server_config(&short_lived(ca, id), &[ca.der()])
}

fn http_backend(ca: &Arc<Authority>, address: &str, id: &'static str) {
    let listener = TcpListener::bind(address).unwrap();
    let ca = Arc::clone(ca);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, acceptor) = (stream.unwrap(), TlsAcceptor::from(fresh(&ca, id)));
            std::thread::spawn(move || {
                async_io::block_on(async {
                    // Refused clients are the point of the demo, not news.
                    let Ok(stream) = acceptor.accept(Async::new(stream).unwrap()).await else {
                        return;
                    };
                    let served = async_h1::accept(Shared::new(stream), |request| async move {
                        let mut response = http_types::Response::new(200);
                        let via = request.header("via").map(|via| via.last().to_string());
                        response.set_body(format!(
                            "{id} says hello; you asked for {} via {}\n",
                            request.url().path(),
                            via.unwrap_or_default()
                        ));
                        Ok(response)
                    });
                    drop(served.await);
                });
            });
        }
    });
}

fn tcp_backend(ca: &Arc<Authority>, address: &str, id: &'static str) {
    let listener = TcpListener::bind(address).unwrap();
    let ca = Arc::clone(ca);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, config) = (stream.unwrap(), fresh(&ca, id));
            std::thread::spawn(move || {
                let mut session = rustls::ServerConnection::new(config).unwrap();
                while session.is_handshaking() {
                    if session.complete_io(&mut stream).is_err() {
                        return;
                    }
                }
                echo_bytes(&mut rustls::StreamOwned::new(session, stream));
            });
        }
    });
}

fn try_everything(svidgate: &mut Child) -> bool {
    support::eventually("svidgate is ready", || {
        let gone = svidgate.try_wait().unwrap();
        assert!(gone.is_none(), "svidgate has ended: {gone:?}");
        get("127.0.0.1:8082", "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200 "))
    });
    let mut passed = true;
    let mut show = |what: &str, seen: Option<String>, wanted: &str| {
        let seen = seen.unwrap_or_default();
        let good = seen.contains(wanted);
        passed &= good;
        let last = seen.lines().last().unwrap_or_default();
        let first = seen.lines().next().unwrap_or_default();
        println!(
            "{} {what}: {first} | {last}",
            if good { "ok  " } else { "FAIL" }
        );
    };
    let web = "127.0.0.1:8080";
    show(
        "GET /",
        get(web, "/"),
        "spiffe://demo.test/api says hello; you asked for / via 1.1 svidgate",
    );
    show("GET /rogue", get(web, "/rogue"), "HTTP/1.1 502 Bad Gateway");
    show(
        "TCP tunnel",
        tunnel("through the tunnel"),
        "through the tunnel",
    );
    // The first SVID is over after 20 seconds; this outlives a renewal.
    let renewed = Instant::now() + RENEWAL + Duration::from_secs(1);
    let mut requests = 0;
    let mut failed = 0;
    while Instant::now() < renewed {
        requests += 1;
        let answer = get(web, "/again");
        failed += usize::from(!answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
        std::thread::sleep(Duration::from_millis(20));
    }
    show(
        "over a renewal",
        Some(format!("{requests} requests, {failed} failed")),
        ", 0 failed",
    );
    show(
        "GET /readyz",
        get("127.0.0.1:8082", "/readyz"),
        "HTTP/1.1 200 OK",
    );
    passed
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(support::DEADLINE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn tunnel(text: &str) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:8081").ok()?;
    stream.set_read_timeout(Some(support::DEADLINE)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
