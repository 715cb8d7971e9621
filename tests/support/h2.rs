//! HTTP/2 peers: good ones on the crate `h2`, and bare frames for those that
//! are not.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::DEADLINE;
use super::backend::Wire;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
// Flags.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The last four bytes but those of debug data: the error code.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// Frames on a connection, without any idea of what is allowed.
#[derive(Debug)]
pub struct Frames<W>(pub W);

impl Frames<TcpStream> {
    /// A client that has said what it must.
    pub fn client(mut stream: TcpStream) -> Self {
        stream.write_all(PREFACE).unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }
}

impl<'w> Frames<&'w mut dyn Wire> {
    /// A server that has said what it must.
    pub fn server(wire: &'w mut dyn Wire) -> Self {
        let mut preface = [0; 24];
        wire.read_exact(&mut preface).unwrap();
        assert_eq!(preface, PREFACE);
        let mut frames = Self(wire);
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }
}

impl<W: Read + Write> Frames<W> {
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        // Who is hostile does not mind that the other end has had enough.
        drop(self.try_send(kind, flags, stream, payload));
    }

    pub fn try_send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame)
    }

    /// A whole head.
    pub fn head(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields));
    }

    /// A GET without anything special.
    pub fn get(&mut self, stream: u32, path: &str) {
        self.head(stream, &request("GET", path), true);
    }

    /// The next frame; `None` once there is no more.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
            payload,
        })
    }

    /// The next frame of which this is true. Settings are acknowledged.
    pub fn find(&mut self, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                self.send(SETTINGS, ACK, 0, &[]);
            }
            if is_it(&frame) {
                return Some(frame);
            }
        }
    }

    /// How a stream ended: with `END_STREAM` (`Ok`), or with an error code.
    /// `None`: the connection has ended first. Ends of others are lost: see
    /// [`ends_of`](Self::ends_of).
    pub fn end_of(&mut self, stream: u32) -> Option<Result<(), u32>> {
        let [end] = self.ends_of([stream]);
        end
    }

    /// How streams ended, in whatever order they did.
    pub fn ends_of<const N: usize>(&mut self, streams: [u32; N]) -> [Option<Result<(), u32>>; N] {
        let mut ends = [None; N];
        while ends.contains(&None) {
            let ended = self.find(|frame| {
                let ends = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
                streams.contains(&frame.stream) && (ends || frame.kind == RST_STREAM)
            });
            let Some(frame) = ended else { break };
            let index = streams.iter().position(|it| *it == frame.stream).unwrap();
            // What comes behind the end of a stream is not another.
            if ends[index].is_none() {
                let is_reset = frame.kind == RST_STREAM;
                ends[index] = Some(if is_reset { Err(frame.code()) } else { Ok(()) });
            }
        }
        ends
    }
}

/// The pseudo-headers of a request, and no more.
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "http"),
        (":authority", "api.test"),
        (":path", path),
    ]
}

/// Fields as HPACK has them when it does nothing clever (RFC 7541, 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        let length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).unwrap());
        } else {
            block.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128 + 128).unwrap());
                rest /= 128;
            }
            block.push(u8::try_from(rest).unwrap());
        }
        block.extend(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub interim: Vec<Response<()>>,
    pub head: Response<()>,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// A client that behaves, with a connection of its own.
#[derive(Debug)]
pub struct Client {
    pub runtime: tokio::runtime::Runtime,
    pub send: SendRequest<Bytes>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let send = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            send
        });
        Self { runtime, send }
    }

    /// Runs for as long as it takes, within the deadline of all tests.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let done = tokio::time::timeout(DEADLINE, work).await;
            done.expect("within the deadline")
        })
    }

    /// Asks, and waits for the whole answer.
    pub fn ask(
        &mut self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone();
        let body = Bytes::copy_from_slice(body);
        self.run(async move {
            send = send.ready().await?;
            let ends = body.is_empty() && trailers.is_none();
            let (response, stream) = send.send_request(request, ends)?;
            if !ends {
                tokio::spawn(async move { drop(upload(stream, body, trailers).await) });
            }
            answer(response).await
        })
    }

    pub fn get(&mut self, path: &str) -> Result<Answer, h2::Error> {
        self.ask(get(path), &[], None)
    }
}

/// A GET, as a client has it.
pub fn get(path: &str) -> Request<()> {
    let uri = format!("http://api.test{path}");
    Request::get(uri).body(()).unwrap()
}

pub async fn upload(
    mut stream: SendStream<Bytes>,
    mut body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(room) = room.transpose()? else {
            return Ok(());
        };
        let piece = body.split_to(room.min(body.len()));
        stream.send_data(piece, body.is_empty() && trailers.is_none())?;
    }
    if let Some(trailers) = trailers {
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

pub async fn answer(mut response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let mut interim = Vec::new();
    let head = std::future::poll_fn(|cx| {
        while let std::task::Poll::Ready(Some(early)) = response.poll_informational(cx) {
            match early {
                Ok(early) => interim.push(early),
                Err(error) => return std::task::Poll::Ready(Err(error)),
            }
        }
        std::pin::Pin::new(&mut response).poll(cx)
    })
    .await?;
    let (parts, mut recv) = head.into_parts();
    let body = read(&mut recv).await?;
    Ok(Answer {
        interim,
        head: Response::from_parts(parts, ()),
        body,
        trailers: recv.trailers().await?,
    })
}

pub async fn read(recv: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(piece) = recv.data().await {
        let piece = piece?;
        recv.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// A backend that behaves: what it does with a request is up to the test.
#[derive(Debug)]
pub struct H2Backend {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
}

impl H2Backend {
    /// `tls`: what to speak it through. `script` runs once per request.
    pub fn start<F>(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let (stop, stopped) = oneshot::channel::<()>();
        let script = Arc::new(script);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serving = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                        let (tls, script) = (tls.clone(), Arc::clone(&script));
                        tokio::spawn(async move {
                            match tls {
                                None => serve(stream, script).await,
                                Some(config) => {
                                    let acceptor = tokio_rustls::TlsAcceptor::from(config);
                                    if let Ok(stream) = acceptor.accept(stream).await {
                                        serve(stream, script).await;
                                    }
                                }
                            }
                        });
                    }
                };
                futures_lite::future::or(serving, async { drop(stopped.await) }).await;
            });
        });
        Self {
            address,
            accepted,
            stop: Some(stop),
        }
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for H2Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

async fn serve<S, F>(
    stream: S,
    script: Arc<impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(script(request, respond));
    }
}

/// Answers with this, and nothing else.
pub fn say(mut respond: SendResponse<Bytes>, body: impl Into<Bytes>) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(body.into(), true).unwrap();
}

/// Offers these protocols over TLS.
pub fn offering(config: &ServerConfig, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    Arc::new(config)
}
