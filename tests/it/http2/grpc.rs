//! gRPC end to end: tonic, svidgate, and tonic behind mutual TLS.

use super::*;
use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::{Code, Status};

crate::on_both!(
    unary_and_streaming_calls_in_every_direction,
    status_and_metadata_come_through,
    a_message_is_delivered_before_the_next_is_sent,
    cancel_and_deadline_reach_the_server,
    an_answer_of_our_own_is_a_status_for_the_client,
);

type Codec = tonic_prost::ProstCodec<String, String>;

/// A server of four methods, which are named for what streams.
fn server(world: &World, cancelled: Arc<Mutex<Vec<String>>>) -> std::net::SocketAddr {
    let config = world.server_config("spiffe://example.org/api");
    let config = offering(&config, &[b"h2"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener)
                .then(move |stream| {
                    let acceptor = acceptor.clone();
                    async move { acceptor.accept(stream?).await.map(Peer) }
                })
                .filter(Result::is_ok);
            let service = tower::service_fn(move |request| call(request, cancelled.clone()));
            tonic::transport::Server::builder()
                .serve_with_incoming(service, incoming)
                .await
                .unwrap();
        });
    });
    address
}

/// A TLS stream as tonic wants it.
struct Peer(tokio_rustls::server::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for Peer {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Peer {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Peer {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Writes a line when it is dropped before its time.
struct Watch(String, Arc<Mutex<Vec<String>>>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0.clone());
    }
}

async fn call(
    request: Request<tonic::body::Body>,
    cancelled: Arc<Mutex<Vec<String>>>,
) -> Result<Response<tonic::body::Body>, std::convert::Infallible> {
    let mut grpc = tonic::server::Grpc::new(Codec::default());
    let path = request.uri().path().to_owned();
    let timeout = request.headers().get("grpc-timeout").cloned();
    let handled = tower::service_fn(move |request: tonic::Request<tonic::Streaming<String>>| {
        let (path, timeout, cancelled) = (path.clone(), timeout.clone(), cancelled.clone());
        async move {
            let metadata = request.metadata().clone();
            let mut asked = request.into_inner();
            let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, Status>>(1);
            tokio::spawn(async move {
                match path.as_str() {
                    "/t.T/Echo" => {
                        while let Some(Ok(message)) = asked.next().await {
                            if sender.send(Ok(message)).await.is_err() {
                                return;
                            }
                        }
                    }
                    "/t.T/Join" => {
                        let mut all = Vec::new();
                        while let Some(Ok(message)) = asked.next().await {
                            all.push(message);
                        }
                        drop(sender.send(Ok(all.join(" "))).await);
                    }
                    "/t.T/Fail" => {
                        let key = metadata.get("x-key").unwrap().to_str().unwrap();
                        let mut status = Status::data_loss(format!("no {key} \u{e4}"));
                        status
                            .metadata_mut()
                            .insert("x-more", "trailing".parse().unwrap());
                        drop(sender.send(Ok("first".to_owned())).await);
                        drop(sender.send(Err(status)).await);
                    }
                    _ => {
                        let what = format!("{path} {timeout:?}");
                        let _watch = Watch(what, cancelled);
                        sender.closed().await;
                    }
                }
            });
            let answers = tokio_stream::wrappers::ReceiverStream::new(receiver);
            let mut response = tonic::Response::new(answers);
            response
                .metadata_mut()
                .insert("x-head", "leading".parse().unwrap());
            Ok::<_, Status>(response)
        }
    });
    Ok(grpc.streaming(handled, request).await)
}

struct Calls {
    runtime: tokio::runtime::Runtime,
    grpc: tonic::client::Grpc<tonic::transport::Channel>,
}

impl Calls {
    fn to(proxy: &Running) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let endpoint = format!("http://{}", proxy.address("web"));
        let grpc = runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
            let mut grpc = tonic::client::Grpc::new(channel.connect().await.unwrap());
            grpc.ready().await.unwrap();
            grpc
        });
        Self { runtime, grpc }
    }

    /// Sends these, and gives what comes until the end.
    fn call(
        &mut self,
        path: &'static str,
        messages: Vec<String>,
        customise: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> (Vec<String>, Result<(), Status>) {
        let mut request = tonic::Request::new(tokio_stream::iter(messages));
        customise(request.metadata_mut());
        let path = http::uri::PathAndQuery::from_static(path);
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            let work = async {
                grpc.ready().await.unwrap();
                let response = match grpc.streaming(request, path, Codec::default()).await {
                    Ok(response) => response,
                    Err(status) => return (Vec::new(), Err(status)),
                };
                let head = response.metadata().get("x-head").cloned();
                let mut answers = response.into_inner();
                let mut got = Vec::new();
                loop {
                    match answers.message().await {
                        Ok(Some(message)) => {
                            assert_eq!(head.as_ref().unwrap(), "leading");
                            got.push(message);
                        }
                        Ok(None) => return (got, Ok(())),
                        Err(status) => return (got, Err(status)),
                    }
                }
            };
            tokio::time::timeout(DEADLINE, work).await.unwrap()
        })
    }
}

fn world(on: On) -> (World, Running, Arc<Mutex<Vec<String>>>) {
    let world = World::new();
    let cancelled = Arc::new(Mutex::new(Vec::new()));
    let address = server(&world, Arc::clone(&cancelled));
    let proxy = Running::start(
        on,
        &format!(
            r#"{}
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/t.T/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://{address}" }}]
[http.serversTransports.t.spiffe]
{IDS}
"#,
            world.spiffe_table()
        ),
    );
    (world, proxy, cancelled)
}

fn words(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("word {n}")).collect()
}

fn unary_and_streaming_calls_in_every_direction(on: On) {
    let (_world, proxy, _) = world(on);
    let mut calls = Calls::to(&proxy);
    // One to one, many to one, one to many (of one), many to many.
    for (path, asked, answered) in [
        ("/t.T/Join", words(1), words(1)),
        ("/t.T/Join", words(300), vec![words(300).join(" ")]),
        ("/t.T/Echo", words(1), words(1)),
        ("/t.T/Echo", words(300), words(300)),
        (
            "/t.T/Echo",
            vec!["x".repeat(2_000_000)],
            vec!["x".repeat(2_000_000)],
        ),
    ] {
        let (got, end) = calls.call(path, asked, |_| {});
        assert_eq!(end.map_err(|it| it.to_string()), Ok(()), "{path}");
        assert!(got == answered, "{path}: {}", got.len());
    }
}

fn status_and_metadata_come_through(on: On) {
    let (_world, proxy, _) = world(on);
    let (got, end) = Calls::to(&proxy).call("/t.T/Fail", words(1), |metadata| {
        metadata.insert("x-key", "value".parse().unwrap());
    });
    assert_eq!(got, ["first"]);
    let status = end.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "no value \u{e4}")
    );
    assert_eq!(status.metadata().get("x-more").unwrap(), "trailing");
}

fn a_message_is_delivered_before_the_next_is_sent(on: On) {
    let (_world, proxy, _) = world(on);
    let calls = Calls::to(&proxy);
    let mut grpc = calls.grpc.clone();
    calls.runtime.block_on(async {
        let work = async {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let asked = tokio_stream::wrappers::ReceiverStream::new(receiver);
            let path = http::uri::PathAndQuery::from_static("/t.T/Echo");
            grpc.ready().await.unwrap();
            let response = grpc.streaming(tonic::Request::new(asked), path, Codec::default());
            let mut answers = response.await.unwrap().into_inner();
            for word in words(20) {
                sender.send(word.clone()).await.unwrap();
                assert_eq!(answers.message().await.unwrap(), Some(word));
            }
            drop(sender);
            assert_eq!(answers.message().await.unwrap(), None);
        };
        tokio::time::timeout(DEADLINE, work).await.unwrap();
    });
}

fn cancel_and_deadline_reach_the_server(on: On) {
    let (_world, proxy, cancelled) = world(on);
    let calls = Calls::to(&proxy);
    let mut grpc = calls.grpc.clone();
    let path = http::uri::PathAndQuery::from_static("/t.T/Wait");
    calls.runtime.block_on(async {
        let request = tonic::Request::new(tokio_stream::iter(words(1)));
        grpc.ready().await.unwrap();
        let response = grpc
            .streaming(request, path.clone(), Codec::default())
            .await;
        // The call is open; dropping it cancels it.
        drop(response.unwrap());
        tokio::task::yield_now().await;
    });
    eventually("the server has heard of the cancellation", || {
        calls.runtime.block_on(tokio::task::yield_now());
        cancelled.lock().unwrap().first().cloned()
    });
    let limit = Duration::from_millis(200);
    calls.runtime.block_on(async {
        let mut request = tonic::Request::new(tokio_stream::iter(words(1)));
        request.set_timeout(limit);
        grpc.ready().await.unwrap();
        let call = async {
            let response = grpc.streaming(request, path, Codec::default()).await;
            response.unwrap().into_inner().message().await
        };
        let ended = tokio::time::timeout(limit, call).await;
        assert!(
            ended.is_err(),
            "the server goes on until it is told: {ended:?}"
        );
    });
    eventually("the server has heard of the deadline", || {
        calls.runtime.block_on(tokio::task::yield_now());
        let seen = cancelled.lock().unwrap().clone();
        seen.get(1).filter(|it| it.contains("200000u")).cloned()
    });
}

/// A 503 is UNAVAILABLE, a 404 UNIMPLEMENTED, by gRPC's own table.
fn an_answer_of_our_own_is_a_status_for_the_client(on: On) {
    let (world, proxy, _) = world(on);
    let mut calls = Calls::to(&proxy);
    let (_, end) = calls.call("/u.U/Nothing", words(1), |_| {});
    assert_eq!(end.unwrap_err().code(), Code::Unimplemented);
    let denied = Status::permission_denied("no identity issued");
    world
        .agent
        .answer(crate::support::agent::Answer::Refuse(denied));
    eventually("withdrawn", || {
        proxy.identity.current().is_none().then_some(())
    });
    let (_, end) = calls.call("/t.T/Echo", words(1), |_| {});
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}
