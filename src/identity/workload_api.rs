//! The client of the SPIFFE Workload API.
//!
//! # Implementation
//! gRPC needs tokio, so it runs on **one thread of its own**, named `spiffe`,
//! with a current-thread runtime; nothing else in the program touches tokio.
//! What crosses over is an [`Update`], with the key already made into a
//! signer, so that PKCS#8 bytes stay on this side.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::Duration;

use async_channel::Sender;
use futures_lite::future::or;
use log::{info, warn};
use spiffe::transport::Endpoint;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::snapshot::{Material, Unusable, chain};
use super::wire;
use super::{Trouble, Update};
use crate::tls::unix_now;
use zeroize::Zeroize;

/// How long a denial is doubted while we have an identity. SPIRE says
/// `PermissionDenied` for a moment when it replaces the SVIDs of an authority
/// that was tainted.
const DOUBT: Duration = Duration::from_secs(1);
/// The first and the longest wait between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The wait after an answer that the standard says not to retry
/// (`InvalidArgument`, `Unimplemented`): a new agent may be installed yet.
const BACKOFF_HOPELESS: Duration = Duration::from_secs(60);
/// From the first packet to an open connection, and from there to the first
/// message: an agent that is up answers at once (section 4.3).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence of a stream, whatever the SVID's life.
const PATIENCE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The wait for another message after one that was of no use: what it lacked
/// may have been a clock that is right by now.
const PATIENCE_AFTER_BROKEN: Duration = Duration::from_secs(30);
/// The same, after one that took our identity away.
const PATIENCE_WITHOUT_IDENTITY: Duration = Duration::from_secs(300);
/// The largest message. A SVID with a hundred bundles is below a tenth of it.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What the client needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where the agent listens.
    pub endpoint: Endpoint,
    /// Picks among several SVIDs.
    pub hint: Option<String>,
}

/// Starts the thread. It ends when the receiver of `updates` is dropped.
///
/// # Errors
/// The operating system's, when there can be no thread.
pub fn spawn(settings: Settings, updates: Sender<Update>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name("spiffe".to_owned())
        .spawn(move || runtime.block_on(follow(&settings, &updates)))?;
    Ok(())
}

/// One stream after the other, for ever.
async fn follow(settings: &Settings, updates: &Sender<Update>) {
    let mut backoff = BACKOFF.0;
    let mut has_identity = false;
    let mut doubt = None;
    loop {
        let received = Cell::new(false);
        let streaming = stream(settings, updates, &received);
        let streaming = async { Some(doubting(&mut doubt, &received, updates, streaming).await) };
        let Some(ended) = or(streaming, until_closed(updates)).await else {
            return;
        };
        if received.get() {
            backoff = BACKOFF.0;
            has_identity = true;
            doubt = None;
        }
        let wait = match ended.kind {
            Kind::Hopeless => BACKOFF_HOPELESS,
            _ => jittered(backoff),
        };
        backoff = (backoff * 2).min(BACKOFF.1);
        warn!(
            "Workload API {}: {}; next try in {:.1} s",
            address(&settings.endpoint),
            ended.why,
            wait.as_secs_f64()
        );
        let trouble = Trouble {
            why: ended.why,
            code: ended.code,
            is_open: false,
        };
        let update = match ended.kind {
            Kind::Withdrawn if has_identity => {
                has_identity = false;
                doubt = Some(Doubt {
                    until: tokio::time::Instant::now() + DOUBT,
                    trouble: trouble.clone(),
                });
                Update::Failed(trouble)
            }
            Kind::Withdrawn if doubt.is_none() => Update::Withdrawn(trouble),
            Kind::Withdrawn | Kind::Trouble | Kind::Hopeless => Update::Failed(trouble),
        };
        if updates.send(update).await.is_err() {
            return;
        }
        let sleeping = tokio::time::sleep(wait);
        let nothing = Cell::new(false);
        let waiting = async {
            doubting(&mut doubt, &nothing, updates, sleeping).await;
            Some(())
        };
        if or(waiting, until_closed(updates)).await.is_none() {
            return;
        }
    }
}

/// A denial that is not believed yet.
struct Doubt {
    until: tokio::time::Instant,
    trouble: Trouble,
}

/// Does `work`. A denial that is still doubted when its time comes, whatever
/// the agent does or does not say meanwhile, is a withdrawal; unless something
/// was received.
async fn doubting<T>(
    doubt: &mut Option<Doubt>,
    received: &Cell<bool>,
    updates: &Sender<Update>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    loop {
        let until = doubt.as_ref().map(|it| it.until);
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
            None
        };
        if let Some(done) = or(async { Some(work.as_mut().await) }, over).await {
            return done;
        }
        if let Some(doubted) = doubt.take()
            && !received.get()
        {
            // If nobody listens, the caller will see.
            drop(updates.send(Update::Withdrawn(doubted.trouble)).await);
        }
    }
}

/// `None` once nobody receives updates any more: the program is ending.
async fn until_closed<T>(updates: &Sender<Update>) -> Option<T> {
    updates.closed().await;
    None
}

/// Why a stream has ended.
struct Ended {
    kind: Kind,
    why: String,
    code: &'static str,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Try again soon; what we have stays.
    Trouble,
    /// The agent says that we have no identity.
    Withdrawn,
    /// The agent will say the same next time.
    Hopeless,
}

fn trouble(code: &'static str, why: impl Into<String>) -> Ended {
    Ended {
        kind: Kind::Trouble,
        why: why.into(),
        code,
    }
}

/// Opens the stream and passes on what comes, until it ends.
async fn stream(settings: &Settings, updates: &Sender<Update>, received: &Cell<bool>) -> Ended {
    if let Endpoint::Unix(path) = &settings.endpoint
        && !path.exists()
    {
        return trouble(
            "connect",
            format!(
                "there is no socket {}; is the agent running?",
                path.display()
            ),
        );
    }
    let connecting = spiffe::transport::connect(&settings.endpoint);
    let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return trouble(
                "connect",
                format!(
                    "cannot connect ({}); is the agent running, and may this user open the socket?",
                    chain(&error)
                ),
            );
        }
        Err(_) => {
            return trouble(
                "connect",
                format!("no connection after {CONNECT_TIMEOUT:?}"),
            );
        }
    };
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    // The security header of the Workload Endpoint standard, section 3.
    let mut metadata = MetadataMap::new();
    metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let request =
        tonic::Request::from_parts(metadata, tonic::Extensions::default(), wire::Request {});
    let opening = async {
        grpc.ready()
            .await
            .map_err(|error| trouble("connect", format!("not ready: {}", chain(&error))))?;
        let codec = tonic_prost::ProstCodec::<wire::Request, wire::Response>::default();
        let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
        let response = grpc.server_streaming(request, path, codec).await;
        let mut messages = response.map_err(|status| refused(&status))?.into_inner();
        let first = messages
            .message()
            .await
            .map_err(|status| refused(&status))?;
        Ok((messages, first))
    };
    let opened = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, opening).await;
    let (mut messages, mut next) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(ended)) => return ended,
        Err(_) => {
            return trouble(
                "silent",
                format!("no message within {FIRST_MESSAGE_TIMEOUT:?} of opening the stream"),
            );
        }
    };
    // A good message sets the deadline of the next; a bad one does not move it,
    // and is not waited behind for long.
    let mut deadline = tokio::time::Instant::now() + PATIENCE_AFTER_BROKEN;
    while let Some(mut message) = next {
        let hint = settings.hint.as_deref();
        let checked = Material::from_response(&message, hint, unix_now());
        // What gRPC itself has buffered is out of reach.
        for svid in &mut message.svids {
            svid.x509_svid_key.zeroize();
        }
        drop(message);
        match checked {
            Ok(material) => {
                let patience = patience_for(material.svid.not_after(), unix_now());
                deadline = tokio::time::Instant::now() + patience;
                if !received.get() {
                    info!("Workload API {}: connected", address(&settings.endpoint));
                }
                received.set(true);
                for note in &material.notes {
                    warn!("Workload API: {note}");
                }
                if updates
                    .send(Update::Issued(Box::new(material)))
                    .await
                    .is_err()
                {
                    return trouble("ended", "nobody listens any more");
                }
            }
            Err(Unusable::NoIdentity(why)) => {
                warn!("Workload API {}: {why}", address(&settings.endpoint));
                let told = Trouble {
                    why,
                    code: "no_identity",
                    is_open: true,
                };
                if updates.send(Update::Withdrawn(told)).await.is_err() {
                    return trouble("ended", "nobody listens any more");
                }
                deadline = tokio::time::Instant::now() + PATIENCE_WITHOUT_IDENTITY;
            }
            // The stream is sound, and the next message may be good: it stays.
            Err(Unusable::Broken(why)) => {
                let why = format!("an update was not usable, so the one before it stays: {why}");
                warn!("Workload API {}: {why}", address(&settings.endpoint));
                let told = Trouble {
                    why,
                    code: "unusable",
                    is_open: true,
                };
                if updates.send(Update::Failed(told)).await.is_err() {
                    return trouble("ended", "nobody listens any more");
                }
                let soon = tokio::time::Instant::now() + PATIENCE_AFTER_BROKEN;
                deadline = deadline.min(soon);
            }
        }
        next = match tokio::time::timeout_at(deadline, messages.message()).await {
            Ok(Ok(next)) => next,
            Ok(Err(status)) => return refused(&status),
            Err(_) => {
                return trouble(
                    "silent",
                    "silent while our SVID runs out, or since a message of no use: asking anew",
                );
            }
        };
    }
    trouble("ended", "the agent has closed the stream")
}

/// How long a stream may be silent: until 80 % of what was left of the SVID's
/// life is gone. An agent renews at half of it, so a silence that long means
/// that the stream is dead, whatever the socket says.
fn patience_for(not_after: i64, now: i64) -> Duration {
    let left = u64::try_from(not_after.saturating_sub(now)).unwrap_or(0);
    Duration::from_secs(left)
        .mul_f64(0.8)
        .clamp(Duration::from_secs(1), PATIENCE_MAX)
}

/// What a gRPC status means (Workload Endpoint standard, section 6).
fn refused(status: &Status) -> Ended {
    let (kind, hint) = match status.code() {
        Code::PermissionDenied => (
            Kind::Withdrawn,
            "; is this workload registered? A new entry takes some seconds to arrive",
        ),
        Code::InvalidArgument => (Kind::Hopeless, "; the agent refuses the request itself"),
        Code::Unimplemented => (
            Kind::Hopeless,
            "; whatever listens there is not a SPIFFE Workload API",
        ),
        Code::Unavailable => (Kind::Trouble, "; is the agent running?"),
        Code::OutOfRange => (Kind::Trouble, "; the message is larger than 4 MiB"),
        _ => (Kind::Trouble, ""),
    };
    Ended {
        kind,
        why: format!("{:?}: {}{hint}", status.code(), status.message()),
        code: name(status.code()),
    }
}

/// A code as gRPC writes it, for a counter.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// 90 to 100 % of it, so that a fleet does not knock in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 - fastrand::f64() * 0.1)
}

/// The endpoint as the file would say it.
fn address(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Unix(path) => format!("unix://{}", path.display()),
        Endpoint::Tcp { host, port } => {
            format!("tcp://{}", std::net::SocketAddr::new(*host, *port))
        }
        _ => "endpoint".to_owned(),
    }
}
