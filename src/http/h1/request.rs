//! A request head: parsed once, judged whole.

use std::ops::Range;

use super::head::{
    Connection, Declared, Head, Limits, Name, Scanner, TooLong, declared_framing, is_token, list,
};
use super::{Framing, Refusal};

/// What a request head says. Places are in the bytes of its [`Head`].
#[derive(Clone, Debug)]
pub struct Request {
    method: Range<u32>,
    /// The target to forward: origin-form or `*`, unchanged.
    target: Range<u32>,
    /// An absolute-form target with an empty path is forwarded as this.
    implied_target: Option<&'static str>,
    /// The authority: of the target, else of `Host`.
    host: Range<u32>,
    /// Length of the path within the target.
    path_len: usize,
    /// Which methods need other handling.
    pub kind: Method,
    /// An HTTP/1.0 client.
    pub is_1_0: bool,
    /// How the body ends.
    pub framing: Framing,
    /// The connection options.
    pub connection: Connection,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// `Connection: upgrade` together with `Upgrade`.
    pub wants_upgrade: bool,
}

/// What a method allows a proxy to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// GET, OPTIONS: safe, and so idempotent.
    Safe,
    /// HEAD: as GET, but the response has no body.
    Head,
    /// PUT, DELETE.
    Idempotent,
    /// Anything else, POST and unknown ones: sent once.
    Other,
}

impl Method {
    /// Whether RFC 9110, section 9.2.2, lets a proxy send it again.
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Self::Other)
    }
}

/// How far a request head has come.
#[derive(Debug)]
pub enum Parsed {
    /// More bytes are needed.
    Partial,
    /// The head took so many bytes.
    Done(Request, usize),
}

impl Request {
    /// The method, byte for byte.
    #[must_use]
    pub fn method<'h>(&self, head: &'h Head) -> &'h [u8] {
        head.slice(&self.method)
    }

    /// The target to forward.
    #[must_use]
    pub fn target<'h>(&self, head: &'h Head) -> &'h [u8] {
        match self.implied_target {
            Some(implied) => implied.as_bytes(),
            None => head.slice(&self.target),
        }
    }

    /// The path of the target.
    #[must_use]
    pub fn path<'h>(&self, head: &'h Head) -> &'h [u8] {
        let target = self.target(head);
        target.get(..self.path_len).unwrap_or(target)
    }

    /// The query of the target, without its question mark.
    #[must_use]
    pub fn query<'h>(&self, head: &'h Head) -> Option<&'h [u8]> {
        self.target(head).get(self.path_len + 1..)
    }

    /// Host and port, as received; valid, perhaps with a trailing dot.
    /// Empty: an HTTP/1.0 request without one.
    #[must_use]
    pub fn authority<'h>(&self, head: &'h Head) -> &'h [u8] {
        head.slice(&self.host)
    }

    /// Whether the client will take another response on this connection.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        // A proxy does not keep a connection with a 1.0 client (RFC 9112, 9.3).
        !self.connection.close && !self.is_1_0
    }
}

/// Skips the empty lines that a robust server forgives before a request (RFC
/// 9112, section 2.2). Returns how many bytes, and whether to wait for more.
///
/// # Errors
/// More than a few.
pub fn skip_empty_lines(buf: &[u8]) -> Result<(usize, bool), Refusal> {
    let mut skipped = 0;
    loop {
        match buf.get(skipped..) {
            Some([b'\r', b'\n', ..]) if skipped >= 8 => {
                return Err(Refusal::bad("too many empty lines before the request"));
            }
            Some([b'\r', b'\n', ..]) => skipped += 2,
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
pub fn parse(
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
    let (method, target, is_1_0) = request_line(head)?;
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
    judge(head, method, target, is_1_0).map(|request| Parsed::Done(request, len))
}

const TOO_LARGE: Refusal = Refusal {
    status: 431,
    why: "the head is too large",
};

/// Splits the request line, strictly: one space, one space, CRLF.
fn request_line(head: &Head) -> Result<(Range<u32>, Range<u32>, bool), Refusal> {
    let line = head.bytes().split(|byte| *byte == b'\r').next();
    let mut parts = line.unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::bad("the request line has not three parts"));
    };
    if !is_token(method) {
        return Err(Refusal::bad("the method is not a token"));
    }
    let is_1_0 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
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
    Ok((head.place(method), head.place(target), is_1_0))
}

fn judge(
    head: &Head,
    method: Range<u32>,
    target: Range<u32>,
    is_1_0: bool,
) -> Result<Request, Refusal> {
    let method_bytes = head.slice(&method);
    let kind = match method_bytes {
        b"GET" | b"OPTIONS" => Method::Safe,
        b"HEAD" => Method::Head,
        b"PUT" | b"DELETE" => Method::Idempotent,
        b"CONNECT" => {
            return Err(Refusal {
                status: 501,
                why: "CONNECT is not for a reverse proxy",
            });
        }
        b"TRACE" => {
            return Err(Refusal {
                status: 405,
                why: "TRACE reflects credentials",
            });
        }
        _ => Method::Other,
    };
    let host_field = host_field(head, is_1_0)?;
    let target = Target::parse(head, target, method_bytes)?;
    // An absolute-form target wins, and Host is replaced (RFC 9112, 3.2.2).
    let host = match target.authority {
        Some(authority) => authority,
        None => host_field.unwrap_or(0..0),
    };
    let connection = Connection::of(head)?;
    let framing = match declared_framing(head, is_1_0).map_err(Refusal::bad)? {
        Declared::Nothing => Framing::Empty,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Chunked,
        Declared::UnknownCoding => {
            return Err(Refusal {
                status: 501,
                why: "the transfer coding is not known",
            });
        }
    };
    let mut expects_continue = false;
    for value in head.values(Name::Expect) {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal {
                status: 417,
                why: "the expectation is not 100-continue",
            });
        }
        expects_continue = !is_1_0;
    }
    // h2c is between two neighbours, and its settings are not forwarded.
    let mut protocols = head.values(Name::Upgrade).flat_map(list).peekable();
    let asks_upgrade = protocols.peek().is_some()
        && !protocols.any(|it| it.eq_ignore_ascii_case(b"h2c") || it.eq_ignore_ascii_case(b"h2"));
    Ok(Request {
        method,
        path_len: path_len(
            target
                .implied
                .map_or_else(|| head.slice(&target.target), |implied| implied.as_bytes()),
        ),
        target: target.target,
        implied_target: target.implied,
        host,
        kind,
        is_1_0,
        framing,
        connection,
        expects_continue,
        wants_upgrade: connection.upgrade
            && asks_upgrade
            && !is_1_0
            && matches!(framing, Framing::Empty | Framing::Length(0)),
    })
}

fn path_len(target: &[u8]) -> usize {
    memchr::memchr(b'?', target).unwrap_or(target.len())
}

/// The one `Host` field, if there must or may be one (RFC 9112, section 3.2).
fn host_field(head: &Head, is_1_0: bool) -> Result<Option<Range<u32>>, Refusal> {
    let mut hosts = head.values(Name::Host);
    let Some(host) = hosts.next() else {
        if is_1_0 {
            return Ok(None);
        }
        return Err(Refusal::bad("there is no Host"));
    };
    if hosts.next().is_some() {
        return Err(Refusal::bad("more than one Host"));
    }
    if !is_authority(host) {
        return Err(Refusal::bad("Host is not a host and port"));
    }
    Ok(Some(head.place(host)))
}

/// `uri-host [ ":" port ]`, with the letters that DNS and IP addresses need.
#[must_use]
pub fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let Some(end) = memchr::memchr(b']', rest) else {
                return false;
            };
            let (address, after) = rest.split_at(end);
            let address = std::str::from_utf8(address).unwrap_or_default();
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&b"v6"[..], after.get(1..).unwrap_or_default())
        }
        _ => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
    };
    let host_is_good = !host.is_empty()
        && host
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte));
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok())
        }
        _ => false,
    };
    host_is_good && port_is_good
}

/// A request target, taken apart.
struct Target {
    target: Range<u32>,
    implied: Option<&'static str>,
    authority: Option<Range<u32>>,
}

impl Target {
    fn parse(head: &Head, place: Range<u32>, method: &[u8]) -> Result<Self, Refusal> {
        let text = head.slice(&place);
        let (origin, authority) = match text {
            [b'/', ..] => (text, None),
            b"*" if method == b"OPTIONS" => {
                return Ok(Self {
                    target: place,
                    implied: None,
                    authority: None,
                });
            }
            _ => {
                let (authority, rest) = absolute(text)?;
                (rest, Some(head.place(authority)))
            }
        };
        let implied = match origin {
            [] if method == b"OPTIONS" => Some("*"),
            [] => Some("/"),
            _ => None,
        };
        let (path, query) = origin.split_at(path_len(origin));
        if implied.is_none() && !path.starts_with(b"/") {
            return Err(Refusal::bad(
                "the target's path does not begin with a slash",
            ));
        }
        check_path(path)?;
        if !query.iter().copied().all(is_query_char) {
            return Err(Refusal::bad(
                "the target's query has a character that it must not",
            ));
        }
        Ok(Self {
            target: head.place(origin),
            implied,
            authority,
        })
    }
}

/// Splits `http://authority/path`.
fn absolute(text: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let bad = Refusal::bad("the target is neither a path nor an http URI");
    let after_scheme = |scheme: &[u8]| {
        let (head, rest) = text.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = after_scheme(b"http://")
        .or_else(|| after_scheme(b"https://"))
        .ok_or(bad)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#'));
    let (authority, rest) = rest.split_at(end.unwrap_or(rest.len()));
    if !is_authority(authority) {
        return Err(Refusal::bad(
            "the target's authority is not a host and port",
        ));
    }
    if rest.starts_with(b"?") {
        // Legal, but it would have to be rewritten; no client sends it.
        return Err(Refusal::bad("the target has a query and no path"));
    }
    Ok((authority, rest))
}

/// Refuses what URIs do not allow, and what a backend may take for another
/// path than the one that was routed.
pub(crate) fn check_path(path: &[u8]) -> Result<(), Refusal> {
    let mut rest = path;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let [high, low, after @ ..] = rest else {
                return Err(Refusal::bad("the target has a broken percent-encoding"));
            };
            if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
                return Err(Refusal::bad("the target has a broken percent-encoding"));
            }
            rest = after;
        } else if !is_path_char(*first) {
            return Err(Refusal::bad(
                "the target's path has a character that it must not",
            ));
        }
    }
    if has_dot_segment(path) {
        return Err(Refusal::bad("the target's path has a dot segment"));
    }
    Ok(())
}

/// Whether a segment is `.` or `..`, with dots encoded or not. Parameters
/// after a semicolon count as its end: some backends cut them off.
fn has_dot_segment(path: &[u8]) -> bool {
    if !path.contains(&b'.') && !path.contains(&b'%') {
        return false;
    }
    path.split(|byte| *byte == b'/').any(|segment| {
        let mut dots = 0;
        let mut rest = segment;
        loop {
            rest = match rest {
                [] | [b';', ..] | [b'%', b'3', b'b' | b'B', ..] => {
                    return dots == 1 || dots == 2;
                }
                [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] => after,
                _ => return false,
            };
            dots += 1;
        }
    })
}

/// Whether a backend could read another path in it than a router does: an
/// encoded slash, backslash or NUL (see the README's behaviour table).
#[must_use]
pub fn is_ambiguous_path(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path).any(|at| {
        matches!(
            path.get(at + 1..at + 3),
            Some([b'2', b'f' | b'F'] | [b'5', b'c' | b'C'] | [b'0', b'0'])
        )
    })
}

/// RFC 3986's `pchar` and `/`, and `[ ] |`, which browsers send as they are.
fn is_path_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/[]|".contains(&byte)
}

/// What browsers send in a query without encoding it.
fn is_query_char(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"#\"<>".contains(&byte)
}
