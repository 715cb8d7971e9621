//! Bytes both ways between two streams, until both have said that they are
//! done.
//!
//! An end on one side is passed on as an end (FIN, or close_notify and FIN),
//! and the other direction goes on: a client may send its whole request, close
//! its half, and wait for the answer. A direction that writes slower than the
//! other side sends stops reading: nothing piles up but one buffer, or a pipe.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};

use super::splice::{BULK_BYTES, PIPE_BYTES, Pipe};
use crate::dial::Loss;
use crate::http::wire::{GATHER_BYTES, ReadBuf};
use crate::metrics::Counter;
use crate::runtime::{Runtime, Splice, Stream, Timer, Way};

/// Rounds of reading and writing in one turn, so that one busy pair cannot keep
/// a worker from others.
const ROUNDS_PER_TURN: usize = 8;

/// How long silence may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In both directions. `None`: no limit.
    pub(crate) idle: Option<Duration>,
    /// In the open direction, once the other has ended. `None`: as `idle`.
    pub(crate) termination: Option<Duration>,
}

/// Why a relay ended before both sides had.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Silence was too long.
    Idle,
    /// The open direction was silent too long after the other's end.
    Termination,
    /// The first side failed.
    First(io::Error),
    /// The second side failed.
    Second(io::Error),
    /// The second side's peer is not to be talked to any more.
    Untrusted(Loss),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("silent for too long (idleTimeout)"),
            Self::Termination => f.write_str("half closed and silent (terminationDelay)"),
            Self::First(error) => write!(f, "the client side failed: {error}"),
            Self::Second(error) => write!(f, "the server side failed: {error}"),
            Self::Untrusted(loss) => loss.fmt(f),
        }
    }
}

/// What a relay did.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Bytes from the first stream to the second.
    pub(crate) up: u64,
    /// Bytes from the second to the first.
    pub(crate) down: u64,
    /// How it ended.
    pub(crate) end: Result<(), Broken>,
}

/// Where bytes are counted as they pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'c> {
    /// From the first stream to the second.
    pub(crate) up: &'c Counter,
    /// From the second to the first.
    pub(crate) down: &'c Counter,
}

/// Relays until both directions have ended. What the buffers hold goes first.
pub(crate) async fn relay<R: Runtime, A, B>(
    runtime: &R,
    first: (&mut A, &mut ReadBuf),
    second: (&mut B, &mut ReadBuf),
    limits: Limits,
    counted: Option<Bytes<'_>>,
) -> Relayed
where
    A: AsyncRead + AsyncWrite + Splice + Unpin,
    B: AsyncRead + AsyncWrite + Splice + Unpin,
{
    let splices = first.0.can_splice() && second.0.can_splice();
    let (a, b) = (RefCell::new(first.0), RefCell::new(second.0));
    let mut up = Direction::new(first.1, counted.map(|it| it.up), splices);
    let mut down = Direction::new(second.1, counted.map(|it| it.down), splices);
    let mut timer = runtime.timer();
    let mut last = runtime.now();
    let end = poll_fn(|cx| {
        let before = (up.moves, down.moves);
        let going_up = match up.poll(cx, &a, &b) {
            Poll::Ready(Err(Failed::Source(error))) => {
                return Poll::Ready(Err(Broken::First(error)));
            }
            Poll::Ready(Err(Failed::Sink(error))) => {
                return Poll::Ready(Err(Broken::Second(error)));
            }
            Poll::Ready(Ok(())) => false,
            Poll::Pending => true,
        };
        let going_down = match down.poll(cx, &b, &a) {
            Poll::Ready(Err(Failed::Source(error))) => {
                return Poll::Ready(Err(Broken::Second(error)));
            }
            Poll::Ready(Err(Failed::Sink(error))) => {
                return Poll::Ready(Err(Broken::First(error)));
            }
            Poll::Ready(Ok(())) => false,
            Poll::Pending => true,
        };
        if before != (up.moves, down.moves) {
            last = runtime.now();
        }
        let (limit, broken) = match (going_up, going_down) {
            (false, false) => return Poll::Ready(Ok(())),
            (true, true) => (limits.idle, Broken::Idle),
            _ => match limits.termination {
                Some(limit) => (Some(limit), Broken::Termination),
                None => (limits.idle, Broken::Idle),
            },
        };
        timer.set(limit.and_then(|limit| last.checked_add(limit)));
        timer.poll(cx).map(|()| Err(broken))
    })
    .await;
    Relayed {
        up: up.bytes,
        down: down.bytes,
        end,
    }
}

/// One direction of a relay.
struct Direction<'b> {
    buf: &'b mut ReadBuf,
    state: State,
    /// Bytes passed on.
    bytes: u64,
    counter: Option<&'b Counter>,
    /// Grows with each thing that happened.
    moves: u64,
    /// How the source failed, behind what is still to be written.
    failed: Option<io::Error>,
    /// Whether the kernel can move bytes between the two by itself.
    splices: bool,
    /// Whether there is so much that it should.
    is_bulk: bool,
    /// What it has taken from the source and the sink has not.
    pipe: Option<Pipe>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Reading, and writing what was read.
    Open,
    /// The source has ended; the sink is to be told.
    Ending,
    Ended,
}

enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl<'b> Direction<'b> {
    fn new(buf: &'b mut ReadBuf, counter: Option<&'b Counter>, splices: bool) -> Self {
        Self {
            buf,
            counter,
            state: State::Open,
            bytes: 0,
            moves: 0,
            failed: None,
            splices,
            is_bulk: false,
            pipe: None,
        }
    }

    fn passed(&mut self, n: usize) {
        let n = u64::try_from(n).unwrap_or(0);
        self.bytes += n;
        if let Some(counter) = self.counter {
            counter.add(n);
        }
        self.moves += 1;
    }

    /// Reads what there is, as much as one write may take: TLS gives a record
    /// at a time, and each write wakes the other side. Pending: nothing.
    fn gather<A>(&mut self, cx: &mut Context<'_>, source: &RefCell<&mut A>) -> Poll<()>
    where
        A: AsyncRead + Unpin,
    {
        self.buf.take_bulk_room();
        while self.buf.len() < GATHER_BYTES {
            match self.buf.poll_fill(cx, source, GATHER_BYTES) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Ending;
                    break;
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                Poll::Pending if self.buf.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(())
    }

    /// Lets the kernel take what there is. Pending: nothing.
    fn fill_pipe<A: Splice>(&mut self, cx: &mut Context<'_>, source: &RefCell<&mut A>) -> Poll<()> {
        let Some(mut pipe) = Pipe::take() else {
            (self.splices, self.is_bulk) = (false, false);
            return Poll::Ready(());
        };
        // The pipe is what is held now.
        self.buf.give_back();
        let way = Way::Into(pipe.way_in());
        let moved = source.borrow_mut().poll_splice(cx, way, PIPE_BYTES);
        match moved {
            Poll::Pending => {
                pipe.give_back();
                return Poll::Pending;
            }
            Poll::Ready(Ok(0)) => self.state = State::Ending,
            Poll::Ready(Ok(n)) => pipe.held = n,
            // The kernel cannot, or may not be asked.
            Poll::Ready(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported
                        | io::ErrorKind::InvalidInput
                        | io::ErrorKind::PermissionDenied
                ) =>
            {
                pipe.give_back();
                (self.splices, self.is_bulk) = (false, false);
                return Poll::Ready(());
            }
            // A failure of the socket is told once.
            Poll::Ready(Err(error)) => self.failed = Some(error),
        }
        self.is_bulk = pipe.held >= BULK_BYTES;
        self.pipe = Some(pipe);
        Poll::Ready(())
    }

    fn empty_pipe<B: Splice>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &RefCell<&mut B>,
    ) -> Poll<io::Result<()>> {
        while let Some(mut pipe) = self.pipe.take() {
            if pipe.held == 0 {
                pipe.give_back();
                break;
            }
            let way = Way::From(pipe.way_out());
            let moved = sink.borrow_mut().poll_splice(cx, way, pipe.held);
            if let Poll::Ready(Ok(n)) = &moved {
                pipe.held -= n;
            }
            self.pipe = Some(pipe);
            match ready!(moved)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.passed(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        source: &RefCell<&mut A>,
        sink: &RefCell<&mut B>,
    ) -> Poll<Result<(), Failed>>
    where
        A: AsyncRead + Splice + Unpin,
        B: AsyncWrite + Splice + Unpin,
    {
        let mut rounds = 0;
        loop {
            while !self.buf.is_empty() {
                let mut sink = sink.borrow_mut();
                let n = ready!(Pin::new(&mut **sink).poll_write(cx, self.buf.data()))
                    .map_err(Failed::Sink)?;
                if n == 0 {
                    return Poll::Ready(Err(Failed::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.buf.consume(n);
                self.passed(n);
            }
            ready!(self.empty_pipe(cx, sink)).map_err(Failed::Sink)?;
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    let mut sink = sink.borrow_mut();
                    match ready!(Pin::new(&mut **sink).poll_close(cx)) {
                        Ok(()) => {}
                        // It has closed as well, and got all that it read.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        Err(error) => return Poll::Ready(Err(Failed::Sink(error))),
                    }
                    self.state = State::Ended;
                    self.moves += 1;
                }
                State::Open => {
                    // TLS may hold back what did not fit the socket; a
                    // direction must not wait for more before it is gone.
                    let mut sink = sink.borrow_mut();
                    if let Poll::Ready(Err(error)) = Pin::new(&mut **sink).poll_flush(cx) {
                        return Poll::Ready(Err(Failed::Sink(error)));
                    }
                    drop(sink);
                    if let Some(error) = self.failed.take() {
                        return Poll::Ready(Err(Failed::Source(error)));
                    }
                    if rounds == ROUNDS_PER_TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    rounds += 1;
                    if self.is_bulk && source.borrow().can_splice() {
                        ready!(self.fill_pipe(cx, source));
                    } else {
                        ready!(self.gather(cx, source));
                        self.is_bulk = self.splices && self.buf.len() >= GATHER_BYTES;
                    }
                    self.moves += 1;
                }
            }
        }
    }
}

/// A stream that is reset when it is dropped, until it has been said that
/// nothing is missing: a relay that is cut short, by a stop or a panic, must
/// not look like one that ended.
#[derive(Debug)]
pub(crate) struct Unfinished<S: Stream>(Option<S>);

impl<S: Stream> Unfinished<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Some(stream))
    }

    pub(crate) fn get(&mut self) -> Option<&mut S> {
        self.0.as_mut()
    }

    /// All that was to come has come.
    pub(crate) fn finish(mut self) {
        drop(self.0.take());
    }
}

impl<S: Stream> Drop for Unfinished<S> {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            reset(stream);
        }
    }
}

/// Closes so that the other end sees an error, not an end: what it got was
/// not whole.
pub(crate) fn reset<S: Stream>(stream: S) {
    let linger = rustix::net::sockopt::set_socket_linger(stream.socket(), Some(Duration::ZERO));
    if let Err(error) = linger {
        log::debug!("no reset: {error}");
    }
    drop(stream);
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]
mod tests;
