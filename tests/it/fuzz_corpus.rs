//! What `make fuzz` looks for, in the time that a test has: the seeds of each
//! target, and small changes to them. It needs nothing but this toolchain, and
//! keeps what a fuzzer has once found: its input becomes a seed.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");

#[test]
fn request_heads() {
    replay("request_head", bodies::request_head, 2000);
}

#[test]
fn response_heads() {
    replay("response_head", bodies::response_head, 2000);
}

#[test]
fn chunked_bodies() {
    replay("chunked_body", bodies::chunked_body, 2000);
}

#[test]
fn http2_requests_as_http1() {
    replay("h2_to_h1", bodies::h2_to_h1, 2000);
}

// Each input of these two costs a hundred times as much, without optimisation.

#[test]
fn configurations() {
    replay("config", bodies::config, 200);
}

#[test]
fn leaves() {
    replay("svid_leaf", bodies::svid_leaf, 100);
}

/// Runs a body over each seed of a target, and over so many variants of it.
fn replay(target: &str, body: fn(&[u8]), variants: u32) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{target} has no corpus");
    for (name, seed) in &seeds {
        run(target, name, 0, body, seed);
        // The same from run to run, and other for each seed.
        let mut random = Random::new(name);
        for variant in 1..=variants {
            let mut bytes = seed.clone();
            for _ in 0..=random.below(4) {
                mutate(&mut bytes, &mut random);
            }
            run(target, name, variant, body, &bytes);
        }
    }
}

/// The files of a target, in one order.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(CORPUS).join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name, std::fs::read(file.path()).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

/// Says which input it was, should the body panic.
fn run(target: &str, name: &str, variant: u32, body: fn(&[u8]), bytes: &[u8]) {
    struct Witness<'a>(&'a str, &'a str, u32, &'a [u8]);

    impl Drop for Witness<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let Self(target, name, variant, bytes) = self;
                let bytes = bytes.escape_ascii();
                eprintln!("{target}/{name}, variant {variant}: b\"{bytes}\"");
            }
        }
    }

    let _witness = Witness(target, name, variant, bytes);
    body(bytes);
}

/// One small change.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    /// What means something to one of the parsers.
    const TELLING: &[u8] = b"\r\n\0\t :;,/%?#.=\"[]{}`0f\x7f\x80\xff";

    let at = random.below(bytes.len() + 1);
    let to = at + random.below((bytes.len() - at).min(16) + 1);
    let telling = TELLING[random.below(TELLING.len())];
    match random.below(7) {
        0 => bytes[at..].iter_mut().take(1).for_each(|it| *it ^= telling),
        1 => bytes[at..].iter_mut().take(1).for_each(|it| *it = telling),
        2 => bytes.insert(at, telling),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..to)),
        // Twice the same.
        5 => {
            let piece = bytes[at..to].to_vec();
            bytes.splice(at..at, piece);
        }
        // The whole rest once more, as if a second message followed.
        _ => bytes.extend_from_within(at..),
    }
}

/// Xorshift: what is tried must not depend on a library's version.
struct Random(u64);

impl Random {
    fn new(name: &str) -> Self {
        let seed = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |sum, byte| {
            sum.rotate_left(5) ^ u64::from(byte)
        });
        // Zero would stay zero.
        Self(seed | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as usize % end
    }
}
