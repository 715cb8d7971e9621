//! The worker of Linux: one thread, one executor, one edge-triggered reactor.
//!
//! A socket is registered with epoll **once**, for both directions, when it is
//! born; from then on readiness is two flags, which the reactor sets and the
//! stream clears. A short read means that the socket is drained, so the read
//! that would find nothing is not made. In the steady state a proxied request
//! costs its own receives and sends, and a share of one `epoll_wait`.
//!
//! # Implementation
//! [`run`] owns the executor; the handle [`Epoll`] that tasks hold reaches it
//! weakly, so that dropping the executor ends every task and closes every
//! socket. A wake from another thread (a stop signal, a name resolved) reaches
//! a sleeping worker through an eventfd.
//!
//! A host whose `main` is not Rust's has to ignore `SIGPIPE`: `splice(2)`
//! raises it where a client has gone.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use async_executor::LocalExecutor;
use futures_lite::{AsyncRead, AsyncWrite};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv, send,
    sendmsg,
};
use rustix::pipe::{SpliceFlags, splice};
use slab::Slab;

use super::{Runtime, Splice, Stream, Timer, Way};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;
/// Task turns between two looks at the sockets.
const TURNS_MAX: u32 = 200;
/// The longest sleep, so that no time can overflow the kernel's.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// The key of the eventfd. Sockets count from 0, far below.
const WAKE_KEY: u64 = u64::MAX;

/// Runs `main` on this thread until it ends; what it spawned then ends too.
///
/// # Errors
/// The operating system's, when epoll or eventfd cannot be had or fails.
pub fn run<T, F: Future<Output = T>>(main: impl FnOnce(Epoll) -> F) -> io::Result<T> {
    let alarm = Arc::new(Alarm {
        state: AtomicU8::new(AWAKE),
        event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
    });
    let executor = Rc::new(LocalExecutor::new());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &alarm.event,
        EventData::new_u64(WAKE_KEY),
        EventFlags::IN | EventFlags::ET,
    )?;
    let reactor = Rc::new(Reactor {
        epoll,
        executor: Rc::downgrade(&executor),
        sources: RefCell::new(Slab::new()),
        generation: Cell::new(0),
        clock: RefCell::new(Clock::default()),
        now: Cell::new(Instant::now()),
    });
    let waker = Waker::from(Arc::clone(&alarm));
    let mut cx = Context::from_waker(&waker);
    let call = Arc::new(Call {
        is_due: AtomicBool::new(true),
        alarm: Arc::clone(&alarm),
    });
    let main_waker = Waker::from(Arc::clone(&call));
    let mut main_cx = Context::from_waker(&main_waker);
    let mut main = pin!(main(Epoll(Rc::clone(&reactor))));
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        // What has woken us so far is served in this very turn.
        alarm.awake();
        if call.take()
            && let Poll::Ready(value) = main.as_mut().poll(&mut main_cx)
        {
            return Ok(value);
        }
        // Bounded, so that busy tasks cannot keep the reactor from its
        // sockets.
        let mut turns = 0;
        while turns < TURNS_MAX && executor.try_tick() {
            turns += 1;
        }
        // Asked once more with our waker, an executor without work remembers
        // to ring when another thread brings some; until this is dropped.
        let mut tick = pin!(executor.tick());
        let idle = turns < TURNS_MAX && tick.as_mut().poll(&mut cx).is_pending();
        // With events at hand this returns at once, however long it may sleep.
        // Woken again and again without a task: sockets have their turn all
        // the same.
        let sleep = if idle && alarm.may_sleep() {
            reactor.next_timer()
        } else {
            Some(Duration::ZERO)
        };
        reactor.wait(&mut events, sleep)?;
        // Awake again before the first task is woken, or that would ring. A
        // ring that was meant for us has brought its work already.
        alarm.awake();
        reactor.deliver(&mut events);
    }
}

/// A handle on this thread's worker.
#[derive(Clone)]
pub struct Epoll(Rc<Reactor>);

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Epoll")
    }
}

struct Reactor {
    epoll: OwnedFd,
    /// Weak: the executor owns the tasks, and the tasks hold the reactor.
    executor: Weak<LocalExecutor<'static>>,
    sources: RefCell<Slab<Rc<Source>>>,
    /// Tells an event of a closed socket from one of the next with its index.
    generation: Cell<u32>,
    clock: RefCell<Clock>,
    now: Cell<Instant>,
}

impl Reactor {
    fn register(&self, socket: impl AsFd, ready: bool) -> io::Result<Rc<Source>> {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let mut sources = self.sources.borrow_mut();
        let entry = sources.vacant_entry();
        let index = u32::try_from(entry.key()).map_err(io::Error::other)?;
        let source = Rc::new(Source {
            key: (u64::from(generation & 0x7fff_ffff) << 32) | u64::from(index),
            readable: Cell::new(ready),
            writable: Cell::new(ready),
            read_closed: Cell::new(false),
            reader: RefCell::new(None),
            writer: RefCell::new(None),
        });
        epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(source.key),
            EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )?;
        entry.insert(Rc::clone(&source));
        Ok(source)
    }

    /// Forgets a source. Closing its descriptor takes it out of epoll.
    fn forget(&self, source: &Source) {
        self.sources.borrow_mut().try_remove(source.index());
    }

    fn next_timer(&self) -> Option<Duration> {
        let next = self.clock.borrow().next()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, sleep: Option<Duration>) -> io::Result<()> {
        let sleep = sleep.unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let sleep = Timespec::try_from(sleep).map_err(io::Error::other)?;
        events.clear();
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            Some(&sleep),
        );
        self.now.set(Instant::now());
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn deliver(&self, events: &mut Vec<epoll::Event>) {
        for event in events.drain(..) {
            // The event is packed: fields are copied out, not borrowed.
            let (flags, data) = (event.flags, event.data);
            let key = data.u64();
            // The eventfd is edge-triggered and each write is an edge, so it
            // needs no read; its count would wrap after 2^64 wakes.
            if key == WAKE_KEY {
                continue;
            }
            let source = {
                let sources = self.sources.borrow();
                sources.get(Source::index_of(key)).map(Rc::clone)
            };
            // Another socket may have taken the index since.
            if let Some(source) = source.filter(|source| source.key == key) {
                source.deliver(flags);
            }
        }
        self.clock.borrow_mut().fire(self.now.get());
    }
}

/// What the reactor and a socket tell each other.
struct Source {
    /// Generation and index: what epoll gives back.
    key: u64,
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer has sent its last byte, or urgent data, at which a read stops
    /// short, or the socket has failed. From then on a short read proves
    /// nothing, as no edge need follow it.
    read_closed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Source {
    fn index_of(key: u64) -> usize {
        usize::try_from(key & 0xffff_ffff).unwrap_or(usize::MAX)
    }

    fn index(&self) -> usize {
        Self::index_of(self.key)
    }

    fn deliver(&self, flags: EventFlags) {
        let closed = flags
            .intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI);
        if closed {
            self.read_closed.set(true);
        }
        if closed || flags.contains(EventFlags::IN) {
            self.readable.set(true);
            wake(&self.reader);
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.writable.set(true);
            wake(&self.writer);
        }
    }

    /// Calls `attempt` as often as the flag allows, and waits for the next
    /// edge once the kernel says that it would block.
    fn poll<T>(
        &self,
        ready: &Cell<bool>,
        slot: &RefCell<Option<Waker>>,
        cx: &Context<'_>,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if !ready.get() {
                remember(slot, cx);
                return Poll::Pending;
            }
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.set(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_readable<T>(
        &self,
        cx: &Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        self.poll(&self.readable, &self.reader, cx, attempt)
    }

    fn poll_writable<T>(
        &self,
        cx: &Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        self.poll(&self.writable, &self.writer, cx, attempt)
    }

    /// After `n` of `asked` bytes were read: fewer means drained.
    fn was_read(&self, n: usize, asked: usize) {
        if 0 < n && n < asked && !self.read_closed.get() {
            self.readable.set(false);
        }
    }

    /// After `n` of `asked` bytes were written: fewer means full.
    fn was_written(&self, n: usize, asked: usize) {
        if n < asked {
            self.writable.set(false);
        }
    }
}

fn wake(slot: &RefCell<Option<Waker>>) {
    let waker = slot.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn remember(slot: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut slot = slot.borrow_mut();
    if !slot.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

impl Runtime for Epoll {
    type Stream = Socket;
    type Listener = Acceptor;
    type Timer = Deadline;

    fn listener(&self, socket: TcpListener) -> io::Result<Acceptor> {
        socket.set_nonblocking(true)?;
        Ok(Acceptor {
            source: self.0.register(&socket, true)?,
            reactor: Rc::clone(&self.0),
            socket,
        })
    }

    async fn accept(&self, listener: &Acceptor) -> io::Result<(Socket, SocketAddr)> {
        let (fd, address) = poll_fn(|cx| {
            listener.source.poll_readable(cx, || {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(rustix::net::acceptfrom_with(&listener.socket, flags)?)
            })
        })
        .await?;
        let address = match address {
            Some(address) => SocketAddr::try_from(address)?,
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        Ok((Socket::new(&self.0, fd.into(), true)?, address))
    }

    fn accept_now(&self, listener: &Acceptor) -> Option<io::Result<(Socket, SocketAddr)>> {
        // Whatever the last event said.
        listener.source.readable.set(true);
        let mut accept = pin!(self.accept(listener));
        let mut cx = Context::from_waker(Waker::noop());
        match accept.as_mut().poll(&mut cx) {
            Poll::Ready(accepted) => Some(accepted),
            Poll::Pending => None,
        }
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = Socket::new(&self.0, fd.into(), false)?;
        poll_fn(|cx| socket.source.poll_writable(cx, || Ok(()))).await?;
        rustix::net::sockopt::socket_error(&socket.socket)??;
        Ok(socket)
    }

    fn timer(&self) -> Deadline {
        let index = self.0.clock.borrow_mut().add();
        Deadline {
            reactor: Rc::clone(&self.0),
            index,
            deadline: None,
        }
    }

    fn now(&self) -> Instant {
        self.0.now.get()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Without an executor the worker is ending, and the task with it.
        if let Some(executor) = self.0.executor.upgrade() {
            executor.spawn(task).detach();
        }
    }
}

/// A listening socket.
pub struct Acceptor {
    source: Rc<Source>,
    reactor: Rc<Reactor>,
    socket: TcpListener,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Other descriptors may lead to the same socket, those of other
        // workers or of another process: closing ours does not end the
        // registration.
        if let Err(error) = epoll::delete(&self.reactor.epoll, &self.socket) {
            log::debug!("a listener is not forgotten: {error}");
        }
        self.reactor.forget(&self.source);
    }
}

/// A connected socket.
pub struct Socket {
    source: Rc<Source>,
    reactor: Rc<Reactor>,
    socket: TcpStream,
}

impl Socket {
    fn new(reactor: &Rc<Reactor>, socket: TcpStream, ready: bool) -> io::Result<Self> {
        Ok(Self {
            source: reactor.register(&socket, ready)?,
            reactor: Rc::clone(reactor),
            socket,
        })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.reactor.forget(&self.source);
    }
}

impl Stream for Socket {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Splice for Socket {
    fn can_splice(&self) -> bool {
        // At urgent data the kernel stops, and gives no edge for what follows;
        // after an end or a failure there is not much to move.
        !self.source.read_closed.get()
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        way: Way<'_>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        // A short move proves nothing here: a pipe has room for so many pieces,
        // however small they are.
        match way {
            Way::Into(pipe) => self.source.poll_readable(cx, || {
                Ok(splice(&self.socket, None, pipe, None, max, flags)?)
            }),
            Way::From(pipe) => self.source.poll_writable(cx, || {
                Ok(splice(pipe, None, &self.socket, None, max, flags)?)
            }),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let asked = buf.len();
        let read = self.source.poll_readable(cx, || {
            let (n, _) = recv(&self.socket, &mut *buf, RecvFlags::empty())?;
            Ok(n)
        });
        if let Poll::Ready(Ok(n)) = read {
            self.source.was_read(n, asked);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self
            .source
            .poll_writable(cx, || Ok(send(&self.socket, buf, SendFlags::NOSIGNAL)?));
        if let Poll::Ready(Ok(n)) = written {
            self.source.was_written(n, buf.len());
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // TLS writes a record at a time, and a plain send is the cheaper call.
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let written = self.source.poll_writable(cx, || {
            let mut nothing = SendAncillaryBuffer::default();
            Ok(sendmsg(
                &self.socket,
                bufs,
                &mut nothing,
                SendFlags::NOSIGNAL,
            )?)
        });
        if let Poll::Ready(Ok(n)) = written {
            self.source
                .was_written(n, bufs.iter().map(|buf| buf.len()).sum());
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Sends a FIN; reading goes on.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

/// The deadlines of a worker.
#[derive(Default)]
struct Clock {
    timers: Slab<Armed>,
    /// What is due next. An entry is stale when its timer is gone or armed
    /// for another time; then it is dropped when its time comes.
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
}

#[derive(Default)]
struct Armed {
    at: Option<Instant>,
    waker: Option<Waker>,
}

impl Clock {
    fn add(&mut self) -> usize {
        self.timers.insert(Armed::default())
    }

    /// Sees to it that `waker` is woken at `deadline`, or before: a timer that
    /// is armed for an earlier time, still to come, stays. Its owner looks
    /// again then.
    fn arm(&mut self, index: usize, now: Instant, deadline: Instant, waker: &Waker) {
        let Some(timer) = self.timers.get_mut(index) else {
            return;
        };
        let early_enough = timer.at.filter(|at| now < *at && *at <= deadline);
        let at = early_enough.unwrap_or(deadline);
        if !timer.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            timer.waker = Some(waker.clone());
        }
        if timer.at != Some(at) {
            timer.at = Some(at);
            self.queue.push(Reverse((at, index)));
            // Short connections leave a stale entry each until its time
            // comes, minutes later; do not let them pile up.
            if self.queue.len() > 4 * self.timers.len() + 64 {
                let timers = &self.timers;
                self.queue.retain(|Reverse((at, index))| {
                    timers
                        .get(*index)
                        .is_some_and(|timer| timer.at == Some(*at))
                });
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    fn fire(&mut self, now: Instant) {
        while let Some(&Reverse((at, index))) = self.queue.peek() {
            if at > now {
                return;
            }
            self.queue.pop();
            // The deadline itself may have moved later since: its owner
            // looks when it is woken, and arms anew.
            if let Some(timer) = self.timers.get_mut(index)
                && timer.at == Some(at)
            {
                timer.at = None;
                if let Some(waker) = timer.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// A deadline of an owner on this worker.
pub struct Deadline {
    reactor: Rc<Reactor>,
    index: usize,
    deadline: Option<Instant>,
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.deadline).finish()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.reactor
            .clock
            .borrow_mut()
            .timers
            .try_remove(self.index);
    }
}

impl Timer for Deadline {
    fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let now = self.reactor.now.get();
        if deadline <= now {
            return Poll::Ready(());
        }
        let mut clock = self.reactor.clock.borrow_mut();
        clock.arm(self.index, now, deadline, cx.waker());
        Poll::Pending
    }
}

/// Whether `main` is to be polled: what happens to other tasks is nothing to it.
struct Call {
    is_due: AtomicBool,
    alarm: Arc<Alarm>,
}

impl Call {
    /// Before the poll, as what comes during it asks for another.
    fn take(&self) -> bool {
        self.is_due.load(Ordering::Relaxed) && self.is_due.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_due.store(true, Ordering::SeqCst);
        self.alarm.wake_by_ref();
    }
}

const AWAKE: u8 = 0;
const WOKEN: u8 = 1;
const ASLEEP: u8 = 2;

/// Wakes the worker, from any thread.
struct Alarm {
    state: AtomicU8,
    event: OwnedFd,
}

impl Alarm {
    /// Whether nothing has happened since the last look; then the next wake
    /// rings.
    fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn awake(&self) {
        self.state.swap(AWAKE, Ordering::SeqCst);
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == ASLEEP {
            // It can fail only when the count is full, and then it has rung.
            let _rung = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}
