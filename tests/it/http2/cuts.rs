//! The two-sided rule for HTTP/2: frames cut anywhere are the same frames, and
//! a conversation that ends early is never completed.

use super::*;
use crate::support::proxy::read_to_end;

crate::on_both!(
    a_request_cut_anywhere_is_the_same,
    a_request_that_ends_anywhere_is_never_completed,
    a_response_cut_anywhere_is_the_same,
    a_response_that_ends_anywhere_is_never_completed,
);

/// Bytes in place of a socket.
#[derive(Default)]
struct Written(Vec<u8>);

impl Read for Written {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// All that a client says for one request with content and trailers.
fn request() -> Vec<u8> {
    let mut frames = Frames(Written(h2::PREFACE.to_vec()));
    frames.send(h2::SETTINGS, 0, 0, &[]);
    frames.head(1, &h2::request("POST", "/a"), false);
    frames.send(h2::DATA, 0, 1, b"ab");
    frames.send(h2::DATA, 0, 1, b"cd");
    frames.head(1, &[("x-sum", "9")], true);
    frames.0.0
}

/// All that a backend says to one.
fn response() -> Vec<u8> {
    let mut frames = Frames(Written::default());
    frames.send(h2::SETTINGS, 0, 0, &[]);
    frames.head(1, &[(":status", "103"), ("link", "</a>")], false);
    frames.head(
        1,
        &[
            (":status", "200"),
            ("date", "Wed, 25 Nov 2026 00:00:00 GMT"),
        ],
        false,
    );
    frames.send(h2::DATA, 0, 1, b"ok");
    frames.head(1, &[("x-sum", "9")], true);
    frames.0.0
}

/// An HTTP/1.1 backend that tells what it gets, and answers what is whole.
fn backend() -> (Backend, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let backend = Backend::plain(move |wire| {
        while let Some(head) = read_head(wire) {
            let (mut got, mut byte) = (Vec::new(), [0]);
            while !got.ends_with(b"\r\n\r\n") && wire.read(&mut byte).is_ok_and(|n| n > 0) {
                got.push(byte[0]);
            }
            let is_whole = got.ends_with(b"\r\n\r\n");
            let got = String::from_utf8(got).unwrap();
            log.lock().unwrap().push(format!("{head}{got}"));
            if is_whole {
                drop(wire.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"));
            }
        }
    });
    (backend, seen)
}

/// The content of chunks, however it fell into them.
fn content(seen: &str) -> String {
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let body = body.replace("2\r\nab\r\n2\r\ncd\r\n", "4\r\nabcd\r\n");
    format!("{head}\r\n\r\n{body}")
}

fn a_request_cut_anywhere_is_the_same(on: On) {
    let (backend, seen) = backend();
    let proxy = plain_http(on, &backend, "");
    let request = request();
    let run = |pieces: &[&[u8]]| {
        let mut client = Frames(proxy.connect("web"));
        for piece in pieces {
            client.0.write_all(piece).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(client.end_of(1), Some(Ok(())));
        content(&seen.lock().unwrap().pop().unwrap())
    };
    let whole = run(&[&request]);
    assert!(
        whole.ends_with("\r\n\r\n4\r\nabcd\r\n0\r\nx-sum: 9\r\n\r\n"),
        "{whole}"
    );
    for cut in 1..request.len() {
        let (a, b) = request.split_at(cut);
        assert_eq!(run(&[a, b]), whole, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = request.chunks(1).collect();
    assert_eq!(run(&bytes), whole, "byte by byte");
}

fn a_request_that_ends_anywhere_is_never_completed(on: On) {
    let (backend, seen) = backend();
    let proxy = plain_http(on, &backend, "");
    let request = request();
    for end in 0..request.len() {
        let mut client = proxy.connect("web");
        client.write_all(&request[..end]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        drop(client.read_to_end(&mut Vec::new()));
        let seen = seen.lock().unwrap();
        let is_whole = |it: &String| it.split_once("\r\n\r\n").unwrap().1.ends_with("\r\n\r\n");
        assert!(!seen.iter().any(is_whole), "{end}: {seen:?}");
    }
}

/// A backend that says these pieces to whoever asks, and perhaps closes.
fn speaking(pieces: &Arc<Mutex<Vec<Vec<u8>>>>, closes: bool) -> Backend {
    let pieces = Arc::clone(pieces);
    Backend::plain(move |wire| {
        let mut preface = [0; 24];
        if wire.read_exact(&mut preface).is_err() {
            return;
        }
        let mut frames = Frames(wire);
        if frames.find(|it| it.kind == h2::HEADERS).is_none() {
            return;
        }
        for piece in pieces.lock().unwrap().iter() {
            drop(frames.0.write_all(piece));
            std::thread::yield_now();
        }
        if closes {
            frames.0.finish();
        }
        frames.find(|_| false);
    })
}

const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n";

fn a_response_cut_anywhere_is_the_same(on: On) {
    let pieces = Arc::new(Mutex::new(Vec::new()));
    let response = response();
    let run = |cut: Vec<&[u8]>| {
        *pieces.lock().unwrap() = cut.iter().map(|it| it.to_vec()).collect();
        // A connection of its own for each.
        let backend = speaking(&pieces, false);
        let proxy = h2c(on, backend.address, "");
        let mut client = proxy.connect("web");
        client.write_all(ASK).unwrap();
        read_to_end(&mut client)
    };
    let whole = run(vec![&response]);
    assert_eq!(
        whole,
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2026 00:00:00 GMT\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\nx-sum: 9\r\n\r\n"
    );
    for cut in 1..response.len() {
        let (a, b) = response.split_at(cut);
        assert_eq!(run(vec![a, b]), whole, "cut at {cut}");
    }
    assert_eq!(run(response.chunks(1).collect()), whole, "byte by byte");
}

fn a_response_that_ends_anywhere_is_never_completed(on: On) {
    let pieces = Arc::new(Mutex::new(Vec::new()));
    let backend = speaking(&pieces, true);
    let proxy = h2c(on, backend.address, "");
    let response = response();
    for end in 0..response.len() {
        *pieces.lock().unwrap() = vec![response[..end].to_vec()];
        let mut client = proxy.connect("web");
        client.write_all(ASK).unwrap();
        let answer = read_to_end(&mut client);
        let is_refused = answer.contains("HTTP/1.1 502 Bad Gateway\r\n");
        assert!(is_refused || answer.ends_with("<reset>"), "{end}: {answer}");
        assert!(!answer.contains("x-sum: 9"), "{end}: {answer}");
    }
}
