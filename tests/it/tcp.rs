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
