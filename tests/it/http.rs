//! HTTP/1.1 through the proxy. Wire text is written out in full.

mod checklist;
mod cuts;
mod faults;
mod fields;
mod messages;
mod refusals;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use crate::support::backend::{Backend, Wire, echo_bytes, echo_heads, read_head};
use crate::support::eventually;
use crate::support::proxy::{On, Running, read_to_end};
use crate::world::{World, plain_http};

const IDS: &str = "ids = [\"spiffe://example.org/api\"]";

/// The body of the one response in `text`, and its status line.
fn split(text: &str) -> (&str, &str, &str) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    (line, fields, body)
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_str().unwrap().to_owned()
}

/// A backend that reads one head per connection and answers with this.
fn answering(answer: &'static str) -> Backend {
    Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            wire.write_all(answer.as_bytes()).unwrap();
            wire.finish();
            drop(wire.read(&mut [0; 1024]));
        }
    })
}
