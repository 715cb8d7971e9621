//! Responses of our own.

use std::time::{Duration, UNIX_EPOCH};

use super::fields::PSEUDONYM;
use super::h1::write::HeadWriter;
use crate::tls::unix_now;

/// A response that no upstream gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The error type of RFC 9209, for `Proxy-Status`.
    pub(crate) error: &'static str,
}

impl Reply {
    /// To a request that is at fault itself.
    pub(crate) const fn request_error(status: u16) -> Self {
        Self {
            status,
            error: "http_request_error",
        }
    }

    /// Appends it. The body says no more than the status; to HEAD there is
    /// none. Nothing of the request is reflected.
    pub(crate) fn write(self, out: &mut Vec<u8>, to_head: bool, closes: bool) {
        let reason = reason(self.status);
        let body = format!("{} {reason}\n", self.status);
        let mut writer = HeadWriter::response(out, self.status, reason.as_bytes());
        writer.field("Date", date().as_bytes());
        writer.field("Content-Type", b"text/plain; charset=utf-8");
        writer.number("Content-Length", u64::try_from(body.len()).unwrap_or(0));
        writer.field(
            "Proxy-Status",
            format!("{PSEUDONYM}; error={}", self.error).as_bytes(),
        );
        if self.status == 405 {
            writer.field("Allow", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");
        }
        if closes {
            writer.field("Connection", b"close");
        }
        writer.end();
        if !to_head {
            out.extend_from_slice(body.as_bytes());
        }
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
        _ => "",
    }
}
