//! A Workload API that does as it is told: push, deny, hang, kill, restart.
//!
//! It has its own copy of the wire messages, so that a mistake in svidgate's
//! is seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::Status;
use tonic::transport::server::Connected;

/// `X509SVIDRequest`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Request {}

/// `X509SVIDResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// `X509SVID`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Svid {
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub hint: String,
}

/// What every open stream gets next.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A message; the stream stays open.
    Send(Response),
    /// The stream ends with this status.
    Refuse(Status),
    /// Nothing at all.
    Hang,
    /// The stream ends without one.
    End,
}

#[derive(Clone, Debug)]
enum Socket {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// The agent, on a thread of its own.
#[derive(Debug)]
pub struct Agent {
    socket: Socket,
    answers: watch::Sender<Answer>,
    calls: Arc<AtomicUsize>,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Agent {
    /// Listens on a Unix socket.
    pub fn start(socket: &Path, first: Answer) -> Self {
        Self::start_on(Socket::Unix(socket.to_owned()), first)
    }

    /// Listens on a port of loopback.
    pub fn start_tcp(first: Answer) -> Self {
        Self::start_on(Socket::Tcp(([127, 0, 0, 1], 0).into()), first)
    }

    fn start_on(socket: Socket, first: Answer) -> Self {
        let (answers, _) = watch::channel(first);
        let mut agent = Self {
            socket,
            answers,
            calls: Arc::default(),
            running: None,
        };
        agent.restart();
        agent
    }

    pub fn endpoint(&self) -> String {
        match &self.socket {
            Socket::Unix(path) => format!("unix://{}", path.display()),
            Socket::Tcp(address) => format!("tcp://{address}"),
        }
    }

    /// Streams opened so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Gives all open streams, and those to come, another answer.
    pub fn answer(&self, answer: Answer) {
        self.answers.send_replace(answer);
    }

    /// Ends it as a crash would: every connection is cut.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }

    /// Listens again, on a new socket file.
    pub fn restart(&mut self) {
        self.kill();
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = std::sync::mpsc::channel();
        let (socket, answers) = (self.socket.clone(), self.answers.subscribe());
        let calls = Arc::clone(&self.calls);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let served = async {
                    match socket {
                        Socket::Unix(path) => {
                            drop(std::fs::remove_file(&path));
                            let listener = tokio::net::UnixListener::bind(&path).unwrap();
                            up.send(None).unwrap();
                            serve(UnixListenerStream::new(listener), answers, calls).await;
                        }
                        Socket::Tcp(address) => {
                            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                            up.send(listener.local_addr().ok()).unwrap();
                            serve(TcpListenerStream::new(listener), answers, calls).await;
                        }
                    }
                };
                futures_lite::future::or(served, async {
                    // Dropped, never sent.
                    drop(stopped.await);
                })
                .await;
            });
        });
        if let Some(address) = is_up.recv().unwrap() {
            self.socket = Socket::Tcp(address);
        }
        self.running = Some((stop, thread));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve<C>(
    incoming: impl Stream<Item = std::io::Result<C>>,
    answers: watch::Receiver<Answer>,
    calls: Arc<AtomicUsize>,
) where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        calls.fetch_add(1, Ordering::SeqCst);
        let answers = answers.clone();
        async move {
            let header = request.headers().get("workload.spiffe.io");
            let has_header = header.is_some_and(|value| value == "true");
            let handler = tower::service_fn(move |_: tonic::Request<Request>| {
                let answers = answers.clone();
                async move {
                    if !has_header {
                        return Err(Status::invalid_argument("security header missing"));
                    }
                    Ok(tonic::Response::new(stream(answers)))
                }
            });
            let codec = tonic_prost::ProstCodec::<Response, Request>::default();
            let mut grpc = tonic::server::Grpc::new(codec);
            Ok::<_, std::convert::Infallible>(grpc.server_streaming(handler, request).await)
        }
    });
    tonic::transport::Server::builder()
        .serve_with_incoming(service, incoming)
        .await
        .unwrap();
}

fn stream(
    mut answers: watch::Receiver<Answer>,
) -> impl Stream<Item = Result<Response, Status>> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        answers.mark_changed();
        while answers.changed().await.is_ok() {
            let answer = answers.borrow_and_update().clone();
            let goes_on = match answer {
                Answer::Send(response) => sender.send(Ok(response)).await.is_ok(),
                Answer::Hang => true,
                Answer::End => false,
                Answer::Refuse(status) => {
                    drop(sender.send(Err(status)).await);
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
