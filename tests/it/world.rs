//! A trust domain with its agent and its backends.

use std::sync::Arc;

use rustls::ServerConfig;

use crate::support::agent::{Agent, Answer, Response, Svid};
use crate::support::backend::{Backend, Wire, server_config};
use crate::support::pki::{Authority, Leaf, leaf};
use crate::support::proxy::{On, Running};
use crate::support::scratch::Scratch;

pub const OWN_ID: &str = "spiffe://example.org/svidgate";

/// `example.org`: a CA, and an agent that gives us our SVID.
#[derive(Debug)]
pub struct World {
    pub ca: Authority,
    pub agent: Agent,
    /// Where the agent's socket is.
    _scratch: Scratch,
}

impl World {
    pub fn new() -> Self {
        Self::answering(|ca| Answer::Send(issued(ca, OWN_ID)))
    }

    pub fn answering(first: impl FnOnce(&Authority) -> Answer) -> Self {
        let ca = Authority::new("example.org");
        let scratch = Scratch::new();
        let agent = Agent::start(&scratch.path().join("agent.sock"), first(&ca));
        Self {
            ca,
            agent,
            _scratch: scratch,
        }
    }

    pub fn leaf(&self, id: &str) -> Leaf {
        leaf(&self.ca, id, |_| {})
    }

    pub fn server_config(&self, id: &str) -> Arc<ServerConfig> {
        server_config(&self.leaf(id), &[self.ca.der()])
    }

    /// A backend that shows `id` and admits our trust domain.
    pub fn backend(
        &self,
        id: &str,
        script: impl Fn(&mut dyn Wire) + Send + Sync + 'static,
    ) -> Backend {
        Backend::tls(self.server_config(id), script)
    }

    /// The head of every file here.
    pub fn spiffe_table(&self) -> String {
        format!(
            "[spiffe]\nworkloadAPIAddr = \"{}\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
            self.agent.endpoint()
        )
    }

    /// A proxy with one HTTP route to one SPIFFE backend.
    pub fn http(&self, on: On, backend: &Backend, peers: &str) -> Running {
        Running::start(on, &self.http_text(backend, peers))
    }

    pub fn http_text(&self, backend: &Backend, peers: &str) -> String {
        format!(
            r#"{}
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "backend"
servers = [{{ url = "https://{}" }}]
[http.serversTransports.backend.spiffe]
{peers}
"#,
            self.spiffe_table(),
            backend.address
        )
    }

    /// A proxy with one TCP route to one SPIFFE backend.
    pub fn tcp(&self, on: On, backend: &Backend, peers: &str) -> Running {
        Running::start(on, &self.tcp_text(backend, peers))
    }

    pub fn tcp_text(&self, backend: &Backend, peers: &str) -> String {
        format!(
            r#"{}
[entryPoints.db]
address = "127.0.0.1:0"
[tcp.routers.db]
entryPoints = ["db"]
rule = "HostSNI(`*`)"
service = "db"
[tcp.services.db.loadBalancer]
serversTransport = "db"
servers = [{{ address = "{}", tls = true }}]
[tcp.serversTransports.db.tls.spiffe]
{peers}
"#,
            self.spiffe_table(),
            backend.address
        )
    }

    /// Has the agent send our SVID with a bundle of these authorities.
    pub fn trust(&self, authorities: &[&Authority]) {
        self.agent
            .answer(Answer::Send(trusting(&self.ca, authorities)));
    }
}

/// A message with one SVID of `ca`, and a bundle of these authorities.
pub fn trusting(ca: &Authority, authorities: &[&Authority]) -> Response {
    let mut response = issued(ca, OWN_ID);
    let bundle = authorities.iter().flat_map(|it| it.der().to_vec());
    response.svids[0].bundle = bundle.collect();
    response
}

/// A message with one SVID of this CA.
pub fn issued(ca: &Authority, id: &str) -> Response {
    let leaf = leaf(ca, id, |_| {});
    Response {
        svids: vec![svid(ca, id, &leaf)],
        ..Response::default()
    }
}

pub fn svid(ca: &Authority, id: &str, leaf: &Leaf) -> Svid {
    Svid {
        spiffe_id: id.to_owned(),
        x509_svid: leaf.chain.iter().flat_map(|c| c.to_vec()).collect(),
        x509_svid_key: leaf.key_pkcs8_der.clone(),
        bundle: ca.der().to_vec(),
        hint: String::new(),
    }
}

/// A proxy with one route to one plaintext backend. `more` is appended to the
/// entry point's table.
pub fn plain_http(on: On, backend: &Backend, more: &str) -> Running {
    Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
{more}
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
servers = [{{ url = "http://{}" }}]
"#,
            backend.address
        ),
    )
}
