//! HTTP/1.1 on the wire, without I/O: bytes in, structure out, and back.
//!
//! The policy is *strict in, canonical out*. A head is parsed once into a
//! structure; whatever two readers could understand differently is refused,
//! with a status; and what is forwarded is written anew from the structure,
//! never copied framing and all.
//!
//! In scope: heads, bodies and their framing (RFC 9112), field syntax (RFC
//! 9110). Out of scope: sockets, timers, routing, what a field means to an
//! application.

pub mod body;
pub mod chunked;
pub mod head;
pub mod request;
pub mod response;
pub mod write;

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

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks, then a last chunk.
    Chunked,
    /// Until the sender closes. Responses only.
    UntilClose,
}

#[cfg(test)]
mod tests;
