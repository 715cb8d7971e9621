//! What a proxy changes in a head: hop-by-hop fields go, its own are added.
//!
//! The order is what keeps it safe: the client's `Connection` is read before
//! anything of ours is written, so it can never remove what we add (RFC 9110,
//! section 7.6.1).

use std::net::IpAddr;
use std::rc::Rc;

use super::h1::write::{HeadWriter, Lines};
use super::message::head::{Field, Head, Name, list, nominates};
use super::message::request::{Method, Request};
use super::message::response::Response;
use super::message::{Framing, Version};
use super::reply::Clock;

/// The pseudonym in `Via` and `Proxy-Status`.
pub(crate) const PSEUDONYM: &str = "svidgate";
/// Times that a request may have come through a svidgate. More is a loop.
pub(crate) const HOPS_MAX: usize = 16;

/// A head that is being written, of whatever version.
pub(crate) trait Fields {
    /// Copies a field of a parsed head.
    fn copy(&mut self, head: &Head, field: &Field);
    /// Writes a field of our own.
    fn field(&mut self, name: &'static str, value: &[u8]);
    /// Writes a field with a number.
    fn number(&mut self, name: &'static str, value: u64);
    /// Writes fields that were made before.
    fn lines(&mut self, lines: &Lines);
}

impl Fields for HeadWriter<'_> {
    fn copy(&mut self, head: &Head, field: &Field) {
        Self::copy(self, head, field);
    }

    fn field(&mut self, name: &'static str, value: &[u8]) {
        Self::field(self, name, value);
    }

    fn number(&mut self, name: &'static str, value: u64) {
        Self::number(self, name, value);
    }

    fn lines(&mut self, lines: &Lines) {
        Self::lines(self, lines);
    }
}

/// What we say of ourselves, the same for all client connections.
#[derive(Debug)]
pub(crate) struct Hop {
    /// Our host name, for `X-Forwarded-Server`.
    server: String,
    /// The lines of every untrusted client, ready made.
    lines: Lines,
}

impl Hop {
    pub(crate) fn new(server: String) -> Self {
        let lines = Lines::of(&[
            ("X-Forwarded-Proto", b"http"),
            ("X-Forwarded-Server", server.as_bytes()),
        ]);
        Self { server, lines }
    }
}

/// What is the same for all requests of a client connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// The other end of its socket.
    pub(crate) ip: IpAddr,
    /// Whether its forwarding headers are believed.
    trusted: bool,
    hop: Rc<Hop>,
    /// The lines of this one, if untrusted, ready made. Each has its address.
    lines: Lines,
}

impl Client {
    pub(crate) fn new(ip: IpAddr, trusted: bool, hop: &Rc<Hop>) -> Self {
        let ip = ip.to_canonical();
        let text = ip.to_string();
        Self {
            ip,
            trusted,
            hop: Rc::clone(hop),
            lines: Lines::of(&[
                ("X-Forwarded-For", text.as_bytes()),
                ("X-Real-Ip", text.as_bytes()),
            ]),
        }
    }

    fn ip_text(&self) -> &[u8] {
        let first = self.lines.fields().next();
        first.map_or(b"", |(_, address)| address)
    }
}

/// Writes the head of a request for an HTTP/1.1 upstream. `host` is what it
/// gets as `Host`.
pub(crate) fn write_request(
    out: &mut Vec<u8>,
    head: &Head,
    request: &Request,
    host: &[u8],
    client: &Client,
) {
    let mut writer = HeadWriter::request(out, request.method(head), request.target(head));
    writer.field("Host", host);
    write_request_fields(&mut writer, head, request, client);
    if request.framing == Framing::Delimited {
        writer.field("Transfer-Encoding", b"chunked");
    }
    if request.wants_upgrade {
        write_upgrade(&mut writer, head);
    } else if request.takes_trailers {
        writer.field("TE", b"trailers");
        writer.field("Connection", b"TE");
    }
    writer.end();
}

/// Writes all fields of a request but those in which versions differ: `Host`,
/// `TE`, `Connection`, and the framing of a body without a length.
pub(crate) fn write_request_fields(
    writer: &mut impl Fields,
    head: &Head,
    request: &Request,
    client: &Client,
) {
    for field in head.fields() {
        let copied = match field.known {
            Name::Other | Name::ContentType | Name::Date | Name::Cookie => {
                !is_nominated(request, head, field)
            }
            // It tells what trailers will come, and they come if the body can
            // carry them.
            Name::Trailer => {
                request.framing == Framing::Delimited && !is_nominated(request, head, field)
            }
            Name::Via => true,
            Name::MaxForwards => !request.is_options(head),
            Name::Expect => request.expects_continue && !is_nominated(request, head, field),
            Name::ForwardedHost
            | Name::ForwardedPort
            | Name::ForwardedProto
            | Name::ForwardedOther
            | Name::RealIp => client.trusted,
            Name::Connection
            | Name::ContentLength
            | Name::Host
            | Name::Te
            | Name::TransferEncoding
            | Name::Upgrade
            | Name::HopByHop
            | Name::Lookalike
            | Name::Forwarded
            | Name::ForwardedFor
            | Name::ForwardedServer => false,
        };
        if copied {
            writer.copy(head, field);
        }
    }
    if let Framing::Length(length) = request.framing {
        writer.number("Content-Length", length);
    }
    if request.is_options(head)
        && let Some(left) = head.values(Name::MaxForwards).next().and_then(number)
    {
        writer.number("Max-Forwards", left.saturating_sub(1));
    }
    let via: &[u8] = match request.version {
        Version::Http10 => b"1.0 svidgate",
        Version::Http11 => b"1.1 svidgate",
        Version::Http2 => b"2.0 svidgate",
    };
    writer.field("Via", via);
    write_forwarded(writer, head, request, client);
}

/// Whether the client says that a field is for us alone.
fn is_nominated(request: &Request, head: &Head, field: &Field) -> bool {
    request.connection.nominates && nominates(head, head.name(field))
}

/// Whether a request has come through svidgates so often that it runs in a
/// circle (RFC 9110, section 7.6.3).
pub(crate) fn is_loop(head: &Head) -> bool {
    let hops = head.values(Name::Via).flat_map(list).filter(|hop| {
        let mut words = hop.split(|byte| byte.is_ascii_whitespace());
        words.nth(1) == Some(PSEUDONYM.as_bytes())
    });
    hops.count() >= HOPS_MAX
}

/// What `Max-Forwards` leaves to an OPTIONS request. `Some(0)`: it is for us
/// to answer (RFC 9110, section 7.6.2).
pub(crate) fn forwards_left(head: &Head, request: &Request) -> Option<u64> {
    if !request.is_options(head) {
        return None;
    }
    head.values(Name::MaxForwards).next().and_then(number)
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn write_forwarded(writer: &mut impl Fields, head: &Head, request: &Request, client: &Client) {
    let authority = request.authority(head);
    let has = |name: Name| client.trusted && head.values(name).next().is_some();
    if client.trusted {
        let addresses = joined(head, Name::ForwardedFor, client.ip_text());
        writer.field("X-Forwarded-For", &addresses);
        if !has(Name::ForwardedProto) {
            writer.field("X-Forwarded-Proto", b"http");
        }
        writer.field("X-Forwarded-Server", client.hop.server.as_bytes());
        if !has(Name::RealIp) {
            writer.field("X-Real-Ip", client.ip_text());
        }
        // Where it is used, it must not end one hop too early.
        if has(Name::Forwarded) {
            let element = forwarded_element(client.ip, authority);
            writer.field("Forwarded", &joined(head, Name::Forwarded, &element));
        }
    } else {
        writer.lines(&client.lines);
        writer.lines(&client.hop.lines);
    }
    if !has(Name::ForwardedHost) && !authority.is_empty() {
        writer.field("X-Forwarded-Host", authority);
    }
    if !has(Name::ForwardedPort) {
        let is_secure = |proto: &[u8]| {
            proto.eq_ignore_ascii_case(b"https") || proto.eq_ignore_ascii_case(b"wss")
        };
        let secure = client.trusted && head.values(Name::ForwardedProto).any(is_secure);
        let usual: &[u8] = if secure { b"443" } else { b"80" };
        writer.field("X-Forwarded-Port", port_of(authority).unwrap_or(usual));
    }
}

/// The list that all lines of a name are, and one more member.
fn joined(head: &Head, name: Name, last: &[u8]) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::new();
    for value in head.values(name).filter(|value| !value.is_empty()) {
        all.extend_from_slice(value);
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(last);
    all
}

/// Our hop, as RFC 7239 writes it: IPv6 in brackets and quotes (section 6),
/// and a host with a port in quotes.
fn forwarded_element(ip: IpAddr, host: &[u8]) -> Vec<u8> {
    let node = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let mut element = format!("for={node};proto=http").into_bytes();
    if !host.is_empty() {
        element.extend_from_slice(b";host=\"");
        element.extend_from_slice(host);
        element.push(b'"');
    }
    element
}

/// The port of a checked authority.
fn port_of(authority: &[u8]) -> Option<&[u8]> {
    let colon = authority.iter().rposition(|byte| *byte == b':')?;
    let port = authority.get(colon + 1..)?;
    // A colon inside an IPv6 literal is not followed by digits alone.
    let is_port = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    (is_port && authority.get(colon.wrapping_sub(1)) != Some(&b':')).then_some(port)
}

fn write_upgrade(writer: &mut HeadWriter<'_>, head: &Head) {
    writer.field("Connection", b"Upgrade");
    for value in head.values(Name::Upgrade) {
        writer.field("Upgrade", value);
    }
}

/// How a response leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Leaving {
    /// How its body is framed.
    pub(crate) framing: Framing,
    /// `HEAD` and 304 tell the length of what they do not have.
    pub(crate) keeps_length: bool,
    /// Whether there may be trailers.
    pub(crate) with_trailers: bool,
}

impl Leaving {
    /// As it came; a version that cannot do so has its own `framing`.
    pub(crate) fn of(head: &Head, response: &Response, request: &Request) -> Self {
        let is_bodiless = request.kind == Method::Head || response.status == 304;
        Self {
            framing: response.framing,
            keeps_length: is_bodiless
                && response.status != 204
                && head.values(Name::ContentLength).next().is_some(),
            with_trailers: response.framing == Framing::Delimited
                && (request.takes_trailers || request.version == Version::Http2),
        }
    }
}

/// Writes the head of a response for an HTTP/1 client. `closes`: whether we
/// close after it. The date is added where the upstream gave none.
pub(crate) fn write_response(
    out: &mut Vec<u8>,
    head: &Head,
    response: &Response,
    leaving: Leaving,
    closes: bool,
    clock: &Clock,
) {
    let mut writer = HeadWriter::response(out, response.status, response.reason(head));
    write_response_fields(&mut writer, head, response, leaving, clock);
    if leaving.framing == Framing::Delimited {
        writer.field("Transfer-Encoding", b"chunked");
    }
    // Of a 426 it is a list of what the server would upgrade to (RFC 9110,
    // section 15.5.22).
    let upgrades = response.status == 101
        || response.status == 426 && head.values(Name::Upgrade).flat_map(list).next().is_some();
    if closes {
        writer.field("Connection", b"close");
    }
    if upgrades {
        write_upgrade(&mut writer, head);
    }
    writer.end();
}

/// Writes all fields of a response but those in which versions differ.
pub(crate) fn write_response_fields(
    writer: &mut impl Fields,
    head: &Head,
    response: &Response,
    leaving: Leaving,
    clock: &Clock,
) {
    let mut has_date = response.status < 200;
    for field in head.fields() {
        let copied = match field.known {
            Name::Connection
            | Name::TransferEncoding
            | Name::Te
            | Name::Upgrade
            | Name::HopByHop
            | Name::Lookalike => false,
            // Of HEAD and 304 it says what a GET would get.
            Name::ContentLength => leaving.keeps_length,
            Name::Trailer => leaving.with_trailers,
            Name::Date => {
                has_date = true;
                true
            }
            _ => !(response.connection.nominates && nominates(head, head.name(field))),
        };
        if copied {
            writer.copy(head, field);
        }
    }
    // RFC 9110, section 6.6.1: who has a clock and forwards, adds it.
    if !has_date {
        clock.with(|date| writer.field("Date", date.as_bytes()));
    }
    if let Framing::Length(length) = leaving.framing
        && !leaving.keeps_length
    {
        writer.number("Content-Length", length);
    }
}
