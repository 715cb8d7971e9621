//! A request head, judged whole.

use std::ops::Range;

use super::head::{Connection, Declared, Head, Name, declared_framing, list};
use super::{Framing, Refusal, Version};

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
    /// The version that it came in.
    pub version: Version,
    /// How the body ends.
    pub framing: Framing,
    /// The connection options.
    pub connection: Connection,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// `Connection: upgrade` together with `Upgrade`.
    pub wants_upgrade: bool,
    /// `TE: trailers`: the client takes trailers.
    pub takes_trailers: bool,
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

    /// Whether the client knows interim responses (RFC 9110, section 15.2).
    #[must_use]
    pub fn takes_interim(&self) -> bool {
        self.version != Version::Http10
    }

    /// Whether the method is OPTIONS.
    #[must_use]
    pub fn is_options(&self, head: &Head) -> bool {
        self.kind == Method::Safe && self.method(head) == b"OPTIONS"
    }

    /// Whether the client will take another response on this connection.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        // A proxy does not keep a connection with a 1.0 client (RFC 9112, 9.3).
        !self.connection.close && self.version != Version::Http10
    }
}

/// The first part of a request head. Places are in the bytes of its [`Head`].
pub(in crate::http) struct Line {
    pub(in crate::http) method: Range<u32>,
    pub(in crate::http) target: Range<u32>,
    /// `:authority`, which only HTTP/2 has.
    pub(in crate::http) authority: Option<Range<u32>>,
    pub(in crate::http) version: Version,
    /// Nothing follows the head, as HTTP/2 can tell.
    pub(in crate::http) ends: bool,
}

/// What the parts of a request head amount to.
pub(in crate::http) fn judge(head: &Head, line: Line) -> Result<Request, Refusal> {
    let Line {
        method,
        target,
        authority,
        version,
        ends,
    } = line;
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
    let host_field = host_field(head, authority.as_ref(), version)?;
    let target = Target::parse(head, target, method_bytes)?;
    // An absolute-form target wins, and Host is replaced (RFC 9112, 3.2.2).
    let host = match target.authority {
        Some(authority) => authority,
        None => host_field.unwrap_or(0..0),
    };
    let connection = Connection::of(head)?;
    if version == Version::Http2 {
        check_h2_fields(head)?;
    }
    let framing = match declared_framing(head, version).map_err(Refusal::bad)? {
        Declared::Nothing if version == Version::Http2 && !ends => Framing::Delimited,
        Declared::Nothing => Framing::Empty,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Delimited,
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
        expects_continue = version != Version::Http10;
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
        version,
        framing,
        connection,
        expects_continue,
        wants_upgrade: connection.upgrade
            && asks_upgrade
            && version == Version::Http11
            && matches!(framing, Framing::Empty | Framing::Length(0)),
        takes_trailers: head
            .values(Name::Te)
            .flat_map(list)
            .any(|it| it.eq_ignore_ascii_case(b"trailers")),
    })
}

/// What is between two neighbours has no place in HTTP/2 (RFC 9113, section
/// 8.2.2), but for `TE: trailers`.
fn check_h2_fields(head: &Head) -> Result<(), Refusal> {
    for field in head.fields() {
        let is_bad = match field.known {
            Name::Connection | Name::TransferEncoding | Name::Upgrade => true,
            Name::Te => !head.value(field).eq_ignore_ascii_case(b"trailers"),
            Name::HopByHop => {
                let name = head.name(field);
                name.eq_ignore_ascii_case(b"keep-alive")
                    || name.eq_ignore_ascii_case(b"proxy-connection")
            }
            _ => false,
        };
        if is_bad {
            return Err(Refusal::bad("a field that HTTP/2 does not have"));
        }
    }
    Ok(())
}

fn path_len(target: &[u8]) -> usize {
    memchr::memchr(b'?', target).unwrap_or(target.len())
}

/// The one host that is named, if there must or may be one (RFC 9112, section
/// 3.2; RFC 9113, section 8.3.1).
fn host_field(
    head: &Head,
    authority: Option<&Range<u32>>,
    version: Version,
) -> Result<Option<Range<u32>>, Refusal> {
    let mut hosts = head.values(Name::Host);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad("more than one Host"));
    }
    let named = match (host, authority.map(|place| head.slice(place))) {
        (None, None) if version == Version::Http10 => return Ok(None),
        (None, None) => return Err(Refusal::bad("there is no Host")),
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            return Err(Refusal::bad("Host and :authority differ"));
        }
        (_, Some(authority)) => authority,
        (Some(host), None) => host,
    };
    if !is_authority(named) {
        return Err(Refusal::bad("Host is not a host and port"));
    }
    Ok(Some(head.place(named)))
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
            // What a backend puts into a log, a file name or a field.
            if matches!((high, low), (b'0', b'0' | b'a' | b'A' | b'd' | b'D')) {
                return Err(Refusal::bad(
                    "the target's path has an encoded NUL or line end",
                ));
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
/// encoded slash or backslash (see the README's behaviour table).
#[must_use]
pub fn is_ambiguous_path(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path).any(|at| {
        matches!(
            path.get(at + 1..at + 3),
            Some([b'2', b'f' | b'F'] | [b'5', b'c' | b'C'])
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
