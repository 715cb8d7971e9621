//! What a proxy changes in a head: hop-by-hop fields go, its own are added.
//!
//! The order is what keeps it safe: the client's `Connection` is read before
//! anything of ours is written, so it can never remove what we add (RFC 9110,
//! section 7.6.1).

use std::net::IpAddr;

use super::h1::Framing;
use super::h1::head::{Head, Name, list, nominates};
use super::h1::request::Request;
use super::h1::response::Response;
use super::h1::write::{HeadWriter, Lines};

/// The pseudonym in `Via` and `Proxy-Status`.
pub(crate) const PSEUDONYM: &str = "svidgate";

/// What is the same for all requests of a client connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// The other end of its socket.
    pub(crate) ip: IpAddr,
    ip_text: String,
    /// Whether its forwarding headers are believed.
    trusted: bool,
    server: String,
    /// The lines of an untrusted client, ready made.
    lines: Lines,
}

impl Client {
    /// `server` is our own host name, for `X-Forwarded-Server`.
    pub(crate) fn new(ip: IpAddr, trusted: bool, server: &str) -> Self {
        let ip = ip.to_canonical();
        let ip_text = ip.to_string();
        let mut lines = Lines::default();
        lines.field("X-Forwarded-For", ip_text.as_bytes());
        lines.field("X-Forwarded-Proto", b"http");
        lines.field("X-Forwarded-Server", server.as_bytes());
        lines.field("X-Real-Ip", ip_text.as_bytes());
        Self {
            ip,
            ip_text,
            trusted,
            server: server.to_owned(),
            lines,
        }
    }
}

/// Writes the head of a request for an upstream. `host` is what it gets as
/// `Host`.
pub(crate) fn write_request(
    out: &mut Vec<u8>,
    head: &Head,
    request: &Request,
    host: &[u8],
    client: &Client,
) {
    let mut writer = HeadWriter::request(out, request.method(head), request.target(head));
    writer.field("Host", host);
    for field in head.fields() {
        let copied = match field.known {
            Name::Other => !(request.connection.nominates && nominates(head, head.name(field))),
            Name::Expect => request.expects_continue,
            Name::ForwardedHost
            | Name::ForwardedPort
            | Name::ForwardedProto
            | Name::ForwardedOther
            | Name::RealIp => client.trusted,
            Name::Connection
            | Name::ContentLength
            | Name::Host
            | Name::Te
            | Name::Trailer
            | Name::TransferEncoding
            | Name::Upgrade
            | Name::HopByHop
            | Name::Lookalike
            | Name::ForwardedFor
            | Name::ForwardedServer => false,
        };
        if copied {
            writer.copy(head, field);
        }
    }
    match request.framing {
        Framing::Length(length) => writer.number("Content-Length", length),
        Framing::Chunked => writer.field("Transfer-Encoding", b"chunked"),
        Framing::Empty | Framing::UntilClose => {}
    }
    let via: &[u8] = if request.is_1_0 {
        b"1.0 svidgate"
    } else {
        b"1.1 svidgate"
    };
    writer.field("Via", via);
    write_forwarded(&mut writer, head, request, client);
    if request.wants_upgrade {
        write_upgrade(&mut writer, head);
    }
    writer.end();
}

fn write_forwarded(writer: &mut HeadWriter<'_>, head: &Head, request: &Request, client: &Client) {
    let authority = request.authority(head);
    let has = |name: Name| client.trusted && head.values(name).next().is_some();
    if client.trusted {
        let mut addresses: Vec<u8> = Vec::new();
        for value in head.values(Name::ForwardedFor) {
            addresses.extend_from_slice(value);
            addresses.extend_from_slice(b", ");
        }
        addresses.extend_from_slice(client.ip_text.as_bytes());
        writer.field("X-Forwarded-For", &addresses);
        if !has(Name::ForwardedProto) {
            writer.field("X-Forwarded-Proto", b"http");
        }
        writer.field("X-Forwarded-Server", client.server.as_bytes());
        if !has(Name::RealIp) {
            writer.field("X-Real-Ip", client.ip_text.as_bytes());
        }
    } else {
        writer.lines(&client.lines);
    }
    if !has(Name::ForwardedHost) && !authority.is_empty() {
        writer.field("X-Forwarded-Host", authority);
    }
    if !has(Name::ForwardedPort) {
        writer.field("X-Forwarded-Port", port_of(authority).unwrap_or(b"80"));
    }
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

/// Writes the head of a response for the client. `framing` is how the body
/// will leave, and `closes` whether we close after it.
pub(crate) fn write_response(
    out: &mut Vec<u8>,
    head: &Head,
    response: &Response,
    framing: Framing,
    is_bodiless_with_length: bool,
    closes: bool,
) {
    let mut writer = HeadWriter::response(out, response.status, response.reason(head));
    for field in head.fields() {
        let copied = match field.known {
            Name::Connection
            | Name::TransferEncoding
            | Name::Te
            | Name::Trailer
            | Name::Upgrade
            | Name::HopByHop
            | Name::Lookalike => false,
            // Of HEAD and 304 it says what a GET would get.
            Name::ContentLength => is_bodiless_with_length,
            _ => !(response.connection.nominates && nominates(head, head.name(field))),
        };
        if copied {
            writer.copy(head, field);
        }
    }
    match framing {
        Framing::Length(length) if !is_bodiless_with_length => {
            writer.number("Content-Length", length);
        }
        Framing::Chunked => writer.field("Transfer-Encoding", b"chunked"),
        _ => {}
    }
    if response.status == 101 {
        write_upgrade(&mut writer, head);
    } else if closes {
        writer.field("Connection", b"close");
    } else if response.status == 426 {
        // A list of what the server would upgrade to (RFC 9110, 15.5.22).
        let has_upgrade = head.values(Name::Upgrade).flat_map(list).next().is_some();
        if has_upgrade {
            write_upgrade(&mut writer, head);
        }
    }
    writer.end();
}
