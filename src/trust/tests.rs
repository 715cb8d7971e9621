//! What is lost, what is not, and when it ends; with times of our choice.

#![allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]

#[path = "../../tests/support/pki.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the integration tests, which use all of it"
)]
mod pki;

use pki::{Authority, leaf};

use super::*;
use crate::metrics::{Metrics, Text};
use crate::transport::{Allowlist, Authentication, TlsVersions};
use futures_lite::future::poll_once;
use rustls::pki_types::UnixTime;

const PEER: &str = "spiffe://example.org/db";
const OWN: &str = "spiffe://example.org/proxy";
const GRACE: Duration = Duration::from_secs(30);

/// A worker's trust, with one CA and times of our choice.
struct Room {
    ca: Authority,
    identity: Identity,
    metrics: Metrics,
    trust: Trust,
    first: Arc<Snapshot>,
    begin: Instant,
}

impl Room {
    fn new() -> Self {
        let identity = Identity::new();
        let metrics = Metrics::default();
        let trust = Trust::new(identity.clone(), Rc::new(metrics.recorder()));
        trust.set(&[transport("t", PEER)], GRACE, false);
        let ca = Authority::new("example.org");
        let first = snapshot(&ca, OWN, &[&ca]);
        identity.publish_for_tests(snapshot(&ca, OWN, &[&ca]));
        Self {
            ca,
            identity,
            metrics,
            trust,
            first,
            begin: Instant::now(),
        }
    }

    fn publish(&self, own: &str, authorities: &[&Authority]) {
        let snapshot = snapshot(&self.ca, own, authorities);
        self.identity.publish_for_tests(snapshot);
    }

    fn grounds(&self, name: &str, at: u64, not_after: i64) -> Grounds {
        let theirs = leaf(&self.ca, PEER, |params| {
            params.not_before = time::OffsetDateTime::from_unix_timestamp(0).unwrap();
            params.not_after = time::OffsetDateTime::from_unix_timestamp(not_after).unwrap();
        });
        let snapshot = self.identity.current();
        Grounds {
            verified: Verified {
                peer: VerifiedPeer::for_tests(PEER),
                at: UnixTime::since_unix_epoch(Duration::from_secs(at)),
                until: not_after,
                authority_until: 2_524_608_000,
            },
            chain: theirs.chain,
            transport: transport(name, PEER),
            snapshot: snapshot.unwrap_or_else(|| self.first.clone()),
        }
    }

    fn admit(&self) -> Admission {
        self.trust.admit(self.grounds("t", NOW, FAR)).unwrap()
    }

    /// What the follower does, so many seconds after the beginning.
    fn follow(&self, seconds: u64, unix: i64) {
        let now = self.begin + Duration::from_secs(seconds);
        futures_lite::future::block_on(self.trust.look(|| now));
        self.trust.finish(now, unix);
    }

    fn page(&self) -> String {
        let mut text = Text::default();
        self.metrics.write(&mut text);
        text.into_string()
    }
}

fn snapshot(ca: &Authority, own: &str, authorities: &[&Authority]) -> Arc<Snapshot> {
    let ours = leaf(ca, own, |_| {});
    let bundle = authorities.iter().map(|it| it.der().to_vec()).collect();
    let bundles = vec![("example.org", bundle)];
    Snapshot::for_tests(own, ours.chain, ours.key_pkcs8_der, bundles).unwrap()
}

/// 2030, within the lives of the test authorities.
const NOW: u64 = 1_893_456_000;
const UNIX: i64 = 1_893_456_000;
const FAR: i64 = 2_000_000_000;

fn transport(name: &str, id: &str) -> Arc<Transport> {
    let ids = [SpiffeId::new(id).unwrap()];
    Arc::new(Transport {
        name: name.to_owned(),
        authentication: Authentication::Spiffe(Allowlist::Ids(ids.into())),
        server_name: None,
        versions: TlsVersions::Both,
        dial_timeout: None,
        handshake_timeout: Duration::from_secs(10),
        keep_alive: None,
    })
}

fn over(admission: &Admission) -> Option<Loss> {
    let waiting = poll_once(poll_fn(|cx| admission.poll_over(cx)));
    futures_lite::future::block_on(waiting)
}

#[test]
fn what_is_under_way_has_the_grace_and_not_a_second_more() {
    let room = Room::new();
    let admission = room.admit();
    assert_eq!(admission.is_fit(UNIX), Ok(()));
    room.publish(OWN, &[]);
    // Before anyone has looked at it.
    assert!(admission.is_fit(UNIX).is_err());
    room.follow(0, UNIX);
    assert!(admission.is_fit(UNIX).is_err());
    room.follow(29, UNIX);
    assert_eq!(over(&admission), None);
    // Another change does not begin it anew.
    room.publish(OWN, &[]);
    room.follow(29, UNIX);
    room.follow(30, UNIX);
    let loss = over(&admission).unwrap();
    assert!(matches!(loss, Loss::Peer(_)), "{loss}");
    admission.count_closed("tunnel", &loss);
    let line = "svidgate_trust_loss_closed_total{transport=\"t\",use=\"tunnel\"} 1\n";
    assert!(room.page().contains(line), "{}", room.page());
}

#[test]
fn trust_that_comes_back_in_time_is_as_good_as_before() {
    let room = Room::new();
    let admission = room.admit();
    room.publish(OWN, &[]);
    room.follow(0, UNIX);
    room.publish(OWN, &[&room.ca]);
    room.follow(29, UNIX);
    assert_eq!(admission.is_fit(UNIX), Ok(()));
    room.follow(1000, UNIX);
    assert_eq!(over(&admission), None);
    // The next loss has a grace of its own.
    room.publish(OWN, &[]);
    room.follow(2000, UNIX);
    room.follow(2029, UNIX);
    assert_eq!(over(&admission), None);
    room.follow(2030, UNIX);
    assert!(over(&admission).is_some());
    // What is over stays over.
    room.publish(OWN, &[&room.ca]);
    room.follow(2031, UNIX);
    assert!(over(&admission).is_some());
    assert!(admission.is_fit(UNIX).is_err());
}

#[test]
fn validity_is_judged_as_of_the_handshake() {
    let room = Room::new();
    // Its leaf ran out long ago; it was good when it came.
    let grounds = room.grounds("t", NOW, UNIX + 5);
    let admission = room.trust.admit(grounds).unwrap();
    admission.becomes_tunnel();
    room.publish(OWN, &[&room.ca, &Authority::new("example.org")]);
    room.follow(100_000, UNIX + 100_000);
    assert_eq!(over(&admission), None);
    // A tunnel goes on; an exchange more there may not be.
    assert_eq!(admission.is_fit(UNIX + 5), Ok(()));
    assert_eq!(admission.is_fit(UNIX + 6), Err(Loss::Expired));
    admission.count_closed("idle", &Loss::Expired);
    let line = "svidgate_expiry_closed_total{transport=\"t\",use=\"idle\"} 1\n";
    assert!(room.page().contains(line), "{}", room.page());
}

#[test]
fn close_on_expiry_ends_tunnels_alone_and_on_the_second() {
    let room = Room::new();
    room.trust.set(&[transport("t", PEER)], GRACE, true);
    let of = || room.trust.admit(room.grounds("t", NOW, UNIX + 5)).unwrap();
    let (tunnel, exchange) = (of(), of());
    tunnel.becomes_tunnel();
    room.follow(5, UNIX + 5);
    assert_eq!(over(&tunnel), None);
    room.follow(6, UNIX + 6);
    assert_eq!(over(&tunnel), Some(Loss::Expired));
    assert_eq!(over(&exchange), None);
}

#[test]
fn each_way_to_lose_trust_is_one() {
    type Case = (&'static str, fn(&Room), fn(&Loss) -> bool);
    let cases: [Case; 5] = [
        (
            "the authority is gone",
            |room| room.publish(OWN, &[&Authority::new("example.org")]),
            |loss| matches!(loss, Loss::Peer(PeerError::Untrusted { .. })),
        ),
        (
            "the allowlist is narrower",
            |room| {
                let other = transport("t", "spiffe://example.org/other");
                room.trust.set(&[other], GRACE, false);
            },
            |loss| matches!(loss, Loss::Peer(PeerError::NotAllowed { .. })),
        ),
        (
            "the transport is gone",
            |room| room.trust.set(&[transport("u", PEER)], GRACE, false),
            |loss| *loss == Loss::NoTransport,
        ),
        (
            "we are another",
            |room| room.publish("spiffe://example.org/another", &[&room.ca]),
            |loss| *loss == Loss::Renamed,
        ),
        (
            "we are nobody",
            |room| {
                let trouble = crate::identity::Trouble {
                    why: String::new(),
                    code: "test",
                    is_open: false,
                };
                let update = crate::identity::Update::Withdrawn(trouble);
                room.identity.apply(update, UNIX);
            },
            |loss| *loss == Loss::Withdrawn,
        ),
    ];
    for (name, change, expected) in cases {
        let room = Room::new();
        let admission = room.admit();
        change(&room);
        room.follow(0, UNIX);
        room.follow(30, UNIX);
        let loss = over(&admission).unwrap_or_else(|| panic!("{name}"));
        assert!(expected(&loss), "{name}: {loss}");
        // Nor does anyone come in on it any more.
        let mut late = room.grounds("t", NOW, FAR);
        late.snapshot = Arc::clone(&room.first);
        let late = room.trust.admit(late);
        assert!(expected(&late.unwrap_err()), "{name}");
    }
}

#[test]
fn a_connection_is_forgotten_when_it_is_closed() {
    let room = Room::new();
    let (first, second) = (room.admit(), room.admit());
    assert_eq!(room.trust.0.open.borrow().len(), 2);
    drop(first);
    assert_eq!(room.trust.0.open.borrow().len(), 1);
    drop(second);
    assert!(room.trust.0.open.borrow().is_empty());
    assert_eq!(room.trust.next(room.begin), None);
}
/// Bundles are tidied up: an authority that has expired is taken out.
#[test]
fn an_authority_that_has_expired_may_go() {
    let room = Room::new();
    let mut grounds = room.grounds("t", NOW, FAR);
    grounds.verified.authority_until = unix_now() - 1;
    let admission = room.trust.admit(grounds).unwrap();
    room.publish(OWN, &[]);
    room.follow(0, UNIX);
    room.follow(100, UNIX);
    assert_eq!(over(&admission), None);
    // Not so the bundle as a whole.
    let ours = leaf(&room.ca, OWN, |_| {});
    let nobody = Snapshot::for_tests(OWN, ours.chain, ours.key_pkcs8_der, Vec::new());
    room.identity.publish_for_tests(nobody.unwrap());
    room.follow(200, UNIX);
    room.follow(300, UNIX);
    let loss = over(&admission);
    assert!(
        matches!(loss, Some(Loss::Peer(PeerError::NoBundle { .. }))),
        "{loss:?}"
    );
}

#[test]
fn trust_that_is_lost_does_not_come_back_by_expiry() {
    let room = Room::new();
    let mut grounds = room.grounds("t", NOW, FAR);
    // It expires within the grace.
    grounds.verified.authority_until = unix_now() + 100_000;
    let admission = room.trust.admit(grounds).unwrap();
    room.publish(OWN, &[]);
    room.follow(0, UNIX);
    admission.connection.authority_until.set(unix_now() - 1);
    room.publish(OWN, &[]);
    room.follow(1, UNIX);
    assert!(admission.is_fit(UNIX).is_err());
    room.follow(30, UNIX);
    assert!(over(&admission).is_some());
}

#[test]
fn an_authority_that_lives_longer_since_is_missed_when_it_goes() {
    let room = Room::new();
    let mut grounds = room.grounds("t", NOW, FAR);
    grounds.verified.authority_until = unix_now() + 100_000;
    let admission = room.trust.admit(grounds).unwrap();
    // Another look finds one that lasts until 2050.
    room.publish(OWN, &[&room.ca, &Authority::new("example.org")]);
    room.follow(0, UNIX);
    assert_eq!(admission.connection.authority_until.get(), 2_524_608_000);
}

/// The same name and key, certified anew after the handshake.
#[test]
fn an_authority_that_was_issued_anew_is_the_same() {
    let room = Room::new();
    let admission = room.admit();
    let renewed = room.ca.certify(&room.ca, |params| {
        params.not_before = time::OffsetDateTime::from_unix_timestamp(UNIX + 50).unwrap();
    });
    let ours = leaf(&room.ca, OWN, |_| {});
    let bundles = vec![("example.org", vec![renewed.to_vec()])];
    let snapshot = Snapshot::for_tests(OWN, ours.chain, ours.key_pkcs8_der, bundles);
    room.identity.publish_for_tests(snapshot.unwrap());
    room.follow(0, UNIX + 60);
    room.follow(100, UNIX + 60);
    assert_eq!(over(&admission), None);
    assert_eq!(admission.is_fit(UNIX + 60), Ok(()));
}

#[test]
fn a_shorter_grace_counts_for_what_is_lost_already() {
    let room = Room::new();
    let admission = room.admit();
    room.publish(OWN, &[]);
    room.follow(0, UNIX);
    room.trust
        .set(&[transport("t", PEER)], Duration::from_secs(3), false);
    room.follow(2, UNIX);
    assert_eq!(over(&admission), None);
    room.follow(3, UNIX);
    assert!(over(&admission).is_some());
}
