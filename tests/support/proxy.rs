//! A proxy under test, in this process, on the runtime that a test asks for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_executor::LocalExecutor;
use futures_lite::FutureExt;
use svidgate::runtime::async_io::AsyncIo;
use svidgate::{Config, Error, Handle, Overrides, Proxy, ReloadError, Urgency};

use super::backend::{read_head, undated};
use super::{DEADLINE, eventually};

/// Which runtime the connections run on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum On {
    Epoll,
    AsyncIo,
}

/// A running proxy.
#[derive(Debug)]
pub struct Running {
    pub addresses: Vec<(String, SocketAddr)>,
    pub admin: Option<SocketAddr>,
    pub identity: svidgate::identity::Identity,
    pub handle: Handle,
    thread: Option<JoinHandle<Result<bool, Error>>>,
}

impl Running {
    /// Starts one from a file's text, and waits until it listens.
    pub fn start(on: On, text: &str) -> Self {
        let running = Self::start_not_ready(on, text);
        for (name, address) in &running.addresses {
            eventually(&format!("{name} listens"), || {
                TcpStream::connect(address).ok()
            });
            // That look was a connection too; nothing of it is to be left.
            let open = format!("svidgate_connections_open{{entrypoint=\"{name}\"}}");
            if running.admin.is_some() {
                eventually(&format!("{name} is at rest"), || {
                    (running.metric(&open) == Some(0.0)).then_some(())
                });
            }
        }
        running
    }

    /// Starts one that may have to wait for its identity.
    pub fn start_not_ready(on: On, text: &str) -> Self {
        let config = Config::parse(text, &Overrides::default());
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        let names: Vec<String> = config.entry_points.iter().map(|e| e.name.clone()).collect();
        let proxy = Proxy::bind(config, 1).unwrap();
        let addresses = names
            .into_iter()
            .map(|name| (name.clone(), proxy.address(&name).unwrap()))
            .collect();
        let (admin, handle) = (proxy.admin_address(), proxy.handle());
        let identity = proxy.identity().clone();
        let thread = std::thread::spawn(move || match on {
            On::Epoll => proxy.run(std::future::pending::<Urgency>()),
            On::AsyncIo => run_on_async_io(proxy),
        });
        Self {
            addresses,
            admin,
            identity,
            handle,
            thread: Some(thread),
        }
    }

    pub fn address(&self, name: &str) -> SocketAddr {
        self.handle.address(name).unwrap()
    }

    /// Gives it another file's text, and waits until it runs.
    pub fn reload(&self, text: &str) -> Result<(), ReloadError> {
        let config = Config::parse(text, &Overrides::default());
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        async_io::block_on(self.handle.reload(config))
    }

    /// The value of one line of `/metrics`, by its beginning.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = self.admin("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }

    /// A connection to an entry point, with a deadline on every read.
    pub fn connect(&self, name: &str) -> TcpStream {
        let stream = TcpStream::connect(self.address(name)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends a whole conversation, and reads until the proxy closes. The
    /// client's side stays open.
    pub fn talk(&self, name: &str, request: &str) -> String {
        let mut stream = self.connect(name);
        stream.write_all(request.as_bytes()).unwrap();
        read_to_end(&mut stream)
    }

    /// Asks for a path, and that the connection be closed after it.
    pub fn get(&self, name: &str, path: &str) -> String {
        self.talk(
            name,
            &format!("GET {path} HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n"),
        )
    }

    /// The admin endpoint's answer.
    pub fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin.unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").as_bytes())
            .unwrap();
        read_to_end(&mut stream)
    }

    pub fn stop(&self) {
        self.handle.stop();
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<bool, Error> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Stops it, and returns what it ended with.
    pub fn end(mut self) -> Result<bool, Error> {
        self.stop();
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run_on_async_io(proxy: Proxy) -> Result<bool, Error> {
    let proxy = Arc::new(proxy);
    let executor = Rc::new(LocalExecutor::new());
    let weak = Rc::downgrade(&executor);
    let runtime = AsyncIo::new(move |task| {
        if let Some(executor) = weak.upgrade() {
            executor.spawn(task).detach();
        }
    });
    let control = async { match proxy.control().await? {} };
    async_io::block_on(executor.run(proxy.worker(runtime).or(control)))
}

/// Everything until the other side closes, as text. A reset ends it too, and
/// leaves a mark.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buf = [0; 16384];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buf[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                bytes.extend_from_slice(b"<reset>");
                break;
            }
            Err(error) => panic!("after {:?}: {error}", String::from_utf8_lossy(&bytes)),
        }
    }
    undated(&String::from_utf8_lossy(&bytes))
}

/// A request on a connection that stays open, and its answer: head and body.
pub fn ask(client: &mut TcpStream) -> (String, String) {
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    answer(client)
}

/// The head and the body of an answer with a `Content-Length`.
pub fn answer(client: &mut TcpStream) -> (String, String) {
    let head = read_head(client).unwrap();
    let mut body = vec![0; length_of(&head)];
    client.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// The `Content-Length` of a head.
pub fn length_of(head: &str) -> usize {
    let length = head.split("Content-Length: ").nth(1).unwrap();
    length.split("\r\n").next().unwrap().parse().unwrap()
}

/// What goes into a tunnel comes back.
#[track_caller]
pub fn echoes(tunnel: &mut TcpStream, text: &[u8]) {
    tunnel.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    tunnel.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

/// Generates each test twice, once per runtime.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_epoll {
            $(#[test] fn $name() { super::$name($crate::support::proxy::On::Epoll) })+
        }
        mod on_async_io {
            $(#[test] fn $name() { super::$name($crate::support::proxy::On::AsyncIo) })+
        }
    };
}
