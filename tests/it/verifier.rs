//! Whom the verifier admits: the rules of SPIFFE-ID, X509-SVID and SPIFFE
//! Federation one by one, with peers that accept connections and peers that
//! open them; then the alerts that a refused peer gets.

mod admission;
mod handshake;
mod issuers;
mod leaf;
mod names;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType,
    date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, HandshakeKind,
    ServerConfig, ServerConnection,
};
use spiffe::{SpiffeId, TrustDomain};
use svidgate::identity::Snapshot;
use svidgate::tls::verifier::{PathError, PeerError, Role, SvidVerifier, verify};
use svidgate::tls::{self, ConfigError, provider};
use svidgate::transport::{Allowlist, Authentication, TlsVersions, Transport};

use crate::support::pki::{Authority, Leaf, distinguished_name, leaf, uri};

const OWN_ID: &str = "spiffe://example.org/svidgate";
const API: &str = "spiffe://example.org/api";
const ROLES: [Role; 2] = [Role::Server, Role::Client];

/// Our own SVID. Nothing here looks at who issued it.
static OWN: LazyLock<Leaf> = LazyLock::new(|| leaf(&Authority::new("example.org"), OWN_ID, |_| {}));

/// All that a verdict depends on, beside the chain and the role.
struct Trust {
    bundles: Vec<(String, Vec<Vec<u8>>)>,
    allowlist: Allowlist,
    now: UnixTime,
}

impl Trust {
    /// No bundle at all; anyone else is welcome; the year is 2030.
    fn none() -> Self {
        Self {
            bundles: Vec::new(),
            allowlist: Allowlist::Any,
            now: at(2030, 1, 1),
        }
    }

    fn bundle(mut self, domain: &str, authorities: &[CertificateDer<'static>]) -> Self {
        let authorities = authorities.iter().map(|der| der.to_vec()).collect();
        self.bundles.push((domain.to_owned(), authorities));
        self
    }

    fn allowing(self, allowlist: Allowlist) -> Self {
        Self { allowlist, ..self }
    }

    fn at(self, now: UnixTime) -> Self {
        Self { now, ..self }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let bundles = self.bundles.iter();
        let bundles = bundles.map(|(domain, authorities)| (domain.as_str(), authorities.clone()));
        Snapshot::for_tests(
            OWN_ID,
            OWN.chain.clone(),
            OWN.key_pkcs8_der.clone(),
            bundles.collect(),
        )
        .unwrap()
    }

    fn judge(&self, chain: &[CertificateDer<'static>], role: Role) -> Result<String, PeerError> {
        let algorithms = provider().signature_verification_algorithms;
        let snapshot = self.snapshot();
        verify(
            chain,
            role,
            &snapshot,
            &self.allowlist,
            &algorithms,
            self.now,
        )
        .map(|peer| peer.id().to_string())
    }
}

/// The bundle of `example.org` holds this authority.
fn trusting(authority: &Authority) -> Trust {
    Trust::none().bundle("example.org", &[authority.der()])
}

#[track_caller]
fn check(trust: &Trust, chain: &[CertificateDer<'static>], expected: Result<&str, PeerError>) {
    for role in ROLES {
        check_role(trust, chain, role, expected.clone());
    }
}

#[track_caller]
fn check_role(
    trust: &Trust,
    chain: &[CertificateDer<'static>],
    role: Role,
    expected: Result<&str, PeerError>,
) {
    let found = trust.judge(chain, role);
    assert_eq!(found, expected.map(str::to_owned), "the peer is a {role:?}");
}

/// A leaf for `API` from the one authority of its trust domain.
#[track_caller]
fn check_leaf(customise: impl FnOnce(&mut CertificateParams), expected: Result<&str, PeerError>) {
    let ca = Authority::new("example.org");
    check(&trusting(&ca), &leaf(&ca, API, customise).chain, expected);
}

/// A leaf with this URI name, and its reading as a SPIFFE ID.
#[track_caller]
fn check_name(name: &str, expected: Result<(), PeerError>) {
    let ca = Authority::new("example.org");
    check(
        &trusting(&ca),
        &leaf(&ca, name, |_| {}).chain,
        expected.map(|()| name),
    );
}

fn at(year: i32, month: u8, day: u8) -> UnixTime {
    second(date_time_ymd(year, month, day).unix_timestamp())
}

fn second(timestamp: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(timestamp.try_into().unwrap()))
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn ids(texts: &[&str]) -> Allowlist {
    Allowlist::Ids(texts.iter().copied().map(id).collect())
}

fn malformed(why: &str) -> PeerError {
    PeerError::Malformed(why.to_owned())
}

fn not_an_svid(why: &str) -> PeerError {
    PeerError::NotAnSvid(why.to_owned())
}

fn not_an_id(why: &str) -> PeerError {
    PeerError::NotAnSvid(format!("its URI name is not a SPIFFE ID: {why}"))
}

fn no_bundle(peer: &str) -> PeerError {
    PeerError::NoBundle { id: id(peer) }
}

fn untrusted(peer: &str, why: PathError) -> PeerError {
    PeerError::Untrusted { id: id(peer), why }
}

fn not_allowed(peer: &str, rule: &str) -> PeerError {
    PeerError::NotAllowed {
        id: id(peer),
        rule: rule.to_owned(),
    }
}

/// An extension whose content is given as DER.
fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// A critical nameConstraints that permits the URI names of one host. rcgen
/// has no such constraint.
fn permits_uris_of(host: &str) -> CustomExtension {
    let tlv = |tag: u8, value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap();
        assert!(length < 0x80, "needs a longer form of length");
        [&[tag, length], value].concat()
    };
    let subtree = tlv(0x30, &tlv(0x86, host.as_bytes()));
    let constraints = tlv(0x30, &tlv(0xa0, &subtree));
    extension(&[2, 5, 29, 30], true, &constraints)
}

const UNKNOWN_EXTENSION: [u64; 8] = [1, 3, 6, 1, 4, 1, 99999, 1];
const DER_NULL: [u8; 2] = [0x05, 0x00];

// The chain as a whole.

#[test]
fn takes_a_leaf_of_an_authority() {
    check_leaf(|_| {}, Ok(API));
}

#[test]
fn takes_a_leaf_below_an_intermediate() {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("example.org", |_| {});
    check(&trusting(&ca), &leaf(&below, API, |_| {}).chain, Ok(API));
}

#[test]
fn refuses_an_empty_chain() {
    let ca = Authority::new("example.org");
    check(&trusting(&ca), &[], Err(malformed("there is none")));
}

#[test]
fn refuses_a_certificate_with_bytes_after_it() {
    let ca = Authority::new("example.org");
    let mut bytes = leaf(&ca, API, |_| {}).chain[0].to_vec();
    bytes.push(0);
    check(
        &trusting(&ca),
        &[bytes.into()],
        Err(malformed("bytes follow the certificate")),
    );
}

#[test]
fn refuses_a_tampered_signature() {
    let ca = Authority::new("example.org");
    let mut bytes = leaf(&ca, API, |_| {}).chain[0].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    check(
        &trusting(&ca),
        &[bytes.into()],
        Err(untrusted(API, PathError::BadSignature)),
    );
}

#[test]
fn refuses_a_name_changed_after_signing() {
    let ca = Authority::new("example.org");
    let other = "spiffe://example.org/abi";
    let mut bytes = leaf(&ca, API, |_| {}).chain[0].to_vec();
    let place = bytes
        .windows(API.len())
        .position(|window| window == API.as_bytes())
        .unwrap();
    bytes[place..place + other.len()].copy_from_slice(other.as_bytes());
    check(
        &trusting(&ca),
        &[bytes.into()],
        Err(untrusted(other, PathError::BadSignature)),
    );
}

#[test]
fn takes_intermediates_in_any_order_and_with_strangers_among_them() {
    let ca = Authority::new("example.org");
    let upper = ca.intermediate("example.org", |_| {});
    let lower = upper.intermediate("example.org", |_| {});
    let stranger = Authority::new("partner.org").intermediate("partner.org", |_| {});
    let peer = leaf(&lower, API, |_| {});
    let chain = [
        peer.chain[0].clone(),
        upper.der(),
        stranger.der(),
        lower.der(),
    ];
    check(&trusting(&ca), &chain, Ok(API));
}

#[test]
fn refuses_a_chain_with_its_intermediate_missing() {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("example.org", |_| {});
    let peer = leaf(&below, API, |_| {});
    check(
        &trusting(&ca),
        &peer.chain[..1],
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[track_caller]
fn check_depth(depth: usize, expected: Result<&str, PeerError>) {
    let root = Authority::new("example.org");
    let trust = trusting(&root);
    let lowest = (0..depth).fold(root, |above, _| above.intermediate("example.org", |_| {}));
    let peer = leaf(&lowest, API, |_| {});
    assert_eq!(peer.chain.len(), 1 + depth);
    check(&trust, &peer.chain, expected);
}

#[test]
fn takes_six_intermediates() {
    check_depth(6, Ok(API));
}

#[test]
fn refuses_seven_intermediates() {
    check_depth(7, Err(untrusted(API, PathError::TooLong)));
}
