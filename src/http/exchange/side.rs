//! What an exchange needs of either side, whatever version it speaks.

use std::io;
use std::task::{Context, Poll};

use crate::http::message::head::Head;
use crate::http::message::request::{Method, Request};
use crate::http::message::response::Response;
use crate::http::wire::Timers;

/// One side of an exchange: what comes from it, what goes to it, and a
/// deadline for each.
pub(crate) struct Side<'s, I, O, T> {
    pub(crate) incoming: I,
    pub(crate) outgoing: O,
    pub(crate) timers: &'s mut Timers<T>,
}

/// Where the content of a message comes from.
pub(crate) trait Source {
    /// Moves content that is here into `sink`, until that is full.
    ///
    /// # Errors
    /// What is wrong with its framing.
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str>;

    /// Content that is here in one piece, for a sink to take as it is; none,
    /// if it has framing within. What is left of it, [`pull`](Self::pull)
    /// moves.
    fn here(&self) -> &[u8] {
        &[]
    }

    /// So much of what is [here](Self::here) has gone.
    fn took(&mut self, _n: usize) {}

    /// Whether it has ended by its own framing.
    fn is_done(&self) -> bool;

    /// Whether there is something that the next pull may move.
    fn has_more(&self) -> bool;

    /// Waits for more, so many bytes of it. `None`: the sender has ended.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>>;

    /// Whether it may be asked for more before what it gave was sent. Not
    /// where asking gives the sender credit.
    fn may_read_ahead(&self) -> bool;

    /// Whether the sender's end ends the content, rather than cuts it.
    fn ends_at_close(&self) -> bool {
        false
    }

    /// What came behind the content, once it is done.
    fn trailers(&self) -> Option<&Head>;
}

/// Where content goes.
pub(crate) trait Sink {
    /// Whether what was put into it should be sent first.
    fn is_full(&self) -> bool;

    /// Takes content.
    fn put(&mut self, data: &[u8]);

    /// The content has ended.
    fn finish(&mut self, trailers: Option<&Head>);

    /// Sends some of what it holds. 0: there is no more, and nothing is held
    /// back.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Whether content can leave by [`poll_pass`](Self::poll_pass).
    fn passes(&self) -> bool {
        false
    }

    /// Sends what it holds and content behind it, which it does not take over.
    /// Returns how much of the content has gone; not 0.
    fn poll_pass(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let _ = (cx, data);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// A client's request, behind its head.
pub(crate) trait Asking: Source {
    /// What becomes of the client while nothing is taken from it.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Watched>;

    /// Ready once it takes no answer any more. It may have closed its half
    /// before.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_watch(cx) {
            Poll::Ready(Watched::Gone) => Poll::Ready(()),
            Poll::Ready(Watched::Ended) | Poll::Pending => Poll::Pending,
        }
    }
}

/// What a client that waits for its answer may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Watched {
    /// It takes no answer any more.
    Gone,
    /// It will send nothing more.
    Ended,
}

/// The way to a client.
pub(crate) trait Answered: Sink {
    /// Puts an interim response, or the one that ends HTTP on its connection.
    fn inform(&mut self, head: &Head, response: &Response);

    /// Puts the head of the final response. `may_live`: nothing but the
    /// messages themselves is against another request on this connection.
    /// Returns whether there can be one.
    fn begin(
        &mut self,
        head: &Head,
        response: &Response,
        request: &Request,
        may_live: bool,
    ) -> bool;
}

/// An upstream's response.
pub(crate) trait Answering: Source {
    /// The next head; after a final one, its content follows.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
        to: Method,
    ) -> Poll<Result<Response, NoHead>>;

    /// Whether it has sent anything that was not taken.
    fn has_spoken(&self) -> bool;
}

/// Why an upstream gave no head.
#[derive(Debug)]
pub(crate) enum NoHead {
    /// It cannot be taken.
    Malformed(&'static str),
    /// It has ended.
    Ended,
    /// Its connection failed.
    Failed(io::Error),
    /// It says that it has not begun with the request, and will not.
    NotBegun(NotBegun),
}

/// The upstream's word that a request has had no effect (RFC 9113, section
/// 8.7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotBegun {
    /// It has enough to do.
    Refused,
    /// Its connection takes no further request.
    Leaving,
}

impl NotBegun {
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Refused => "the stream was refused",
            Self::Leaving => "the connection takes no further request",
        }
    }
}
