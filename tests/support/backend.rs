//! Upstreams for tests: a thread per connection, blocking, with or without
//! mutual TLS. The TLS side is rustls's own client verifier, not svidgate's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::DEADLINE;
use super::pki::Leaf;

/// Bytes both ways, and an end of ours.
pub trait Wire: Read + Write + Send {
    /// Says that nothing follows: FIN, or close_notify and FIN.
    fn finish(&mut self);
    /// Cuts the connection when the script ends: RST, no FIN, no close_notify.
    fn cut(&mut self);
}

impl Wire for TcpStream {
    fn finish(&mut self) {
        drop(self.shutdown(std::net::Shutdown::Write));
    }

    fn cut(&mut self) {
        let zero = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&*self, zero).unwrap();
        drop(self.shutdown(std::net::Shutdown::Read));
    }
}

impl Wire for StreamOwned<ServerConnection, TcpStream> {
    fn finish(&mut self) {
        self.conn.send_close_notify();
        drop(self.flush());
        self.sock.finish();
    }

    fn cut(&mut self) {
        self.sock.cut();
    }
}

/// A listening upstream.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Backend {
    /// Speaks in plaintext; `script` is run for each connection.
    pub fn plain(script: impl Fn(&mut dyn Wire) + Send + Sync + 'static) -> Self {
        Self::start(None, script)
    }

    /// Demands mutual TLS.
    pub fn tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&mut dyn Wire) + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(config), script)
    }

    fn start(
        config: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut dyn Wire) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let backend = Self {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            stop: Arc::default(),
        };
        let (accepted, stop) = (Arc::clone(&backend.accepted), Arc::clone(&backend.stop));
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.set_nodelay(true).unwrap();
                let (config, script) = (config.clone(), Arc::clone(&script));
                std::thread::spawn(move || match config {
                    None => script(&mut stream),
                    Some(config) => {
                        let mut session = ServerConnection::new(config).unwrap();
                        while session.is_handshaking() {
                            if session.complete_io(&mut stream).is_err() {
                                return;
                            }
                        }
                        script(&mut StreamOwned::new(session, stream));
                    }
                });
            }
        });
        backend
    }

    /// Connections so far, failed handshakes included.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

/// A server that wants a certificate from one of `roots`; what it shows itself
/// is still to be said.
pub fn demanding(
    roots: &[CertificateDer<'static>],
) -> ConfigBuilder<ServerConfig, WantsServerCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
}

/// A server that shows `leaf` and wants a certificate from one of `roots`.
pub fn server_config(leaf: &Leaf, roots: &[CertificateDer<'static>]) -> Arc<ServerConfig> {
    let config = demanding(roots).with_single_cert(leaf.chain.clone(), leaf.key());
    Arc::new(config.unwrap())
}

/// Reads up to and with the empty line that ends a head.
pub fn read_head(wire: &mut (impl Read + ?Sized)) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match wire.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(undated(&String::from_utf8_lossy(&head)))
}

/// What the proxy has written, without the dates that it has to add where an
/// upstream gave none. Each must be a date.
pub fn undated(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once("\r\nDate: ") {
        let (date, _) = after.split_once("\r\n").unwrap_or((after, ""));
        if httpdate::parse_http_date(date).is_err() {
            // Cut within it.
            break;
        }
        kept.push_str(before);
        rest = &after[date.len()..];
    }
    kept + rest
}

/// Answers each request with its own head as the body, for ever. Requests
/// must have no body.
pub fn echo_heads(wire: &mut dyn Wire) {
    while let Some(head) = read_head(wire) {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        );
        if wire.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Sends back what comes, until it ends.
pub fn echo_bytes(wire: &mut dyn Wire) {
    let mut buf = [0; 16384];
    while let Ok(n) = wire.read(&mut buf) {
        if n == 0 || wire.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    wire.finish();
}

/// A backend that answers with its name.
pub fn named(name: &'static str) -> Backend {
    Backend::plain(move |wire| {
        while read_head(wire).is_some() {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            );
            if wire.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}
