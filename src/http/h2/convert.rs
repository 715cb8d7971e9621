//! Heads between HTTP/2 and what the forwarder knows. No I/O.
//!
//! A head that comes in is built field by field, each checked as HTTP/1.1
//! would have it, and then judged like any other: a pseudo-header with a line
//! end in it, or a field that would frame or route, gets no further (the
//! lesson of CVE-2021-39240 and its like).

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{StatusCode, Uri, request, response};

use crate::http::fields::{Client, Fields, Leaving, write_request_fields, write_response_fields};
use crate::http::h1::write::Lines;
use crate::http::message::head::{Field, Head, Limits, Name};
use crate::http::message::request::{Line, Method, Request};
use crate::http::message::response::{self as message_response, Response};
use crate::http::message::{self, Framing, Refusal, Version};
use crate::http::reply::{Clock, Reply};

/// Trailer sections.
const TRAILERS: Limits = Limits {
    line_max: 0,
    bytes_max: 8 << 10,
    fields_max: 64,
};

const TOO_LARGE: Refusal = Refusal {
    status: 431,
    why: "the head is too large",
};

/// What a request head says. `ends`: no content follows.
///
/// # Errors
/// The status to answer with. Other streams are not concerned.
pub fn request(
    parts: &request::Parts,
    ends: bool,
    limits: &Limits,
    head: &mut Head,
) -> Result<Request, Refusal> {
    head.clear();
    let method = head.keep(parts.method.as_str().as_bytes());
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    if path.len() > limits.line_max {
        return Err(Refusal {
            status: 414,
            why: "the path is too long",
        });
    }
    let target = head.keep(path.as_bytes());
    let authority = parts.uri.authority();
    let authority = authority.map(|it| head.keep(it.as_str().as_bytes()));
    add_fields(&parts.headers, limits, head, TOO_LARGE, Refusal::bad)?;
    let line = Line {
        method,
        target,
        authority,
        version: Version::Http2,
        ends,
    };
    message::request::judge(head, line)
}

/// What a response head says. `to` is the request's method, `ends`: no content
/// follows.
///
/// # Errors
/// What is wrong with it.
pub fn response(
    parts: &response::Parts,
    ends: bool,
    to: Method,
    limits: &Limits,
    head: &mut Head,
) -> Result<Response, Refusal> {
    head.clear();
    let status = parts.status.as_u16();
    if !(100..600).contains(&status) {
        return Err(Refusal::gateway("the status is not 100 to 599"));
    }
    if status == 101 {
        return Err(Refusal::gateway("101 does not exist in HTTP/2"));
    }
    // HTTP/2 has no reason phrase; an HTTP/1.1 client gets the usual one.
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let reason = head.keep(reason.as_bytes());
    let too_large = Refusal::gateway("the response head is too large");
    add_fields(&parts.headers, limits, head, too_large, Refusal::gateway)?;
    let is_misplaced = |field: &Field| {
        matches!(
            field.known,
            Name::Connection | Name::TransferEncoding | Name::Upgrade
        )
    };
    if head.fields().any(is_misplaced) {
        return Err(Refusal::gateway("a field that HTTP/2 does not have"));
    }
    message_response::judge(head, status, reason, Version::Http2, to, ends)
}

/// What came behind the content.
///
/// # Errors
/// What is wrong with it.
pub fn trailers(map: &HeaderMap) -> Result<Head, &'static str> {
    let mut head = Head::default();
    let too_large = Refusal::bad("the trailers are too large");
    add_fields(map, &TRAILERS, &mut head, too_large, Refusal::bad)
        .map_err(|refusal| refusal.why)?;
    head.check_trailers()?;
    Ok(head)
}

fn add_fields(
    map: &HeaderMap,
    limits: &Limits,
    head: &mut Head,
    too_large: Refusal,
    bad: fn(&'static str) -> Refusal,
) -> Result<(), Refusal> {
    if map.len() > limits.fields_max {
        return Err(too_large);
    }
    let mut bytes = 0usize;
    for (name, value) in map {
        bytes = bytes.saturating_add(name.as_str().len() + value.len());
        if bytes > limits.bytes_max {
            return Err(too_large);
        }
        // Compression likes them apart, HTTP/1.1 has one (RFC 9113, 8.2.3).
        if name == http::header::COOKIE {
            continue;
        }
        head.add(name.as_str().as_bytes(), value.as_bytes())
            .map_err(bad)?;
    }
    let mut cookies: Vec<u8> = Vec::new();
    for value in map.get_all(http::header::COOKIE) {
        if !cookies.is_empty() {
            cookies.extend_from_slice(b"; ");
        }
        cookies.extend_from_slice(value.as_bytes());
    }
    if !cookies.is_empty() {
        head.add(b"cookie", &cookies).map_err(bad)?;
    }
    Ok(())
}

/// A request head for an upstream. `authority` is what it gets as
/// `:authority`.
pub(crate) fn request_to(
    head: &Head,
    request: &Request,
    authority: &[u8],
    tls: bool,
    client: &Client,
) -> Result<http::Request<()>, &'static str> {
    let method = http::Method::from_bytes(request.method(head));
    let method = method.map_err(|_| "HTTP/2 cannot carry the method")?;
    let target = PathAndQuery::try_from(request.target(head));
    let target = target.map_err(|_| "HTTP/2 cannot carry the target")?;
    let authority = Authority::try_from(authority);
    let authority = authority.map_err(|_| "HTTP/2 cannot carry the authority")?;
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|_| "HTTP/2 cannot carry the target")?;
    let mut fields = MapWriter::default();
    write_request_fields(&mut fields, head, request, client);
    if request.takes_trailers {
        fields.field("te", b"trailers");
    }
    let mut made = http::Request::new(());
    *made.method_mut() = method;
    *made.uri_mut() = uri;
    *made.version_mut() = http::Version::HTTP_2;
    *made.headers_mut() = fields.finish()?;
    Ok(made)
}

/// A response head for a client.
pub(crate) fn response_to(
    head: &Head,
    response: &Response,
    request: &Request,
    clock: &Clock,
) -> Result<http::Response<()>, &'static str> {
    let mut leaving = Leaving::of(head, response, request);
    // What ends at the close ends with the stream.
    if leaving.framing == Framing::UntilClose {
        leaving.framing = Framing::Delimited;
    }
    let mut fields = MapWriter::default();
    write_response_fields(&mut fields, head, response, leaving, clock);
    answer(response.status, fields)
}

/// An interim response for a client.
pub(crate) fn interim_to(
    head: &Head,
    response: &Response,
    clock: &Clock,
) -> Result<http::Response<()>, &'static str> {
    let leaving = Leaving {
        framing: Framing::Empty,
        keeps_length: false,
        with_trailers: false,
    };
    let mut fields = MapWriter::default();
    write_response_fields(&mut fields, head, response, leaving, clock);
    answer(response.status, fields)
}

/// An answer of our own.
pub(crate) fn reply_to(reply: Reply) -> Result<http::Response<()>, &'static str> {
    let mut fields = MapWriter::default();
    reply.write_fields(&mut fields);
    answer(reply.status, fields)
}

/// An answer of our own to a gRPC call: all in the head, as the protocol has
/// it where there is no message ("Trailers-Only").
pub(crate) fn call_reply_to(reply: Reply) -> Result<http::Response<()>, &'static str> {
    let mut fields = MapWriter::default();
    reply.write_call_fields(&mut fields);
    answer(200, fields)
}

fn answer(status: u16, fields: MapWriter) -> Result<http::Response<()>, &'static str> {
    let mut made = http::Response::new(());
    *made.status_mut() =
        StatusCode::from_u16(status).map_err(|_| "HTTP/2 cannot carry the status")?;
    *made.version_mut() = http::Version::HTTP_2;
    *made.headers_mut() = fields.finish()?;
    Ok(made)
}

/// Trailers that go on.
pub(crate) fn trailers_to(trailers: &Head) -> Result<HeaderMap, &'static str> {
    let mut fields = MapWriter::default();
    for field in trailers.fields() {
        fields.copy(trailers, field);
    }
    fields.finish()
}

/// Fields for a HEADERS frame.
#[derive(Default)]
struct MapWriter {
    map: HeaderMap,
    has_failed: bool,
}

impl MapWriter {
    fn append(&mut self, name: &[u8], value: &[u8]) {
        // It makes the name lower-case.
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value);
        let is_done = match (name, value) {
            (Ok(name), Ok(value)) => self.map.try_append(name, value).is_ok(),
            _ => false,
        };
        self.has_failed |= !is_done;
    }

    fn finish(self) -> Result<HeaderMap, &'static str> {
        if self.has_failed {
            return Err("HTTP/2 cannot carry a field");
        }
        Ok(self.map)
    }
}

impl Fields for MapWriter {
    fn copy(&mut self, head: &Head, field: &Field) {
        self.append(head.name(field), head.value(field));
    }

    fn field(&mut self, name: &'static str, value: &[u8]) {
        self.append(name.as_bytes(), value);
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.append(name.as_bytes(), value.to_string().as_bytes());
    }

    fn lines(&mut self, lines: &Lines) {
        for (name, value) in lines.fields() {
            self.append(name, value);
        }
    }
}
