//! HTTP/2 through the proxy, on either side of it.

mod cuts;
mod floods;
mod from_clients;
mod grpc;
mod to_backends;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

use crate::support::backend::{Backend, Wire, echo_heads, read_head};
use crate::support::h2::{self, Client, Frames, H2Backend, offering, say};
use crate::support::proxy::{On, Running};
use crate::support::{DEADLINE, eventually};
use crate::world::{World, plain_http};

const IDS: &str = "ids = [\"spiffe://example.org/api\"]";

fn client(proxy: &Running) -> Client {
    Client::connect(proxy.address("web"))
}

fn frames(proxy: &Running) -> Frames<std::net::TcpStream> {
    Frames::client(proxy.connect("web"))
}

/// One more field.
fn with(mut request: Request<()>, name: &'static str, value: &'static str) -> Request<()> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

fn post(path: &str) -> Request<()> {
    let mut request = h2::get(path);
    *request.method_mut() = http::Method::POST;
    request
}

fn field<'a>(map: &'a HeaderMap, name: &str) -> Option<&'a str> {
    map.get(name).map(|value| value.to_str().unwrap())
}

/// A proxy with one route to one plaintext HTTP/2 backend.
fn h2c(on: On, address: std::net::SocketAddr, more: &str) -> Running {
    Running::start(
        on,
        &format!(
            r#"
[admin]
address = "127.0.0.1:0"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "h2c://{address}" }}]
[http.serversTransports.t]
{more}
"#
        ),
    )
}
