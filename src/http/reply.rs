//! Responses of our own.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use super::fields::{Fields, PSEUDONYM};
use super::h1::write::HeadWriter;
use super::message::head::{Head, Name};
use crate::tls::unix_now;

/// A response that no upstream gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The error type of RFC 9209, for `Proxy-Status`. Empty: it is no error.
    pub(crate) error: &'static str,
}

impl Reply {
    /// To an OPTIONS request that is not to go further.
    pub(crate) const OPTIONS: Self = Self {
        status: 200,
        error: "",
    };

    /// To a request that is at fault itself.
    pub(crate) const fn request_error(status: u16) -> Self {
        Self {
            status,
            error: "http_request_error",
        }
    }

    /// Appends it, for an HTTP/1 client. The body says no more than the status;
    /// to HEAD there is none. Nothing of the request is reflected.
    pub(crate) fn write(self, out: &mut Vec<u8>, to_head: bool, closes: bool) {
        let mut writer = HeadWriter::response(out, self.status, reason(self.status).as_bytes());
        self.write_fields(&mut writer);
        if closes {
            writer.field("Connection", b"close");
        }
        writer.end();
        if !to_head {
            out.extend_from_slice(self.body().as_bytes());
        }
    }

    /// What it says, in whatever version.
    pub(crate) fn body(self) -> String {
        if self.status < 300 {
            return String::new();
        }
        format!("{} {}\n", self.status, reason(self.status))
    }

    pub(crate) fn write_fields(self, writer: &mut impl Fields) {
        writer.field("Date", date().as_bytes());
        writer.field("Content-Type", b"text/plain; charset=utf-8");
        let length = self.body().len();
        writer.number("Content-Length", u64::try_from(length).unwrap_or(0));
        if !self.error.is_empty() {
            let status = format!("{PSEUDONYM}; error={}", self.error);
            writer.field("Proxy-Status", status.as_bytes());
        }
        if matches!(self.status, 200 | 405) {
            writer.field("Allow", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");
        }
    }
}

impl Reply {
    /// The same for a gRPC call: its status, by the protocol's own table of
    /// what an HTTP status means.
    pub(crate) fn write_call_fields(self, writer: &mut impl Fields) {
        let code = match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        };
        writer.field("Date", date().as_bytes());
        writer.field("Content-Type", b"application/grpc");
        writer.number("grpc-status", code);
        let message = format!("{} {}", self.status, reason(self.status));
        writer.field("grpc-message", message.as_bytes());
        let status = format!("{PSEUDONYM}; error={}", self.error);
        writer.field("Proxy-Status", status.as_bytes());
    }
}

/// Whether a request is a gRPC call.
pub(crate) fn is_call(head: &Head) -> bool {
    head.values(Name::ContentType)
        .any(|it| it.starts_with(b"application/grpc"))
}

/// The time as `Date` has it, made once a second.
#[derive(Debug, Default)]
pub(crate) struct Clock(RefCell<(i64, String)>);

impl Clock {
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&str) -> T) -> T {
        let now = unix_now();
        let mut made = self.0.borrow_mut();
        if made.0 != now || made.1.is_empty() {
            *made = (now, date());
        }
        use_it(&made.1)
    }
}

pub(crate) fn date() -> String {
    let now = Duration::from_secs(u64::try_from(unix_now()).unwrap_or(0));
    httpdate::fmt_http_date(UNIX_EPOCH + now)
}

/// The reason phrases of the statuses that we give.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}
