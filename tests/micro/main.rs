//! For `benches/instructions.py`: one part of the program, again and again.
//! `micro CASE TIMES` does it so often; `micro` names the cases.

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

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use rustls::pki_types::UnixTime;
use support::pki::{Authority, leaf};
use svidgate::http::h1::body::{Decoder, Encoder};
use svidgate::http::h1::parse::{self, Parsed, Scanner};
use svidgate::http::h1::write::HeadWriter;
use svidgate::http::message::Framing;
use svidgate::http::message::head::{Head, Limits, Name};
use svidgate::http::message::request::Method;
use svidgate::identity::Snapshot;
use svidgate::rule::index::Index;
use svidgate::rule::{Layer, Rule, Subject};
use svidgate::tls::provider;
use svidgate::tls::verifier::{Role, verify};
use svidgate::transport::Allowlist;

/// As a browser sends it.
const REQUEST: &[u8] = b"GET /static/app.js?v=7 HTTP/1.1\r\nHost: shop.example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: https://shop.example.org/\r\nConnection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nSec-Fetch-Dest: script\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\nIf-None-Match: \"5f3e-18a\"\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\nContent-Type: application/javascript\r\nContent-Length: 4096\r\nLast-Modified: Thu, 01 Oct 2026 12:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"5f3e-18b\"\r\nCache-Control: max-age=3600\r\nAccept-Ranges: bytes\r\n\r\n";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (case, times) = (arguments.next(), arguments.next());
    let Some(case) = case else {
        for (name, unit, _) in CASES {
            println!("{name}\t{unit}");
        }
        return;
    };
    let times = times.expect("micro CASE TIMES").parse().unwrap();
    let (.., run) = CASES
        .iter()
        .find(|(name, ..)| *name == case)
        .expect("no such case");
    run(times);
}

type Case = (&'static str, &'static str, fn(u32));

const CASES: [Case; 7] = [
    (
        "request-head",
        "a request head of 12 fields is parsed and judged",
        request_head,
    ),
    (
        "response-head",
        "a response head of 9 fields is parsed and judged",
        response_head,
    ),
    (
        "head-out",
        "a request head of 12 fields is written",
        head_out,
    ),
    (
        "chunks",
        "64 KiB in chunks of 4 KiB are decoded and encoded",
        chunks,
    ),
    ("router-1", "a route is found, of one", |times| {
        router(1, times)
    }),
    (
        "router-1000",
        "a route is found, the last of 1000",
        |times| router(1000, times),
    ),
    (
        "verifier",
        "a peer is verified: a leaf, an intermediate, a bundle of two",
        verifier,
    ),
];

fn parsed(head: &mut Head) {
    let parsed = parse::request(REQUEST, &mut Scanner::default(), &Limits::default(), head);
    assert!(matches!(parsed, Ok(Parsed::Done(..))));
}

fn request_head(times: u32) {
    let mut head = Head::default();
    for _ in 0..times {
        parsed(black_box(&mut head));
    }
}

fn response_head(times: u32) {
    let mut head = Head::default();
    for _ in 0..times {
        let (limits, mut scanner) = (Limits::default(), Scanner::default());
        let parsed = parse::response(RESPONSE, &mut scanner, &limits, &mut head, Method::Safe);
        assert!(matches!(black_box(parsed), Ok(Some(_))));
    }
}

fn head_out(times: u32) {
    let (mut head, mut out) = (Head::default(), Vec::new());
    parsed(&mut head);
    for _ in 0..times {
        out.clear();
        let mut writer = HeadWriter::request(&mut out, b"GET", b"/static/app.js?v=7");
        for field in head.fields().filter(|field| field.known == Name::Other) {
            writer.copy(&head, field);
        }
        writer.number("Content-Length", 4096);
        writer.field("Via", b"1.1 svidgate");
        writer.end();
        black_box(&mut out);
    }
}

fn chunks(times: u32) {
    let mut coded = Vec::new();
    for _ in 0..16 {
        Encoder::Chunked.encode(&[b'x'; 4096], &mut coded);
    }
    Encoder::Chunked.finish(None, &mut coded);
    let mut out = Vec::with_capacity(coded.len());
    for _ in 0..times {
        out.clear();
        let mut decoder = Decoder::new(Framing::Delimited);
        let mut rest = coded.as_slice();
        while !decoder.is_done() {
            let progress = decoder.advance(rest).unwrap();
            let content = &rest[progress.framing..][..progress.data];
            Encoder::Chunked.encode(content, &mut out);
            rest = &rest[progress.framing + progress.data..];
        }
        Encoder::Chunked.finish(None, &mut out);
        assert_eq!(black_box(&out).len(), coded.len());
    }
}

struct Asked {
    host: String,
    path: String,
}

impl Subject for Asked {
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn query(&self) -> Option<&[u8]> {
        None
    }
    fn has_field(&self, _: &str, _: &str) -> bool {
        false
    }
    fn client_ip(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
}

fn router(count: usize, times: u32) {
    let rules: Vec<Rule> = (0..count)
        .map(|n| format!("Host(`{n}.example.org`) && PathPrefix(`/{n}/`)"))
        .map(|text| Rule::parse(&text, Layer::Http).unwrap())
        .collect();
    let index = Index::new(&rules);
    let last = count - 1;
    let asked = Asked {
        host: format!("{last}.example.org"),
        path: format!("/{last}/page"),
    };
    for _ in 0..times {
        let asked = black_box(&asked);
        let found = index.first(asked, |place| rules[place].matches(asked));
        assert_eq!(found, Some(last));
    }
}

fn verifier(times: u32) {
    let (root, other) = (Authority::new("example.org"), Authority::new("example.org"));
    let issuer = root.intermediate("example.org", |_| {});
    let peer = leaf(&issuer, "spiffe://example.org/api", |_| {});
    let own = leaf(&root, "spiffe://example.org/svidgate", |_| {});
    let authorities = vec![other.der().to_vec(), root.der().to_vec()];
    let snapshot = Snapshot::for_tests(
        "spiffe://example.org/svidgate",
        own.chain,
        own.key_pkcs8_der,
        vec![("example.org", authorities)],
    )
    .unwrap();
    let algorithms = provider().signature_verification_algorithms;
    // In 2030.
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_893_456_000));
    for _ in 0..times {
        let chain = black_box(&peer.chain);
        let (role, list) = (Role::Server, Allowlist::OwnTrustDomain);
        let verified = verify(chain, role, &snapshot, &list, &algorithms, now).unwrap();
        black_box(verified);
    }
}
