//! The relay between two scripted streams, one of which the kernel will not
//! splice.

use std::collections::VecDeque;

use super::*;
use crate::runtime::epoll;

/// Gives its pieces, and then an end. What is written to it is kept.
#[derive(Default)]
struct Scripted {
    pieces: VecDeque<Vec<u8>>,
    got: Vec<u8>,
    /// What the kernel says to the first splice.
    refusal: Option<io::ErrorKind>,
    asked: usize,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return Poll::Ready(Ok(0));
        };
        let n = piece.len().min(buf.len());
        let rest = piece.split_off(n);
        buf.get_mut(..n).unwrap().copy_from_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.got.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Splice for Scripted {
    fn can_splice(&self) -> bool {
        true
    }

    fn poll_splice(
        &mut self,
        _: &mut Context<'_>,
        _: Way<'_>,
        _: usize,
    ) -> Poll<io::Result<usize>> {
        self.asked += 1;
        Poll::Ready(Err(self.refusal.unwrap().into()))
    }
}

/// Relays `pieces` from a stream that refuses to be spliced: how often it was
/// asked, and what the other side got.
fn relayed(refusal: io::ErrorKind, pieces: &[&[u8]]) -> (Result<(), Broken>, usize, Vec<u8>) {
    let mut first = Scripted {
        pieces: pieces.iter().map(|it| it.to_vec()).collect(),
        refusal: Some(refusal),
        ..Scripted::default()
    };
    let mut second = Scripted::default();
    let limits = Limits {
        idle: None,
        termination: None,
    };
    let done = epoll::run(|runtime| async move {
        let (mut ahead, mut behind) = (ReadBuf::default(), ReadBuf::default());
        let (from, to) = ((&mut first, &mut ahead), (&mut second, &mut behind));
        let relayed = relay(&runtime, from, to, limits, None).await;
        (relayed.end, first.asked, second.got)
    });
    done.unwrap()
}

#[test]
fn what_the_kernel_will_not_splice_is_copied() {
    let bulk = vec![b'b'; 3 * GATHER_BYTES];
    for refusal in [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::Unsupported,
    ] {
        let (end, asked, got) = relayed(refusal, &[&bulk, b"and words", &bulk]);
        assert!(end.is_ok(), "{end:?}");
        // Once it has said no, it is not asked again.
        assert_eq!(asked, 1, "{refusal:?}");
        assert!(got == [&bulk, &b"and words"[..], &bulk].concat());
    }
}

#[test]
fn words_are_not_worth_a_splice() {
    let (end, asked, got) = relayed(io::ErrorKind::Unsupported, &[b"a few", b" words"]);
    assert!(end.is_ok(), "{end:?}");
    assert_eq!((asked, got), (0, b"a few words".to_vec()));
}

#[test]
fn a_failure_while_splicing_is_one_of_the_source_behind_what_it_sent() {
    let bulk = vec![b'b'; GATHER_BYTES];
    let (end, asked, got) = relayed(io::ErrorKind::ConnectionReset, &[&bulk, b"lost"]);
    assert!(matches!(end, Err(Broken::First(_))), "{end:?}");
    assert_eq!(asked, 1);
    assert!(got == bulk);
}
