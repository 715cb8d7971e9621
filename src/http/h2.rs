//! HTTP/2 (RFC 9113), on the crate `h2`: frames, streams and flow control are
//! the crate's, what a message means is ours.
//!
//! Whatever comes in becomes a [`Head`](super::message::head::Head) and is
//! judged by the same rules as a message of HTTP/1.1; what goes out is written
//! from one. So nothing can travel in HTTP/2 that HTTP/1.1 could not carry.

pub mod convert;
pub(crate) mod io;
pub(crate) mod serve;
pub(crate) mod sides;
pub(crate) mod upstream;

/// What a client that knows begins with (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a stream may hold that was not sent yet.
pub(crate) const SEND_BUFFER: usize = 64 << 10;
/// Streams that a peer may have us reset by its faults before the connection
/// is ended.
pub(crate) const FAULTS_MAX: usize = 128;
