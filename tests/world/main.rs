//! For `benches/bench.py`: a Workload API, and the certificates that other
//! proxies and their backend need to take part. Ends when its stdin does.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code: a panic is how it fails, and it has no public surface"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a program of its own, on threads of its own"
)]

#[path = "../support/lib.rs"]
mod support;

use std::io::Read;
use std::path::PathBuf;

use support::agent::{Agent, Answer, Response, Svid};
use support::pki::{Authority, leaf};

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).unwrap());
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    let ca = Authority::new("bench.test");
    write("ca.pem", &ca.pem());
    // Other proxies have the ID that svidgate has.
    for (name, id) in [("backend", "backend"), ("proxy", "svidgate")] {
        let leaf = leaf(&ca, &format!("spiffe://bench.test/{id}"), |_| {});
        write(&format!("{name}.pem"), &leaf.chain_pem());
        write(&format!("{name}.key"), &leaf.key_pem());
        write(
            &format!("{name}.both.pem"),
            &format!("{}{}", leaf.chain_pem(), leaf.key_pem()),
        );
    }
    let own = leaf(&ca, "spiffe://bench.test/svidgate", |_| {});
    let response = Response {
        svids: vec![Svid {
            spiffe_id: "spiffe://bench.test/svidgate".to_owned(),
            x509_svid: own.chain.iter().flat_map(|c| c.to_vec()).collect(),
            x509_svid_key: own.key_pkcs8_der,
            bundle: ca.der().to_vec(),
            hint: String::new(),
        }],
        ..Response::default()
    };
    let _agent = Agent::start(&directory.join("agent.sock"), Answer::Send(response));
    println!("ready");
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}
