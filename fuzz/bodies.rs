//! What has to hold for any input, one function per fuzzing target.
//!
//! A fuzzer feeds them (`make fuzz`), and `tests/it/fuzz_corpus.rs` with what
//! is in `corpus/`. Each takes bytes, returns nothing and panics when
//! something does not hold.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use svidgate::http::h1::body::{Decoder, Encoder};
use svidgate::http::h1::parse::{self, Parsed, Scanner};
use svidgate::http::h1::write::HeadWriter;
use svidgate::http::h2::convert;
use svidgate::http::message::head::{Field, Head, Limits, Name};
use svidgate::http::message::request::{Method, Request, is_authority};
use svidgate::http::message::response::Response;
use svidgate::http::message::{Framing, Refusal, Version};
use svidgate::identity::Snapshot;
use svidgate::identity::bundle::Bundle;
use svidgate::tls::provider;
use svidgate::tls::verifier::{Role, verify};
use svidgate::transport::Allowlist;
use svidgate::{Config, Overrides};

/// Low, so that short inputs reach them.
const LIMITS: Limits = Limits {
    line_max: 256,
    bytes_max: 1024,
    fields_max: 16,
};

/// For what was written anew: it may be a little longer than what came in.
const ROOMY: Limits = Limits {
    line_max: 64 << 10,
    bytes_max: 256 << 10,
    fields_max: 256,
};

/// The host of a request that names none, which HTTP/1.0 may.
const FALLBACK_HOST: &[u8] = b"fallback.test";

/// Why the scanner gives up on a line, when it sees the line's end.
const BARE_LF: &str = "a line ends in a bare LF";

/// A request head means the same however it arrives, and what is made of it
/// is read as it was meant.
pub fn request_head(input: &[u8]) {
    let mut head = Head::default();
    let whole = read_request(&[input], &LIMITS, &mut head);
    let told = told_of_request(&whole, &head);

    let prefixes: Vec<&[u8]> = (0..=input.len()).map(|n| &input[..n]).collect();
    let mut other = Head::default();
    let grown = read_request(&prefixes, &LIMITS, &mut other);
    assert_same_verdict(&told, &told_of_request(&grown, &other));

    let Ok(Some((request, len))) = whole else {
        return;
    };
    assert!(input[..len].ends_with(b"\r\n\r\n"));
    check_request(&head, &request);
}

/// The same of a response head, to a request with and without a body in its
/// answer.
pub fn response_head(input: &[u8]) {
    for to in [Method::Safe, Method::Head] {
        let mut head = Head::default();
        let whole = read_response(&[input], &LIMITS, &mut head, to);
        let told = told_of_response(&whole, &head);

        let prefixes: Vec<&[u8]> = (0..=input.len()).map(|n| &input[..n]).collect();
        let mut other = Head::default();
        let grown = read_response(&prefixes, &LIMITS, &mut other, to);
        assert_same_verdict(&told, &told_of_response(&grown, &other));

        match whole {
            Ok(Some((response, len))) => {
                assert!(input[..len].ends_with(b"\r\n\r\n"));
                check_response(&head, &response, to);
            }
            Ok(None) => {}
            // Whatever is wrong with it, it is not the client's fault.
            Err(refusal) => assert_eq!(refusal.status, 502),
        }
    }
}

/// A chunked body is the same wherever it is cut, and survives another round.
/// The first two bytes of the input say where to cut.
pub fn chunked_body(input: &[u8]) {
    let Some((cuts, coded)) = input.split_first_chunk::<2>() else {
        return;
    };
    // Below the limit on a trailer section, which another spelling may exceed.
    if coded.len() > 4096 {
        return;
    }
    let (decoder, whole) = decode(&[coded]);
    let mut at = cuts.map(|cut| usize::from(cut) % (coded.len() + 1));
    at.sort_unstable();
    let [first, second] = at;
    let pieces = [&coded[..first], &coded[first..second], &coded[second..]];
    assert_eq!(decode(&pieces).1, whole, "cut at {first} and {second}");
    let bytes: Vec<&[u8]> = coded.chunks(1).collect();
    assert_eq!(decode(&bytes).1, whole, "byte by byte");

    let Ok(body) = whole else { return };
    assert!(coded.ends_with(&body.left));
    if !body.is_done {
        return;
    }
    let mut again = Vec::new();
    for piece in body.content.chunks(1 + usize::from(cuts[0])) {
        Encoder::Chunked.encode(piece, &mut again);
    }
    Encoder::Chunked.finish(decoder.trailers(), &mut again);
    let expected = Body {
        left: Vec::new(),
        ..body
    };
    assert_eq!(decode(&[&again]).1, Ok(expected));
}

/// A request that came as HTTP/2 and was taken is one HTTP/1.1 request, and
/// the same one. The lines of the input are the method, the path, the
/// authority (empty: none) and then the fields.
pub fn h2_to_h1(input: &[u8]) {
    let Some(parts) = h2_parts(input) else {
        return;
    };
    for ends in [false, true] {
        let mut head = Head::default();
        match convert::request(&parts, ends, &LIMITS, &mut head) {
            Ok(request) => {
                assert_eq!(request.version, Version::Http2);
                assert_eq!(request.method(&head), parts.method.as_str().as_bytes());
                check_request(&head, &request);
            }
            Err(refusal) => assert!((400..600).contains(&refusal.status)),
        }
    }
}

/// A file is taken or refused with reasons; what is taken is usable, and the
/// same when it is read again.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    // It may name certificate files, and some files never end.
    if ["/dev", "/proc", "/sys"].iter().any(|it| text.contains(it)) {
        return;
    }
    let overrides = Overrides::default();
    let config = match Config::parse(text, &overrides) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.problems.is_empty());
            assert!(error.problems.iter().all(|it| !it.what.is_empty()));
            assert!(!error.to_string().is_empty());
            assert_eq!(Config::parse(text, &overrides).unwrap_err(), error);
            return;
        }
    };
    let again = Config::parse(text, &overrides).unwrap();
    assert_eq!(format!("{again:?}"), format!("{config:?}"));
    for entry_point in &config.entry_points {
        check_entry_point(entry_point, &config);
    }
}

/// No leaf but the good one is admitted. The input is taken for a
/// certificate, and for changes to the good one and to one that is not an
/// SVID.
pub fn svid_leaf(input: &[u8]) {
    check_leaf(input);
    let changed = change(LEAF, input);
    check_leaf(&changed);
    check_leaf(&change(&SERVER, input));

    // Another authority than ours, below ours or beside it, helps nobody.
    let authority = change(AUTHORITY, input);
    let bundle = Bundle::new([&authority[..]]);
    assert_eq!(bundle.len() + bundle.unusable().len(), 1);
    if changed != LEAF {
        let chain = [&changed[..], &authority, AUTHORITY, input];
        assert!(!is_admitted(&chain, Role::Server), "with a chain");
    }
}

// Heads.

type Verdict<T> = Result<Option<(T, usize)>, Refusal>;

/// Reads as a connection does: each buffer has what the one before it had.
fn read_request(buffers: &[&[u8]], limits: &Limits, head: &mut Head) -> Verdict<Request> {
    let mut scanner = Scanner::default();
    for buffer in buffers {
        if let Parsed::Done(request, len) = parse::request(buffer, &mut scanner, limits, head)? {
            return Ok(Some((request, len)));
        }
    }
    Ok(None)
}

fn read_response(
    buffers: &[&[u8]],
    limits: &Limits,
    head: &mut Head,
    to: Method,
) -> Verdict<Response> {
    let mut scanner = Scanner::default();
    for buffer in buffers {
        let found = parse::response(buffer, &mut scanner, limits, head, to)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// All that a verdict says, as text.
type Told = Result<Option<(String, usize)>, Refusal>;

fn told_of_request(verdict: &Verdict<Request>, head: &Head) -> Told {
    tell(verdict, |request| {
        format!(
            "{request:?} {:?} {:?} {:?} {:?}",
            request.method(head).escape_ascii().to_string(),
            request.target(head).escape_ascii().to_string(),
            request.authority(head).escape_ascii().to_string(),
            fields_of(head, |_| true),
        )
    })
}

fn told_of_response(verdict: &Verdict<Response>, head: &Head) -> Told {
    tell(verdict, |response| {
        format!(
            "{response:?} {:?} {:?}",
            response.reason(head).escape_ascii().to_string(),
            fields_of(head, |_| true),
        )
    })
}

fn tell<T>(verdict: &Verdict<T>, text: impl FnOnce(&T) -> String) -> Told {
    match verdict {
        Ok(Some((found, len))) => Ok(Some((text(found), *len))),
        Ok(None) => Ok(None),
        Err(refusal) => Err(*refusal),
    }
}

/// Of a head that is too long, and has a bare LF behind that, the whole is
/// refused for the one and a beginning for the other.
fn assert_same_verdict(whole: &Told, grown: &Told) {
    match (whole, grown) {
        (Err(whole), Err(grown)) if whole.why == BARE_LF => {
            let ways = [BARE_LF, "too long", "too large"];
            let is_one = ways.iter().any(|way| grown.why.ends_with(way));
            assert!(is_one, "{grown:?}");
        }
        _ => assert_eq!(whole, grown),
    }
}

/// The fields that are `wanted`, for comparing: name, value.
fn fields_of(head: &Head, wanted: impl Fn(Name) -> bool) -> Vec<(String, String)> {
    let fields = head.fields().filter(|field| wanted(field.known));
    fields
        .map(|field| {
            let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
            (text(head.name(field)), text(head.value(field)))
        })
        .collect()
}

/// Fields that a writer copies as they came; the rest it writes by itself.
fn is_copied(known: Name) -> bool {
    !matches!(
        known,
        Name::Host | Name::ContentLength | Name::TransferEncoding
    )
}

/// Writes a request for an HTTP/1.1 backend, from its structure.
fn write_request(head: &Head, request: &Request, host: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = HeadWriter::request(&mut out, request.method(head), request.target(head));
    writer.field("Host", host);
    copy_fields(&mut writer, head);
    write_framing(&mut writer, request.framing);
    writer.end();
    out
}

fn copy_fields(writer: &mut HeadWriter<'_>, head: &Head) {
    let copied = |field: &&Field| is_copied(field.known);
    for field in head.fields().filter(copied) {
        writer.copy(head, field);
    }
}

fn write_framing(writer: &mut HeadWriter<'_>, framing: Framing) {
    match framing {
        Framing::Length(length) => writer.number("Content-Length", length),
        Framing::Delimited => writer.field("Transfer-Encoding", b"chunked"),
        Framing::Empty | Framing::UntilClose => {}
    }
}

/// What was taken can be written, and is then read as the same request.
fn check_request(head: &Head, request: &Request) {
    let authority = request.authority(head);
    assert_ne!(request.framing, Framing::UntilClose);
    let target = match request.query(head) {
        Some(query) => [request.path(head), query].join(&b'?'),
        None => request.path(head).to_vec(),
    };
    assert_eq!(request.target(head), target, "not path and query");
    let host = if authority.is_empty() {
        assert_eq!(request.version, Version::Http10);
        FALLBACK_HOST
    } else {
        assert!(is_authority(authority));
        authority
    };

    let out = write_request(head, request, host);
    let copied = fields_of(head, is_copied);
    let has_framing = usize::from(request.framing != Framing::Empty);
    check_lines(&out, copied.len() + 1 + has_framing);

    let mut head_again = Head::default();
    let again = read_request(&[&out], &ROOMY, &mut head_again);
    let Ok(Some((again, len))) = again else {
        panic!("{again:?}: {}", out.escape_ascii());
    };
    assert_eq!(len, out.len(), "one request and nothing else");
    assert_eq!(again.method(&head_again), request.method(head));
    assert_eq!(again.target(&head_again), request.target(head));
    assert_eq!(again.path(&head_again), request.path(head));
    assert_eq!(again.query(&head_again), request.query(head));
    assert_eq!(again.authority(&head_again), host);
    assert_eq!(again.framing, request.framing);
    assert_eq!(again.kind, request.kind);
    assert_eq!(again.connection, request.connection);
    assert_eq!(again.takes_trailers, request.takes_trailers);
    assert_eq!(fields_of(&head_again, is_copied), copied);
}

/// What was taken can be written, and is then read as the same response.
fn check_response(head: &Head, response: &Response, to: Method) {
    let mut out = Vec::new();
    let mut writer = HeadWriter::response(&mut out, response.status, response.reason(head));
    copy_fields(&mut writer, head);
    write_framing(&mut writer, response.framing);
    writer.end();
    let copied = fields_of(head, is_copied);
    let has_framing = matches!(response.framing, Framing::Length(_) | Framing::Delimited);
    check_lines(&out, copied.len() + usize::from(has_framing));

    let mut head_again = Head::default();
    let again = read_response(&[&out], &ROOMY, &mut head_again, to);
    let Ok(Some((again, len))) = again else {
        panic!("{again:?}: {}", out.escape_ascii());
    };
    assert_eq!(len, out.len(), "one response and nothing else");
    assert_eq!(again.status, response.status);
    assert_eq!(again.reason(&head_again), response.reason(head));
    assert_eq!(again.framing, response.framing);
    assert_eq!(again.connection, response.connection);
    assert_eq!(fields_of(&head_again, is_copied), copied);
    let has_no_body = to == Method::Head || matches!(response.status, 100..=199 | 204 | 304);
    assert_eq!(response.framing == Framing::Empty, has_no_body);
}

/// A head as a reader sees it that knows nothing but lines: so many fields,
/// no line end within a line, and the body framed in one way at most.
fn check_lines(out: &[u8], fields: usize) {
    let mut lines: Vec<&[u8]> = out.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.pop(), Some(&b""[..]), "something follows the head");
    let lines: Vec<&[u8]> = lines
        .into_iter()
        .map(|line| line.strip_suffix(b"\r").expect("a bare LF"))
        .collect();
    assert!(!lines.iter().any(|line| line.contains(&b'\r')), "a bare CR");
    assert!(!out.contains(&0), "a NUL");
    let Some(([_, named @ ..], b"")) = lines.split_last().map(|(last, rest)| (rest, *last)) else {
        panic!("no empty line at the end: {}", out.escape_ascii());
    };
    assert_eq!(named.len(), fields, "{}", out.escape_ascii());
    assert!(named.iter().all(|line| !line.is_empty()));
    let framing = named.iter().filter(|line| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"content-length")
            || name.eq_ignore_ascii_case(b"transfer-encoding")
    });
    assert!(framing.count() <= 1, "{}", out.escape_ascii());
}

/// A request head as h2 hands it over; `None`: it would not.
fn h2_parts(input: &[u8]) -> Option<http::request::Parts> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut uri = http::uri::Parts::default();
    let method = http::Method::from_bytes(lines.next()?).ok()?;
    uri.path_and_query = Some(lines.next()?.try_into().ok()?);
    let authority = lines.next()?;
    if !authority.is_empty() {
        uri.authority = Some(authority.try_into().ok()?);
        uri.scheme = Some(http::uri::Scheme::HTTP);
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    parts.uri = http::Uri::from_parts(uri).ok()?;
    parts.version = http::Version::HTTP_2;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let name = http::HeaderName::from_bytes(name).ok()?;
        let value = http::HeaderValue::from_bytes(value).ok()?;
        parts.headers.try_append(name, value).ok()?;
    }
    Some(parts)
}

// Bodies.

/// What a decoder has made of its input.
#[derive(Debug, PartialEq)]
struct Body {
    content: Vec<u8>,
    /// What it did not touch.
    left: Vec<u8>,
    is_done: bool,
    trailers: Vec<(String, String)>,
}

/// Decodes a body that comes in pieces. The decoder has its trailers.
fn decode(pieces: &[&[u8]]) -> (Decoder, Result<Body, &'static str>) {
    let mut decoder = Decoder::new(Framing::Delimited);
    let (mut content, mut left) = (Vec::new(), Vec::new());
    for piece in pieces {
        left.extend_from_slice(piece);
        while !decoder.is_done() {
            let progress = match decoder.advance(&left) {
                Ok(progress) => progress,
                Err(why) => return (decoder, Err(why)),
            };
            left.drain(..progress.framing);
            content.extend(left.drain(..progress.data));
            assert_eq!(progress.done, decoder.is_done());
            if progress.framing + progress.data == 0 {
                break;
            }
        }
    }
    let trailers = decoder.trailers();
    let body = Body {
        content,
        left,
        is_done: decoder.is_done(),
        trailers: trailers.map_or_else(Vec::new, |head| fields_of(head, |_| true)),
    };
    (decoder, Ok(body))
}

// Configurations.

fn check_entry_point(entry_point: &svidgate::config::EntryPoint, config: &Config) {
    use svidgate::config::{Scheme, Serves};

    assert!(entry_point.connections_max > 0);
    match &entry_point.serves {
        Serves::Http(entry) => {
            assert!(
                entry
                    .routes
                    .is_sorted_by_key(|route| -i128::from(route.priority))
            );
            for route in &entry.routes {
                let service = &route.service;
                assert!(service.servers.iter().any(|it| it.weight > 0));
                if service.transport.base.is_spiffe() {
                    assert!(config.needs_identity());
                    let is_tls = |it: &svidgate::config::HttpServer| it.scheme == Scheme::Https;
                    assert!(service.servers.iter().all(is_tls), "plaintext");
                }
            }
        }
        Serves::Tcp(service) => {
            assert!(service.servers.iter().any(|it| it.weight > 0));
            if service.transport.base.is_spiffe() {
                assert!(config.needs_identity());
                assert!(service.servers.iter().all(|it| it.tls), "plaintext");
            }
        }
    }
}

// Certificates.

/// An X509-SVID, and who has issued it. The issuer signs with Ed25519: such a
/// signature has one form only, where ECDSA's has two.
const LEAF: &[u8] = include_bytes!("pki/leaf.der");
const AUTHORITY: &[u8] = include_bytes!("pki/ca.der");

/// Not an SVID: it has no keyUsage.
static SERVER: LazyLock<Vec<u8>> =
    LazyLock::new(|| certificate(include_bytes!("../fixtures/pki/server.pem")));

/// Ours is any certificate with its key: nobody looks at who has issued it.
/// Whoever has issued the leaf, and whoever has issued that, is trusted.
static SNAPSHOT: LazyLock<Arc<Snapshot>> = LazyLock::new(|| {
    let key = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("../fixtures/pki/server.key"));
    let authorities = vec![
        AUTHORITY.to_vec(),
        certificate(include_bytes!("../fixtures/pki/ca.pem")),
    ];
    Snapshot::for_tests(
        "spiffe://fixture.test/svidgate",
        vec![SERVER.clone().into()],
        key.unwrap().secret_pkcs8_der().to_vec(),
        vec![("fixture.test", authorities)],
    )
    .unwrap()
});

fn certificate(pem: &[u8]) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem).unwrap().to_vec()
}

fn check_leaf(leaf: &[u8]) {
    for role in [Role::Server, Role::Client] {
        assert_eq!(is_admitted(&[leaf], role), leaf == LEAF, "as a {role:?}");
    }
}

fn is_admitted(chain: &[&[u8]], role: Role) -> bool {
    let chain: Vec<_> = chain.iter().copied().map(CertificateDer::from).collect();
    let algorithms = provider().signature_verification_algorithms;
    // 2030: every certificate here is valid then.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));
    match verify(&chain, role, &SNAPSHOT, &Allowlist::Any, &algorithms, now) {
        Ok(peer) => {
            assert_eq!(peer.id().to_string(), "spiffe://fixture.test/api");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Changes `der` as `recipe` says, four bytes at a time: where (two of them),
/// how, and what with.
fn change(der: &[u8], recipe: &[u8]) -> Vec<u8> {
    let mut der = der.to_vec();
    for &[high, low, how, with] in recipe.as_chunks::<4>().0 {
        let at = usize::from(u16::from_be_bytes([high, low])) % (der.len() + 1);
        let byte = at..der.len().min(at + 1);
        match how % 5 {
            0 => der[byte].iter_mut().for_each(|byte| *byte ^= with),
            1 => der[byte].fill(with),
            2 => der.insert(at, with),
            3 => drop(der.drain(byte)),
            _ => der.truncate(at),
        }
    }
    der
}
