//! Start-up, the first SVID, denial, agent faults, who is admitted.

use std::net::TcpStream;
use std::time::Instant;

use tonic::Status;

use crate::support::agent::{Answer, Response};
use crate::support::backend::{echo_heads, server_config};
use crate::support::eventually;
use crate::support::pki::{Authority, leaf};
use crate::support::proxy::{On, Running};
use crate::world::{OWN_ID, World, issued, svid};

crate::on_both!(
    nothing_listens_before_the_first_svid_and_readyz_says_why,
    the_stop_works_while_waiting,
    startup_timeout_ends_the_wait,
    without_waiting_spiffe_routes_answer_503,
    a_rotation_is_used_by_the_next_connection,
    withdrawal_is_503_and_recovery_is_automatic,
    a_denial_for_a_moment_is_no_withdrawal,
    a_denial_that_nothing_follows_is_a_withdrawal,
    an_agent_that_dies_and_comes_back_is_found_again,
    an_unusable_update_keeps_the_one_before,
    the_hint_picks_an_svid_and_its_loss_is_a_withdrawal,
    a_silent_stream_is_opened_anew_before_the_svid_runs_out,
    a_message_that_is_too_large_keeps_the_one_before,
    a_broken_federated_bundle_empties_itself_alone,
    a_socket_file_that_is_replaced_is_found,
    the_admin_endpoint_answers_while_the_proxy_drains,
    an_agent_on_tcp_is_as_good,
    an_agent_that_talks_nonsense_is_reported,
    a_backend_that_never_finishes_its_handshake_is_504,
    the_admin_endpoint_can_be_a_unix_socket,
    trust_domain_and_own_trust_domain_admit_their_members_only,
    a_federated_peer_needs_its_bundle_and_to_be_named,
    a_pooled_connection_is_not_used_once_its_authority_is_gone,
);

const IDS: &str = "ids = [\"spiffe://example.org/api\"]";
const OK: &str = "HTTP/1.1 200 OK\r\n";

fn denied() -> Answer {
    Answer::Refuse(Status::permission_denied("no identity issued"))
}

#[track_caller]
fn refused(proxy: &Running, name: &str) {
    let error = TcpStream::connect(proxy.address(name)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn nothing_listens_before_the_first_svid_and_readyz_says_why(on: On) {
    let world = World::answering(|_| denied());
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = Running::start_not_ready(on, &world.http_text(&backend, IDS));
    let answer = eventually("a reason", || {
        let answer = proxy.admin("/readyz");
        answer.contains("registered").then_some(answer)
    });
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("\r\n\r\nnot ready: no SVID: PermissionDenied: no identity issued; is this workload registered? A new entry takes some seconds to arrive\n"),
        "{answer}"
    );
    assert!(proxy.admin("/livez").starts_with(OK));
    refused(&proxy, "web");
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("ready", || {
        proxy.admin("/readyz").starts_with(OK).then_some(())
    });
    assert!(proxy.get("web", "/").starts_with(OK));
    // There is nothing there for a stranger, and nothing to change.
    assert!(proxy.admin("/").starts_with("HTTP/1.1 404 Not Found\r\n"));
}

fn the_stop_works_while_waiting(on: On) {
    let world = World::answering(|_| Answer::Hang);
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = Running::start_not_ready(on, &world.http_text(&backend, IDS));
    eventually("the agent is asked", || {
        (world.agent.calls() > 0).then_some(())
    });
    assert!(proxy.end().unwrap());
}

fn startup_timeout_ends_the_wait(on: On) {
    let world = World::answering(|_| denied());
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replace("[spiffe]\n", "[spiffe]\nstartupTimeout = \"100ms\"\n");
    let mut proxy = Running::start_not_ready(on, &text);
    let ended = proxy.wait();
    assert!(
        matches!(ended, Err(svidgate::Error::NoIdentity(_))),
        "{ended:?}"
    );
}

fn without_waiting_spiffe_routes_answer_503(on: On) {
    let world = World::answering(|_| denied());
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replace("[spiffe]\n", "[spiffe]\nwaitForSVID = false\n");
    let proxy = Running::start(on, &text);
    let answer = proxy.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("Proxy-Status: svidgate; error=destination_unavailable\r\n"),
        "{answer}"
    );
    assert_eq!(backend.accepted(), 0);
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("served", || {
        proxy.get("web", "/").starts_with(OK).then_some(())
    });
}

fn a_rotation_is_used_by_the_next_connection(on: On) {
    let world = World::new();
    // Only the new authority is trusted by this backend.
    let new = Authority::new("example.org");
    let own = world.leaf("spiffe://example.org/api");
    let backend =
        crate::support::backend::Backend::tls(server_config(&own, &[new.der()]), echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let answer = proxy.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{answer}"
    );
    assert!(answer.contains("error=tls_alert_received\r\n"), "{answer}");
    let mut next = issued(&new, OWN_ID);
    next.svids[0].bundle.extend_from_slice(&world.ca.der());
    world.agent.answer(Answer::Send(next));
    eventually("the new SVID is used", || {
        proxy.get("web", "/").starts_with(OK).then_some(())
    });
}

fn withdrawal_is_503_and_recovery_is_automatic(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    assert!(proxy.get("web", "/").starts_with(OK));
    for answer in [denied(), Answer::Send(Response::default())] {
        world.agent.answer(answer);
        eventually("withdrawn", || {
            let answer = proxy.get("web", "/");
            answer
                .starts_with("HTTP/1.1 503 Service Unavailable\r\n")
                .then_some(())
        });
        assert!(proxy.admin("/readyz").starts_with("HTTP/1.1 503 "));
        world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
        eventually("back", || {
            proxy.get("web", "/").starts_with(OK).then_some(())
        });
        assert!(proxy.admin("/readyz").starts_with(OK));
    }
}

/// SPIRE denies for a moment what it signs anew, when an authority was tainted.
fn a_denial_for_a_moment_is_no_withdrawal(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    for _ in 0..3 {
        let denials = "svidgate_workload_api_errors_total{code=\"permission_denied\"} ";
        let denied_before = proxy.metric(denials).unwrap_or(0.0);
        let updates = "svidgate_identity_updates_total{kind=\"issued\"} ";
        let issued_before = proxy.metric(updates).unwrap();
        world.agent.answer(denied());
        eventually("it was denied", || {
            (proxy.metric(denials).unwrap_or(0.0) > denied_before).then_some(())
        });
        world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
        eventually("it says something else", || {
            assert!(proxy.get("web", "/").starts_with(OK));
            assert!(proxy.admin("/readyz").starts_with(OK));
            (proxy.metric(updates).unwrap() > issued_before).then_some(())
        });
    }
    let withdrawn = proxy.metric("svidgate_identity_updates_total{kind=\"withdrawn\"} ");
    assert_eq!(withdrawn.unwrap_or(0.0), 0.0);
}

/// Whoever can silence the agent after it has denied gains a second.
fn a_denial_that_nothing_follows_is_a_withdrawal(on: On) {
    for hangs in [true, false] {
        let mut world = World::new();
        let backend = world.backend("spiffe://example.org/api", echo_heads);
        let proxy = world.http(on, &backend, IDS);
        assert!(proxy.get("web", "/").starts_with(OK));
        let before = world.agent.calls();
        world.agent.answer(denied());
        eventually("it is asked again", || {
            (world.agent.calls() > before).then_some(())
        });
        if hangs {
            world.agent.answer(Answer::Hang);
        } else {
            world.agent.kill();
        }
        let since = Instant::now();
        eventually("withdrawn", || {
            let answer = proxy.get("web", "/");
            answer.starts_with("HTTP/1.1 503 ").then_some(())
        });
        // A stream without a first message is given up after 10 s.
        assert!(since.elapsed().as_secs() < 8, "{:?}", since.elapsed());
    }
}

fn an_agent_that_dies_and_comes_back_is_found_again(on: On) {
    let mut world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    world.agent.kill();
    // What we have stays good.
    assert!(proxy.get("web", "/").starts_with(OK));
    let before = world.agent.calls();
    world.agent.restart();
    eventually("asked again", || {
        (world.agent.calls() > before).then_some(())
    });
    world.agent.answer(denied());
    eventually("the new stream counts", || {
        proxy
            .get("web", "/")
            .starts_with("HTTP/1.1 503 ")
            .then_some(())
    });
}

fn an_unusable_update_keeps_the_one_before(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let good = issued(&world.ca, OWN_ID);
    let other = issued(&world.ca, OWN_ID);
    let expired = leaf(&world.ca, OWN_ID, |params| {
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let mut wrong_key = good.clone();
    wrong_key.svids[0].x509_svid_key = other.svids[0].x509_svid_key.clone();
    let mut wrong_name = good.clone();
    wrong_name.svids[0].spiffe_id = "spiffe://example.org/other".to_owned();
    let mut no_bundle = good.clone();
    no_bundle.svids[0].bundle.clear();
    let mut garbage = good.clone();
    garbage.svids[0].x509_svid = b"garbage".to_vec();
    let expired = Response {
        svids: vec![svid(&world.ca, OWN_ID, &expired)],
        ..good.clone()
    };
    for (case, why) in [
        (expired, "expired at "),
        (wrong_key, "the private key does not fit"),
        (
            wrong_name,
            "the message says \"spiffe://example.org/other\"",
        ),
        (no_bundle, "the mandatory field bundle is empty"),
        (garbage, "SVID 1: "),
    ] {
        world.agent.answer(Answer::Send(case));
        eventually(why, || {
            proxy.identity.problem().filter(|problem| {
                problem.starts_with("an update was not usable, so the one before it stays: ")
                    && problem.contains(why)
            })
        });
        assert!(proxy.get("web", "/").starts_with(OK), "{why}");
        assert!(proxy.admin("/readyz").starts_with(OK), "{why}");
    }
    // The stream has stayed open all the while.
    assert_eq!(world.agent.calls(), 1);
}

fn the_hint_picks_an_svid_and_its_loss_is_a_withdrawal(on: On) {
    let hinted = |world: &World, hints: &[&str]| Response {
        svids: hints
            .iter()
            .enumerate()
            .map(|(index, hint)| {
                let id = format!("spiffe://example.org/own-{index}");
                let own = leaf(&world.ca, &id, |_| {});
                crate::support::agent::Svid {
                    hint: (*hint).to_owned(),
                    ..svid(&world.ca, &id, &own)
                }
            })
            .collect(),
        ..Response::default()
    };
    let world = World::new();
    world
        .agent
        .answer(Answer::Send(hinted(&world, &["a", "b", "b"])));
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replace("[spiffe]\n", "[spiffe]\nhint = \"b\"\n");
    let proxy = Running::start(on, &text);
    assert!(proxy.get("web", "/").starts_with(OK));
    let own = proxy.identity.current().unwrap().svid().id().to_string();
    // Of two with one hint the first wins.
    assert_eq!(own, "spiffe://example.org/own-1");
    world
        .agent
        .answer(Answer::Send(hinted(&world, &["a", "c"])));
    eventually("withdrawn", || {
        proxy
            .get("web", "/")
            .starts_with("HTTP/1.1 503 ")
            .then_some(())
    });
    let why = proxy.admin("/readyz");
    assert!(
        why.contains("no SVID has the hint \"b\" (spiffe.hint)"),
        "{why}"
    );
}

fn a_silent_stream_is_opened_anew_before_the_svid_runs_out(on: On) {
    let world = World::answering(|ca| {
        let own = leaf(ca, OWN_ID, |params| {
            params.not_after = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(3);
        });
        Answer::Send(Response {
            svids: vec![svid(ca, OWN_ID, &own)],
            ..Response::default()
        })
    });
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!(world.agent.calls(), 1);
    eventually("asked anew", || (world.agent.calls() > 1).then_some(()));
    // It gives what it gave; once that is over, it is not presented.
    let answer = eventually("expired", || {
        let answer = proxy.get("web", "/");
        (!answer.starts_with(OK)).then_some(answer)
    });
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(proxy.admin("/readyz").contains("not ready: "));
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("back", || {
        proxy.get("web", "/").starts_with(OK).then_some(())
    });
}

fn the_admin_endpoint_answers_while_the_proxy_drains(on: On) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", move |wire| {
        if crate::support::backend::read_head(wire).is_some() {
            released.lock().unwrap().recv().unwrap();
            wire.cut();
        }
    });
    let proxy = world.http(on, &backend, IDS);
    let mut client = proxy.connect("web");
    std::io::Write::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    eventually("it is in flight", || {
        (backend.accepted() == 1).then_some(())
    });
    proxy.stop();
    let answer = eventually("it says so", || {
        Some(proxy.admin("/readyz")).filter(|answer| !answer.starts_with(OK))
    });
    assert!(
        answer.ends_with("\r\n\r\nnot ready: stopping\n"),
        "{answer}"
    );
    assert!(proxy.admin("/livez").starts_with(OK));
    drop(backend);
    release.send(()).unwrap();
    drop(client);
    assert!(proxy.end().unwrap());
}

fn trust_domain_and_own_trust_domain_admit_their_members_only(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/anyone", echo_heads);
    for (peers, status) in [
        ("trustDomain = \"example.org\"", "200 OK"),
        ("", "200 OK"),
        ("allowAny = true", "200 OK"),
        ("trustDomain = \"other.org\"", "502 Bad Gateway"),
        ("ids = [\"spiffe://example.org/anyon\"]", "502 Bad Gateway"),
        ("ids = [\"spiffe://example.org/Anyone\"]", "502 Bad Gateway"),
    ] {
        let proxy = world.http(on, &backend, peers);
        let answer = proxy.get("web", "/");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{peers}: {answer}"
        );
    }
}

fn a_federated_peer_needs_its_bundle_and_to_be_named(on: On) {
    let world = World::new();
    let partner = Authority::new("partner.org");
    let theirs = leaf(&partner, "spiffe://partner.org/api", |_| {});
    let backend = crate::support::backend::Backend::tls(
        server_config(&theirs, &[world.ca.der()]),
        echo_heads,
    );
    let proxy = world.http(on, &backend, "trustDomain = \"partner.org\"");
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 502 "));
    let mut federated = issued(&world.ca, OWN_ID);
    let bundle = partner.der().to_vec();
    federated
        .federated_bundles
        .insert("spiffe://partner.org".to_owned(), bundle.clone());
    world.agent.answer(Answer::Send(federated.clone()));
    eventually("federated", || {
        proxy.get("web", "/").starts_with(OK).then_some(())
    });
    // Nobody of a foreign domain is admitted by our own being the default.
    let own_only = world.http(on, &backend, "");
    assert!(own_only.get("web", "/").starts_with("HTTP/1.1 502 "));
    // A partner cannot speak for our own trust domain.
    let impostor = leaf(&partner, "spiffe://example.org/api", |_| {});
    let impostor = crate::support::backend::Backend::tls(
        server_config(&impostor, &[world.ca.der()]),
        echo_heads,
    );
    federated
        .federated_bundles
        .insert("spiffe://example.org".to_owned(), bundle);
    world.agent.answer(Answer::Send(federated));
    let proxy = world.http(on, &impostor, IDS);
    assert!(proxy.get("web", "/").starts_with("HTTP/1.1 502 "));
}

fn a_pooled_connection_is_not_used_once_its_authority_is_gone(on: On) {
    let world = World::new();
    let new = Authority::new("example.org");
    let own = world.leaf("spiffe://example.org/api");
    let roots = [world.ca.der(), new.der()];
    let backend = crate::support::backend::Backend::tls(server_config(&own, &roots), echo_heads);
    let proxy = world.http(on, &backend, IDS);
    assert!(proxy.get("web", "/").starts_with(OK));
    // A benign rotation: an authority more. The connection goes on.
    let mut both = issued(&world.ca, OWN_ID);
    both.svids[0].bundle.extend_from_slice(&new.der());
    world.agent.answer(Answer::Send(both));
    let since = Instant::now();
    while since.elapsed().as_millis() < 300 {
        assert!(proxy.get("web", "/").starts_with(OK));
    }
    assert_eq!(backend.accepted(), 1);
    // The authority of the backend's leaf is taken away.
    world.agent.answer(Answer::Send(issued(&new, OWN_ID)));
    eventually("no longer trusted", || {
        proxy
            .get("web", "/")
            .starts_with("HTTP/1.1 502 ")
            .then_some(())
    });
}

fn an_agent_on_tcp_is_as_good(on: On) {
    let world = World::answering(|_| Answer::Hang);
    let agent = crate::support::agent::Agent::start_tcp(Answer::Send(issued(&world.ca, OWN_ID)));
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replace(&world.agent.endpoint(), &agent.endpoint());
    let proxy = Running::start(on, &text);
    assert!(proxy.get("web", "/").starts_with(OK));
    assert_eq!((agent.calls(), world.agent.calls()), (1, 0));
}

fn the_admin_endpoint_can_be_a_unix_socket(on: On) {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    let scratch = crate::support::scratch::Scratch::new();
    let path = scratch.path().join("admin.sock");
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replacen("127.0.0.1:0", &format!("unix:{}", path.display()), 1);
    // One that a process left behind when it was killed is replaced.
    drop(UnixListener::bind(&path).unwrap());
    let proxy = Running::start(on, &text);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with(OK) && answer.ends_with("\r\n\r\nready\n"),
        "{answer}"
    );
    assert!(proxy.end().unwrap());
    assert!(!path.exists());
    // Any other file is left alone.
    std::fs::write(&path, "precious").unwrap();
    let config = svidgate::Config::parse(&text, &svidgate::Overrides::default()).unwrap();
    let error = svidgate::Proxy::bind(config, 1).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("there is a file that is not a socket"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

fn an_agent_that_talks_nonsense_is_reported(on: On) {
    use std::io::Write;

    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let scratch = crate::support::scratch::Scratch::new();
    let path = scratch.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Bytes of no protocol, then an end.
            drop(stream.unwrap().write_all(&[0xff; 4096]));
        }
    });
    let text = world.http_text(&backend, IDS);
    let text = text.replace(
        &world.agent.endpoint(),
        &format!("unix://{}", path.display()),
    );
    let proxy = Running::start_not_ready(on, &text);
    eventually("it is told", || proxy.identity.problem());
    assert!(proxy.admin("/readyz").starts_with("HTTP/1.1 503 "));
    refused(&proxy, "web");
    assert!(proxy.end().unwrap());
}

fn a_backend_that_never_finishes_its_handshake_is_504(on: On) {
    let world = World::new();
    // Takes the connection, and never says a word of TLS.
    let backend = crate::support::backend::Backend::plain(|wire| {
        drop(std::io::Read::read_to_end(wire, &mut Vec::new()));
    });
    let proxy = world.http(on, &backend, IDS);
    let answer = proxy.get("web", "/");
    assert!(
        answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"),
        "{answer}"
    );
    assert!(answer.contains("error=connection_timeout\r\n"), "{answer}");
}

fn a_message_that_is_too_large_keeps_the_one_before(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let mut huge = issued(&world.ca, OWN_ID);
    huge.crl = vec![vec![0; 5 << 20]];
    world.agent.answer(Answer::Send(huge));
    let why = eventually("it is refused", || proxy.identity.problem());
    assert!(
        why.starts_with("OutOfRange: ") && why.ends_with("; the message is larger than 4 MiB"),
        "{why}"
    );
    let counted = "svidgate_workload_api_errors_total{code=\"out_of_range\"}";
    assert!(proxy.metric(counted) >= Some(1.0));
    assert!(proxy.get("web", "/").starts_with(OK));
    assert!(proxy.admin("/readyz").starts_with(OK));
    // The next good one counts.
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("renewed", || {
        (proxy.identity.generation() == 2).then_some(())
    });
    assert_eq!(proxy.identity.problem(), None);
}

fn a_broken_federated_bundle_empties_itself_alone(on: On) {
    let world = World::new();
    let partner = Authority::new("partner.org");
    let theirs = leaf(&partner, "spiffe://partner.org/api", |_| {});
    let theirs = crate::support::backend::Backend::tls(
        server_config(&theirs, &[world.ca.der()]),
        echo_heads,
    );
    let ours = world.backend("spiffe://example.org/api", echo_heads);
    let federated = |bundle: Vec<u8>| {
        let mut response = issued(&world.ca, OWN_ID);
        let name = "spiffe://partner.org".to_owned();
        response.federated_bundles.insert(name, bundle);
        Answer::Send(response)
    };
    world.agent.answer(federated(partner.der().to_vec()));
    let to_theirs = world.http(on, &theirs, "trustDomain = \"partner.org\"");
    let to_ours = world.http(on, &ours, IDS);
    assert!(to_theirs.get("web", "/").starts_with(OK));
    assert!(to_ours.get("web", "/").starts_with(OK));
    world.agent.answer(federated(b"no certificate".to_vec()));
    eventually("nobody of it is trusted", || {
        let answer = to_theirs.get("web", "/");
        answer.starts_with("HTTP/1.1 502 ").then_some(())
    });
    assert!(to_ours.get("web", "/").starts_with(OK));
    // Our own was renewed all the same.
    assert_eq!(to_theirs.identity.problem(), None);
    world.agent.answer(federated(partner.der().to_vec()));
    eventually("and again", || {
        to_theirs.get("web", "/").starts_with(OK).then_some(())
    });
}

fn a_socket_file_that_is_replaced_is_found(on: On) {
    let scratch = crate::support::scratch::Scratch::new();
    let path = scratch.path().join("agent.sock");
    let world = World::new();
    let first = Answer::Send(issued(&world.ca, OWN_ID));
    let mut old = crate::support::agent::Agent::start(&path, first);
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let text = world.http_text(&backend, IDS);
    let text = text.replace(&world.agent.endpoint(), &old.endpoint());
    let proxy = Running::start(on, &text);
    // Another agent takes the path over while the first still runs.
    let other = "spiffe://example.org/another";
    let next = Answer::Send(issued(&world.ca, other));
    let new = crate::support::agent::Agent::start(&path, next);
    assert!(proxy.get("web", "/").starts_with(OK));
    old.kill();
    eventually("the new one is asked", || {
        let own = proxy.identity.current()?.svid().id().to_string();
        (own == other).then_some(())
    });
    assert!(new.calls() >= 1);
    assert!(proxy.get("web", "/").starts_with(OK));
}

/// Takes its ten seconds, so once is enough.
#[test]
fn an_agent_that_says_nothing_is_asked_anew() {
    let world = World::answering(|_| Answer::Hang);
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = Running::start_not_ready(On::Epoll, &world.http_text(&backend, IDS));
    let why = eventually("it is given up", || proxy.identity.problem());
    assert_eq!(why, "no message within 10s of opening the stream");
    eventually("and asked anew", || (world.agent.calls() > 1).then_some(()));
    world.agent.answer(Answer::Send(issued(&world.ca, OWN_ID)));
    eventually("ready", || {
        proxy.admin("/readyz").starts_with(OK).then_some(())
    });
}
