//! The two-sided rule: however the bytes of a conversation are cut, both wires
//! carry the same; and a conversation that ends early is never completed.

use super::*;

crate::on_both!(
    a_conversation_cut_anywhere_on_either_side_is_the_same,
    a_request_that_ends_anywhere_is_never_completed,
    a_response_that_ends_anywhere_is_never_completed,
);

/// A request and its response, with the marks of a whole message on each wire.
struct Conversation {
    request: &'static str,
    response: &'static str,
    /// What the backend reads last of a whole request.
    request_end: &'static str,
    /// What the client reads last of a whole response.
    response_end: &'static str,
}

const CONVERSATIONS: &[Conversation] = &[
    Conversation {
        request: "GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: x\r\n\r\n",
        response: "HTTP/1.1 200 OK\r\nDate: Wed, 25 Nov 2026 00:00:00 GMT\r\nContent-Length: 5\r\nETag: \"e\"\r\n\r\nhello",
        request_end: "\r\n\r\n",
        response_end: "\r\n\r\nhello",
    },
    Conversation {
        request: "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
        response: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\nDate: Wed, 25 Nov 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        request_end: "\r\n\r\nbody",
        response_end: "Content-Length: 0\r\n\r\n",
    },
    Conversation {
        request: "POST /a HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n3;e=\"x\"\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n",
        response: "HTTP/1.1 200 OK\r\nDate: Wed, 25 Nov 2026 00:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nSum: 9\r\n\r\n",
        request_end: "\r\n0\r\nT: 1\r\n\r\n",
        response_end: "\r\n0\r\nSum: 9\r\n\r\n",
    },
];

/// Content, whatever chunks it came in: how it falls into them is not part of
/// the message.
fn joined(wire: &str) -> String {
    let Some((head, mut rest)) = wire.rsplit_once("\r\nTransfer-Encoding: chunked\r\n") else {
        return wire.to_owned();
    };
    let mut content = String::new();
    let fields = if rest.starts_with("\r\n") {
        ""
    } else {
        rest.split_once("\r\n\r\n").map_or("", |(fields, _)| fields)
    };
    rest = rest[fields.len()..].trim_start_matches("\r\n");
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else {
            break;
        };
        if size == 0 {
            rest = after;
            break;
        }
        let Some((data, after)) = after.split_at_checked(size) else {
            break;
        };
        content.push_str(data);
        rest = after.strip_prefix("\r\n").unwrap_or(after);
    }
    format!("{head} {fields} [{content}] {rest}")
}

/// What both wires carried: what the backend read, what the client read.
type Wires = (String, String);

/// One backend for all cuts: what it is to say, and what it read.
struct Stage {
    backend: Backend,
    pieces: Arc<Mutex<Vec<Vec<u8>>>>,
    read: Arc<Mutex<Vec<String>>>,
}

/// A backend that answers each whole request in these pieces. `closes`: and
/// then says that it is done.
fn stage(request_end: &'static str, closes: bool) -> Stage {
    let pieces = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let read = Arc::new(Mutex::new(Vec::new()));
    let (saying, log) = (Arc::clone(&pieces), Arc::clone(&read));
    let backend = Backend::plain(move |wire| {
        loop {
            let mut got = Vec::new();
            let mut buf = [0; 4096];
            while !got.ends_with(request_end.as_bytes()) {
                match wire.read(&mut buf) {
                    Ok(n) if n > 0 => got.extend_from_slice(&buf[..n]),
                    _ => break,
                }
            }
            let is_whole = got.ends_with(request_end.as_bytes());
            if !got.is_empty() {
                log.lock().unwrap().push(String::from_utf8(got).unwrap());
            }
            if !is_whole {
                return;
            }
            for piece in saying.lock().unwrap().iter() {
                drop(wire.write_all(piece));
                std::thread::yield_now();
            }
            if closes {
                wire.finish();
                drop(wire.read(&mut [0]));
                return;
            }
        }
    });
    Stage {
        backend,
        pieces,
        read,
    }
}

impl Stage {
    fn run(&self, proxy: &Running, request: &[&[u8]], response: &[&[u8]]) -> Wires {
        *self.pieces.lock().unwrap() = response.iter().map(|it| it.to_vec()).collect();
        let mut client = proxy.connect("web");
        for piece in request {
            client.write_all(piece).unwrap();
            std::thread::yield_now();
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let got = read_to_end(&mut client);
        let read = self.read.lock().unwrap().pop().unwrap_or_default();
        (joined(&read), joined(&got))
    }
}

fn a_conversation_cut_anywhere_on_either_side_is_the_same(on: On) {
    for it in CONVERSATIONS {
        let stage = stage(it.request_end, false);
        let proxy = plain_http(on, &stage.backend, "");
        let (request, response) = (it.request.as_bytes(), it.response.as_bytes());
        let whole = stage.run(&proxy, &[request], &[response]);
        assert!(whole.1.starts_with("HTTP/1.1 "), "{whole:?}");
        for cut in 1..request.len() {
            let (a, b) = request.split_at(cut);
            assert_eq!(
                stage.run(&proxy, &[a, b], &[response]),
                whole,
                "request cut at {cut}"
            );
        }
        for cut in 1..response.len() {
            let (a, b) = response.split_at(cut);
            assert_eq!(
                stage.run(&proxy, &[request], &[a, b]),
                whole,
                "response cut at {cut}"
            );
        }
        let bytes: Vec<&[u8]> = request.chunks(1).collect();
        let answers: Vec<&[u8]> = response.chunks(1).collect();
        assert_eq!(stage.run(&proxy, &bytes, &answers), whole, "byte by byte");
    }
}

fn a_request_that_ends_anywhere_is_never_completed(on: On) {
    for it in CONVERSATIONS {
        let stage = stage(it.request_end, false);
        let proxy = plain_http(on, &stage.backend, "");
        for end in 0..it.request.len() {
            let part = &it.request.as_bytes()[..end];
            let mut client = proxy.connect("web");
            client.write_all(part).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let answer = read_to_end(&mut client);
            assert!(!answer.starts_with("HTTP/1.1 2"), "{end}: {answer}");
            let read = stage.read.lock().unwrap();
            let is_whole = |got: &String| got.ends_with(it.request_end);
            assert!(!read.iter().any(is_whole), "{end}: {read:?}");
        }
    }
}

fn a_response_that_ends_anywhere_is_never_completed(on: On) {
    for it in CONVERSATIONS {
        let stage = stage(it.request_end, true);
        let proxy = plain_http(on, &stage.backend, "");
        let request = it.request.as_bytes();
        for end in 0..it.response.len() {
            let part = &it.response.as_bytes()[..end];
            *stage.pieces.lock().unwrap() = vec![part.to_vec()];
            let mut client = proxy.connect("web");
            client.write_all(request).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let answer = read_to_end(&mut client);
            let is_refused = answer.contains("HTTP/1.1 502 Bad Gateway\r\n");
            assert!(
                is_refused || !answer.ends_with(it.response_end),
                "{end}: {answer}"
            );
            // What had begun is cut, not closed.
            assert!(is_refused || answer.ends_with("<reset>"), "{end}: {answer}");
        }
    }
}
