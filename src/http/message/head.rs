//! What request and response heads share: the fields, and the few names that
//! mean something to a proxy.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Refusal, Version};
use crate::spare::Spares;

/// Limits on a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the first line.
    pub line_max: usize,
    /// Bytes of the whole head.
    pub bytes_max: usize,
    /// Fields.
    pub fields_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_max: 8 << 10,
            bytes_max: 32 << 10,
            fields_max: 100,
        }
    }
}

/// The most fields that any configuration allows; the parser's table is on
/// the stack.
pub const FIELDS_MAX: usize = 256;

/// Names that the proxy itself acts upon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Name {
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Content-Type`
    ContentType,
    /// `Cookie`
    Cookie,
    /// `Date`
    Date,
    /// `Expect`
    Expect,
    /// `Host`
    Host,
    /// `Max-Forwards`
    MaxForwards,
    /// `TE`
    Te,
    /// `Trailer`
    Trailer,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Upgrade`
    Upgrade,
    /// `Via`
    Via,
    /// Hop-by-hop by custom: `Keep-Alive`, `Proxy-Connection`,
    /// `Proxy-Authenticate`, `Proxy-Authorization`, `HTTP2-Settings`.
    HopByHop,
    /// `Forwarded` (RFC 7239)
    Forwarded,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Forwarded-Host`
    ForwardedHost,
    /// `X-Forwarded-Port`
    ForwardedPort,
    /// `X-Forwarded-Proto`
    ForwardedProto,
    /// `X-Forwarded-Server`
    ForwardedServer,
    /// `X-Real-Ip`
    RealIp,
    /// Any other name that begins with `X-Forwarded-`: `-Prefix`, `-Uri`,
    /// `-User`, `-Tls-Client-Cert` and whatever else a proxy may claim.
    ForwardedOther,
    /// One of the above with `_` for `-`, which many a backend takes for it.
    Lookalike,
    /// Anything else: passed on.
    Other,
}

/// The known names of a length, as they are written as a rule: most names are
/// told apart by that alone.
fn known_of(length: usize) -> &'static [(&'static str, Name)] {
    match length {
        2 => &[("TE", Name::Te)],
        3 => &[("Via", Name::Via)],
        4 => &[("Date", Name::Date), ("Host", Name::Host)],
        6 => &[("Cookie", Name::Cookie), ("Expect", Name::Expect)],
        7 => &[("Trailer", Name::Trailer), ("Upgrade", Name::Upgrade)],
        9 => &[("X-Real-Ip", Name::RealIp), ("Forwarded", Name::Forwarded)],
        10 => &[
            ("Connection", Name::Connection),
            ("Keep-Alive", Name::HopByHop),
        ],
        12 => &[
            ("Content-Type", Name::ContentType),
            ("Max-Forwards", Name::MaxForwards),
        ],
        14 => &[
            ("Content-Length", Name::ContentLength),
            ("HTTP2-Settings", Name::HopByHop),
        ],
        15 => &[("X-Forwarded-For", Name::ForwardedFor)],
        16 => &[
            ("Proxy-Connection", Name::HopByHop),
            ("X-Forwarded-Host", Name::ForwardedHost),
            ("X-Forwarded-Port", Name::ForwardedPort),
        ],
        17 => &[
            ("Transfer-Encoding", Name::TransferEncoding),
            ("X-Forwarded-Proto", Name::ForwardedProto),
        ],
        18 => &[
            ("Proxy-Authenticate", Name::HopByHop),
            ("X-Forwarded-Server", Name::ForwardedServer),
        ],
        19 => &[("Proxy-Authorization", Name::HopByHop)],
        _ => &[],
    }
}

/// How names begin that tell of the way a request has come.
const CLAIM: &str = "x-forwarded-";

/// Whether a name is that one, in any case, and with `_` for `-`. Both are of
/// one length.
fn folds(known: &str, name: &[u8]) -> bool {
    known
        .bytes()
        .zip(name)
        .all(|(k, n)| k.eq_ignore_ascii_case(n) || (k == b'-' && *n == b'_'))
}

impl Name {
    /// Which name it is, whatever its case.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        for (known, which) in known_of(name.len()) {
            if known.as_bytes() == name {
                return *which;
            }
            if folds(known, name) {
                return if name.contains(&b'_') {
                    Self::Lookalike
                } else {
                    *which
                };
            }
        }
        let is_claim = matches!(name.first(), Some(b'x' | b'X'))
            && name
                .get(..CLAIM.len())
                .is_some_and(|start| folds(CLAIM, start));
        Self::other(name, is_claim)
    }

    fn other(name: &[u8], is_claim: bool) -> Self {
        match is_claim {
            true if name.contains(&b'_') => Self::Lookalike,
            true => Self::ForwardedOther,
            false => Self::Other,
        }
    }
}

/// A field line, as places in the head's bytes.
#[derive(Clone, Debug)]
pub struct Field {
    name: Range<u32>,
    value: Range<u32>,
    /// Which name it is.
    pub known: Name,
}

/// Heads of a worker that no connection holds, and how large they may be.
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 4 << 10;

thread_local! {
    static SPARE: Spares<Head> = const { Spares::new(SPARE_MAX) };
}

/// The bytes of a head with the places of its fields. Reused from message to
/// message, so that few are allocated.
#[derive(Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

impl Head {
    /// The fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter()
    }

    /// The name of a field, as received.
    #[must_use]
    pub fn name(&self, field: &Field) -> &[u8] {
        self.slice(&field.name)
    }

    /// The value of a field, without the white space around it.
    #[must_use]
    pub fn value(&self, field: &Field) -> &[u8] {
        self.slice(&field.value)
    }

    /// The values of all lines of one name.
    pub fn values(&self, known: Name) -> impl Iterator<Item = &[u8]> {
        let fields = self.fields.iter().filter(move |f| f.known == known);
        fields.map(|field| self.value(field))
    }

    /// The bytes at a place.
    #[must_use]
    pub fn slice(&self, place: &Range<u32>) -> &[u8] {
        let place = index(place.start)..index(place.end);
        self.bytes.get(place).unwrap_or_default()
    }

    /// The place of a slice of the head's own bytes.
    pub(in crate::http) fn place(&self, part: &[u8]) -> Range<u32> {
        place_in(&self.bytes, part)
    }

    /// Takes over a complete head.
    pub(in crate::http) fn load(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() == 0
            && let Some(spare) = SPARE.with(Spares::take)
        {
            *self = spare;
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.fields.clear();
    }

    /// A connection that waits holds no head. What is in it is lost.
    pub(in crate::http) fn give_back(&mut self) {
        let head = std::mem::take(self);
        if (1..=SPARE_BYTES_MAX).contains(&head.bytes.capacity()) {
            SPARE.with(|spare| spare.keep(head));
        }
    }

    pub(in crate::http) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins a head that comes part by part.
    pub(in crate::http) fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
    }

    /// Takes over a part that is not a field.
    pub(in crate::http) fn keep(&mut self, text: &[u8]) -> Range<u32> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text);
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        place(start)..place(self.bytes.len())
    }

    /// Takes over a field, if HTTP/1.1 could carry it: nothing comes in
    /// through another version that our own parser would refuse.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in crate::http) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if !is_token(name) {
            return Err("a field name is not a token");
        }
        if !is_field_value(value) {
            return Err("a field value has a control character, or white space around it");
        }
        let field = Field {
            known: Name::of(name),
            name: self.keep(name),
            value: self.keep(value),
        };
        self.fields.push(field);
        Ok(())
    }

    /// Runs one of httparse's parsers over the bytes and notes the fields.
    pub(in crate::http) fn parse_fields(
        &mut self,
        fields_max: usize,
        parse: impl for<'b> FnOnce(
            &'b [u8],
            &mut [MaybeUninit<httparse::Header<'b>>],
            &mut dyn FnMut(&'b [u8], &'b [u8]),
        ) -> Result<(), httparse::Error>,
    ) -> Result<(), httparse::Error> {
        let mut table = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let table = table
            .get_mut(..fields_max.min(FIELDS_MAX))
            .unwrap_or_default();
        let (bytes, fields) = (&self.bytes, &mut self.fields);
        parse(bytes, table, &mut |name, value| {
            fields.push(Field {
                name: place_in(bytes, name),
                value: place_in(bytes, value),
                known: Name::of(name),
            });
        })
    }
}

/// Names that frame, route, authenticate or are between two neighbours: behind
/// the content they can only be meant to mislead (RFC 9110, section 6.5.1).
const NO_TRAILERS: [&str; 7] = [
    "authorization",
    "cookie",
    "set-cookie",
    "www-authenticate",
    "authentication-info",
    "content-encoding",
    "content-range",
];

impl Head {
    /// Whether these fields may come behind the content.
    ///
    /// # Errors
    /// One may not.
    pub(in crate::http) fn check_trailers(&self) -> Result<(), &'static str> {
        for field in &self.fields {
            let name = self.name(field);
            let is_good = match field.known {
                Name::Other => !NO_TRAILERS
                    .iter()
                    .any(|it| name.eq_ignore_ascii_case(it.as_bytes())),
                Name::Date => true,
                _ => false,
            };
            if !is_good {
                return Err("a trailer that can only be a header field");
            }
        }
        Ok(())
    }

    /// Whether there is no field.
    pub(in crate::http) fn has_no_fields(&self) -> bool {
        self.fields.is_empty()
    }
}

/// Where `part`, a slice of `whole`, is in it.
fn place_in(whole: &[u8], part: &[u8]) -> Range<u32> {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    place(start)..place(start.saturating_add(part.len()))
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// What the `Connection` fields say. Names that they nominate are removed by
/// [`nominates`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Connection {
    /// `close`
    pub close: bool,
    /// `keep-alive`
    pub keep_alive: bool,
    /// `upgrade`
    pub upgrade: bool,
    /// Any other token: a field that must not be forwarded.
    pub nominates: bool,
}

impl Connection {
    /// Reads every `Connection` line of a head.
    ///
    /// # Errors
    /// A list member that is not a token.
    pub fn of(head: &Head) -> Result<Self, Refusal> {
        let mut connection = Self::default();
        for token in head.values(Name::Connection).flat_map(list) {
            if token.eq_ignore_ascii_case(b"close") {
                connection.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                connection.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                connection.upgrade = true;
            } else if is_token(token) {
                connection.nominates = true;
            } else {
                return Err(Refusal::bad("Connection is not a list of tokens"));
            }
        }
        Ok(connection)
    }
}

/// Whether a `Connection` line names this field (RFC 9110, section 7.6.1).
#[must_use]
pub fn nominates(head: &Head, name: &[u8]) -> bool {
    head.values(Name::Connection)
        .flat_map(list)
        .any(|token| token.eq_ignore_ascii_case(name))
}

/// The members of a comma-separated list; empty ones are skipped (RFC 9110,
/// section 5.6.1.2).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// `token` of RFC 9110, section 5.6.2.
#[must_use]
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_tchar)
}

/// `tchar` of RFC 9110, section 5.6.2.
#[must_use]
pub fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `field-value` of RFC 9110, section 5.5: no controls but the tab, and neither
/// a space nor a tab at either end.
#[must_use]
pub fn is_field_value(value: &[u8]) -> bool {
    let is_text = |byte: u8| byte == b'\t' || (b' '..0x7f).contains(&byte) || byte >= 0x80;
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    value.iter().copied().all(is_text) && !is_space(value.first()) && !is_space(value.last())
}

/// What the framing fields of a message say, before its kind is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::http) enum Declared {
    Nothing,
    Length(u64),
    Chunked,
    /// A transfer coding that we do not know.
    UnknownCoding,
}

/// Reads `Content-Length` and `Transfer-Encoding` together, and takes only
/// what cannot be read in two ways.
pub(in crate::http) fn declared_framing(
    head: &Head,
    version: Version,
) -> Result<Declared, &'static str> {
    let mut lengths = head.values(Name::ContentLength);
    let mut codings = head.values(Name::TransferEncoding);
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() {
        return Err("more than one Content-Length");
    }
    if codings.next().is_some() {
        return Err("more than one Transfer-Encoding");
    }
    if version == Version::Http2 && coding.is_some() {
        return Err("Transfer-Encoding in an HTTP/2 message");
    }
    match (length, coding) {
        (None, None) => Ok(Declared::Nothing),
        (Some(_), Some(_)) => Err("both Content-Length and Transfer-Encoding"),
        (Some(length), None) => parse_length(length)
            .map(Declared::Length)
            .ok_or("Content-Length is not a number of bytes"),
        (None, Some(_)) if version == Version::Http10 => {
            Err("Transfer-Encoding in an HTTP/1.0 message")
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Declared::Chunked),
        (None, Some(coding)) => {
            // A list in which chunked is not alone and last, or not a list.
            let mut members = coding.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            let last_is_chunked = members
                .clone()
                .next_back()
                .is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
            let once = members
                .clone()
                .filter(|m| m.eq_ignore_ascii_case(b"chunked"))
                .count()
                == 1;
            if last_is_chunked && once && members.all(is_token) {
                Ok(Declared::UnknownCoding)
            } else {
                Err("Transfer-Encoding does not end in chunked, once")
            }
        }
    }
}

/// Digits only, and below 2^63.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number <= i64::MAX.unsigned_abs()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_name_stands_under_its_length() {
        let mut count = 0;
        for length in 0..64 {
            for (name, which) in known_of(length) {
                assert_eq!(name.len(), length);
                assert_eq!(Name::of(name.as_bytes()), *which);
                assert_eq!(Name::of(name.to_ascii_uppercase().as_bytes()), *which);
                assert_eq!(Name::of(name.to_ascii_lowercase().as_bytes()), *which);
                count += 1;
            }
        }
        assert_eq!(count, 25);
    }

    #[test]
    fn a_spare_head_shows_nothing_of_the_last_request() {
        let mut first = Head::default();
        first.load(b"GET /secret HTTP/1.1\r\nCookie: secret\r\n\r\n");
        first.add(b"cookie", b"secret").unwrap();
        first.give_back();
        assert!(first.bytes().is_empty() && first.has_no_fields());
        let mut second = Head::default();
        second.load(b"GET / HTTP/1.1");
        assert_eq!(second.bytes(), b"GET / HTTP/1.1");
        assert!(second.has_no_fields());
    }
}
