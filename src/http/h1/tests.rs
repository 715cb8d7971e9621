#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic is how it fails"
)]

use super::body::{Decoder, Encoder};
use super::chunked;
use super::parse::{self, Parsed, Scanner, TooLong, skip_empty_lines};
use super::write::HeadWriter;
use crate::http::message::head::{Connection, Head, Limits, Name};
use crate::http::message::request::{self, is_ambiguous_path, is_authority};
use crate::http::message::{Framing, Refusal};

/// Decodes input that arrives in pieces; gives the content, what was left,
/// and whether the body ended.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, bool), &'static str> {
    let mut decoder = chunked::Decoder::default();
    let (mut content, mut held) = (Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let progress = decoder.advance(&held)?;
            held.drain(..progress.framing);
            content.extend(held.drain(..progress.data));
            if progress.framing == 0 && progress.data == 0 || progress.done {
                break;
            }
        }
    }
    Ok((content, held, decoder.is_done()))
}

#[track_caller]
fn check_chunked(input: &str, expected: Result<(&str, &str, bool), &'static str>) {
    let expected = expected
        .map(|(content, left, done)| (content.as_bytes().to_vec(), left.as_bytes().to_vec(), done));
    let input = input.as_bytes();
    assert_eq!(decode(&[input]), expected);
    for cut in 0..=input.len() {
        let (a, b) = input.split_at(cut);
        assert_eq!(decode(&[a, b]), expected, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(decode(&bytes), expected, "byte by byte");
}

#[test]
fn chunks_are_decoded_however_they_come() {
    check_chunked("0\r\n\r\n", Ok(("", "", true)));
    check_chunked("5\r\nhello\r\n0\r\n\r\n", Ok(("hello", "", true)));
    check_chunked(
        "5\r\nhello\r\n00A\r\n and more\n\r\n0\r\n\r\nGET",
        Ok(("hello and more\n", "GET", true)),
    );
    check_chunked(
        "5;a;b=c;d=\"e\\\";\";f = g\r\nhello\r\n0;x\r\n\r\n",
        Ok(("hello", "", true)),
    );
    check_chunked("0\r\nA: b\r\nC: d\r\n\r\nnext", Ok(("", "next", true)));
    check_chunked("5\r\nhel", Ok(("hel", "", false)));
    check_chunked("5\r\nhello\r\n0\r\n", Ok(("hello", "", false)));
    check_chunked("5\r\nhello\r\n0\r\nA: b\r\n", Ok(("hello", "", false)));
}

#[test]
fn chunks_that_could_be_read_in_two_ways_are_refused() {
    for (input, why) in [
        ("\r\nhello", "a chunk has no size"),
        (" 5\r\nhello", "a chunk has no size"),
        ("+5\r\nhello", "a chunk has no size"),
        ("-5\r\nhello", "a chunk has no size"),
        ("0x5\r\nhello", "a chunk size is not hexadecimal"),
        ("0_5\r\nhello", "a chunk size is not hexadecimal"),
        ("5\nhello", "a chunk size is not hexadecimal"),
        ("5 \r\nhello", "a chunk extension is malformed"),
        ("5;\r\nhello", "a chunk extension is malformed"),
        ("5;a=\r\nhello", "a chunk extension is malformed"),
        ("5;a\nhello", "a chunk extension is malformed"),
        ("5;a=\"\n\"\r\nhello", "a chunk extension is malformed"),
        ("5;a\rx", "a chunk size line does not end in CRLF"),
        ("5\rx", "a chunk size line does not end in CRLF"),
        ("8000000000000000\r\n", "a chunk size is too long"),
        ("00000000000000005\r\n", "a chunk size is too long"),
        ("5\r\nhello0\r\n\r\n", "chunk data is not followed by CRLF"),
        (
            "5\r\nhello\n0\r\n\r\n",
            "chunk data is not followed by CRLF",
        ),
        (
            "5\r\nhello\r0\r\n\r\n",
            "chunk data is not followed by CRLF",
        ),
        (
            "0\r\nA: b\n\r\n",
            "the trailers are too large or end a line in a bare LF",
        ),
        ("0\r\nA b\r\n\r\n", "the trailers are malformed"),
        ("0\r\n folded\r\n\r\n", "the trailers are malformed"),
    ] {
        check_chunked(input, Err(why));
    }
    let long = format!("5;{}\r\nhello", "a".repeat(5000));
    assert_eq!(
        decode(&[long.as_bytes()]),
        Err("the chunk extensions are too long")
    );
    let long = format!("0\r\nA: {}\r\n\r\n", "a".repeat(9000));
    assert_eq!(
        decode(&[long.as_bytes()]),
        Err("the trailers are too large or end a line in a bare LF")
    );
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    let mut out = Vec::new();
    for part in [&b"hello"[..], b"", b" ", &[0; 300]] {
        Encoder::Chunked.encode(part, &mut out);
    }
    Encoder::Chunked.finish(None, &mut out);
    let (content, left, done) = decode(&[&out]).unwrap();
    assert_eq!((content.len(), left.len(), done), (306, 0, true));
}

#[test]
fn a_length_counts_down_and_leaves_the_rest() {
    let mut decoder = Decoder::new(Framing::Length(3));
    let progress = decoder.advance(b"ab").unwrap();
    assert_eq!((progress.data, progress.done), (2, false));
    let progress = decoder.advance(b"cde").unwrap();
    assert_eq!((progress.data, progress.done), (1, true));
    assert!(decoder.is_done());
    assert!(Decoder::new(Framing::Empty).is_done());
    assert!(!Decoder::new(Framing::UntilClose).is_done());
}

const LIMITS: Limits = Limits {
    line_max: 40,
    bytes_max: 100,
    fields_max: 3,
};

#[test]
fn the_end_of_a_head_is_found_however_it_comes() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
    for cut in 0..head.len() {
        let mut scanner = Scanner::default();
        let first = scanner.find(&head[..cut], &LIMITS).unwrap();
        let found = match first {
            Some(found) => found,
            None => scanner.find(head, &LIMITS).unwrap().unwrap(),
        };
        assert_eq!(found, head.len() - 4, "cut at {cut}");
    }
    let check = |head: &[u8], expected| {
        assert_eq!(Scanner::default().find(head, &LIMITS), Err(expected));
    };
    check(b"GET / HTTP/1.1\nHost: a\n\n", TooLong::BareLf);
    check(b"\nGET", TooLong::BareLf);
    check(&[b'a'; 41], TooLong::Line);
    check(&[&[b'a'; 41][..], b"\r\n\r\n"].concat(), TooLong::Line);
    check(&[b"a\r\n", &[b'b'; 98][..]].concat(), TooLong::Head);
    check(
        &[b"a\r\n", &[b'b'; 98][..], b"\r\n\r\n"].concat(),
        TooLong::Head,
    );
}

fn parse(text: &str, head: &mut Head) -> Result<request::Request, Refusal> {
    match parse::request(
        text.as_bytes(),
        &mut Scanner::default(),
        &Limits::default(),
        head,
    )? {
        Parsed::Done(request, len) => {
            assert_eq!(len, text.len());
            Ok(request)
        }
        Parsed::Partial => panic!("partial"),
    }
}

#[test]
fn a_request_is_taken_apart() {
    let mut head = Head::default();
    let request = parse(
        "PURGE /a/b?c=d?e HTTP/1.1\r\nhost: a.test:81\r\nConnection: Keep-Alive, x-y,,\r\nContent-Length: 007\r\n\r\n",
        &mut head,
    )
    .unwrap();
    assert_eq!(request.method(&head), b"PURGE");
    assert_eq!(request.target(&head), b"/a/b?c=d?e");
    assert_eq!(request.path(&head), b"/a/b");
    assert_eq!(request.query(&head), Some(&b"c=d?e"[..]));
    assert_eq!(request.authority(&head), b"a.test:81");
    assert_eq!(request.framing, Framing::Length(7));
    assert_eq!(
        request.connection,
        Connection {
            keep_alive: true,
            nominates: true,
            ..Connection::default()
        }
    );
    assert!(request.keeps_alive() && !request.kind.is_idempotent());
    // The same head again takes the next request.
    let request = parse("OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", &mut head).unwrap();
    assert_eq!(
        (request.target(&head), request.path(&head)),
        (&b"*"[..], &b"*"[..])
    );
    assert_eq!(request.query(&head), None);
    assert_eq!(request.framing, Framing::Empty);
}

#[test]
fn an_absolute_target_replaces_host() {
    let mut head = Head::default();
    for (target, host, path) in [
        ("http://b.test/x?y", "b.test", "/x?y"),
        ("HTTPS://b.test:444/", "b.test:444", "/"),
        ("http://b.test", "b.test", "/"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: attacker\r\n\r\n");
        let request = parse(&text, &mut head).unwrap();
        assert_eq!(request.authority(&head), host.as_bytes());
        assert_eq!(request.target(&head), path.as_bytes());
    }
    let request = parse(
        "OPTIONS http://b.test HTTP/1.1\r\nHost: a\r\n\r\n",
        &mut head,
    )
    .unwrap();
    assert_eq!(request.target(&head), b"*");
}

#[test]
fn empty_lines_before_a_request_are_forgiven_a_few_times() {
    let skip = |bytes: &[u8]| skip_empty_lines(bytes, &mut 0);
    assert_eq!(skip(b"GET"), Ok((0, false)));
    assert_eq!(skip(b"\r\n\r\nGET"), Ok((4, false)));
    assert_eq!(skip(b"\r\n\r"), Ok((2, true)));
    assert_eq!(skip(b""), Ok((0, true)));
    assert!(skip(&b"\r\n".repeat(5)).is_err());
    // However they come.
    let mut before = 0;
    for _ in 0..4 {
        assert_eq!(skip_empty_lines(b"\r\n", &mut before), Ok((2, true)));
    }
    assert!(skip_empty_lines(b"\r\n", &mut before).is_err());
}

#[test]
fn known_names_are_known_in_any_case_and_lookalikes_are_told_apart() {
    let check = |name: &str, expected| assert_eq!(Name::of(name.as_bytes()), expected, "{name}");
    check("HOST", Name::Host);
    check("content-Length", Name::ContentLength);
    check("Content_Length", Name::Lookalike);
    check("Transfer_Encoding", Name::Lookalike);
    check("x_forwarded-For", Name::Lookalike);
    check("X-Real-IP", Name::RealIp);
    check("x-forwarded-tls-client-cert-info", Name::ForwardedOther);
    check("x_custom", Name::Other);
    check("Hostt", Name::Other);
    check("", Name::Other);
}

#[test]
fn an_authority_is_a_host_and_perhaps_a_port() {
    for good in [
        "a",
        "a.test",
        "a.test.",
        "a_b-c:80",
        "127.0.0.1:0",
        "[::1]",
        "[2001:db8::1]:443",
    ] {
        assert!(is_authority(good.as_bytes()), "{good}");
    }
    for bad in [
        "",
        ":80",
        "a:",
        "a:b",
        "a:99999",
        "a:80:80",
        "::1",
        "[::1",
        "[::1]x",
        "[1.2.3.4]",
        "a b",
        "a/b",
        "u@a",
        "a,b",
        "ä",
        "a:+80",
    ] {
        assert!(!is_authority(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn paths_with_two_readings_are_seen() {
    for path in ["/a%2Fb", "/%5c"] {
        assert!(is_ambiguous_path(path.as_bytes()), "{path}");
    }
    for path in ["/a/b", "/%20", "/%2e", "/%", "/%2"] {
        assert!(!is_ambiguous_path(path.as_bytes()), "{path}");
    }
}

#[test]
fn a_written_line_has_no_line_end_inside() {
    let mut out = Vec::new();
    let mut writer = HeadWriter::response(&mut out, 200, b"O\r\nK");
    writer.field("X-A", b"a\r\nInjected: b\0c");
    writer.number("X-N", 7);
    writer.end();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 O  K\r\nX-A: a  Injected: b c\r\nX-N: 7\r\n\r\n"
    );
}

/// Any bytes at all: a verdict, never a panic, never more than there was.
#[test]
fn mutated_messages_get_a_verdict() {
    let valid: [&[u8]; 4] = [
        b"POST /a/b?c=d HTTP/1.1\r\nHost: a.test:81\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nT: x\r\n\r\n",
        b"GET http://[::1]:80/ HTTP/1.0\r\nHost: b\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: \xff\xfe\r\n\r\nhello",
        b"HTTP/1.0 304\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut head = Head::default();
    let limits = Limits::default();
    let (mut taken, mut refused) = (0, 0);
    for round in 0..40_000 {
        let mut bytes = valid[round % valid.len()].to_vec();
        for _ in 0..random.usize(0..6) {
            let at = random.usize(0..bytes.len());
            match random.u8(0..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.truncate(at + 1),
                2 => bytes.insert(at, *random.choice(b"\r\n\0 :;,%/.\x80").unwrap()),
                _ => {
                    let from = random.usize(0..bytes.len());
                    let piece = bytes[from..].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let framing = if round % 4 < 2 {
            match parse::request(&bytes, &mut Scanner::default(), &limits, &mut head) {
                Ok(Parsed::Done(request, len)) => Some((request.framing, len)),
                Ok(Parsed::Partial) => None,
                Err(refusal) => {
                    assert!((400..=505).contains(&refusal.status));
                    refused += 1;
                    None
                }
            }
        } else {
            let to = request::Method::Safe;
            match parse::response(&bytes, &mut Scanner::default(), &limits, &mut head, to) {
                Ok(Some((response, len))) => Some((response.framing, len)),
                Ok(None) => None,
                Err(_) => {
                    refused += 1;
                    None
                }
            }
        };
        let Some((framing, len)) = framing else {
            continue;
        };
        taken += 1;
        let mut decoder = Decoder::new(framing);
        let mut rest = &bytes[len..];
        while let Ok(progress) = decoder.advance(rest) {
            rest = &rest[progress.framing + progress.data..];
            if progress.done || progress.framing + progress.data == 0 {
                break;
            }
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "{taken} {refused}");
}
