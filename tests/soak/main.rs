//! `make soak`: svidgate under load, in a world that does not stand still.
//!
//! Clients of every kind send all the time, and check every byte that comes
//! back. Meanwhile a script rotates the SVID every second, takes an authority
//! out of the bundle and puts it back, kills the agent, restarts backends,
//! reloads good and broken files, and lets slow clients dawdle. Only what the
//! script broke may fail: a request to a backend that was restarted, or whose
//! authority was out. At the end nothing may be left over. Exits with 0 or 1.

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

mod http2;
#[path = "../support/lib.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::CertificateDer;
use rustls::{ServerConnection, StreamOwned};
use support::agent::{Agent, Answer, Response, Svid};
use support::backend::{Wire, echo_bytes, read_head, server_config};
use support::pki::{Authority, Leaf, leaf};
use support::scratch::Scratch;
use support::{DEADLINE, eventually};

const OWN_ID: &str = "spiffe://soak.test/svidgate";
/// Of every leaf, ours and the backends'.
const LIFE: Duration = Duration::from_secs(20);
/// For a change of the bundle to reach every worker.
const SETTLE: Duration = Duration::from_secs(2);
/// `trustLossGrace`, and a second to notice.
const GRACE: Duration = Duration::from_secs(3);
const AGENT_DOWN: Duration = Duration::from_secs(2);
const BACKEND_DOWN: Duration = Duration::from_secs(1);
/// So long after its return a failure may still come from a restart.
const BACKEND_BACK: Duration = Duration::from_secs(2);
/// For idle connections to be closed, after their `idleConnTimeout`.
const REST: Duration = Duration::from_secs(15);
const GROWTH_MAX: f64 = 5.0;
/// Unexplained failures that are listed.
const LISTED: usize = 20;

// The kinds of load that are told apart: some may fail, some go elsewhere.
const KEEP_ALIVE: &str = "HTTP, keep-alive";
const PER_REQUEST: &str = "HTTP, connection per request";
const DOOMED: &str = "HTTP, CA in and out";
const TO_HTTP2: &str = "HTTP, to HTTP/2";
const TCP_RESTARTED: &str = "TCP sessions, backend restarted";
const DOOMED_TUNNEL: &str = "upgrade tunnel, CA in and out";

// What the script does.
const ROTATION: &str = "SVID rotated";
const CA_CHANGE: &str = "CA taken out or put back";
const AGENT_KILL: &str = "agent killed and restarted";
const RESTART: &str = "backends restarted";
const GOOD_FILE: &str = "good file reloaded";
const BROKEN_FILE: &str = "broken file reloaded";
const SLOW: &str = "slow clients";
const EVENTS: [&str; 7] = [
    ROTATION,
    CA_CHANGE,
    AGENT_KILL,
    RESTART,
    GOOD_FILE,
    BROKEN_FILE,
    SLOW,
];

// Series of svidgate's.
const DESCRIPTORS: &str = "process_open_fds";
const RESIDENT: &str = "process_resident_memory_bytes";
const APPLIED: &str = "svidgate_reloads_total{outcome=\"applied\"}";
const REFUSED: &str = "svidgate_reloads_total{outcome=\"refused\"}";
const ISSUED: &str = "svidgate_identity_updates_total{kind=\"issued\"}";
const TRUST_LOST: &str = "svidgate_trust_loss_closed_total";
const PANICS: &str = "svidgate_panics_total";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next();
    let seconds = arguments.next().map_or(Ok(120), |text| text.parse());
    let (Some(binary), Ok(seconds)) = (binary, seconds) else {
        eprintln!("usage: soak SVIDGATE [SECONDS]");
        return ExitCode::from(64);
    };
    let scratch = Scratch::new();
    let realm = Arc::new(Realm::new());
    let agent = Agent::start(&scratch.path().join("agent.sock"), realm.answer());
    let backends = backends(&realm);
    let calls = http2::backend(&realm);
    let world = Arc::new(World::new());
    let text = config(&agent.endpoint(), &backends, calls.address, &world);
    let path = scratch.file("svidgate.toml", &text);
    let mut svidgate = Svidgate::start(&binary, &path);
    eventually("svidgate is ready", || {
        assert!(
            svidgate.runs(),
            "it has ended, see {}",
            svidgate.log.display()
        );
        Client::get(world.admin, "/readyz").ok()
    });
    let before = at_rest(&world, Duration::from_secs(2), 0.0);

    let mut threads = load(&world);
    let sampled = Arc::clone(&world);
    let sampler = std::thread::spawn(move || sample(&sampled));
    let mut script = Script {
        world: Arc::clone(&world),
        realm,
        agent,
        backends,
        text,
        path,
        unsettled: None,
        streams: None,
        events: BTreeMap::new(),
    };
    script.run(Duration::from_secs(seconds), &mut svidgate, &mut threads);
    world.stop.store(true, SeqCst);
    let crashed = threads.into_iter().filter_map(|it| it.join().err());
    let crashed = crashed.count();
    let memory = growth(&sampler.join().unwrap());
    let after = at_rest(&world, REST, before.get(DESCRIPTORS));
    let status = svidgate.end();

    let mut wrong = report_load(&world);
    let carried = world.tallies.lock().unwrap()[TO_HTTP2].ok as f64;
    let shared = carried / calls.accepted() as f64;
    wrong.extend(report_rest(
        &script.events,
        memory,
        shared,
        [&before, &after],
        status,
    ));
    if crashed > 0 {
        wrong.push(format!("{crashed} clients of ours panicked"));
    }
    println!();
    for what in &wrong {
        println!("FAIL: {what}");
    }
    if wrong.is_empty() {
        println!("PASS");
        return ExitCode::SUCCESS;
    }
    println!("the log is {}", svidgate.log.display());
    ExitCode::FAILURE
}

// ---- What happened, and what explains it ----

/// What was so, and since when.
struct History<T>(Mutex<Vec<(Instant, T)>>);

impl<T: Copy + PartialEq> History<T> {
    /// To be called before the change is made.
    fn set(&self, since: Instant, what: T) {
        self.0.lock().unwrap().push((since, what));
    }

    /// Everything that was so at some moment of this time.
    fn during(&self, from: Instant, to: Instant) -> Vec<T> {
        let all = self.0.lock().unwrap();
        let begun = all.partition_point(|(since, _)| *since <= from);
        let last = all.partition_point(|(since, _)| *since <= to);
        let then = &all[begun.saturating_sub(1)..last];
        then.iter().map(|(_, what)| *what).collect()
    }
}

/// Whether the bundle that svidgate has holds the second authority.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    In,
    /// A change is on its way.
    Changing,
    Out,
}

#[derive(Debug)]
#[expect(dead_code, reason = "they are printed")]
enum Failure {
    /// An answer other than 200, or 101.
    Status(u16),
    /// The connection ended before a byte of the answer came.
    Unanswered,
    /// It broke later, or was never made, or fell silent.
    Broken(io::Error),
    /// Nothing ever explains this: other bytes than those that were due, or
    /// somebody served who must not be.
    Wrong(&'static str),
}

type Outcome<T = ()> = Result<T, Failure>;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

#[derive(Default)]
struct Tally {
    sent: u64,
    ok: u64,
    resent: u64,
    explained: BTreeMap<&'static str, u64>,
    unexplained: u64,
}

/// What clients, script and report share.
struct World {
    web: u16,
    db: u16,
    db2: u16,
    admin: u16,
    start: Instant,
    stop: AtomicBool,
    /// Whether a backend that gets restarted is down, or just was.
    restarts: History<bool>,
    other_ca: History<Known>,
    tallies: Mutex<BTreeMap<&'static str, Tally>>,
    /// The first unexplained failures.
    listed: Mutex<Vec<String>>,
}

impl World {
    fn new() -> Self {
        // All held until all are chosen, so that no two are the same.
        let held: [TcpListener; 4] = std::array::from_fn(|_| listen());
        let [web, db, db2, admin] = held.map(|it| it.local_addr().unwrap().port());
        let start = Instant::now();
        Self {
            web,
            db,
            db2,
            admin,
            start,
            stop: AtomicBool::new(false),
            restarts: History(Mutex::new(vec![(start, false)])),
            other_ca: History(Mutex::new(vec![(start, Known::In)])),
            tallies: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    /// Counts what was begun at `since`, and has ended now.
    fn judge(&self, kind: &'static str, since: Instant, outcome: Outcome) {
        let now = Instant::now();
        // A tunnel has a grace to go on in, a request has none.
        let is_tunnel = kind == DOOMED_TUNNEL;
        let grace = if is_tunnel { GRACE } else { Duration::ZERO };
        let known = self.other_ca.during(since - grace, now);
        let was_in = known.iter().all(|known| *known == Known::In);
        let was_out = known.iter().all(|known| *known == Known::Out);
        let failure = match outcome {
            Ok(()) if was_out && (is_tunnel || kind == DOOMED) => {
                Some(Failure::Wrong("served although its CA was out"))
            }
            outcome => outcome.err(),
        };
        // Rotations, reloads and the end of the agent explain nothing.
        let explained = match (&failure, kind) {
            (None | Some(Failure::Wrong(_)), _) => None,
            (_, KEEP_ALIVE | PER_REQUEST | TCP_RESTARTED) => {
                let restarts = self.restarts.during(since, now);
                restarts.contains(&true).then_some("backend restart")
            }
            (Some(Failure::Status(502 | 503)), DOOMED) | (_, DOOMED_TUNNEL) => {
                let why = if was_out { "CA out" } else { "CA changing" };
                (!was_in).then_some(why)
            }
            _ => None,
        };
        let mut tallies = self.tallies.lock().unwrap();
        let tally = tallies.entry(kind).or_default();
        tally.sent += 1;
        match (failure, explained) {
            (None, _) => tally.ok += 1,
            (_, Some(why)) => *tally.explained.entry(why).or_default() += 1,
            (Some(failure), None) => {
                tally.unexplained += 1;
                let mut listed = self.listed.lock().unwrap();
                if listed.len() < LISTED {
                    let [from, to] = [since, now].map(|it| it - self.start);
                    listed.push(format!("{from:.2?} to {to:.2?}, {kind}: {failure:?}"));
                }
            }
        }
    }
}

// ---- The trust domain and its backends ----

/// `soak.test`: an authority that stays, and another that comes and goes.
#[derive(Debug)]
struct Realm {
    ca: Authority,
    other: Authority,
    other_is_in: AtomicBool,
}

impl Realm {
    fn new() -> Self {
        Self {
            ca: Authority::new("soak.test"),
            other: Authority::new("soak.test"),
            other_is_in: AtomicBool::new(true),
        }
    }

    /// The bundle as it is now.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        let other = self.other_is_in.load(SeqCst);
        let other = other.then(|| self.other.der());
        [self.ca.der()].into_iter().chain(other).collect()
    }

    /// A new SVID for svidgate, with the bundle as it is now.
    fn answer(&self) -> Answer {
        let own = short_lived(&self.ca, OWN_ID);
        Answer::Send(Response {
            svids: vec![Svid {
                spiffe_id: OWN_ID.to_owned(),
                x509_svid: own.chain.iter().flat_map(|it| it.to_vec()).collect(),
                x509_svid_key: own.key_pkcs8_der,
                bundle: self.roots().iter().flat_map(|it| it.to_vec()).collect(),
                hint: String::new(),
            }],
            ..Response::default()
        })
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

/// Takes a port below those that the kernel gives to outgoing connections:
/// one of these could have it while its owner is being restarted.
fn listen() -> TcpListener {
    eventually("a free port", || {
        let port = fastrand::u16(10_000..32_000);
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
    })
}

/// A backend that can be stopped, and started again on the same port. It
/// demands mutual TLS, and issues itself a leaf for each connection.
struct Backend {
    address: SocketAddr,
    /// Of its service, and the last part of its ID.
    name: &'static str,
    serve: fn(&mut dyn Wire),
    realm: Arc<Realm>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<Weak<TcpStream>>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Backend {
    fn new(realm: &Arc<Realm>, name: &'static str, serve: fn(&mut dyn Wire)) -> Self {
        let listener = listen();
        let mut backend = Self {
            address: listener.local_addr().unwrap(),
            name,
            serve,
            realm: Arc::clone(realm),
            stop: Arc::default(),
            open: Arc::default(),
            accepting: None,
        };
        backend.accept(listener);
        backend
    }

    fn accept(&mut self, listener: TcpListener) {
        self.stop.store(false, SeqCst);
        let (stop, open) = (Arc::clone(&self.stop), Arc::clone(&self.open));
        let (realm, name, serve) = (Arc::clone(&self.realm), self.name, self.serve);
        self.accepting = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(SeqCst) {
                    return;
                }
                let stream = Arc::new(stream.unwrap());
                let mut open = open.lock().unwrap();
                open.retain(|stream| stream.strong_count() > 0);
                open.push(Arc::downgrade(&stream));
                let realm = Arc::clone(&realm);
                // What fails here is for the client to judge.
                std::thread::spawn(move || drop(talk(&stream, &realm, name, serve)));
            }
        }));
    }

    /// Closes the listener, and cuts every connection.
    fn stop(&mut self) {
        self.stop.store(true, SeqCst);
        // One more connection, so that the thread looks.
        drop(TcpStream::connect(self.address));
        self.accepting.take().unwrap().join().unwrap();
        for stream in self.open.lock().unwrap().iter() {
            let stream = stream.upgrade();
            stream.map(|stream| stream.shutdown(Shutdown::Both));
        }
    }

    /// The standard library sets SO_REUSEADDR.
    fn start(&mut self) {
        let listener = eventually("the port of a stopped backend", || {
            TcpListener::bind(self.address).ok()
        });
        self.accept(listener);
    }
}

fn talk(stream: &TcpStream, realm: &Realm, name: &str, serve: fn(&mut dyn Wire)) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    let is_doomed = name == "doomed";
    let issuer = if is_doomed { &realm.other } else { &realm.ca };
    let leaf = short_lived(issuer, &format!("spiffe://soak.test/{name}"));
    let config = server_config(&leaf, &realm.roots());
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = stream.try_clone()?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    serve(&mut StreamOwned::new(session, stream));
    Ok(())
}

/// The first two are one service. One of them, and the last one, get
/// restarted now and then.
fn backends(realm: &Arc<Realm>) -> [Backend; 6] {
    [
        Backend::new(realm, "api", serve_http),
        Backend::new(realm, "api", serve_http),
        Backend::new(realm, "doomed", serve_http),
        Backend::new(realm, "upgrade", serve_http),
        Backend::new(realm, "db", echo_bytes),
        Backend::new(realm, "db2", echo_bytes),
    ]
}

/// Answers a GET with the bytes that its target asks for, a POST with its own
/// body, and an upgrade with an echo of all that follows.
fn serve_http(wire: &mut dyn Wire) {
    let mut reader = BufReader::new(wire);
    while let Some(head) = read_head(&mut reader) {
        if field(&head, "upgrade").is_some() {
            let switched = "HTTP/1.1 101 Switching Protocols\r\n\
                            Connection: Upgrade\r\nUpgrade: echo\r\n\r\n";
            let all = [switched.as_bytes(), reader.buffer()].concat();
            let wire = reader.into_inner();
            return wire.write_all(&all).map_or((), |()| echo_bytes(wire));
        }
        let Ok(mut body) = read_body(&mut reader, &head) else {
            return;
        };
        if head.starts_with("GET ") {
            body = wanted(head.split(' ').nth(1).unwrap_or_default());
        }
        let answer = message("HTTP/1.1 200 OK\r\n", &body);
        if reader.get_mut().write_all(&answer).is_err() {
            return;
        }
    }
}

/// What `/…/SIZE/SEED` asks for.
fn wanted(target: &str) -> Vec<u8> {
    let numbers = target.rsplit('/').map(|part| part.parse().unwrap_or(0));
    let numbers: Vec<u64> = numbers.take(2).collect();
    let mut bytes = vec![0; numbers[1] as usize];
    fastrand::Rng::with_seed(numbers[0]).fill(&mut bytes);
    bytes
}

/// A head that lacks its framing, and a body: in chunks, or not.
fn message(head: &str, body: &[u8]) -> Vec<u8> {
    let size = body.len();
    if fastrand::bool() {
        let head = format!("{head}Content-Length: {size}\r\n\r\n");
        return [head.as_bytes(), body].concat();
    }
    let mut bytes = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(fastrand::usize(1000..10_000)) {
        let size = format!("{:x}\r\n", chunk.len());
        bytes.extend([size.as_bytes(), chunk, b"\r\n"].concat());
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.trim())
}

fn read_body(reader: &mut impl BufRead, head: &str) -> io::Result<Vec<u8>> {
    let is_chunked = field(head, "transfer-encoding").is_some();
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        if is_chunked {
            reader.read_line(&mut size)?;
        } else {
            size.push_str(field(head, "content-length").unwrap_or("0"));
        }
        let radix = if is_chunked { 16 } else { 10 };
        let size = usize::from_str_radix(size.trim_end(), radix);
        let size = size.map_err(io::Error::other)?;
        let from = body.len();
        // A chunk has a line end behind it. There are no trailers.
        body.resize(from + size + if is_chunked { 2 } else { 0 }, 0);
        reader.read_exact(&mut body[from..])?;
        body.truncate(from + size);
        if !is_chunked || size == 0 {
            return Ok(body);
        }
    }
}

// ---- svidgate itself ----

fn config(agent: &str, backends: &[Backend; 6], calls: SocketAddr, world: &World) -> String {
    let mut text = format!(
        "providers.file.watch = false\nadmin.address = \"127.0.0.1:{}\"\n\
         [spiffe]\nworkloadAPIAddr = \"{agent}\"\ntrustLossGrace = \"2s\"\n",
        world.admin
    );
    for (name, port) in [("web", world.web), ("db", world.db), ("db2", world.db2)] {
        text += &format!("[entryPoints.{name}]\naddress = \"127.0.0.1:{port}\"\n");
    }
    let [api, other_api, doomed, upgrade, db, db2] = backends;
    for (name, servers) in [
        ("api", &[api.address, other_api.address][..]),
        ("doomed", &[doomed.address]),
        ("upgrade", &[upgrade.address]),
        ("calls", &[calls]),
    ] {
        let servers = servers.iter();
        let servers = servers.map(|it| format!("{{ url = \"https://{it}\" }},"));
        text += &format!(
            r#"[http.routers.{name}]
rule = "PathPrefix(`/{name}/`)"
service = "{name}"
[http.services.{name}.loadBalancer]
serversTransport = "{name}"
servers = [{}]
[http.serversTransports.{name}]
forwardingTimeouts.idleConnTimeout = "2s"
spiffe.ids = ["spiffe://soak.test/{name}"]
"#,
            servers.collect::<String>()
        );
    }
    for Backend { name, address, .. } in [db, db2] {
        text += &format!(
            r#"[tcp.routers.{name}]
entryPoints = ["{name}"]
rule = "HostSNI(`*`)"
service = "{name}"
[tcp.services.{name}.loadBalancer]
serversTransport = "{name}"
servers = [{{ address = "{address}", tls = true }}]
[tcp.serversTransports.{name}.tls.spiffe]
ids = ["spiffe://soak.test/{name}"]
"#
        );
    }
    text
}

/// The process under test. It does not outlive us.
struct Svidgate {
    child: Child,
    log: PathBuf,
}

impl Svidgate {
    fn start(binary: &str, config: &Path) -> Self {
        let log = std::env::temp_dir().join("svidgate-soak.log");
        let mut command = Command::new(binary);
        command.args(["--workers", "2", "--config"]).arg(config);
        command.stderr(std::fs::File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Tells it to end. Its exit status, if it ends in time.
    fn end(&mut self) -> Option<i32> {
        if self.runs() {
            kill_process(self.pid(), Signal::TERM).unwrap();
        }
        let until = Instant::now() + DEADLINE;
        while self.runs() && Instant::now() < until {
            pause(20);
        }
        self.child.try_wait().unwrap()?.code()
    }
}

impl Drop for Svidgate {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// ---- Clients ----

/// A connection to svidgate, with a deadline on every read and write.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> Outcome<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request; returns the head and the body of the response.
    fn exchange(&mut self, request: &[u8]) -> Outcome<(String, Vec<u8>)> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let sent = self.0.get_mut().write_all(request);
        match sent.and_then(|()| self.0.fill_buf().map(<[u8]>::is_empty)) {
            Ok(false) => (),
            Ok(true) => return Err(Failure::Unanswered),
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                return Err(Failure::Unanswered);
            }
            Err(error) => return Err(error.into()),
        }
        let head = read_head(&mut self.0).ok_or(io::ErrorKind::UnexpectedEof);
        let head = head.map_err(io::Error::from)?;
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        match status {
            Some(101) => Ok((head, Vec::new())),
            Some(200) => {
                let body = read_body(&mut self.0, &head)?;
                Ok((head, body))
            }
            Some(other) => Err(Failure::Status(other)),
            None => Err(Failure::Wrong("no status")),
        }
    }

    fn get(port: u16, path: &str) -> Outcome<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: soak.test\r\n\r\n");
        let (_, body) = Self::connect(port)?.exchange(request.as_bytes())?;
        Ok(body)
    }

    /// A connection that has become a tunnel.
    fn upgrade(port: u16, path: &str) -> Outcome<Self> {
        let mut client = Self::connect(port)?;
        let fields = "Host: soak.test\r\nConnection: Upgrade\r\nUpgrade: echo";
        let request = format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n");
        let (head, _) = client.exchange(request.as_bytes())?;
        let is_tunnel = field(&head, "upgrade") == Some("echo");
        is_tunnel
            .then_some(client)
            .ok_or(Failure::Wrong("no upgrade"))
    }

    /// Sends some bytes, and wants them back.
    fn echo(&mut self, most: usize) -> Outcome {
        let mut sent = vec![0; fastrand::usize(1..=most)];
        fastrand::fill(&mut sent);
        self.0.get_mut().write_all(&sent)?;
        let mut received = vec![0; sent.len()];
        self.0.read_exact(&mut received)?;
        same(&received, &sent)
    }

    /// Ends its half. The other must end then, with nothing before its end.
    fn finish(mut self) -> Outcome {
        self.0.get_mut().shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        same(&rest, &[])
    }

    /// Some echoes, and a clean end.
    fn session(mut self) -> Outcome {
        for _ in 0..fastrand::u8(1..20) {
            self.echo(32 * 1024)?;
        }
        self.finish()
    }
}

fn same(received: &[u8], due: &[u8]) -> Outcome {
    let is_same = received == due;
    is_same.then_some(()).ok_or(Failure::Wrong("other bytes"))
}

struct Request {
    bytes: Vec<u8>,
    /// The body that must come back.
    due: Vec<u8>,
    is_get: bool,
}

impl Request {
    fn any(service: &str, fields: &str) -> Self {
        // Small as a rule.
        let is_large = fastrand::u8(..) < 16;
        let size = fastrand::u32(0..if is_large { 256 * 1024 } else { 4096 });
        let target = format!("/{service}/{size}/{}", fastrand::u32(..));
        let due = wanted(&target);
        let is_get = fastrand::bool();
        let method = if is_get { "GET" } else { "POST" };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: soak.test\r\n{fields}");
        let bytes = match is_get {
            true => format!("{head}\r\n").into_bytes(),
            false => message(&head, &due),
        };
        Self { bytes, due, is_get }
    }

    /// Uses the connection that is kept, if there is one, and keeps it.
    fn ask(&self, kept: &mut Option<Client>, world: &World, open: Open) -> Outcome {
        let mut client = kept.take().map_or_else(|| open(world), Ok)?;
        let (head, body) = client.exchange(&self.bytes)?;
        if field(&head, "connection") != Some("close") {
            *kept = Some(client);
        }
        same(&body, &self.due)
    }
}

fn pause(most_ms: u64) {
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..=most_ms)));
}

type Open = fn(&World) -> Outcome<Client>;
type Run = fn(&World, &'static str, Open);

/// Every client, each on a thread of its own until the load ends.
fn load(world: &Arc<World>) -> Vec<JoinHandle<()>> {
    let web: Open = |world| Client::connect(world.web);
    let db: Open = |world| Client::connect(world.db);
    let db2: Open = |world| Client::connect(world.db2);
    let upgrade: Open = |world| Client::upgrade(world.web, "/upgrade/");
    let doomed: Open = |world| Client::upgrade(world.web, "/doomed/");
    let calls: Run = |world, kind, _| http2::calls(world, kind);
    let kinds: [(usize, Run, &'static str, Open); 11] = [
        (6, requests, KEEP_ALIVE, web),
        (3, requests, PER_REQUEST, web),
        (2, requests, DOOMED, web),
        (2, requests, TO_HTTP2, web),
        (3, calls, "HTTP/2", web),
        (3, sessions, "TCP sessions", db),
        (2, sessions, TCP_RESTARTED, db2),
        (3, sessions, "upgrade sessions", upgrade),
        (3, tunnel, "TCP tunnels", db),
        (3, tunnel, "upgrade tunnels", upgrade),
        (1, tunnel, DOOMED_TUNNEL, doomed),
    ];
    let mut threads = Vec::new();
    for (count, run, kind, open) in kinds {
        world.tallies.lock().unwrap().entry(kind).or_default();
        for _ in 0..count {
            let world = Arc::clone(world);
            threads.push(std::thread::spawn(move || run(&world, kind, open)));
        }
    }
    threads
}

fn requests(world: &World, kind: &'static str, open: Open) {
    let is_kept = matches!(kind, KEEP_ALIVE | TO_HTTP2);
    let service = match kind {
        DOOMED => "doomed",
        TO_HTTP2 => "calls",
        _ => "api",
    };
    let fields = if is_kept { "" } else { "Connection: close\r\n" };
    let mut kept = None;
    while world.goes_on() {
        let request = Request::any(service, fields);
        let (since, is_used) = (Instant::now(), kept.is_some());
        let mut outcome = request.ask(&mut kept, world, open);
        // As browsers do. A POST may have done something already.
        if is_used && request.is_get && matches!(outcome, Err(Failure::Unanswered)) {
            let mut tallies = world.tallies.lock().unwrap();
            tallies.entry(kind).or_default().resent += 1;
            drop(tallies);
            outcome = request.ask(&mut kept, world, open);
        }
        world.judge(kind, since, outcome);
        pause(if is_kept { 10 } else { 50 });
    }
}

fn sessions(world: &World, kind: &'static str, open: Open) {
    while world.goes_on() {
        let since = Instant::now();
        world.judge(kind, since, open(world).and_then(Client::session));
        pause(50);
    }
}

/// One tunnel for all the time, with an echo now and then, each of which is
/// counted. Another tunnel only when that one was cut.
fn tunnel(world: &World, kind: &'static str, open: Open) {
    let mut kept = None;
    while world.goes_on() {
        let since = Instant::now();
        let client = kept.take().map_or_else(|| open(world), Ok);
        let echoed = client.and_then(|mut client| {
            client.echo(4096)?;
            kept = Some(client);
            Ok(())
        });
        world.judge(kind, since, echoed);
        pause(400);
    }
    if let Some(client) = kept {
        world.judge(kind, Instant::now(), client.finish());
    }
}

/// Clients that send half a request, a byte more now and then, and go away.
fn dawdle(world: &World, mut clients: Vec<TcpStream>) {
    let start = "POST /api/1/1 HTTP/1.1\r\nHost: soak.test\r\nContent-Length: 1000\r\n";
    for (index, client) in clients.iter_mut().enumerate() {
        // Half a head, or a head and less than its body.
        let end = if index % 2 == 0 { "X-Slow: " } else { "\r\n" };
        drop(client.write_all(format!("{start}{end}").as_bytes()));
    }
    for _ in 0..30 {
        if !world.goes_on() {
            return;
        }
        pause(200);
        for client in &mut clients {
            drop(client.write_all(b"z"));
        }
    }
}

// ---- The script ----

/// Rings every so many seconds, at first after half of them.
struct Clock(Instant, Duration);

impl Clock {
    fn every(seconds: u64) -> Self {
        let period = Duration::from_secs(seconds);
        Self(Instant::now() + period / 2, period)
    }

    fn rings(&mut self, now: Instant) -> bool {
        let rings = self.0 <= now;
        self.0 += if rings { self.1 } else { Duration::ZERO };
        rings
    }
}

/// What goes on around svidgate.
struct Script {
    world: Arc<World>,
    realm: Arc<Realm>,
    agent: Agent,
    backends: [Backend; 6],
    /// The configuration, and where it is.
    text: String,
    path: PathBuf,
    /// While svidgate may not know the bundle: since when that is as it is, or
    /// the stream open that brings it.
    unsettled: Option<Instant>,
    /// The agent's streams when it was killed, until there is one more.
    streams: Option<usize>,
    events: BTreeMap<&'static str, u64>,
}

impl Script {
    fn run(&mut self, lasts: Duration, svidgate: &mut Svidgate, threads: &mut Vec<JoinHandle<()>>) {
        let clocks = [1, 7, 11, 13, 9, 5].map(Clock::every);
        let [
            mut rotation,
            mut ca,
            mut kill,
            mut restart,
            mut reload,
            mut slow,
        ] = clocks;
        let (mut agent_back, mut backends_back) = (None, None);
        let end = Instant::now() + lasts;
        loop {
            let now = Instant::now();
            let is_last = now >= end || !svidgate.runs();
            let is_due = |at: &mut Instant| is_last || *at <= now;
            if agent_back.take_if(is_due).is_some() {
                self.agent.restart();
            }
            if backends_back.take_if(is_due).is_some() {
                let down = |it: &&mut Backend| it.accepting.is_none();
                let down = self.backends.iter_mut().filter(down);
                down.for_each(Backend::start);
                let over = Instant::now() + BACKEND_BACK;
                self.world.restarts.set(over, false);
            }
            if is_last {
                // Its stream is among the descriptors that are counted then.
                return eventually("svidgate has its stream again", || {
                    let is_back = self.streams != Some(self.agent.calls());
                    (is_back || !svidgate.runs()).then_some(())
                });
            }
            if rotation.rings(now) {
                self.count(ROTATION, 1);
                self.agent.answer(self.realm.answer());
            }
            if ca.rings(now) {
                self.count(CA_CHANGE, 1);
                self.unsettled = Some(now);
                self.world.other_ca.set(now, Known::Changing);
                self.realm.other_is_in.fetch_xor(true, SeqCst);
                self.agent.answer(self.realm.answer());
            }
            self.watch_the_bundle(now);
            if kill.rings(now) {
                self.count(AGENT_KILL, 1);
                self.agent.kill();
                self.streams = Some(self.agent.calls());
                agent_back = Some(now + AGENT_DOWN);
            }
            if restart.rings(now) {
                let which = self.count(RESTART, 1) % 2;
                self.world.restarts.set(now, true);
                self.backends[which as usize].stop();
                self.backends[5].stop();
                backends_back = Some(now + BACKEND_DOWN);
            }
            if reload.rings(now) {
                self.rewrite();
                let _ = kill_process(svidgate.pid(), Signal::HUP);
            }
            if slow.rings(now) {
                let world = Arc::clone(&self.world);
                let web = (Ipv4Addr::LOCALHOST, world.web);
                let clients = (0..20).filter_map(|_| TcpStream::connect(web).ok());
                let clients: Vec<TcpStream> = clients.collect();
                self.count(SLOW, clients.len() as u64);
                threads.push(std::thread::spawn(move || dawdle(&world, clients)));
            }
            pause(40);
        }
    }

    /// Returns how often it has happened.
    fn count(&mut self, event: &'static str, times: u64) -> u64 {
        let count = self.events.entry(event).or_default();
        *count += times;
        *count
    }

    /// Finds out when svidgate surely knows the bundle. A change that was made
    /// while it had no stream comes to it with the next one.
    fn watch_the_bundle(&mut self, now: Instant) {
        if self.streams == Some(self.agent.calls()) {
            return;
        }
        if self.streams.take().is_some() {
            self.unsettled = self.unsettled.map(|_| now);
        }
        let is_settled = |since: &mut Instant| *since + SETTLE <= now;
        if self.unsettled.take_if(is_settled).is_some() {
            let is_in = self.realm.other_is_in.load(SeqCst);
            let known = if is_in { Known::In } else { Known::Out };
            self.world.other_ca.set(now, known);
        }
    }

    /// Puts another file in the place of the one there, at one blow. Every
    /// third one is broken; each good one differs from the one before.
    fn rewrite(&mut self) {
        let (good, broken) = (self.count(GOOD_FILE, 0), self.count(BROKEN_FILE, 0));
        let is_good = (good + broken) % 3 != 1;
        self.count(if is_good { GOOD_FILE } else { BROKEN_FILE }, 1);
        let service = if is_good { "upgrade" } else { "nobody" };
        let new = self.path.with_extension("new");
        let more = format!("rule = \"Path(`/{good}`)\"\nservice = \"{service}\"\n");
        let text = format!("{}[http.routers.more]\n{more}", self.text);
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.path).unwrap();
    }
}

// ---- Measuring ----

/// Series, as Prometheus writes them, and their values.
#[derive(Default)]
struct Samples(Vec<(String, f64)>);

impl Samples {
    fn fetch(world: &World) -> Outcome<Self> {
        let text = Client::get(world.admin, "/metrics")?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        let samples = samples.collect::<Option<_>>().map(Self);
        samples.ok_or(Failure::Wrong("not the format of Prometheus"))
    }

    /// Of one series, or the sum of all with this name. 0: never counted.
    fn get(&self, wanted: &str) -> f64 {
        let named = self.0.iter().filter(|(series, _)| {
            let name = series.split('{').next();
            series == wanted || name == Some(wanted)
        });
        // Not sum(), which makes -0 of nothing.
        named.fold(0.0, |sum, (_, value)| sum + value)
    }
}

/// Asks until there are only so many descriptors, but not for ever. Returns
/// the answer with the fewest.
fn at_rest(world: &World, at_most: Duration, wanted: f64) -> Samples {
    let until = Instant::now() + at_most;
    let (mut best, mut fewest) = (Samples::default(), f64::INFINITY);
    while fewest > wanted && Instant::now() < until {
        if let Ok(samples) = Samples::fetch(world)
            && samples.get(DESCRIPTORS) <= fewest
        {
            fewest = samples.get(DESCRIPTORS);
            best = samples;
        }
        pause(200);
    }
    best
}

/// The resident KiB, every second.
fn sample(world: &World) -> Vec<(Duration, f64)> {
    let (mut resident, start) = (Vec::new(), Instant::now());
    while world.goes_on() {
        let since = Instant::now();
        let fetched = Samples::fetch(world);
        if let Ok(samples) = &fetched {
            resident.push((start.elapsed(), samples.get(RESIDENT) / 1024.0));
        }
        world.judge("GET /metrics", since, fetched.map(drop));
        std::thread::sleep(Duration::from_secs(1));
    }
    resident
}

/// The median after the warm-up, that at the end, and the growth in percent.
fn growth(resident: &[(Duration, f64)]) -> [f64; 3] {
    let lasted = resident.last().map_or(Duration::ZERO, |(at, _)| *at);
    let window = (lasted / 5).min(Duration::from_secs(20));
    let median = |from: Duration| {
        let within = from..from + window;
        let sizes = resident.iter().filter(|(at, _)| within.contains(at));
        let mut sizes: Vec<f64> = sizes.map(|(_, size)| *size).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.get(sizes.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let (first, last) = (median(window), median(lasted - window));
    let growth = (last - first) / first * 100.0;
    [first, last, (growth * 10.0).round() / 10.0]
}

/// Prints what became of the load. What was never done is a fault, too.
fn report_load(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    #[rustfmt::skip]
    let header = ["load", "sent", "ok", "resent", "failed, explained", "failed, unexplained"];
    let mut rows = vec![header.map(str::to_owned)];
    for (kind, tally) in world.tallies.lock().unwrap().iter() {
        let counts = [tally.sent, tally.ok, tally.resent, tally.unexplained];
        let [sent, ok, resent, unexplained] = counts.map(|count| count.to_string());
        if tally.ok == 0 || tally.unexplained > 0 {
            wrong.push(format!("{kind}: {ok} ok, {unexplained} unexplained"));
        }
        let explained = tally.explained.iter();
        let explained: Vec<_> = explained
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        let explained = explained.join(", ");
        rows.push([kind.to_string(), sent, ok, resent, explained, unexplained]);
    }
    print_table(&rows);
    for line in world.listed.lock().unwrap().iter() {
        println!("- {line}");
    }
    wrong
}

/// Prints what else has happened: what, how much, and whether that is good.
fn report_rest(
    events: &BTreeMap<&'static str, u64>,
    [first, last, growth]: [f64; 3],
    shared: f64,
    [before, after]: [&Samples; 2],
    status: Option<i32>,
) -> Vec<String> {
    let times = |event: &str| events.get(event).map_or(0.0, |times| *times as f64);
    let more = |series: &str| after.get(series) - before.get(series);
    let (applied, refused) = (more(APPLIED), more(REFUSED));
    let (start, end) = (before.get(DESCRIPTORS), after.get(DESCRIPTORS));
    let panics = after.get(PANICS);
    // Not a number: it did not end in time, or by a signal.
    let status = status.map_or(f64::NAN, f64::from);
    let mut lines = EVENTS.map(|it| (it, times(it), times(it) > 0.0)).to_vec();
    lines.extend([
        ("reloads applied", applied, applied == times(GOOD_FILE)),
        ("reloads refused", refused, refused == times(BROKEN_FILE)),
        ("identity updates that came", more(ISSUED), true),
        ("closed for lost trust", more(TRUST_LOST), true),
        (
            "requests for each HTTP/2 connection",
            shared.floor(),
            shared >= 10.0,
        ),
        ("resident after the warm-up, KiB", first, true),
        ("resident at the end, KiB", last, true),
        ("growth, %", growth, growth < GROWTH_MAX),
        ("descriptors before the load", start, start > 0.0),
        ("descriptors after it", end, end > 0.0),
        ("descriptors leaked", end - start, end <= start),
        ("panics", panics, panics == 0.0),
        ("exit status", status, status == 0.0),
    ]);
    let row = |(what, value, _): &(&str, f64, bool)| [(*what).to_owned(), value.to_string()];
    let mut rows = vec![["what", "value"].map(str::to_owned)];
    rows.extend(lines.iter().map(row));
    print_table(&rows);
    let bad = lines.iter().filter(|(_, _, is_good)| !is_good);
    bad.map(|bad| row(bad).join(": ")).collect()
}

/// Prints rows as Markdown does; the first is the header.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].len());
        widths.max().unwrap_or(0)
    });
    let rule = widths.map(|width| "-".repeat(width));
    let rows = rows[..1].iter().chain([&rule]).chain(&rows[1..]);
    println!();
    for row in rows {
        for (cell, width) in row.iter().zip(widths) {
            print!("| {cell:width$} ");
        }
        println!("|");
    }
}
