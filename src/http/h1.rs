//! HTTP/1.1. Parsing and writing are without I/O: bytes in, structure out, and
//! back; `sides` and `serve` put them on connections.
//!
//! The policy is *strict in, canonical out*. A head is parsed once into a
//! structure; whatever two readers could understand differently is refused,
//! with a status; and what is forwarded is written anew from the structure,
//! never copied framing and all.
//!
//! In scope: heads, bodies and their framing (RFC 9112), field syntax (RFC
//! 9110). Out of scope: what a message amounts to, which is
//! [`message`](super::message)'s, and what a field means to an application.

pub mod body;
pub mod chunked;
pub mod parse;
pub(crate) mod serve;
pub(crate) mod sides;
pub mod write;

#[cfg(test)]
mod tests;
