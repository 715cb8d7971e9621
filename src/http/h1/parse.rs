//! Heads of HTTP/1: where they end, and what their first line says (RFC 9112).
//! What they amount to is judged by [`message`](crate::http::message).

use std::ops::Range;

use crate::http::message::head::{Head, Limits, is_token};
use crate::http::message::request::{Line, Method, Request, judge};
use crate::http::message::response::{self, Response};
use crate::http::message::{Refusal, Version};

/// Finds the end of a head, however the bytes come in pieces, and looks at
/// each byte once.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Where the current line begins.
    line: usize,
    /// Up to where there is no further line end.
    searched: usize,
}

impl Scanner {
    /// The length of the head at the beginning of `buf`, once it is whole.
    ///
    /// # Errors
    /// A line that ends in a bare LF, and a head over its limits. A CR that
    /// no LF follows is left to the parser.
    pub fn find(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, TooLong> {
        while let Some(rest) = buf.get(self.searched..) {
            let Some(found) = memchr::memchr(b'\n', rest) else {
                self.searched = buf.len();
                break;
            };
            let lf = self.searched + found;
            let ends_in_crlf = lf > self.line && buf.get(lf - 1) == Some(&b'\r');
            if !ends_in_crlf {
                return Err(TooLong::BareLf);
            }
            if self.line == 0 && lf > limits.line_max {
                return Err(TooLong::Line);
            }
            let is_empty = lf == self.line + 1;
            self.line = lf + 1;
            self.searched = lf + 1;
            if is_empty {
                if self.line > limits.bytes_max {
                    return Err(TooLong::Head);
                }
                return Ok(Some(self.line));
            }
        }
        if self.line == 0 && buf.len() > limits.line_max {
            return Err(TooLong::Line);
        }
        if buf.len() > limits.bytes_max {
            return Err(TooLong::Head);
        }
        Ok(None)
    }
}

/// Why a head has no end that we accept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooLong {
    /// The first line is over its limit.
    Line,
    /// The head is over its limit.
    Head,
    /// A line ends without a CR.
    BareLf,
}

/// How far a request head has come.
#[derive(Debug)]
pub enum Parsed {
    /// More bytes are needed.
    Partial,
    /// The head took so many bytes.
    Done(Request, usize),
}

/// The empty lines that are forgiven before a request.
const EMPTY_LINES_MAX: u8 = 4;

/// Skips the empty lines that a robust server forgives before a request (RFC
/// 9112, section 2.2). `before` counts them, however they come. Returns how
/// many bytes, and whether to wait for more.
///
/// # Errors
/// More than a few.
pub fn skip_empty_lines(buf: &[u8], before: &mut u8) -> Result<(usize, bool), Refusal> {
    let mut skipped = 0;
    loop {
        match buf.get(skipped..) {
            Some([b'\r', b'\n', ..]) if *before >= EMPTY_LINES_MAX => {
                return Err(Refusal::bad("too many empty lines before the request"));
            }
            Some([b'\r', b'\n', ..]) => {
                *before += 1;
                skipped += 2;
            }
            Some([b'\r'] | []) | None => return Ok((skipped, true)),
            Some(_) => return Ok((skipped, false)),
        }
    }
}

/// Parses the request head at the beginning of `buf`.
///
/// # Errors
/// The status to answer with. The connection must be closed after it, because
/// where the next request begins is not known.
pub fn request(
    buf: &[u8],
    scanner: &mut Scanner,
    limits: &Limits,
    head: &mut Head,
) -> Result<Parsed, Refusal> {
    let len = match scanner.find(buf, limits) {
        Ok(Some(len)) => len,
        Ok(None) => return Ok(Parsed::Partial),
        Err(TooLong::BareLf) => return Err(Refusal::bad("a line ends in a bare LF")),
        Err(TooLong::Line) => {
            return Err(Refusal {
                status: 414,
                why: "the request line is too long",
            });
        }
        Err(TooLong::Head) => return Err(TOO_LARGE),
    };
    head.load(buf.get(..len).unwrap_or(buf));
    let (method, target, version) = request_line(head)?;
    head.parse_fields(limits.fields_max, |bytes, table, add| {
        let mut request = httparse::Request::new(&mut []);
        request.parse_with_uninit_headers(bytes, table)?;
        for field in request.headers.iter() {
            add(field.name.as_bytes(), field.value);
        }
        Ok(())
    })
    .map_err(|error| match error {
        httparse::Error::TooManyHeaders => TOO_LARGE,
        httparse::Error::HeaderName => Refusal::bad("a field name is not a token"),
        httparse::Error::HeaderValue => Refusal::bad("a field value has a control character"),
        _ => Refusal::bad("the head is malformed"),
    })?;
    let line = Line {
        method,
        target,
        authority: None,
        version,
        ends: false,
    };
    judge(head, line).map(|request| Parsed::Done(request, len))
}

const TOO_LARGE: Refusal = Refusal {
    status: 431,
    why: "the head is too large",
};

/// Splits the request line, strictly: one space, one space, CRLF.
fn request_line(head: &Head) -> Result<(Range<u32>, Range<u32>, Version), Refusal> {
    let line = head.bytes().split(|byte| *byte == b'\r').next();
    let mut parts = line.unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::bad("the request line has not three parts"));
    };
    if !is_token(method) {
        return Err(Refusal::bad("the method is not a token"));
    }
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal {
                status: 505,
                why: "the HTTP version is neither 1.1 nor 1.0",
            });
        }
        _ => return Err(Refusal::bad("the request line does not end in a version")),
    };
    Ok((head.place(method), head.place(target), version))
}

/// Parses the response head at the beginning of `buf`; `None`: more bytes are
/// needed. `to` is the request's method.
///
/// # Errors
/// The connection must be closed: where the next response begins is not known.
pub fn response(
    buf: &[u8],
    scanner: &mut Scanner,
    limits: &Limits,
    head: &mut Head,
    to: Method,
) -> Result<Option<(Response, usize)>, Refusal> {
    let len = match scanner.find(buf, limits) {
        Ok(Some(len)) => len,
        Ok(None) => return Ok(None),
        Err(TooLong::BareLf) => return Err(Refusal::gateway("a line ends in a bare LF")),
        Err(TooLong::Line) => return Err(Refusal::gateway("the status line is too long")),
        Err(TooLong::Head) => return Err(Refusal::gateway("the response head is too large")),
    };
    head.load(buf.get(..len).unwrap_or(buf));
    let (status, reason, version) = status_line(head)?;
    head.parse_fields(limits.fields_max, |bytes, table, add| {
        let mut response = httparse::Response::new(&mut []);
        httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            table,
        )?;
        for field in response.headers.iter() {
            add(field.name.as_bytes(), field.value);
        }
        Ok(())
    })
    .map_err(|error| match error {
        httparse::Error::TooManyHeaders => Refusal::gateway("the response has too many fields"),
        httparse::Error::HeaderName => Refusal::gateway("a field name is not a token"),
        httparse::Error::HeaderValue => Refusal::gateway("a field value has a control character"),
        _ => Refusal::gateway("the response head is malformed"),
    })?;
    let response = response::judge(head, status, reason, version, to, false)?;
    Ok(Some((response, len)))
}

/// `HTTP/1.1 200 OK`, strictly; the space before an empty reason may be
/// missing, as many servers leave it out.
fn status_line(head: &Head) -> Result<(u16, Range<u32>, Version), Refusal> {
    let line = head.bytes().split(|byte| *byte == b'\r').next();
    let line = line.unwrap_or_default();
    let bad = Refusal::gateway("the status line is malformed");
    let (version, rest) = line.split_at_checked(9).ok_or(bad)?;
    let version = match version {
        b"HTTP/1.1 " => Version::Http11,
        b"HTTP/1.0 " => Version::Http10,
        _ => return Err(bad),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(bad)?;
    let status = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u16>().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or(bad)?;
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return Err(bad),
    };
    let is_text = |byte: u8| byte == b'\t' || (b' '..0x7f).contains(&byte) || byte >= 0x80;
    if !reason.iter().copied().all(is_text) {
        return Err(bad);
    }
    Ok((status, head.place(reason), version))
}
