//! A response head from an upstream: parsed once, judged whole.

use std::ops::Range;

use super::head::{Connection, Declared, Head, Limits, Name, Scanner, TooLong, declared_framing};
use super::request::Method;
use super::{Framing, Refusal};

/// What a response head says. Places are in the bytes of its [`Head`].
#[derive(Clone, Debug)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    reason: Range<u32>,
    /// How the body ends.
    pub framing: Framing,
    /// The connection options.
    pub connection: Connection,
    /// An HTTP/1.0 server.
    pub is_1_0: bool,
}

impl Response {
    /// The reason phrase, as received.
    #[must_use]
    pub fn reason<'h>(&self, head: &'h Head) -> &'h [u8] {
        head.slice(&self.reason)
    }

    /// Whether another response follows for the same request.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether the upstream will take another request on this connection,
    /// as far as its head says.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let by_version = !self.is_1_0 || self.connection.keep_alive;
        by_version && !self.connection.close && self.framing != Framing::UntilClose
    }
}

/// Parses the response head at the beginning of `buf`; `None`: more bytes are
/// needed. `to` is the request's method.
///
/// # Errors
/// The connection must be closed: where the next response begins is not known.
pub fn parse(
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
    let (status, reason, is_1_0) = status_line(head)?;
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
    let connection = Connection::of(head).map_err(|refusal| Refusal::gateway(refusal.why))?;
    let declared = declared_framing(head, is_1_0).map_err(Refusal::gateway)?;
    let framing = match declared {
        Declared::UnknownCoding => {
            return Err(Refusal::gateway("the transfer coding is not known"));
        }
        // RFC 9112, section 6.3: these end with their head, whatever the
        // fields say.
        _ if to == Method::Head || status < 200 || status == 204 || status == 304 => Framing::Empty,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Chunked,
        Declared::Nothing => Framing::UntilClose,
    };
    let response = Response {
        status,
        reason,
        framing,
        connection,
        is_1_0,
    };
    Ok(Some((response, len)))
}

/// `HTTP/1.1 200 OK`, strictly; the space before an empty reason may be
/// missing, as many servers leave it out.
fn status_line(head: &Head) -> Result<(u16, Range<u32>, bool), Refusal> {
    let line = head.bytes().split(|byte| *byte == b'\r').next();
    let line = line.unwrap_or_default();
    let bad = Refusal::gateway("the status line is malformed");
    let (version, rest) = line.split_at_checked(9).ok_or(bad)?;
    let is_1_0 = match version {
        b"HTTP/1.1 " => false,
        b"HTTP/1.0 " => true,
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
    Ok((status, head.place(reason), is_1_0))
}

/// Whether a 101 names only protocols that were asked for.
#[must_use]
pub fn switches_to_what_was_asked(request: &Head, response: &Head) -> bool {
    use super::head::list;
    let mut named = 0;
    for protocol in response.values(Name::Upgrade).flat_map(list) {
        named += 1;
        let asked = request
            .values(Name::Upgrade)
            .flat_map(list)
            .any(|asked| asked.eq_ignore_ascii_case(protocol));
        if !asked {
            return false;
        }
    }
    named > 0
}
