//! HTTP/2 on both sides: a backend that takes calls, and clients whose
//! connections carry several at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::support::backend::demanding;
use crate::support::h2::{Client, H2Backend, answer, offering, read, upload};
use crate::{Failure, Outcome, Realm, World, pause, same, short_lived, wanted};

/// Requests of a client at once.
const AT_ONCE_MAX: usize = 8;

/// Answers a GET with the bytes that its path asks for, a POST with its body.
pub fn backend(realm: &Arc<Realm>) -> H2Backend {
    H2Backend::start(Some(tls(realm)), serve)
}

async fn serve(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    // What fails here is for the client to judge.
    let Ok(mut bytes) = read(&mut body).await else {
        return;
    };
    if head.method == http::Method::GET {
        bytes = wanted(head.uri.path());
    }
    if let Ok(stream) = respond.send_response(Response::new(()), bytes.is_empty()) {
        drop(upload(stream, bytes.into(), None).await);
    }
}

/// A leaf for each connection, as leaves are soon over.
#[derive(Debug)]
struct Issuer(Arc<Realm>);

impl ResolvesServerCert for Issuer {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let leaf = short_lived(&self.0.ca, "spiffe://soak.test/calls");
        let key = any_supported_type(&leaf.key()).ok()?;
        Some(Arc::new(CertifiedKey::new(leaf.chain, key)))
    }
}

fn tls(realm: &Arc<Realm>) -> Arc<ServerConfig> {
    let issuer = Issuer(Arc::clone(realm));
    let config = demanding(&[realm.ca.der()]).with_cert_resolver(Arc::new(issuer));
    offering(&config, &[b"h2"])
}

/// Some requests at a time on one connection, to a backend of HTTP/2 and to
/// one of HTTP/1.1.
pub fn calls(world: &World, kind: &'static str) {
    let web = SocketAddr::from((Ipv4Addr::LOCALHOST, world.web));
    let mut client = Client::connect(web);
    while world.goes_on() {
        let count = fastrand::usize(1..=AT_ONCE_MAX);
        let since = Instant::now();
        let asked = (0..count).map(|_| ask(&client));
        let mut is_lost = false;
        for outcome in client.run(join_all(asked)) {
            is_lost |= matches!(outcome, Err(Failure::Broken(_)));
            world.judge(kind, since, outcome);
        }
        if is_lost {
            client = Client::connect(web);
        }
        pause(20);
    }
}

async fn ask(client: &Client) -> Outcome {
    let is_large = fastrand::u8(..) < 16;
    let size = fastrand::u32(0..if is_large { 256 << 10 } else { 4096 });
    let service = if fastrand::bool() { "calls" } else { "upgrade" };
    let path = format!("/{service}/{size}/{}", fastrand::u32(..));
    let due = wanted(&path);
    let uri = format!("http://soak.test{path}");
    let is_get = fastrand::bool();
    let request = if is_get {
        Request::get(uri)
    } else {
        Request::post(uri)
    };
    let mut send = client.send.clone().ready().await.map_err(broken)?;
    let ends = is_get || due.is_empty();
    let (response, stream) = send
        .send_request(request.body(()).unwrap(), ends)
        .map_err(broken)?;
    let body = if ends {
        Bytes::new()
    } else {
        due.clone().into()
    };
    let (sent, got) =
        futures_util::future::join(upload(stream, body, None), answer(response)).await;
    let got = got.map_err(broken)?;
    if got.status() != 200 {
        return Err(Failure::Status(got.status()));
    }
    sent.map_err(broken)?;
    same(&got.body, &due)
}

fn broken(error: h2::Error) -> Failure {
    Failure::Broken(std::io::Error::other(error))
}
