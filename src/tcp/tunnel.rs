//! Bytes between a client and an upstream that was dialled, for as long as
//! both want, and as long as the upstream's peer is trusted.

use std::future::poll_fn;

use futures_lite::FutureExt;

use super::copy::{Broken, Bytes, Limits, Relayed, Unfinished, relay};
use crate::dial::{Admission, Channel, Loss, Upstream};
use crate::http::wire::ReadBuf;
use crate::runtime::Runtime;

/// What a tunnel is bound by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'c> {
    pub(crate) limits: Limits,
    /// How it is called where closed connections are counted.
    pub(crate) usage: &'static str,
    pub(crate) bytes: Option<Bytes<'c>>,
}

/// Relays until both sides have ended, or one may not go on. Unless all was
/// passed on, the upstream is reset; the client is the caller's to reset.
pub(crate) async fn run<R: Runtime>(
    runtime: &R,
    client: (&mut R::Stream, &mut ReadBuf),
    upstream: (Upstream<R::Stream>, &mut ReadBuf),
    terms: Terms<'_>,
) -> Relayed {
    let Terms {
        limits,
        usage,
        bytes,
    } = terms;
    let (Upstream { channel, admission }, behind) = upstream;
    let trusted = async {
        let loss = over(admission.as_ref(), usage).await;
        Relayed {
            up: 0,
            down: 0,
            end: Err(Broken::Untrusted(loss)),
        }
    };
    match channel {
        Channel::Plain(socket) => {
            let mut guard = Unfinished::new(socket);
            // There until it is finished.
            let Some(socket) = guard.get() else {
                return trusted.await;
            };
            let work = relay(runtime, client, (socket, behind), limits, bytes);
            let relayed = work.or(trusted).await;
            if relayed.end.is_ok() {
                guard.finish();
            }
            relayed
        }
        // TLS tells a cut by itself: there is no close_notify.
        Channel::Tls(mut stream) => {
            let work = relay(runtime, client, (&mut *stream, behind), limits, bytes);
            work.or(trusted).await
        }
    }
}

/// Completes once the peer is not to be talked to any more.
async fn over(admission: Option<&Admission>, usage: &str) -> Loss {
    let Some(admission) = admission else {
        return std::future::pending().await;
    };
    admission.becomes_tunnel();
    let loss = poll_fn(|cx| admission.poll_over(cx)).await;
    admission.count_closed(usage, &loss);
    loss
}
