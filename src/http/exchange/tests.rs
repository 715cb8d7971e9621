//! What is told once while it is read ahead is not lost: an end or a reset of
//! a client, with an upstream that says nothing.

use std::rc::Rc;

use super::*;
use crate::http::h1::parse::{self, Parsed, Scanner};
use crate::http::message::head::Limits;
use crate::http::wire::Timers;
use crate::runtime::{epoll, within};

/// Has sent a few bytes, and then what is told once, and then nothing.
struct Scripted {
    here: &'static [u8],
    told: Option<io::Result<Option<usize>>>,
}

impl Source for Scripted {
    fn pull(&mut self, sink: &mut impl Sink) -> Result<(), &'static str> {
        sink.put(std::mem::take(&mut self.here));
        Ok(())
    }

    fn is_done(&self) -> bool {
        false
    }

    fn has_more(&self) -> bool {
        false
    }

    fn poll_more(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        self.told.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn may_read_ahead(&self) -> bool {
        true
    }

    fn trailers(&self) -> Option<&Head> {
        None
    }
}

impl Asking for Scripted {
    fn poll_watch(&mut self, _: &mut Context<'_>) -> Poll<Watched> {
        Poll::Pending
    }
}

/// Takes everything, and says what it was.
#[derive(Clone, Default)]
struct Taken(Rc<std::cell::RefCell<Vec<u8>>>);

impl Sink for Taken {
    fn is_full(&self) -> bool {
        false
    }

    fn put(&mut self, data: &[u8]) {
        self.0.borrow_mut().extend_from_slice(data);
    }

    fn finish(&mut self, _: Option<&Head>) {
        self.put(b"<end>");
    }

    fn poll_send(&mut self, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
}

impl Answered for Taken {
    fn inform(&mut self, _: &Head, _: &Response) {}

    fn begin(&mut self, _: &Head, _: &Response, _: &Request, _: bool) -> bool {
        false
    }
}

/// An upstream that says nothing.
impl Answering for Scripted {
    fn poll_head(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Head,
        _: Method,
    ) -> Poll<Result<Response, NoHead>> {
        Poll::Pending
    }

    fn has_spoken(&self) -> bool {
        false
    }
}

/// How an upload ends of which this is told behind its first bytes, and what
/// the upstream got of it.
fn upload(told: io::Result<Option<usize>>) -> (Option<Outcome>, Vec<u8>) {
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    let mut head = Head::default();
    let parsed = parse::request(HEAD, &mut Scanner::default(), &Limits::default(), &mut head);
    let Ok(Parsed::Done(request, _)) = parsed else {
        panic!("{parsed:?}");
    };
    let terms = Terms {
        read_timeout: None,
        write_timeout: None,
        response_header_timeout: None,
        stream_idle_timeout: None,
        body_max: None,
        rate_min: 0,
        half_closed_timeout: None,
    };
    let upstream = Taken::default();
    let took = upstream.clone();
    let outcome = epoll::run(|runtime| async move {
        let question = Question {
            head: &head,
            request: &request,
            terms,
            is_stopping: &|| false,
            admission: None,
        };
        let mut down = Side {
            incoming: Scripted {
                here: b"a few bytes",
                told: Some(told),
            },
            outgoing: Taken::default(),
            timers: &mut Timers::new(&runtime),
        };
        let mut up = Side {
            incoming: Scripted {
                here: b"",
                told: None,
            },
            outgoing: upstream,
            timers: &mut Timers::new(&runtime),
        };
        let (mut kept, mut response) = (Kept::new(0), Head::default());
        let running = run(
            &runtime,
            &mut down,
            &mut up,
            &question,
            &mut kept,
            &mut response,
        );
        // Without any limit of its own: if it is lost, this is for ever.
        within(&runtime, Some(Duration::from_secs(5)), running).await
    });
    (outcome.unwrap(), took.0.take())
}

#[test]
fn a_reset_that_is_told_while_it_is_read_ahead_ends_the_exchange() {
    let (outcome, _) = upload(Err(io::ErrorKind::ConnectionReset.into()));
    assert!(matches!(outcome, Some(Outcome::ClientGone)), "{outcome:?}");
}

#[test]
fn an_end_within_a_body_ends_the_exchange_behind_what_came_before() {
    let (outcome, got) = upload(Ok(None));
    assert!(matches!(outcome, Some(Outcome::ClientGone)), "{outcome:?}");
    assert_eq!(got, b"a few bytes");
}
