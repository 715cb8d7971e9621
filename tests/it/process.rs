//! The binary: exit codes, signals, what it prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use crate::support::backend::{Backend, echo_heads, read_head};
use crate::support::eventually;
use crate::support::scratch::Scratch;
use crate::world::World;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svidgate"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .env_remove("SPIFFE_ENDPOINT_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(arguments).output().unwrap();
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

const PLAIN: &str = r#"
[admin]
address = "127.0.0.1:0"
[entryPoints.web]
address = "127.0.0.1:PORT"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{ url = "http://BACKEND" }]
"#;

/// A port that is free now. The binary cannot tell which one it got.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn version_and_help_exit_0() {
    let (code, out, _) = run(&["--version"]);
    assert_eq!(
        (code, out.as_str()),
        (0, concat!("svidgate ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for option in [
        "--config",
        "--check",
        "--workers",
        "--workload-api-addr",
        "--version",
    ] {
        assert!(out.contains(option), "{out}");
    }
}

#[test]
fn bad_usage_exits_64() {
    for arguments in [
        &[][..],
        &["--confg", "x"],
        &["--config"],
        &["--config", "x", "--workers", "0"],
        &["--config", "x", "--workers", "many"],
    ] {
        let (code, _, error) = run(arguments);
        assert_eq!(code, 64, "{arguments:?}: {error}");
        assert!(!error.is_empty());
    }
}

#[test]
fn a_bad_file_exits_78_with_every_problem() {
    let scratch = Scratch::new();
    let path = scratch.file("bad.toml", "[entryPoints.web]\nadress = \":80\"\n[foo]\n");
    let path = path.to_str().unwrap();
    let (code, out, error) = run(&["--config", path]);
    assert_eq!((code, out.as_str()), (78, ""));
    assert_eq!(
        error,
        format!(
            "{path}: http.routers: there is no router, so nothing would be served; write [http.routers.NAME] or [tcp.routers.NAME] into this file\n\
             {path}: line 1: entryPoints.web.address: it is missing; write address = \":8080\", say\n\
             {path}: line 2: entryPoints.web.adress: there is no such key; is address meant?\n\
             {path}: line 3: foo: there is no such key; is tcp meant?\n"
        )
        .replace("is tcp meant?", error.rsplit("no such key; ").next().unwrap().trim_end())
    );
    let (code, _, error) = run(&["--config", "/nowhere.toml", "--check"]);
    assert_eq!(code, 78);
    assert!(error.contains("/nowhere.toml cannot be read: "), "{error}");
}

#[test]
fn check_prints_what_would_run_and_exits_0() {
    let scratch = Scratch::new();
    let text = PLAIN
        .replace("PORT", "8080")
        .replace("BACKEND", "127.0.0.1:9");
    let path = scratch.file("good.toml", &text);
    let (code, out, error) = run(&["--config", path.to_str().unwrap(), "--check"]);
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (
            0,
            "no identity is needed\nweb on 127.0.0.1:8080\n  http router api (priority 15) -> api -> http://127.0.0.1:9\nthe configuration is good\n",
            ""
        )
    );
}

#[test]
fn an_address_that_is_taken_exits_71() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let scratch = Scratch::new();
    let text = PLAIN
        .replace("PORT", &port)
        .replace("BACKEND", "127.0.0.1:9");
    let path = scratch.file("taken.toml", &text);
    let (code, _, error) = run(&["--config", path.to_str().unwrap()]);
    assert_eq!(code, 71, "{error}");
    assert!(
        error.contains(&format!(
            "entryPoints.web: cannot listen on 127.0.0.1:{port}: "
        )),
        "{error}"
    );
}

fn start(backend: &Backend, scratch: &Scratch) -> (Child, u16) {
    let port = free_port();
    let text = PLAIN
        .replace("PORT", &port.to_string())
        .replace("BACKEND", &backend.address.to_string());
    let path = scratch.file("run.toml", &text);
    let child = command(&["--config", path.to_str().unwrap(), "--workers", "2"])
        .spawn()
        .unwrap();
    eventually("it listens", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (child, port)
}

#[test]
fn sigterm_and_sigint_drain_and_exit_0() {
    for which in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        let backend = Backend::plain(move |wire| {
            if read_head(wire).is_some() {
                released.lock().unwrap().recv().unwrap();
                wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .unwrap();
            }
        });
        let scratch = Scratch::new();
        let (mut child, port) = start(&backend, &scratch);
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        eventually("it is in flight", || {
            (backend.accepted() == 1).then_some(())
        });
        signal(&child, which);
        eventually("the port is closed", || {
            TcpStream::connect(("127.0.0.1", port)).err()
        });
        release.send(()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        );
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_at_once_with_1() {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let scratch = Scratch::new();
    let (mut child, port) = start(&backend, &scratch);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    eventually("it is in flight", || {
        (backend.accepted() == 1).then_some(())
    });
    signal(&child, rustix::process::Signal::TERM);
    eventually("the port is closed", || {
        TcpStream::connect(("127.0.0.1", port)).err()
    });
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn while_it_waits_for_an_svid_it_says_so_and_sigterm_ends_it() {
    let scratch = Scratch::new();
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, "allowAny = true");
    let path = scratch.file("run.toml", &text);
    let nowhere = format!("unix://{}/none.sock", scratch.path().display());
    let mut child = command(&[
        "--config",
        path.to_str().unwrap(),
        "--workload-api-addr",
        &nowhere,
    ])
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("WARN"))
        .unwrap();
    assert!(
        line.contains(&format!("Workload API {nowhere}: there is no socket "))
            && line.contains("is the agent running?; next try in 0."),
        "{line}"
    );
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn no_line_of_the_log_holds_a_key_or_a_control_character() {
    let scratch = Scratch::new();
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = format!(
        "log.level = \"TRACE\"\n{}",
        world.http_text(&backend, "allowAny = true")
    );
    let port = free_port();
    let text = text.replacen(
        "[entryPoints.web]\naddress = \"127.0.0.1:0\"",
        &format!("[entryPoints.web]\naddress = \"127.0.0.1:{port}\""),
        1,
    );
    let path = scratch.file("run.toml", &text);
    let mut child = command(&["--config", path.to_str().unwrap()])
        .env("RUST_LOG", "trace")
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    });
    let mut client = eventually("it listens", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = reader.join().unwrap();
    assert!(
        log.contains("spiffe://example.org/svidgate, serial "),
        "{log}"
    );
    assert!(!log.contains("PRIVATE KEY"));
    assert!(log.bytes().all(|byte| byte == b'\n' || byte >= b' '));
}
