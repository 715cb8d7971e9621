//! The HTTP forwarder: what an entry point does with a client connection,
//! whichever version it speaks.

pub(crate) mod exchange;
pub(crate) mod fields;
pub(crate) mod forward;
pub mod h1;
pub mod h2;
pub mod message;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod reply;
pub(crate) mod wire;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncWriteExt, FutureExt};

use crate::config::HttpEntry;
use crate::drain::Running;
use crate::metrics::Counter;
use crate::runtime::{Runtime, within};
use crate::tcp::copy;
use fields::{Client, Hop};
use h1::serve::{Connection, Ending};
use plan::Plan;
use pool::Pool;
use reply::Clock;
use wire::ReadBuf;

/// How long, and how much, a client may still send after an answer that ends
/// its connection; so that the answer is not lost to a reset (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;
/// How long, once the proxy is told to end, a connection that has not asked
/// for anything yet is waited for.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// An HTTP entry point on one worker.
#[derive(Debug)]
pub(crate) struct Http<R: Runtime> {
    name: String,
    /// Replaced by a reload. Each request is served to its end by the one
    /// that it began with.
    plan: RefCell<Rc<Plan<R>>>,
    pool: Rc<Pool<R>>,
    hop: Rc<Hop>,
    clock: Clock,
    panics: Counter,
}

impl<R: Runtime> Http<R> {
    pub(crate) fn new(
        name: &str,
        plan: Plan<R>,
        pool: Rc<Pool<R>>,
        hop: Rc<Hop>,
        panics: Counter,
    ) -> Self {
        Self {
            name: name.to_owned(),
            plan: RefCell::new(Rc::new(plan)),
            pool,
            hop,
            clock: Clock::default(),
            panics,
        }
    }

    /// Serves every request that begins from now on by another plan.
    pub(crate) fn replace(&self, plan: Plan<R>) {
        *self.plan.borrow_mut() = Rc::new(plan);
    }

    fn plan(&self) -> Rc<Plan<R>> {
        Rc::clone(&self.plan.borrow())
    }

    /// The plan, if it is not this one any more.
    fn newer_plan(&self, known: &Rc<Plan<R>>) -> Option<Rc<Plan<R>>> {
        let plan = self.plan.borrow();
        (!Rc::ptr_eq(&plan, known)).then(|| Rc::clone(&plan))
    }

    fn client(&self, plan: &Plan<R>, ip: IpAddr) -> Client {
        Client::new(ip, plan.entry.trusted.contains(ip), &self.hop)
    }

    fn runtime(&self) -> &R {
        self.pool.dialer().runtime()
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn after(&self, limit: Option<Duration>) -> Option<Instant> {
        limit.and_then(|limit| self.runtime().now().checked_add(limit))
    }

    /// Serves a client connection to its end.
    pub(crate) fn serve(
        self: Rc<Self>,
        stream: R::Stream,
        peer: SocketAddr,
        running: Running,
    ) -> impl Future<Output = ()> {
        // Made before the future begins, and not moved within it: a future
        // keeps the room of what was moved from one part of it to another. A
        // panic here would end the accept loop: nothing in it may.
        let mut connection = Connection::new(&self, peer.ip().to_canonical(), stream);
        async move {
            let ending = {
                let cut = async {
                    running.cut().await;
                    Ending::Closed(End::Cut)
                };
                let run = pin!(connection.run(&self, &running));
                run.or(cut).await
            };
            let (ip, mut stream, ahead) = connection.into_parts();
            let end = match ending {
                Ending::Closed(end) => end,
                Ending::Http2 => {
                    let cut = async {
                        running.cut().await;
                        End::Cut
                    };
                    let serving = Box::pin(self.http2(ip, &mut stream, ahead, &running));
                    serving.or(cut).await
                }
            };
            match end {
                End::Quiet => {
                    running.set_finished(true);
                    Box::pin(self.linger(stream)).or(running.cut()).await;
                }
                End::Cut => copy::reset(stream),
                End::Gone => drop(stream),
            }
        }
    }

    /// Serves a connection that turned out to be of HTTP/2.
    async fn http2(
        &self,
        ip: IpAddr,
        stream: &mut R::Stream,
        ahead: ReadBuf,
        running: &Running,
    ) -> End {
        let plan = self.plan();
        let client = self.client(&plan, ip);
        h2::serve::serve(self, &plan, client, (stream, ahead), running).await
    }

    /// Closes so that the last answer arrives: our half first, then a while
    /// of not minding what still comes.
    async fn linger(&self, mut stream: R::Stream) {
        use futures_lite::AsyncReadExt;
        if stream.close().await.is_err() {
            return;
        }
        let drain = async {
            // Not on the stack: that of a task is its size, from the start.
            let mut waste = vec![0; 4096];
            let mut left = LINGER_BYTES;
            while let Ok(n) = stream.read(&mut waste).await {
                if n == 0 {
                    return;
                }
                if n >= left {
                    // Enough. Closing now would reset the connection, and the
                    // answer with it; not reading lets the client read.
                    std::future::pending().await
                }
                left -= n;
            }
        };
        // Over time or not, the connection ends here.
        within(self.runtime(), Some(LINGER), drain).await;
    }
}

/// How to end a client connection.
pub(crate) enum End {
    /// All that was to be said has been said.
    Quiet,
    /// What it got is not whole, and must not look so.
    Cut,
    /// It has gone.
    Gone,
}

/// How long a client connection is kept: `keepAliveMaxRequests` and
/// `keepAliveMaxTime`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    requests_max: Option<u64>,
    until: Option<Instant>,
}

impl Keeping {
    fn new(entry: &HttpEntry, now: Instant) -> Self {
        Self {
            requests_max: entry.keep_alive_max_requests,
            until: entry
                .keep_alive_max_time
                .and_then(|limit| now.checked_add(limit)),
        }
    }

    /// Whether the request that was begun last is the last one.
    fn is_over(self, served: u64, now: Instant) -> bool {
        self.requests_max.is_some_and(|max| served >= max)
            || self.until.is_some_and(|until| until <= now)
    }
}
