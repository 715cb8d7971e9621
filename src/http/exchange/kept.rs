//! What was sent of a request, in case it has to be sent again.

use std::io;
use std::task::{Context, Poll, ready};

use super::side::Sink;
use crate::http::message::head::Head;

/// What was sent of a request's content, for another try. It holds so much
/// and no more.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: Vec<u8>,
    /// How much was sent in all, held here or not.
    total: u64,
    max: usize,
    is_whole: bool,
}

impl Kept {
    /// For an exchange with an upstream that may refuse to begin: `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            total: 0,
            max,
            is_whole: true,
        }
    }

    /// Whether another try would be the same request.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What is held.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How much was sent in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn push(&mut self, data: &[u8]) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(length);
        if !self.is_whole {
            return;
        }
        if self.bytes.len() + data.len() <= self.max {
            self.bytes.extend_from_slice(data);
        } else {
            self.is_whole = false;
            self.bytes = Vec::new();
        }
    }
}

/// A sink of which what goes in is kept.
pub(super) struct Keeping<'k, S> {
    pub(super) sink: &'k mut S,
    pub(super) kept: &'k mut Kept,
}

impl<S: Sink> Sink for Keeping<'_, S> {
    fn is_full(&self) -> bool {
        self.sink.is_full()
    }

    fn put(&mut self, data: &[u8]) {
        self.kept.push(data);
        self.sink.put(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.sink.finish(trailers);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.sink.poll_send(cx)
    }

    fn passes(&self) -> bool {
        self.sink.passes()
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(self.sink.poll_pass(cx, data))?;
        self.kept.push(data.get(..n).unwrap_or(data));
        Poll::Ready(Ok(n))
    }
}
