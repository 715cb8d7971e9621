//! The body of a message: content out of the framing it came in, and into the
//! framing it leaves in.

use super::chunked::{self, Progress};
use super::write::write_field;
use crate::http::message::Framing;
use crate::http::message::head::Head;

/// Takes a body out of its framing.
#[derive(Debug)]
pub enum Decoder {
    /// So many bytes are still to come. 0: done.
    Length(u64),
    /// Chunks.
    Chunked(Box<chunked::Decoder>),
    /// All bytes are content, until the sender closes.
    UntilClose,
}

impl Decoder {
    /// For a body that is framed so.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Delimited => Self::Chunked(Box::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body has ended by its own framing.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Whether the sender's close ends the body, rather than cuts it.
    #[must_use]
    pub fn ends_at_close(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// What came behind the content, once it has ended.
    #[must_use]
    pub fn trailers(&self) -> Option<&Head> {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            _ => None,
        }
    }

    /// The content at the beginning of `input`, where a body is its bytes as
    /// they come; of a chunked one, nothing.
    #[must_use]
    pub fn as_it_is<'i>(&self, input: &'i [u8]) -> &'i [u8] {
        let len = match self {
            Self::Length(left) => {
                usize::try_from(*left).map_or(input.len(), |l| l.min(input.len()))
            }
            Self::Chunked(_) => 0,
            Self::UntilClose => input.len(),
        };
        input.get(..len).unwrap_or_default()
    }

    /// Whether `input` is known to have all that is still to come.
    #[must_use]
    pub fn ends_within(&self, input: &[u8]) -> bool {
        match self {
            Self::Length(left) => u64::try_from(input.len()).is_ok_and(|here| here >= *left),
            Self::Chunked(_) | Self::UntilClose => false,
        }
    }

    /// So much of what [`as_it_is`](Self::as_it_is) gave has been taken.
    pub fn took(&mut self, n: usize) {
        if let Self::Length(left) = self {
            *left = left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
        }
    }

    /// Looks at `input`, up to the end of the first run of content in it.
    ///
    /// # Errors
    /// What is wrong with the chunked coding.
    pub fn advance(&mut self, input: &[u8]) -> Result<Progress, &'static str> {
        match self {
            Self::Chunked(decoder) => decoder.advance(input),
            Self::Length(_) | Self::UntilClose => {
                let data = self.as_it_is(input).len();
                self.took(data);
                Ok(Progress {
                    framing: 0,
                    data,
                    done: self.is_done(),
                })
            }
        }
    }
}

/// How a body leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoder {
    /// As it is: its length was announced, or the close will end it.
    Raw,
    /// In chunks.
    Chunked,
}

impl Encoder {
    /// For a body that is framed so.
    #[must_use]
    pub fn for_framing(framing: Framing) -> Self {
        match framing {
            Framing::Delimited => Self::Chunked,
            _ => Self::Raw,
        }
    }

    /// Appends a piece of content. Empty pieces leave no trace.
    pub fn encode(self, data: &[u8], out: &mut Vec<u8>) {
        if data.is_empty() {
            return;
        }
        match self {
            Self::Raw => out.extend_from_slice(data),
            Self::Chunked => {
                use std::io::Write;
                // Writing to a Vec cannot fail.
                drop(write!(out, "{:x}\r\n", data.len()));
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Appends the end of the body; with trailers, where there can be any.
    pub fn finish(self, trailers: Option<&Head>, out: &mut Vec<u8>) {
        if self != Self::Chunked {
            return;
        }
        out.extend_from_slice(b"0\r\n");
        if let Some(trailers) = trailers {
            for field in trailers.fields() {
                write_field(out, trailers, field);
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}
