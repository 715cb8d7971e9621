//! Raw messages of public suites, through a running proxy. What they are, and
//! whose, stands in `fixtures/README.md`; what we make of each, here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::backend::{Backend, Wire, read_head};
use crate::support::proxy::{On, Running};
use crate::world::plain_http;

const HTTP11PROBE: &str = include_str!("../../fixtures/vectors/http11probe.json");
const LLHTTP_REQUESTS: &str = include_str!("../../fixtures/vectors/llhttp-requests.json");
const LLHTTP_RESPONSES: &str = include_str!("../../fixtures/vectors/llhttp-responses.json");
const SMUGGLER: &str = include_str!("../../fixtures/vectors/smuggler-default.json");

/// One message.
struct Case {
    /// Of a repeated one, with its number.
    id: String,
    /// In the words of Http11Probe; of others it is empty.
    level: String,
    expect: String,
    valid: Option<bool>,
    raw: Vec<u8>,
}

fn cases(file: &str) -> Vec<Case> {
    let file: Value = serde_json::from_str(file).unwrap();
    let mut seen = BTreeMap::new();
    let cases = file["cases"].as_array().unwrap().iter().map(|case| {
        let text = |key: &str| case[key].as_str().unwrap_or_default().to_owned();
        let id = text("id");
        let nth = seen.entry(id.clone()).or_insert(0);
        *nth += 1;
        Case {
            id: if *nth == 1 {
                id
            } else {
                format!("{id} #{nth}")
            },
            level: text("level"),
            expect: text("expect"),
            valid: case["valid"].as_bool(),
            raw: meant(base64(&text("raw"))),
        }
    });
    cases.collect()
}

/// Two of Http11Probe's messages are in the file as its pages show them, and
/// not as they are sent.
fn meant(raw: Vec<u8>) -> Vec<u8> {
    if raw.starts_with(b"(zero bytes") {
        return Vec::new();
    }
    const SHOWN: &[u8] = b"[TAB]";
    let shown_at = raw.windows(SHOWN.len()).position(|part| part == SHOWN);
    match shown_at {
        Some(at) => [&raw[..at], b"\t", &raw[at + SHOWN.len()..]].concat(),
        None => raw,
    }
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0u32, 0u32, Vec::new());
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = DIGITS.iter().position(|it| *it == digit).unwrap();
        held = (held << 6) | u32::try_from(value).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((held >> bits) & 0xff).unwrap());
        }
    }
    bytes
}

/// What the backend got: one entry per request, its head and its body.
type Seen = Arc<Mutex<Vec<String>>>;

/// An origin that reads strictly what framing says, and shows what it got.
fn origin() -> (Backend, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        while let Some(head) = read_head(wire) {
            let Some(body) = read_body(wire, &head) else {
                return;
            };
            log.lock().unwrap().push(format!("{head}{body}"));
            let shown = format!("{head}{body}");
            let status = if head.starts_with("DELETE ") {
                "405 Method Not Allowed"
            } else {
                "200 OK"
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nAllow: GET\r\nContent-Length: {}\r\n\r\n",
                shown.len()
            );
            let shown = if head.starts_with("HEAD ") {
                ""
            } else {
                &shown
            };
            if wire
                .write_all(format!("{answer}{shown}").as_bytes())
                .is_err()
            {
                return;
            }
        }
    });
    (backend, seen)
}

fn value_of<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn read_body(wire: &mut dyn Wire, head: &str) -> Option<String> {
    let mut body = Vec::new();
    if value_of(head, "Transfer-Encoding").is_some() {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                let mut byte = [0];
                wire.read_exact(&mut byte).ok()?;
                line.push(byte[0]);
            }
            let line = String::from_utf8(line).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            if size == 0 {
                // Trailers, up to the empty line.
                let mut rest = b"\r\n".to_vec();
                while !rest.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    wire.read_exact(&mut byte).ok()?;
                    rest.push(byte[0]);
                }
                break;
            }
            let at = body.len();
            body.resize(at + size, 0);
            wire.read_exact(&mut body[at..]).ok()?;
            wire.read_exact(&mut [0; 2]).ok()?;
        }
    } else if let Some(length) = value_of(head, "Content-Length") {
        body.resize(length.parse().unwrap(), 0);
        wire.read_exact(&mut body).ok()?;
    }
    Some(String::from_utf8_lossy(&body).into_owned())
}

/// All that came back for a message, after which the client said no more.
fn send(proxy: &Running, raw: &[u8]) -> String {
    let mut client = proxy.connect("web");
    // Refused before all of it is sent, it may be closed already.
    drop(client.write_all(raw));
    drop(client.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    // A connection that stays open must not pass for one that was closed.
    if let Err(error) = client.read_to_end(&mut answer) {
        let is_reset = error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(is_reset, "{error}: {}", raw.escape_ascii());
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of the first answer; 0: there is none.
fn status_of(answer: &str) -> u16 {
    let digits = answer.strip_prefix("HTTP/1.1 ").and_then(|it| it.get(..3));
    digits.map_or(0, |digits| digits.parse().unwrap())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// As the suite wants it.
    Pass,
    /// Allowed, and not what it would rather see.
    Warn,
    Fail,
}

/// Judges by the suite's own words. 2 stands for 2xx, 0 for a connection that
/// is closed without an answer.
fn judge(expect: &str, answer: &str) -> Verdict {
    use Verdict::{Fail, Pass, Warn};
    let status = status_of(answer);
    let class = if (200..300).contains(&status) {
        2
    } else {
        status
    };
    let has = |text: &str| answer.contains(text);
    let closes = class == 0 || has("\r\nConnection: close\r\n");
    let one_of = |good: &[u16], meh: &[u16]| {
        if good.contains(&class) {
            Pass
        } else if meh.contains(&class) {
            Warn
        } else {
            Fail
        }
    };
    let when = |good: bool| if good { Pass } else { Fail };
    match expect {
        "2xx" | "2xx (no crash)" | "2xx (Range ignored)" => one_of(&[2], &[]),
        "2xx or close" => one_of(&[2, 0], &[]),
        "2xx or 400" | "400 or 2xx" => one_of(&[2, 400], &[]),
        "415 or 2xx" => one_of(&[415, 2], &[]),
        "2xx (ignore) or 416" => one_of(&[416, 2], &[]),
        "400" => one_of(&[400], &[]),
        "400 or close" | "400 or connection close" | "400, or connection close" => {
            one_of(&[400, 0], &[])
        }
        "400, close, or timeout" | "400/close/timeout" => one_of(&[400, 0], &[]),
        "400/505, close, or timeout" | "400, 505, or close" => one_of(&[400, 505, 0], &[]),
        "400/501 or close" => one_of(&[400, 501, 0], &[]),
        "400, 405, 501, or close" => one_of(&[400, 405, 501, 0], &[]),
        "501, 405, or 400" => one_of(&[501, 405, 400], &[]),
        "400/405/501 or 2xx" => one_of(&[400, 405, 501, 2], &[]),
        "400 or close preferred; 2xx acceptable" => one_of(&[400, 0], &[2]),
        "400 preferred, 2xx acceptable" | "400 preferred; 2xx is a warning" => one_of(&[400], &[2]),
        "400 = Pass; 2xx = Warn" | "400 or close (pass), 2xx (warn)" => one_of(&[400, 0], &[2]),
        "400 = Pass, 2xx/404 = Warn" => one_of(&[400], &[2, 404]),
        "400/405 = Pass, 200 = Warn" => one_of(&[400, 405], &[2]),
        "2xx = Pass, 400 = Warn" | "2xx = Pass, 400 = Warn (unscored)" => one_of(&[2], &[400]),
        "200 = Warn, 400 = Pass" => one_of(&[400], &[2]),
        "200 or 505 = Warn" => one_of(&[2, 505], &[]),
        "406 preferred, 2xx acceptable" => one_of(&[406], &[2]),
        "405 or 501 preferred; 200 is a warning" => one_of(&[405, 501], &[2]),
        "417; 2xx is a warning" => one_of(&[417], &[2]),
        "426 or non-101" | "any non-101 response" | "Not 101" => when(status != 101),
        "Non-1xx response" => when(status >= 200),
        "204 without Content-Length" => when(status != 204 || !has("\r\nContent-Length:")),
        "405 with Allow header" => when(status == 405 && has("\r\nAllow: ")),
        "2xx with Allow header" => when(class == 2 && has("\r\nAllow: ")),
        "2xx with Content-Type header" => when(class == 2 && has("\r\nContent-Type: ")),
        "2xx with Date header" => when(class == 2 && has("\r\nDate: ")),
        "2xx with no body" => when(class == 2 && answer.ends_with("\r\n\r\n")),
        "2xx + connection closed" => when(class == 2 && closes),
        "400 or 2xx + close" | "400, or 2xx with connection close" => {
            when(status == 400 || class == 2 && closes)
        }
        "400/501, or 2xx with connection close" => {
            when(matches!(status, 400 | 501) || class == 2 && closes)
        }
        "2xx with Cookie in body" => when(class == 2 && has("\r\nCookie: foo=bar\r\n")),
        "2xx with foo=bar in body" => when(class == 2 && has("foo=bar")),
        "2xx with both cookies" => when(class == 2 && has("a=1") && has("b=2")),
        "2xx with a=1, b=2, c=3 in body" => when(class == 2 && has("a=1; b=2; c=3")),
        "400 (rejected) or 2xx without NUL" => when(status == 400 || !has("\0")),
        "400 (rejected) or 2xx without control chars" => when(status == 400 || !has("\u{1}")),
        "Sensitive headers excluded from echo" => when(!has("secret") && !has("Bearer")),
        // What the origin got of the field is shown in the answer.
        "Reject/drop (pass), normalize (fail), preserve (warn)"
        | "Reject/drop (pass), normalize casing (fail), preserve (warn)" => {
            let kept = has("Content_Length") || has("Transfer_Encoding");
            when(class != 2 || !kept)
        }
        // One answer at most may follow: the rest must not become a request
        // that its sender did not frame as one.
        "400/close/pass-through; poisoned follow-up = warn"
        | "400/close preferred; poisoned follow-up = warn"
        | "400/close preferred; extra response on step 2 = warn"
        | "417/400/close preferred; poisoned follow-up = warn" => {
            if matches!(class, 400 | 417 | 0) {
                Pass
            } else if class == 2 {
                Warn
            } else {
                Fail
            }
        }
        other => panic!("no rule for \"{other}\""),
    }
}

/// Where we do not do what Http11Probe would rather see, and why.
const PROBE_DEVIATIONS: &[(&str, &str)] = &[
    (
        "COMP-ACCEPT-NONSENSE",
        "what a client accepts is the origin's to read",
    ),
    (
        "COMP-DUPLICATE-CT",
        "what content is, is the origin's to read",
    ),
    (
        "COMP-GET-WITH-CL-BODY",
        "content of a GET is framed, and passed on so (RFC 9110, 9.3.1)",
    ),
    ("COMP-HTTP10-NO-HOST", "HTTP/1.0 may leave Host out"),
    (
        "COMP-UNKNOWN-METHOD",
        "methods that are not known are passed on (RFC 9110, 9.1); a router can refuse them",
    ),
    (
        "MAL-CL-TAB-BEFORE-VALUE",
        "a tab is white space (RFC 9110, 5.5)",
    ),
    (
        "SMUG-CL0-BODY-POISON",
        "what follows is read as the next request, and refused",
    ),
    (
        "SMUG-EXPECT-100-CL-DESYNC",
        "the content is framed; what follows is the next request",
    ),
    (
        "SMUG-GET-CL-BODY-DESYNC",
        "the content is framed; what follows is the next request",
    ),
    (
        "SMUG-GET-CL-PREFIX-DESYNC",
        "the content is framed, and content alone",
    ),
    (
        "SMUG-OPTIONS-CL-BODY-DESYNC",
        "the content is framed; what follows is the next request",
    ),
];

#[test]
fn http11probe_is_answered_as_it_wants_but_for_what_we_agreed_on() {
    let (backend, _seen) = origin();
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut odd = BTreeMap::new();
    let mut passed = 0;
    let cases = cases(HTTP11PROBE);
    assert_eq!(cases.len(), 187);
    for case in &cases {
        let answer = send(&proxy, &case.raw);
        match judge(&case.expect, &answer) {
            Verdict::Pass => passed += 1,
            verdict => {
                let status = status_of(&answer);
                // What must be refused is, and what must be taken is.
                assert!(
                    verdict == Verdict::Warn || !case.level.contains("MUST"),
                    "{}: {status}, wanted {}",
                    case.id,
                    case.expect
                );
                let what = format!("{verdict:?}: {status}, wanted {}", case.expect);
                odd.insert(case.id.clone(), what);
            }
        }
    }
    let agreed: BTreeSet<String> = PROBE_DEVIATIONS
        .iter()
        .map(|(id, _)| (*id).to_owned())
        .collect();
    let seen: BTreeSet<String> = odd.keys().cloned().collect();
    assert_eq!(seen, agreed, "{passed} passed\n{odd:#?}");
    assert!(passed >= 175, "{passed}");
}

/// Valid in the eyes of a parser of messages, and refused by a proxy; or the
/// other way round.
const LLHTTP_REQUEST_DEVIATIONS: &[(&str, &str)] = &[
    (
        "llhttp/connection/No restart when keep-alive is off (1.0)",
        "the first is answered, what follows a close is not read",
    ),
    (
        "llhttp/connection/Resetting flags when keep-alive is off (1.0, lenient)",
        "the first is answered, what follows a close is not read",
    ),
    (
        "llhttp/connection/Restarting when keep-alive is explicitly",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/connection/Setting flag",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/connection/Setting flag on `close`",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/connection/Setting flag on `close` followed by tab",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/connection/Upgrade GET request",
        "no 101, no tunnel: the origin answered",
    ),
    (
        "llhttp/connection/Upgrade POST request",
        "no 101, no tunnel: the origin answered",
    ),
    (
        "llhttp/content-length/Content-Length reset when no body is received",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/content-length/Spaces in `Content-Length` (surrounding)",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/content-length/Tabs in `Content-Length` (surrounding)",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/content-length/`Content-Length` with follow-up headers",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/content-length/`Content-Length` with zeroes",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/invalid/HTTP protocol and ANNOUNCE method",
        "methods that are not known are passed on",
    ),
    (
        "llhttp/method/ANNOUNCE request with RTSP",
        "another protocol",
    ),
    (
        "llhttp/method/M-SEARCH request",
        "an asterisk with another method than OPTIONS",
    ),
    (
        "llhttp/method/OPTIONS request with RTSP",
        "another protocol",
    ),
    (
        "llhttp/method/REPORT request",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    ("llhttp/method/SOURCE request with ICE", "another protocol"),
    (
        "llhttp/pausing/on_chunk_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_chunk_extension_name",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_chunk_extension_value",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_chunk_header",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_header_field_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_header_value_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_headers_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_message_begin",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_message_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_method_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_protocol_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_url_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pausing/on_version_complete",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/pipelining/Should parse multiple events",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/255 ASCII in header value",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/DUMBPACK",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/Extended Characters",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    ("llhttp/sample/Firefox GET", "an equals sign in Host"),
    ("llhttp/sample/No HTTP version", "HTTP/0.9"),
    (
        "llhttp/sample/No headers and no body",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/One header and no body",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/Prefix newline",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/Request starting with CRLF",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/Request with method starting with `H`",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/sample/Simple request",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    ("llhttp/sample/curl GET", "an equals sign in Host"),
    (
        "llhttp/transfer-encoding/Chunk extensions",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/Chunk extensions quoting",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/POST with `Transfer-Encoding: chunked`",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/POST with `chunked` as last transfer-encoding",
        "a fragment in the target",
    ),
    (
        "llhttp/transfer-encoding/POST with `chunked` as last transfer-encoding (multiple headers)",
        "a fragment in the target",
    ),
    (
        "llhttp/transfer-encoding/Parse chunks with lowercase size",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/Parse chunks with uppercase size",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/Parsing and setting flag",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/Trailing headers",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/transfer-encoding/Two chunks and triple zero prefixed end chunk",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    ("llhttp/uri/Fragment in URI", "a fragment in the target"),
    (
        "llhttp/uri/Host terminated by a query string",
        "a query without a path",
    ),
    (
        "llhttp/uri/Query URL with question mark",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/uri/Query URL with vertical bar character",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
    (
        "llhttp/uri/Quotes in URI",
        "quotes and backslashes in a path",
    ),
    (
        "llhttp/uri/`host:port` and basic auth",
        "a user in the target",
    ),
    (
        "llhttp/uri/`host:port` terminated by a query string",
        "a query without a path",
    ),
    (
        "llhttp/uri/`host:port` terminated by a space",
        "HTTP/1.1 without Host (RFC 9112, 3.2)",
    ),
];

#[test]
fn llhttp_requests_are_taken_or_refused_but_for_what_we_agreed_on() {
    let (backend, _seen) = origin();
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut odd = BTreeMap::new();
    for case in &cases(LLHTTP_REQUESTS) {
        let answer = send(&proxy, &case.raw);
        let status = status_of(&answer);
        // Each of several requests in it counts: one that is refused is told.
        let all_taken = !answer.contains("HTTP/1.1 4") && !answer.contains("HTTP/1.1 5");
        let is_taken = status == 200 && all_taken;
        if is_taken != case.valid.unwrap() {
            odd.insert(
                case.id.clone(),
                format!("{status}: {}", case.raw.escape_ascii()),
            );
        }
    }
    let agreed: BTreeSet<String> = LLHTTP_REQUEST_DEVIATIONS
        .iter()
        .map(|(id, _)| (*id).to_owned())
        .collect();
    let seen: BTreeSet<String> = odd.keys().cloned().collect();
    assert_eq!(seen, agreed, "{odd:#?}");
}

/// The same of responses.
const LLHTTP_RESPONSE_DEVIATIONS: &[(&str, &str)] = &[
    (
        "llhttp/connection/HTTP 103 first, then 200",
        "it ends before its content does",
    ),
    (
        "llhttp/connection/HTTP/1.1 with keep-alive disabled and 204 status",
        "what follows the response is not passed on",
    ),
    (
        "llhttp/connection/HTTP/1.1 with keep-alive disabled and 204 status (lenient)",
        "what follows the response is not passed on",
    ),
    (
        "llhttp/connection/HTTP/1.1 with keep-alive disabled, content-length",
        "what follows the response is not passed on",
    ),
    (
        "llhttp/connection/HTTP/1.1 with keep-alive disabled, content-length (lenient)",
        "what follows the response is not passed on",
    ),
    (
        "llhttp/content-length/Content-Length reset when no body is received",
        "it ends before its content does",
    ),
    (
        "llhttp/content-length/Tabs in `Content-Length` (surrounding)",
        "it ends before its content does",
    ),
    (
        "llhttp/finish/It should be safe to finish with cb after empty response",
        "a callback of that parser fails, not the message",
    ),
    ("llhttp/sample/HTTP version 0.9", "HTTP/0.9"),
    ("llhttp/sample/ICE response", "another protocol"),
    ("llhttp/sample/RTSP response", "another protocol"),
    (
        "llhttp/sample/Response starting with CRLF",
        "an empty line before a status line",
    ),
    (
        "llhttp/transfer-encoding/Chunk extensions quoting",
        "it ends before its trailers do",
    ),
    (
        "llhttp/transfer-encoding/`chunked` before other transfer-encoding",
        "a coding that is not chunked alone",
    ),
    (
        "llhttp/transfer-encoding/`chunkedchunked` transfer-encoding does not enable chunked enconding",
        "a coding that is not chunked alone",
    ),
    (
        "llhttp/transfer-encoding/multiple transfer-encoding where chunked is not the last one",
        "two lines of codings",
    ),
];

#[test]
fn llhttp_responses_are_passed_on_or_refused_but_for_what_we_agreed_on() {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::clone(&answers);
    let backend = Backend::plain(move |wire| {
        if read_head(wire).is_some() {
            let answer: Vec<u8> = next.lock().unwrap().clone();
            drop(wire.write_all(&answer));
            wire.finish();
            drop(wire.read(&mut [0]));
        }
    });
    let proxy = plain_http(On::Epoll, &backend, "");
    let mut odd = BTreeMap::new();
    for case in &cases(LLHTTP_RESPONSES) {
        *answers.lock().unwrap() = case.raw.clone();
        let mut client = proxy.connect("web");
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let answer = crate::support::proxy::read_to_end(&mut client);
        let status = status_of(&answer);
        let is_taken = status != 502 && status != 0 && !answer.ends_with("<reset>");
        if is_taken != case.valid.unwrap() {
            odd.insert(
                case.id.clone(),
                format!("{status}: {}", case.raw.escape_ascii()),
            );
        }
    }
    let agreed: BTreeSet<String> = LLHTTP_RESPONSE_DEVIATIONS
        .iter()
        .map(|(id, _)| (*id).to_owned())
        .collect();
    let seen: BTreeSet<String> = odd.keys().cloned().collect();
    assert_eq!(seen, agreed, "{odd:#?}");
}

/// Each is a request whose `Transfer-Encoding` some parser misses: either it is
/// refused, or the backend gets one request, framed in one way.
#[test]
fn no_hidden_transfer_encoding_reaches_a_backend() {
    let (backend, seen) = origin();
    let proxy = plain_http(On::Epoll, &backend, "");
    let (mut refused, mut taken) = (0, Vec::new());
    for case in &cases(SMUGGLER) {
        // What would be smuggled, if the framing is read in another way.
        let mut raw = case.raw.clone();
        raw.extend(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = send(&proxy, &raw);
        let got: Vec<String> = std::mem::take(&mut *seen.lock().unwrap());
        if (400..=501).contains(&status_of(&answer)) {
            refused += 1;
            assert!(got.is_empty(), "{}: {got:?}", case.id);
            continue;
        }
        for request in &got {
            let (head, _) = request.split_once("\r\n\r\n").unwrap();
            let head = head.to_ascii_lowercase();
            let framings = head.matches("\r\ncontent-length:").count()
                + head.matches("\r\ntransfer-encoding:").count();
            assert!(framings <= 1, "{}: {request}", case.id);
            // Names that are nearly it are not passed on either.
            assert!(
                !head.contains("transfer_encoding"),
                "{}: {request}",
                case.id
            );
        }
        // As framed: the message with its own content, and the one behind it,
        // which was sent as a request of its own.
        assert_eq!(got.len(), 2, "{}: {got:?}", case.id);
        let (_, content) = raw.split_at(end_of_head(&raw));
        let (_, body) = got[0].split_once("\r\n\r\n").unwrap();
        assert!(content.starts_with(body.as_bytes()), "{}: {got:?}", case.id);
        assert_eq!(body.len(), 40, "{}: {got:?}", case.id);
        assert!(
            got[1].starts_with("GET /smuggled HTTP/1.1\r\nHost: a\r\n"),
            "{}: {got:?}",
            case.id
        );
        taken.push(case.id.clone());
    }
    // In these the name is within a value, behind white space or text.
    let harmless = ["09", "20", "a0", "ff"].map(|it| format!("smuggler-default/xprespace-{it}"));
    assert_eq!((refused, taken), (130, harmless.to_vec()));
}

/// Where the content of a message begins.
fn end_of_head(raw: &[u8]) -> usize {
    let end = b"\r\n\r\n";
    raw.windows(end.len()).position(|part| part == end).unwrap() + end.len()
}
