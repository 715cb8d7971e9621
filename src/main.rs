//! The process: arguments, log, file, signals, exit codes. Nothing else prints
//! or exits.

use std::io::{self, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;
use async_channel::Sender;
use async_signal::{Signal, Signals};
use futures_lite::{FutureExt, StreamExt};
use listenfd::ListenFd;
use log::{error, info, warn};
use rustix::process::{Resource, Rlimit, setrlimit};
use svidgate::config::Serves;
use svidgate::config::source::Source;
use svidgate::{Config, Error, Handle, Overrides, Proxy, Urgency};

/// svidgate: a TCP and HTTP reverse proxy that reaches its backends by SPIFFE
/// mutual TLS.
#[derive(FromArgs)]
struct Arguments {
    /// the configuration, a TOML file
    #[argh(option)]
    config: Option<PathBuf>,
    /// check the configuration, print what would run, and exit
    #[argh(switch)]
    check: bool,
    /// threads that serve connections (default: the number of cores)
    #[argh(option)]
    workers: Option<String>,
    /// the Workload API, unix:///path or tcp://IP:port; wins over the file
    #[argh(option)]
    workload_api_addr: Option<String>,
    /// print the version and exit
    #[argh(switch)]
    version: bool,
}

/// Exit codes, part of the interface.
const DRAIN_TIMED_OUT: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const OS_ERROR: u8 = 71;
const CONFIG: u8 = 78;

const WORKERS_MAX: usize = 256;

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if arguments.version {
        print(&format!("svidgate {}", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    let Some(path) = arguments.config else {
        complain("--config is missing; see svidgate --help");
        return ExitCode::from(USAGE);
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let asked = arguments
        .workers
        .map_or_else(|| Ok(cores()), |text| text.parse());
    let Some(workers) = asked.ok().filter(|n| (1..=WORKERS_MAX).contains(n)) else {
        complain(&format!("--workers: write 1 to {WORKERS_MAX}"));
        return ExitCode::from(USAGE);
    };
    let overrides = Overrides {
        workload_api_addr: arguments.workload_api_addr,
        endpoint_socket: std::env::var("SPIFFE_ENDPOINT_SOCKET").ok(),
    };
    // Before there is any key in memory.
    let hidden = no_core_dumps();
    let (source, config) = match Source::open(&path, overrides) {
        Ok(opened) => opened,
        Err(error) => {
            for problem in &error.problems {
                complain(&format!("{}: {problem}", path.display()));
            }
            return ExitCode::from(CONFIG);
        }
    };
    if arguments.check {
        for warning in &config.warnings {
            complain(&format!("{}: warning: {warning}", path.display()));
        }
        print(describe(&config).trim_end());
        return ExitCode::SUCCESS;
    }
    start_log(&config);
    for warning in &config.warnings {
        warn!("{}: {warning}", path.display());
    }
    if let Err(error) = hidden {
        warn!("core dumps cannot be switched off, and would hold keys: {error}");
    }
    run(source, config, workers)
}

/// A dump of the memory would hold private keys. Nor may other processes of
/// this user read it.
fn no_core_dumps() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(limited?)
}

/// The sockets that a service manager has opened for us (`LISTEN_FDS`).
fn inherited() -> io::Result<Vec<TcpListener>> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        let socket = given.take_tcp_listener(index).map_err(|error| {
            let descriptor = index + 3;
            io::Error::other(format!(
                "descriptor {descriptor} of LISTEN_FDS is no listening TCP socket: {error}"
            ))
        })?;
        sockets.extend(socket);
    }
    Ok(sockets)
}

fn arguments() -> Result<Arguments, ExitCode> {
    let given: Result<Vec<String>, _> = std::env::args_os()
        .skip(1)
        .map(std::ffi::OsString::into_string)
        .collect();
    let Ok(given) = given else {
        complain("an argument is not UTF-8");
        return Err(ExitCode::from(USAGE));
    };
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    Arguments::from_args(&["svidgate"], &given).map_err(|exit| match exit.status {
        Ok(()) => {
            print(exit.output.trim_end());
            ExitCode::SUCCESS
        }
        Err(()) => {
            complain(exit.output.trim_end());
            ExitCode::from(USAGE)
        }
    })
}

fn start_log(config: &Config) {
    let mut builder = env_logger::Builder::new();
    match std::env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => builder.parse_filters(&filters),
        // The libraries below speak of themselves only when asked.
        _ => builder
            .filter_level(config.log_level.min(log::LevelFilter::Warn))
            .filter_module("svidgate", config.log_level),
    };
    builder.format(|out, record| {
        let now =
            std::time::Duration::from_secs(u64::try_from(svidgate::tls::unix_now()).unwrap_or(0));
        let time = httpdate::fmt_http_date(std::time::UNIX_EPOCH + now);
        // What peers and agents say may hold anything; a line stays a line.
        let text = record.args().to_string();
        let text = text.replace(|c: char| c.is_control(), " ");
        writeln!(out, "{time} {:5} {text}", record.level())
    });
    builder.init();
}

fn run(source: Source, config: Config, workers: usize) -> ExitCode {
    // From here on, so that no signal is lost while addresses are taken.
    let signals = match Signals::new([Signal::Term, Signal::Int, Signal::Hup]) {
        Ok(signals) => signals,
        Err(error) => {
            error!("signals: {error}");
            return ExitCode::from(OS_ERROR);
        }
    };
    let bound = inherited()
        .map_err(Error::from)
        .and_then(|inherited| Proxy::bind_with(config, workers, inherited));
    let proxy = match bound {
        Ok(proxy) => proxy,
        Err(error) => {
            error!("{error}");
            return ExitCode::from(OS_ERROR);
        }
    };
    let handle = proxy.handle();
    let (reload, asked) = async_channel::bounded(1);
    let told = told_to_end(signals, &handle, reload);
    let following = async {
        handle.follow(source, asked).await;
        std::future::pending().await
    };
    match proxy.run(told.or(following)) {
        Ok(true) => {
            info!("ended, everything in flight is finished");
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::from(DRAIN_TIMED_OUT),
        Err(error) => {
            error!("{error}");
            ExitCode::from(match error {
                Error::NoIdentity(_) => UNAVAILABLE,
                Error::Ended(_) => SOFTWARE,
                Error::Bind { .. } | Error::Inherited(_) | Error::Io(_) => OS_ERROR,
            })
        }
    }
}

/// The first signal drains, the second ends. SIGHUP reloads.
async fn told_to_end(mut signals: Signals, handle: &Handle, reload: Sender<()>) -> Urgency {
    let mut is_first = true;
    loop {
        match signals.next().await {
            // Full: it is asked already.
            Some(Ok(Signal::Hup)) => _ = reload.try_send(()),
            Some(Ok(signal)) if is_first => {
                info!("{signal:?}: stopping; once more to end at once");
                handle.stop();
                is_first = false;
            }
            Some(Ok(_)) => return Urgency::Now,
            Some(Err(error)) => warn!("signals: {error}"),
            None => return std::future::pending().await,
        }
    }
}

/// What would run, for `--check`.
fn describe(config: &Config) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match &config.spiffe.endpoint {
        Some(endpoint) => writeln!(text, "identity from {endpoint:?}"),
        None => writeln!(text, "no identity is needed"),
    };
    for entry in &config.entry_points {
        let _ = writeln!(text, "{} on {}", entry.name, entry.address);
        match &entry.serves {
            Serves::Http(http) => {
                for route in &http.routes {
                    let service = &route.service;
                    let servers: Vec<String> = service
                        .servers
                        .iter()
                        .map(|server| {
                            let scheme = server.scheme;
                            format!("{scheme}://{}", server.address)
                        })
                        .collect();
                    let _ = writeln!(
                        text,
                        "  http router {} (priority {}) -> {} -> {}{}",
                        route.name,
                        route.priority,
                        service.name,
                        servers.join(", "),
                        peers(&service.transport.base)
                    );
                }
            }
            Serves::Tcp(service) => {
                let servers: Vec<String> = service
                    .servers
                    .iter()
                    .map(|server| server.address.to_string())
                    .collect();
                let _ = writeln!(
                    text,
                    "  tcp -> {} -> {}{}",
                    service.name,
                    servers.join(", "),
                    peers(&service.transport.base)
                );
            }
        }
    }
    text.push_str("the configuration is good\n");
    text
}

fn peers(transport: &svidgate::transport::Transport) -> String {
    match &transport.authentication {
        svidgate::transport::Authentication::Spiffe(allowlist) => {
            format!(", SPIFFE peers: {allowlist}")
        }
        svidgate::transport::Authentication::Names(_) => String::new(),
    }
}

fn print(text: &str) {
    // A closed stdout is the caller's choice.
    let _closed = writeln!(io::stdout(), "{text}");
}

fn complain(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}
