//! A connection as the HTTP forwarder holds it: a stream, what was read ahead
//! of it, what is to be written, and a deadline for each direction.
//!
//! The stream is in a `RefCell` so that two futures of **one** task can read
//! and write it at once, as a proxy must; it is borrowed for the length of a
//! poll, never across one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::AsyncRead;

use super::exchange::side::{Sink, Source};
use crate::runtime::{Runtime, Timer};
use crate::spare::Spares;

/// The size of a read. Larger heads make a buffer grow, up to their limit.
pub(crate) const READ_BYTES: usize = 16 << 10;
/// A buffer to write from is kept for others if it is no larger.
const SPARE_OUT_BYTES_MAX: usize = 4 << 10;
/// How long a client may take before its pace counts.
const PACE_GRACE: Duration = Duration::from_secs(10);

/// What is gathered before it is written: a write of it wakes the other side
/// once.
pub(crate) const GATHER_BYTES: usize = 32 << 10;

/// Buffers of a worker that no connection holds, of each kind: most
/// connections wait, and those that do not take turns.
const SPARE_MAX: usize = 32;

thread_local! {
    static SPARE: [Spares<Vec<u8>>; 2] = const { [const { Spares::new(SPARE_MAX) }; 2] };
    /// To write from.
    static SPARE_OUT: Spares<Vec<u8>> = const { Spares::new(SPARE_MAX) };
}

/// Which of the two sizes a buffer has.
fn size_class(bytes: usize) -> Option<usize> {
    [READ_BYTES, GATHER_BYTES]
        .iter()
        .position(|size| *size == bytes)
}

/// A buffer. What is in it is of no meaning.
fn spare(bytes: usize) -> Vec<u8> {
    let kept = SPARE.with(|spare| spare.get(size_class(bytes)?)?.take());
    kept.unwrap_or_else(|| vec![0; bytes])
}

fn keep_spare(buffer: Vec<u8>) {
    SPARE.with(|spare| {
        if let Some(kept) = size_class(buffer.len()).and_then(|class| spare.get(class)) {
            kept.keep(buffer);
        }
    });
}

/// Bytes received and not yet consumed.
#[derive(Debug, Default)]
pub(crate) struct ReadBuf {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReadBuf {
    pub(crate) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room to read into; empty when `max` bytes are held already.
    fn space(&mut self, max: usize) -> &mut [u8] {
        if max >= READ_BYTES {
            self.take_room(READ_BYTES);
        }
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                let size = (self.bytes.len() * 2).clamp(READ_BYTES.min(max), max);
                self.bytes.resize(size.max(self.bytes.len()), 0);
            }
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Room for so many bytes at first, if it has none.
    fn take_room(&mut self, bytes: usize) {
        if self.bytes.is_empty() {
            self.bytes = spare(bytes);
        }
    }

    /// Room for bulk, unless something is held.
    pub(crate) fn take_bulk_room(&mut self) {
        if self.is_empty() && self.bytes.len() != GATHER_BYTES {
            self.give_back();
            self.take_room(GATHER_BYTES);
        }
    }

    /// Whether more can be read without moving or growing what is here.
    pub(crate) fn has_room(&self) -> bool {
        self.end < self.bytes.len() || self.bytes.is_empty()
    }

    /// While nothing has come, a connection holds nothing for it.
    pub(crate) fn give_back(&mut self) {
        if self.is_empty() {
            keep_spare(std::mem::take(&mut self.bytes));
        }
    }

    /// Reads once. `Ok(0)`: the other side has sent its last byte, or there
    /// is no room, which the caller sees to.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &RefCell<S>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let space = self.space(max);
        let polled = Pin::new(&mut *stream.borrow_mut()).poll_read(cx, space);
        if polled.is_pending() {
            self.give_back();
        }
        let n = ready!(polled)?;
        self.end += n;
        Poll::Ready(Ok(n))
    }
}

/// Why a transfer stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Its deadline passed.
    Timeout,
    /// The socket failed.
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How slow the other side may be: so many bytes for each second that it is
/// waited for, after a grace. What it is early with counts later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes a second. 0: as slow as it likes.
    rate: u64,
    bytes: u64,
    waited: Duration,
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            bytes: 0,
            waited: Duration::ZERO,
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(0));
    }

    /// How long it may be waited for now. `None`: as long as one likes.
    fn left(&self) -> Option<Duration> {
        let earned = self.bytes.checked_div(self.rate)?;
        let allowed = Duration::from_secs(earned).saturating_add(PACE_GRACE);
        Some(allowed.saturating_sub(self.waited))
    }

    /// The earlier of its end and `limit`'s.
    fn deadline(&self, now: Instant, limit: Option<Duration>) -> Option<Instant> {
        let limit = match (limit, self.left()) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        };
        limit.and_then(|limit| now.checked_add(limit))
    }
}

/// Waits for more content. `limit` is the longest silence. `Ok(false)`: there
/// is none, and the sender has ended.
pub(crate) async fn more<R: Runtime>(
    runtime: &R,
    source: &mut impl Source,
    timer: &mut R::Timer,
    limit: Option<Duration>,
    pace: &mut Pace,
) -> Result<bool, Stop> {
    let began = runtime.now();
    timer.set(pace.deadline(began, limit));
    let result = poll_fn(|cx| match source.poll_more(cx) {
        Poll::Ready(result) => Poll::Ready(result.map_err(Stop::Io)),
        Poll::Pending => timer.poll(cx).map(|()| Err(Stop::Timeout)),
    })
    .await;
    timer.set(None);
    pace.waited += runtime.now().saturating_duration_since(began);
    let n = result?;
    pace.moved(n.unwrap_or(0));
    Ok(n.is_some())
}

/// As [`more`], of what is there already. `None`: nothing.
pub(crate) async fn more_now(
    source: &mut impl Source,
    pace: &mut Pace,
) -> Option<Result<bool, Stop>> {
    match poll_fn(|cx| Poll::Ready(source.poll_more(cx))).await {
        Poll::Pending => None,
        Poll::Ready(Err(error)) => Some(Err(Stop::Io(error))),
        Poll::Ready(Ok(n)) => {
            pace.moved(n.unwrap_or(0));
            Some(Ok(n.is_some()))
        }
    }
}

/// Writes and flushes all that was put into a sink. `limit` is the longest
/// time without progress.
pub(crate) async fn send_all<R: Runtime>(
    runtime: &R,
    sink: &mut impl Sink,
    timer: &mut Late<R::Timer>,
    limit: Option<Duration>,
    pace: &mut Pace,
) -> Result<(), Stop> {
    let mut sending = Sending::new(runtime, timer, limit, pace);
    poll_fn(|cx| sending.poll(cx, |cx| sink.poll_send(cx))).await
}

/// Sending, bound by time. `limit` is the longest time without progress.
pub(crate) struct Sending<'s, R: Runtime> {
    runtime: &'s R,
    timer: &'s mut Late<R::Timer>,
    limit: Option<Duration>,
    pace: &'s mut Pace,
    waiting_since: Option<Instant>,
}

impl<'s, R: Runtime> Sending<'s, R> {
    pub(crate) fn new(
        runtime: &'s R,
        timer: &'s mut Late<R::Timer>,
        limit: Option<Duration>,
        pace: &'s mut Pace,
    ) -> Self {
        Self {
            runtime,
            timer,
            limit,
            pace,
            waiting_since: None,
        }
    }

    /// Makes as many attempts as make progress, until one says that there is
    /// nothing left.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<Result<(), Stop>> {
        loop {
            match attempt(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(n)) => {
                    self.pace.moved(n);
                    if let Some(since) = self.waiting_since.take() {
                        self.pace.waited += self.runtime.now().saturating_duration_since(since);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stop::Io(error))),
                Poll::Pending => {
                    let timer = self.timer.get(self.runtime);
                    if self.waiting_since.is_none() {
                        let now = self.runtime.now();
                        self.waiting_since = Some(now);
                        timer.set(self.pace.deadline(now, self.limit));
                    }
                    return timer.poll(cx).map(|()| Err(Stop::Timeout));
                }
            }
        }
    }
}

impl<R: Runtime> Drop for Sending<'_, R> {
    fn drop(&mut self) {
        self.timer.unset();
    }
}

/// A deadline for each direction.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    pub(crate) read: T,
    pub(crate) write: Late<T>,
}

/// A timer that is made when it is first needed: most writes never wait.
#[derive(Debug)]
pub(crate) struct Late<T>(Option<Box<T>>);

impl<T: Timer> Late<T> {
    fn get<R: Runtime<Timer = T>>(&mut self, runtime: &R) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(runtime.timer()))
    }

    fn unset(&mut self) {
        if let Some(timer) = &mut self.0 {
            timer.set(None);
        }
    }
}

impl<T: Timer> Timers<T> {
    pub(crate) fn new<R: Runtime<Timer = T>>(runtime: &R) -> Self {
        Self {
            read: runtime.timer(),
            write: Late(None),
        }
    }
}

/// A connection of HTTP/1.
#[derive(Debug)]
pub(crate) struct Conn<S, T> {
    pub(crate) stream: RefCell<S>,
    pub(crate) inbuf: ReadBuf,
    pub(crate) out: Vec<u8>,
    pub(crate) timers: Timers<T>,
}

impl<S, T: Timer> Conn<S, T> {
    pub(crate) fn new<R: Runtime<Timer = T>>(runtime: &R, stream: S) -> Self {
        Self {
            stream: RefCell::new(stream),
            inbuf: ReadBuf::default(),
            out: Vec::new(),
            timers: Timers::new(runtime),
        }
    }

    /// It is to be written to: something to write from.
    pub(crate) fn take_out(&mut self) {
        if self.out.capacity() == 0 {
            self.out = SPARE_OUT.with(Spares::take).unwrap_or_default();
        }
    }

    /// It is to wait, maybe for long: what it holds is let go.
    pub(crate) fn give_back(&mut self) {
        self.inbuf.give_back();
        self.give_back_out();
    }

    pub(crate) fn give_back_out(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        if (1..=SPARE_OUT_BYTES_MAX).contains(&out.capacity()) {
            out.clear();
            SPARE_OUT.with(|spare| spare.keep(out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_over_time_not_at_each_moment() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.left(), Some(PACE_GRACE));
        pace.moved(1000);
        assert_eq!(pace.left(), Some(PACE_GRACE + Duration::from_secs(10)));
        pace.waited = Duration::from_secs(15);
        assert_eq!(pace.left(), Some(Duration::from_secs(5)));
        pace.waited = Duration::from_secs(25);
        assert_eq!(pace.left(), Some(Duration::ZERO));
        assert_eq!(Pace::new(0).left(), None);
    }

    #[test]
    fn a_spare_buffer_shows_nothing_of_the_last_connection() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for text in [&b"a secret"[..], b"no"] {
            let stream = RefCell::new(text);
            let mut buf = ReadBuf::default();
            assert!(buf.poll_fill(&mut cx, &stream, READ_BYTES).is_ready());
            assert_eq!(buf.data(), text);
            buf.consume(text.len());
            buf.give_back();
            assert_eq!(buf.data(), b"");
        }
    }
}
