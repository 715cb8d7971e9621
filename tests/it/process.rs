//! The binary: exit codes, signals, what it prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use crate::support::backend::{Backend, echo_heads, named, read_head, undated};
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
            undated(&answer),
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

/// A running binary whose log can be waited for.
struct Process {
    child: Child,
    log: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            log,
            seen: Vec::new(),
        }
    }

    /// The next line that holds `text`.
    #[track_caller]
    fn says(&mut self, text: &str) -> String {
        loop {
            match self.log.recv_timeout(crate::support::DEADLINE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("it did not say {text:?}, but {:#?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) {
        signal(&self.child, rustix::process::Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(code));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn get(port: u16) -> String {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn plain_text(port: u16, backend: &Backend) -> String {
    PLAIN
        .replace("PORT", &port.to_string())
        .replace("BACKEND", &backend.address.to_string())
}

fn run_file(path: &std::path::Path) -> Process {
    let mut process = Process::start(command(&[
        "--config",
        path.to_str().unwrap(),
        "--workers",
        "2",
    ]));
    for _ in 0..2 {
        process.says("a worker listens");
    }
    process
}

#[test]
fn sighup_reloads_and_a_bad_file_changes_nothing() {
    let (one, two) = (named("one"), named("two"));
    let scratch = Scratch::new();
    let port = free_port();
    let unwatched = |backend| {
        format!(
            "providers.file.watch = false\n{}",
            plain_text(port, backend)
        )
    };
    let path = scratch.file("run.toml", &unwatched(&one));
    let mut process = run_file(&path);
    assert!(get(port).ends_with("\r\n\r\none"));
    scratch.file("run.toml", &unwatched(&two));
    signal(&process.child, rustix::process::Signal::HUP);
    process.says("configuration: applied");
    assert!(get(port).ends_with("\r\n\r\ntwo"));
    scratch.file("run.toml", "[entryPoints.web]\nadress = \":80\"\n[foo]\n");
    signal(&process.child, rustix::process::Signal::HUP);
    let (path, path_text) = (path.clone(), path.display());
    for problem in [
        "http.routers: there is no router",
        "line 1: entryPoints.web.address: it is missing",
        "line 2: entryPoints.web.adress: there is no such key; is address meant?",
        "line 3: foo: there is no such key",
        "not taken, the configuration before it goes on",
    ] {
        process.says(&format!("{path_text}: {problem}"));
    }
    assert!(get(port).ends_with("\r\n\r\ntwo"));
    // What takes a restart is said.
    let other = unwatched(&one).replace("[admin]", "log.level = \"INFO\"\n[admin]");
    let other = other
        .replace("127.0.0.1:0", "127.0.0.2:0")
        .replace("INFO", "DEBUG");
    std::fs::write(&path, other).unwrap();
    signal(&process.child, rustix::process::Signal::HUP);
    process
        .says("configuration: admin.address is another than at the start, which takes a restart");
    process.says("configuration: log.level is another than at the start, which takes a restart");
    process.says("configuration: applied");
    assert!(get(port).ends_with("\r\n\r\none"));
    process.ends_with(0);
}

#[test]
fn a_changed_file_is_followed_without_being_asked() {
    let (one, two) = (named("one"), named("two"));
    let scratch = Scratch::new();
    let port = free_port();
    let path = scratch.file("run.toml", &plain_text(port, &one));
    let mut process = run_file(&path);
    scratch.replace("run.toml", &plain_text(port, &two));
    process.says("configuration: applied");
    assert!(get(port).ends_with("\r\n\r\ntwo"));
    process.ends_with(0);
}

#[test]
fn changed_certificate_files_are_followed() {
    let scratch = Scratch::new();
    let world = World::new();
    let other = crate::support::pki::Authority::new("example.org");
    // Trusted by name, with an authority from a file.
    let own = crate::support::pki::leaf(&other, "spiffe://example.org/api", |params| {
        let name = rcgen::SanType::DnsName("localhost".try_into().unwrap());
        params.subject_alt_names.push(name);
    });
    let config = crate::support::backend::server_config(&own, &[world.ca.der()]);
    let backend = Backend::tls(config, echo_heads);
    let client = crate::support::pki::leaf(&world.ca, "spiffe://example.org/client", |_| {});
    let cert = scratch.file("client.pem", &client.chain_pem());
    let key = scratch.file("client.key", &client.key_pem());
    let roots = scratch.file("ca.pem", &world.ca.pem());
    let port = free_port();
    let text = format!(
        "providers.file.watch = false\n{}\n[serversTransport]\nserverName = \"localhost\"\n\
         rootCAs = [{roots:?}]\n[[serversTransport.certificates]]\ncertFile = {cert:?}\nkeyFile = {key:?}\n",
        plain_text(port, &backend).replace("http://", "https://")
    );
    let path = scratch.file("run.toml", &text);
    let mut process = run_file(&path);
    assert!(get(port).starts_with("HTTP/1.1 502 "));
    scratch.replace("ca.pem", &other.pem());
    process.says("configuration: applied");
    let answer = get(port);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A key that does not fit is refused, and what was goes on.
    scratch.replace("client.key", &other_key());
    process.says("the key does not fit the certificate");
    assert!(get(port).starts_with("HTTP/1.1 200 "));
    process.ends_with(0);
}

fn other_key() -> String {
    let ca = crate::support::pki::Authority::new("example.org");
    crate::support::pki::leaf(&ca, "spiffe://example.org/x", |_| {}).key_pem()
}

#[test]
fn a_lost_tunnel_is_logged_with_the_id_of_its_peer() {
    let scratch = Scratch::new();
    let world = World::new();
    let other = crate::support::pki::Authority::new("example.org");
    world.trust(&[&world.ca, &other]);
    let own = crate::support::pki::leaf(&other, "spiffe://example.org/db", |_| {});
    let config = crate::support::backend::server_config(&own, &[world.ca.der()]);
    let backend = Backend::tls(config, crate::support::backend::echo_bytes);
    let port = free_port();
    let text = world
        .tcp_text(&backend, "trustDomain = \"example.org\"")
        .replace("[spiffe]\n", "[spiffe]\ntrustLossGrace = \"50ms\"\n")
        .replace(
            "[entryPoints.db]\naddress = \"127.0.0.1:0\"",
            &format!("[entryPoints.db]\naddress = \"127.0.0.1:{port}\""),
        );
    let path = scratch.file("run.toml", &text);
    let mut process = run_file(&path);
    let mut tunnel = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tunnel.write_all(b"x").unwrap();
    tunnel.read_exact(&mut [0]).unwrap();
    world.trust(&[&world.ca]);
    let line = process.says("1 open connections to spiffe://example.org/db");
    assert!(
        line.contains("tcp.serversTransports.db: ")
            && line.ends_with("what is under way has 50ms (trustLossGrace)"),
        "{line}"
    );
    process.says("tcp.serversTransports.db: a connection to spiffe://example.org/db is closed (tunnel): the peer is not trusted any more: ");
    process.ends_with(0);
}

#[test]
fn an_expired_svid_is_an_error_in_the_log() {
    let scratch = Scratch::new();
    let world = World::answering(|ca| {
        let own = crate::support::pki::leaf(ca, crate::world::OWN_ID, |params| {
            let now = time::OffsetDateTime::now_utc();
            params.not_after = now + std::time::Duration::from_secs(2);
        });
        let response = crate::support::agent::Response {
            svids: vec![crate::world::svid(ca, crate::world::OWN_ID, &own)],
            ..Default::default()
        };
        crate::support::agent::Answer::Send(response)
    });
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let path = scratch.file("run.toml", &world.http_text(&backend, "allowAny = true"));
    let mut process = run_file(&path);
    let line = process.says("has expired and was not renewed; it is not presented");
    assert!(
        line.contains(" ERROR identity: spiffe://example.org/svidgate, serial "),
        "{line}"
    );
    process.ends_with(0);
}

/// Runs the binary with a listening socket as descriptor 3, as systemd does.
fn with_socket(listener: &std::net::TcpListener, path: &std::path::Path) -> Process {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --config \"$1\" --workers 2 3<&0",
        ])
        .arg(env!("CARGO_BIN_EXE_svidgate"))
        .arg(path)
        .env_remove("RUST_LOG")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(
            listener.try_clone().unwrap(),
        )))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Process::start(command)
}

/// One process after the other on one socket, and not one connection lost.
#[test]
fn a_socket_that_was_handed_over_outlives_its_processes() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    let backend = named("one");
    let scratch = Scratch::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = plain_text(port, &backend);
    let path = scratch.file("run.toml", &text);
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let mut old = with_socket(&listener, &path);
        old.says("a worker listens");
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    assert!(get(port).ends_with("\r\n\r\none"));
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..4 {
            let mut new = with_socket(&listener, &path);
            new.says("a worker listens");
            old.ends_with(0);
            let so_far = asked.load(Ordering::SeqCst);
            eventually("the new one serves", || {
                (asked.load(Ordering::SeqCst) > so_far + 10).then_some(())
            });
            old = new;
        }
        done.store(true, Ordering::SeqCst);
        old.ends_with(0);
    });
    // Another entry point may take it over, and give it back; none may leave it
    // to wait for ever.
    let mut process = with_socket(&listener, &path);
    process.says("a worker listens");
    for (name, text) in [
        ("www", text.replace("entryPoints.web", "entryPoints.www")),
        ("web", text.clone()),
    ] {
        std::fs::write(&path, &text).unwrap();
        signal(&process.child, rustix::process::Signal::HUP);
        process.says("configuration: entry points: 0 kept, 1 new, 1 gone");
        process.says("configuration: applied");
        for _ in 0..20 {
            assert!(get(port).ends_with("\r\n\r\none"), "{name}");
        }
    }
    std::fs::write(&path, plain_text(free_port(), &backend)).unwrap();
    signal(&process.child, rustix::process::Signal::HUP);
    process.says("no entry point would have this address any more");
    assert!(get(port).ends_with("\r\n\r\none"));
    process.ends_with(0);
    // It is of no use to anyone: that is a mistake.
    let path = scratch.file("other.toml", &plain_text(free_port(), &backend));
    let mut process = with_socket(&listener, &path);
    process.says(&format!(
        "a socket for 127.0.0.1:{port} was handed over, and no entry point has exactly this address"
    ));
    assert_eq!(process.child.wait().unwrap().code(), Some(71));
}

#[test]
fn a_new_process_takes_over_the_address_while_the_old_one_drains() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let slow = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            released.lock().unwrap().recv().unwrap();
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
                .unwrap();
        }
    });
    let fast = named("new");
    let scratch = Scratch::new();
    let port = free_port();
    let old = run_file(&scratch.file("old.toml", &plain_text(port, &slow)));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    eventually("it is in flight", || (slow.accepted() == 1).then_some(()));
    let new = run_file(&scratch.file("new.toml", &plain_text(port, &fast)));
    let mut old = old;
    signal(&old.child, rustix::process::Signal::TERM);
    old.says("stopping; once more to end at once");
    // A connection that the old one had queued waits for the slow backend.
    let mut new_only = 0;
    eventually("only the new one accepts", || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).ok()?;
        client
            .set_read_timeout(Some(std::time::Duration::from_millis(500)))
            .unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        new_only = if read.is_ok() && answer.ends_with("new") {
            new_only + 1
        } else {
            0
        };
        (new_only == 20).then_some(())
    });
    for _ in 0..4 {
        // As many as may have got through to it.
        let _sent = release.send(());
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nold"), "{answer}");
    drop(client);
    drop(release);
    drop(slow);
    assert_eq!(old.child.wait().unwrap().code(), Some(0));
    new.ends_with(0);
}

#[cfg(target_os = "linux")]
#[test]
fn there_are_no_core_dumps() {
    let backend = named("one");
    let scratch = Scratch::new();
    let path = scratch.file("run.toml", &plain_text(free_port(), &backend));
    let process = run_file(&path);
    let pid = process.child.id();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
    if rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: whether it is dumpable cannot be seen by root");
    } else {
        // Its files in /proc are root's.
        let memory = std::fs::metadata(format!("/proc/{pid}/mem")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&memory), 0);
    }
    process.ends_with(0);
}
