//! The integration tests: one binary, one file per topic.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code: a panic is how it fails, and it has no public surface"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests may block: each runs on a thread of its own"
)]

// /metrics and /status.
mod admin;
// Files in, problems out; and what a good file means.
mod config;
// Ending: accept grace, drain, cut.
mod drain;
// The README's claims: its files load, every key is in it.
mod documents;
// What fuzzing looks for, on its seeds and what is near them.
mod fuzz_corpus;
// HTTP/1.1 through the proxy, byte for byte.
mod http;
// HTTP/2 through the proxy, on either side of it.
mod http2;
// Start-up, first SVID, denial, agent faults, who is admitted.
mod identity;
// TLS by names, without SPIFFE.
mod names;
// The binary: exit codes, signals, what it prints.
mod process;
// Another configuration while it runs.
mod reload;
// TCP through the proxy.
mod tcp;
// Open connections and the trust in their peers.
mod trust;
// Messages of public suites, and our verdict on each.
mod vectors;
// Whom the verifier admits, case by case.
mod verifier;
// The proxy in a world with an agent, a CA and backends.
mod world;

#[path = "../support/lib.rs"]
mod support;
