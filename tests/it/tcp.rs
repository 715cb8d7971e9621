//! TCP through the proxy.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;

use crate::support::backend::{Backend, echo_bytes};
use crate::support::eventually;
use crate::support::proxy::{On, Running, read_to_end};
use crate::world::World;

crate::on_both!(
    bytes_pass_both_ways_through_spiffe_tls,
    a_half_close_does_not_cut_the_answer,
    a_backend_that_speaks_first_and_ends_is_passed_on,
    a_slow_reader_slows_the_sender_and_loses_nothing,
    bulk_arrives_as_it_was_sent_both_ways_at_once,
    bulk_after_words_and_words_after_bulk_arrive_in_order,
    urgent_data_within_bulk_holds_nothing_up,
    bulk_that_is_cut_is_reset,
    a_cut_upstream_resets_the_client,
    a_wrong_identity_resets_the_client,
    silence_ends_at_the_idle_timeout,
    a_half_closed_silence_ends_at_the_termination_delay,
    a_mute_backend_does_not_hold_the_stop_for_ever,
);

const IDS: &str = "ids = [\"spiffe://example.org/db\"]";

fn plain_tcp(on: On, backend: &Backend, transport: &str) -> Running {
    Running::start(
        on,
        &format!(
            r#"
[admin]
address = "127.0.0.1:0"
[entryPoints.db]
address = "127.0.0.1:0"
transport.lifeCycle.graceTimeOut = "50ms"
[tcp.routers.db]
entryPoints = ["db"]
rule = "HostSNI(`*`)"
service = "db"
[tcp.services.db.loadBalancer]
serversTransport = "db"
servers = [{{ address = "{}" }}]
[tcp.serversTransports.db]
{transport}
"#,
            backend.address
        ),
    )
}

fn bytes_pass_both_ways_through_spiffe_tls(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", echo_bytes);
    let proxy = world.tcp(on, &backend, IDS);
    let sent: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let client = proxy.connect("db");
    let (mut reader, mut writer) = (client.try_clone().unwrap(), client);
    let data = sent.clone();
    let sender = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

fn a_half_close_does_not_cut_the_answer(on: On) {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", move |wire| {
        let mut question = Vec::new();
        wire.read_to_end(&mut question).unwrap();
        if question.is_empty() {
            // Only the look whether the proxy listens.
            return;
        }
        released.lock().unwrap().recv().unwrap();
        wire.write_all(b"the answer to ").unwrap();
        wire.write_all(&question).unwrap();
        wire.finish();
    });
    let proxy = world.tcp(on, &backend, IDS);
    let mut client = proxy.connect("db");
    client.write_all(b"everything").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    release.send(()).unwrap();
    assert_eq!(read_to_end(&mut client), "the answer to everything");
}

fn a_backend_that_speaks_first_and_ends_is_passed_on(on: On) {
    let backend = Backend::plain(|wire| {
        wire.write_all(b"220 hello\r\n").unwrap();
        wire.finish();
        let mut rest = Vec::new();
        wire.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"still heard");
    });
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    assert_eq!(read_to_end(&mut client), "220 hello\r\n");
    client.write_all(b"still heard").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
}

fn a_slow_reader_slows_the_sender_and_loses_nothing(on: On) {
    const BYTES: usize = 32 << 20;
    let (progress, sent) = mpsc::channel();
    let backend = Backend::plain(move |wire| {
        let block = [7; 65536];
        for _ in 0..BYTES / block.len() {
            wire.write_all(&block).unwrap();
            progress.send(block.len()).unwrap();
        }
        wire.finish();
    });
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    let mut first = [0; 1];
    client.read_exact(&mut first).unwrap();
    // The sender stalls on full buffers long before the end.
    let mut total = 0;
    while let Ok(n) = sent.recv_timeout(std::time::Duration::from_millis(300)) {
        total += n;
    }
    assert!(total < BYTES, "all of it was taken, and nobody read");
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), BYTES - 1);
}

/// Bytes that are not where they belong are seen.
fn pattern(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(11);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn bulk_arrives_as_it_was_sent_both_ways_at_once(on: On) {
    let sent = pattern(24 << 20);
    let backend = Backend::plain(echo_bytes);
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    let mut writer = client.try_clone().unwrap();
    let to_send = sent.clone();
    let writing = std::thread::spawn(move || {
        // Pieces of all sizes, so that both ways of moving bytes take turns.
        let mut rest = to_send.as_slice();
        let mut random = fastrand::Rng::with_seed(5);
        while !rest.is_empty() {
            let n = (1 << random.u32(0..21)).min(rest.len());
            let (piece, more) = rest.split_at(n);
            writer.write_all(piece).unwrap();
            rest = more;
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(
        got == sent,
        "{} of {} bytes, or others",
        got.len(),
        sent.len()
    );
    for way in ["up", "down"] {
        let labels = format!("entrypoint=\"db\",service=\"db\",direction=\"{way}\"");
        let counted = format!("svidgate_tcp_bytes_total{{{labels}}} {}", sent.len());
        eventually("all bytes are counted", || {
            proxy.admin("/metrics").contains(&counted).then_some(())
        });
    }
}

fn bulk_after_words_and_words_after_bulk_arrive_in_order(on: On) {
    let bulk = pattern(3 << 20);
    let to_send = bulk.clone();
    let backend = Backend::plain(move |wire| {
        for round in 0..20 {
            wire.write_all(format!("begin {round}\n").as_bytes())
                .unwrap();
            wire.write_all(&to_send).unwrap();
            wire.write_all(format!("end {round}\n").as_bytes()).unwrap();
            // Until it is asked for the next.
            wire.read_exact(&mut [0; 1]).unwrap();
        }
        wire.finish();
    });
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    for round in 0..20 {
        let wanted = [
            format!("begin {round}\n").as_bytes(),
            &bulk,
            format!("end {round}\n").as_bytes(),
        ]
        .concat();
        let mut got = vec![0; wanted.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == wanted, "round {round}");
        client.write_all(b"n").unwrap();
    }
    assert_eq!(read_to_end(&mut client), "");
}

fn urgent_data_within_bulk_holds_nothing_up(on: On) {
    let bulk = pattern(4 << 20);
    let backend = Backend::plain(echo_bytes);
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    let mut writer = client.try_clone().unwrap();
    let to_send = bulk.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&to_send).unwrap();
        socket2::SockRef::from(&writer)
            .send_out_of_band(b"!")
            .unwrap();
        writer.write_all(&to_send).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    // The urgent byte itself is not of the stream.
    assert!(got == [bulk.clone(), bulk].concat(), "{} bytes", got.len());
}

fn bulk_that_is_cut_is_reset(on: On) {
    let backend = Backend::plain(|wire| {
        wire.write_all(&pattern(8 << 20)).unwrap();
        wire.cut();
    });
    let proxy = plain_tcp(on, &backend, "");
    let mut client = proxy.connect("db");
    let mut got = Vec::new();
    let error = client.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(got.len() <= 8 << 20);
}

fn a_cut_upstream_resets_the_client(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/db", |wire| {
        wire.write_all(b"half of").unwrap();
        drop(wire.flush());
        let mut byte = [0];
        wire.read_exact(&mut byte).unwrap();
        wire.cut();
    });
    let proxy = world.tcp(on, &backend, IDS);
    let mut client = proxy.connect("db");
    let mut got = [0; 7];
    client.read_exact(&mut got).unwrap();
    client.write_all(b"x").unwrap();
    assert_eq!(read_to_end(&mut client), "<reset>");
}

fn a_wrong_identity_resets_the_client(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/rogue", |wire| {
        let mut got = Vec::new();
        drop(wire.read_to_end(&mut got));
        assert_eq!(got, b"", "bytes reached the rogue");
    });
    let proxy = world.tcp(on, &backend, IDS);
    assert_eq!(proxy.talk("db", "secret"), "<reset>");
}

fn silence_ends_at_the_idle_timeout(on: On) {
    let backend = Backend::plain(echo_bytes);
    let proxy = plain_tcp(on, &backend, "idleTimeout = \"100ms\"");
    assert_eq!(proxy.talk("db", "x"), "x<reset>");
}

fn a_half_closed_silence_ends_at_the_termination_delay(on: On) {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let backend = Backend::plain(move |wire| {
        drop(wire.read_to_end(&mut Vec::new()));
        // Never answers, never ends.
        let _closed = released.lock().unwrap().recv();
        wire.finish();
    });
    let proxy = plain_tcp(on, &backend, "terminationDelay = \"100ms\"");
    let mut client = proxy.connect("db");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), "<reset>");
    drop(release);
}

fn a_mute_backend_does_not_hold_the_stop_for_ever(on: On) {
    let backend = Backend::plain(|wire| drop(wire.read_to_end(&mut Vec::new())));
    let proxy = plain_tcp(on, &backend, "");
    let _client = proxy.connect("db");
    eventually("it is through", || (backend.accepted() >= 1).then_some(()));
    assert!(!proxy.end().unwrap());
}
