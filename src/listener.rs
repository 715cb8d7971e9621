//! Listening sockets, and the loop that accepts from them. It hands sockets
//! on and never handshakes or reads: one slow client delays nobody.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_util::FutureExt as _;
use log::{error, warn};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::dial::set_options;
use crate::drain::{Drain, Running};
use crate::metrics::{CONNECTIONS, Counter, Gauge, OPEN, PANICS, Recorder};
use crate::runtime::{Runtime, sleep};

/// Connections that the kernel may hold for us.
const BACKLOG: i32 = 4096;
/// Between TCP keep-alive probes to clients: those that vanish without a word
/// must not hold their descriptors for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The waits after a failed accept, from the first to the longest: without
/// descriptors left, a loop that tries at once would spin.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A socket that has its address, and does not listen yet: until it does,
/// clients are refused rather than left hanging.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    pub(crate) address: SocketAddr,
    /// Whether it is somebody else's too.
    pub(crate) is_shared: bool,
}

impl Bound {
    /// Takes an address, together with the other workers of this process.
    /// `[::]` means every address, IPv4 too.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        match Self::bind(address) {
            // A machine without IPv6 still has every IPv4 address.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
                    && address.ip().is_unspecified() =>
            {
                Self::bind(SocketAddr::new(
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    address.port(),
                ))
            }
            bound => bound,
        }
    }

    fn bind(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        }
        rustix::net::bind(&socket, &address)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        Ok(Self {
            socket,
            address,
            is_shared: false,
        })
    }

    /// A socket that somebody else has opened, and perhaps keeps open. It
    /// listens already.
    pub(crate) fn inherit(listener: &TcpListener) -> io::Result<Self> {
        let socket = OwnedFd::from(listener.try_clone()?);
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        Ok(Self {
            socket,
            address,
            is_shared: true,
        })
    }

    /// Starts to listen.
    pub(crate) fn listen(self) -> io::Result<TcpListener> {
        if !self.is_shared {
            rustix::net::listen(&self.socket, BACKLOG)?;
        }
        Ok(TcpListener::from(self.socket))
    }
}

/// What is counted of client connections.
#[derive(Debug)]
pub(crate) struct Counts {
    accepted: Counter,
    open: Gauge,
    pub(crate) panics: Counter,
}

impl Counts {
    pub(crate) fn new(recorder: &Recorder, entry: &str) -> Self {
        Self {
            accepted: recorder.counter(&CONNECTIONS, &[entry]),
            open: recorder.gauge(&OPEN, &[entry]),
            panics: recorder.counter(&PANICS, &[entry]),
        }
    }
}

/// An entry point's accept loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accept<'a> {
    /// Of the entry point.
    pub(crate) name: &'a Rc<str>,
    /// How many connections may be open; a reload may change it.
    pub(crate) connections_max: &'a Cell<usize>,
    pub(crate) drain: &'a Drain,
    pub(crate) counts: &'a Counts,
    /// Whether others have its socket too.
    pub(crate) is_shared: bool,
}

/// Accepts until the drain begins, and then what the kernel still holds: those
/// clients have been let in already. `serve` makes the future of one
/// connection; it runs in a task of its own, and its panic ends it alone.
pub(crate) async fn accept<R: Runtime, F: Future<Output = ()> + 'static>(
    runtime: &R,
    listener: &R::Listener,
    entry: &Accept<'_>,
    serve: impl Fn(R::Stream, SocketAddr, Running) -> F,
) {
    let Accept {
        name,
        connections_max,
        drain,
        counts,
        is_shared,
    } = *entry;
    let start = |stream, peer: SocketAddr| {
        if let Err(error) = set_options(&stream, Some(KEEP_ALIVE)) {
            warn!("{name}: {peer}: {error}");
            return;
        }
        counts.accepted.add(1);
        let open = counts.open.one_more();
        let connection = AssertUnwindSafe(serve(stream, peer, drain.enter())).catch_unwind();
        let (panics, name) = (counts.panics.clone(), Rc::clone(name));
        // Not awaited by another future, which would keep its room twice.
        runtime.spawn(connection.map(move |ended| {
            if ended.is_err() {
                panics.add(1);
                error!("{name}: {peer}: this connection ended by a panic; the others go on");
            }
            drop(open);
        }));
    };
    let accepting = async {
        let mut backoff = BACKOFF.0;
        let mut in_a_row = 0u32;
        loop {
            // Before accept, not after: at the limit new clients wait in the
            // kernel's queue, where they cost no descriptor and no task.
            drain.fewer_than(connections_max).await;
            match runtime.accept(listener).await {
                Ok((stream, peer)) => {
                    backoff = BACKOFF.0;
                    start(stream, peer);
                }
                // Of that one connection, which is gone.
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    warn!("{name}: cannot accept: {error}; next try in {backoff:?}");
                    sleep(runtime, backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
            // A flood of new connections must leave the old ones their turns.
            in_a_row = in_a_row.wrapping_add(1);
            if in_a_row.is_multiple_of(16) {
                futures_lite::future::yield_now().await;
            }
        }
    };
    drain.stopped().or(accepting).await;
    if is_shared {
        // Its queue outlives us, and belongs to who comes next.
        return;
    }
    let mut backoff = BACKOFF.0;
    // No more than a queue holds: those that still come are not in it.
    for index in 0..=BACKLOG {
        if index % 16 == 15 {
            futures_lite::future::yield_now().await;
        }
        match runtime.accept_now(listener) {
            None => return,
            Some(Ok((stream, peer))) => start(stream, peer),
            Some(Err(error)) if is_about_one_connection(&error) => {}
            // Without descriptors: others end now, and give some back.
            Some(Err(error)) if backoff < BACKOFF.1 => {
                warn!("{name}: cannot accept: {error}; next try in {backoff:?}");
                sleep(runtime, backoff).await;
                backoff *= 2;
            }
            Some(Err(error)) => {
                warn!("{name}: the rest of the queue is lost: {error}");
                return;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Text};
    use crate::runtime::epoll::{self, Epoll};
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    use std::rc::Rc;
    use std::time::Instant;

    /// The worker's runtime with an accept that fails first.
    #[derive(Clone, Debug)]
    struct Failing(Epoll, Rc<Cell<u32>>);

    impl Runtime for Failing {
        type Stream = epoll::Socket;
        type Listener = epoll::Acceptor;
        type Timer = epoll::Deadline;

        fn listener(&self, socket: TcpListener) -> io::Result<Self::Listener> {
            self.0.listener(socket)
        }

        async fn accept(
            &self,
            listener: &Self::Listener,
        ) -> io::Result<(Self::Stream, SocketAddr)> {
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                return Err(rustix::io::Errno::MFILE.into());
            }
            self.0.accept(listener).await
        }

        fn accept_now(
            &self,
            listener: &Self::Listener,
        ) -> Option<io::Result<(Self::Stream, SocketAddr)>> {
            self.0.accept_now(listener)
        }

        async fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream> {
            self.0.connect(address).await
        }

        fn timer(&self) -> Self::Timer {
            self.0.timer()
        }

        fn now(&self) -> Instant {
            self.0.now()
        }

        fn spawn(&self, task: impl Future<Output = ()> + 'static) {
            self.0.spawn(task);
        }
    }

    /// Runs an accept loop with `serve`, and `client` against it.
    fn run<F, C, T>(
        failures: u32,
        connections_max: usize,
        serve: impl Fn(epoll::Socket, SocketAddr, Running) -> F + 'static,
        client: impl FnOnce(Epoll, SocketAddr, Drain, Metrics) -> C + 'static,
    ) -> T
    where
        F: Future<Output = ()> + 'static,
        C: Future<Output = T> + 'static,
    {
        let bound = Bound::new(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = bound.address;
        epoll::run(move |runtime| async move {
            let listener = runtime.listener(bound.listen().unwrap()).unwrap();
            let (drain, metrics) = (Drain::default(), Metrics::default());
            let counts = Counts::new(&metrics.recorder(), "test");
            let failing = Failing(runtime.clone(), Rc::new(Cell::new(failures)));
            let client = client(runtime, address, drain.clone(), metrics);
            let entry = Accept {
                name: &Rc::from("test"),
                connections_max: &Cell::new(connections_max),
                drain: &drain,
                counts: &counts,
                is_shared: false,
            };
            let accepting = async {
                accept(&failing, &listener, &entry, serve).await;
                std::future::pending().await
            };
            client.or(accepting).await
        })
        .unwrap()
    }

    async fn echo(mut stream: epoll::Socket, _: SocketAddr, _running: Running) {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        assert_ne!(byte, [b'!'], "told to panic");
        stream.write_all(&byte).await.unwrap();
    }

    async fn ask(runtime: &Epoll, address: SocketAddr, byte: u8) -> Option<u8> {
        let mut stream = runtime.connect(address).await.unwrap();
        stream.write_all(&[byte]).await.unwrap();
        let mut answer = [0];
        let read = stream.read_exact(&mut answer).await;
        read.is_ok().then_some(answer[0])
    }

    #[test]
    fn a_panic_ends_its_connection_alone_and_is_counted() {
        let seen = run(0, 10, echo, |runtime, address, drain, metrics| async move {
            let first = ask(&runtime, address, b'!').await;
            let second = ask(&runtime, address, b'x').await;
            drain.done().await;
            let mut page = Text::default();
            metrics.write(&mut page);
            (first, second, page.into_string())
        });
        assert_eq!((seen.0, seen.1), (None, Some(b'x')));
        for line in ["panics_total", "connections_accepted_total"]
            .iter()
            .zip(["1", "2"])
        {
            let line = format!("svidgate_{}{{entrypoint=\"test\"}} {}\n", line.0, line.1);
            assert!(seen.2.contains(&line), "{line}{}", seen.2);
        }
    }

    #[test]
    fn without_descriptors_it_waits_and_goes_on() {
        let seen = run(3, 10, echo, |runtime, address, _, _| async move {
            let begin = Instant::now();
            let answer = ask(&runtime, address, b'x').await;
            (answer, begin.elapsed() >= BACKOFF.0 * (1 + 2 + 4))
        });
        assert_eq!(seen, (Some(b'x'), true));
    }

    #[test]
    fn at_the_limit_new_connections_wait_in_the_kernel() {
        let seen = run(0, 1, echo, |runtime, address, drain, _| async move {
            let mut first = runtime.connect(address).await.unwrap();
            let mut second = runtime.connect(address).await.unwrap();
            second.write_all(b"2").await.unwrap();
            // Both are connected; one is served.
            while drain.running() == 0 {
                futures_lite::future::yield_now().await;
            }
            for _ in 0..100 {
                futures_lite::future::yield_now().await;
                assert_eq!(drain.running(), 1);
            }
            first.write_all(b"1").await.unwrap();
            let mut answers = [0; 2];
            first.read_exact(&mut answers[..1]).await.unwrap();
            second.read_exact(&mut answers[1..]).await.unwrap();
            answers
        });
        assert_eq!(seen, *b"12");
    }

    /// The reactor has not heard of them: nothing but the kernel knows.
    #[test]
    fn the_drain_takes_in_what_came_in_the_same_turn() {
        let seen = run(0, 10, echo, |_, address, drain, _| async move {
            // Once the loop has accepted it knows that there is nothing more.
            #[expect(
                clippy::disallowed_methods,
                reason = "loopback, and it is accepted by the kernel"
            )]
            let connect = || std::net::TcpStream::connect(address).unwrap();
            let first = connect();
            while drain.running() == 0 {
                futures_lite::future::yield_now().await;
            }
            for _ in 0..10 {
                futures_lite::future::yield_now().await;
            }
            // All in one turn.
            let late: Vec<_> = (0..5).map(|_| connect()).collect();
            drain.stop();
            while drain.running() < 6 {
                futures_lite::future::yield_now().await;
            }
            drop((first, late));
            true
        });
        assert!(seen);
    }

    #[test]
    fn what_the_kernel_has_queued_is_taken_in_when_the_drain_begins() {
        let seen = run(0, 10, echo, |runtime, address, drain, _| async move {
            let mut queued = runtime.connect(address).await.unwrap();
            queued.write_all(b"q").await.unwrap();
            drain.stop();
            let mut answer = [0];
            queued.read_exact(&mut answer).await.unwrap();
            answer
        });
        assert_eq!(seen, *b"q");
    }
}
