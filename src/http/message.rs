//! Messages without their version: what HTTP/1.1 and HTTP/2 have in common
//! (RFC 9110). Structure only; how it looks on the wire is [`h1`](super::h1)'s
//! and [`h2`](super::h2)'s.
//!
//! A head of either version becomes the same [`Head`](head::Head) and is judged
//! by the same rules, so that no version is a way around them.

pub mod head;
pub mod request;
pub mod response;

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// What to tell the client when the message was a request. Of a response
    /// it is always 502.
    pub status: u16,
    /// For the log.
    pub why: &'static str,
}

impl Refusal {
    pub(crate) const fn bad(why: &'static str) -> Self {
        Self { status: 400, why }
    }

    pub(crate) const fn gateway(why: &'static str) -> Self {
        Self { status: 502, why }
    }
}

/// The version that a message came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// The framing tells, whatever the length: chunks and a last one, or
    /// frames and `END_STREAM`.
    Delimited,
    /// Until the sender closes. Responses of HTTP/1 only.
    UntilClose,
}
