//! The admin endpoint: whether the process runs, whether it serves, what it
//! has counted, what it is. Reads state, changes none. It is up from the first
//! moment of the start.

mod report;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_executor::LocalExecutor;
use async_io::{Async, Timer};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt};
use log::warn;

use crate::config::AdminAddress;
use crate::http::h1::parse::{self, Parsed, Scanner};
use crate::http::h1::write::HeadWriter;
use crate::http::message::head::{Head, Limits};
use crate::http::message::request::Method;
use crate::http::reply::{Reply, date, reason};
use crate::state::State;

/// Requests in work at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// For a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const HEAD: Limits = Limits {
    line_max: 1024,
    bytes_max: 8 << 10,
    fields_max: 64,
};

/// A listening admin socket.
#[derive(Debug)]
pub(crate) enum Admin {
    Tcp(Async<TcpListener>),
    Unix(Async<UnixListener>, PathBuf),
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Gone already is as good.
            drop(fs::remove_file(path));
        }
    }
}

impl Admin {
    /// Listens. A socket file that nobody listens on any more is replaced; any
    /// other file is left alone.
    pub(crate) fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => Ok(Self::Tcp(Async::<TcpListener>::bind(*address)?)),
            AdminAddress::Unix(path) => {
                remove_stale(path)?;
                let listener = Async::<UnixListener>::bind(path)?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    pub(crate) fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.get_ref().local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Answers for ever.
    pub(crate) async fn serve(&self, executor: &Rc<LocalExecutor<'static>>, state: &Arc<State>) {
        let (permit, permits) = async_channel::bounded::<()>(CONNECTIONS_MAX);
        loop {
            // Full: wait for one to end.
            if permit.send(()).await.is_err() {
                return;
            }
            let state = Arc::clone(state);
            let (permits, waiting) = (permits.clone(), permits.clone());
            let done = move |result: io::Result<()>| {
                if let Err(error) = result {
                    log::debug!("admin: {error}");
                }
                let _freed = permits.try_recv();
            };
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    executor
                        .spawn(async move { done(answer(stream, &state).await) })
                        .detach();
                }),
                Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    executor
                        .spawn(async move { done(answer(stream, &state).await) })
                        .detach();
                }),
            };
            if let Err(error) = accepted {
                let _freed = waiting.try_recv();
                warn!("admin: cannot accept: {error}");
                Timer::after(Duration::from_millis(100)).await;
            }
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is not a socket",
        )),
        Err(_) => Ok(()),
    }
}

/// One request, one answer, closed.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> io::Result<()> {
    let work = async {
        let mut buf = Vec::new();
        let mut chunk = [0; 2048];
        let mut scanner = Scanner::default();
        let mut head = Head::default();
        let mut out = Vec::new();
        loop {
            match parse::request(&buf, &mut scanner, &HEAD, &mut head) {
                Ok(Parsed::Done(request, _)) => {
                    let path = request.path(&head);
                    write_answer(&mut out, path, request.kind, state);
                    break;
                }
                Ok(Parsed::Partial) => {}
                Err(refusal) => {
                    Reply::request_error(refusal.status).write(&mut out, false, true);
                    break;
                }
            }
            let n = stream.read(&mut chunk).await?;
            if n == 0 {
                return Ok(());
            }
            buf.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
        stream.write_all(&out).await?;
        stream.close().await
    };
    work.or(async {
        Timer::after(TIMEOUT).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}

fn write_answer(out: &mut Vec<u8>, path: &[u8], method: Method, state: &State) {
    if !matches!(method, Method::Safe | Method::Head) {
        return Reply::request_error(405).write(out, false, true);
    }
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, body) = match path {
        b"/livez" => (200, PLAIN, "ok\n".to_owned()),
        b"/readyz" => match state.not_ready() {
            None => (200, PLAIN, "ready\n".to_owned()),
            Some(why) => (503, PLAIN, format!("not ready: {why}\n")),
        },
        b"/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            (200, kind, report::metrics(state))
        }
        b"/status" => (200, "application/json", report::status(state)),
        _ => {
            let paths = "there are /livez, /readyz, /metrics and /status\n";
            (404, PLAIN, paths.to_owned())
        }
    };
    let mut writer = HeadWriter::response(out, status, reason(status).as_bytes());
    writer.field("Date", date().as_bytes());
    writer.field("Content-Type", kind.as_bytes());
    writer.field("Cache-Control", b"no-store");
    writer.number("Content-Length", u64::try_from(body.len()).unwrap_or(0));
    writer.field("Connection", b"close");
    writer.end();
    if method != Method::Head {
        out.extend_from_slice(body.as_bytes());
    }
}
