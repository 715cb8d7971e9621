//! Whom the verifier admits: the rules of SPIFFE-ID, X509-SVID and SPIFFE
//! Federation one by one, with peers that accept connections and peers that
//! open them; then the alerts that a refused peer gets.

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

// SPIFFE-ID, section 2: the name.

#[test]
fn refuses_another_scheme() {
    check_name(
        "https://example.org/api",
        Err(not_an_id("scheme is missing or invalid")),
    );
}

#[test]
fn refuses_a_name_without_a_trust_domain() {
    check_name("spiffe:///api", Err(not_an_id("trust domain is missing")));
}

const BAD_DOMAIN: &str = "trust domain may only contain ASCII letters (case-insensitive), digits, dots, dashes, and underscores";
const BAD_PATH: &str =
    "path segment characters are limited to letters, numbers, dots, dashes, and underscores";

#[test]
fn refuses_a_port() {
    check_name("spiffe://example.org:8443/api", Err(not_an_id(BAD_DOMAIN)));
}

#[test]
fn refuses_userinfo() {
    check_name("spiffe://admin@example.org/api", Err(not_an_id(BAD_DOMAIN)));
}

#[test]
fn refuses_an_ipv6_address_for_a_trust_domain() {
    check_name("spiffe://[2001:db8::1]/api", Err(not_an_id(BAD_DOMAIN)));
}

#[test]
fn takes_an_ipv4_address_for_a_trust_domain_like_any_other() {
    let ca = Authority::new("192.0.2.1");
    let peer = leaf(&ca, "spiffe://192.0.2.1/api", |_| {});
    let trust = Trust::none().bundle("192.0.2.1", &[ca.der()]);
    check(&trust, &peer.chain, Ok("spiffe://192.0.2.1/api"));
}

#[test]
fn refuses_percent_encoding_in_the_trust_domain() {
    check_name("spiffe://ex%61mple.org/api", Err(not_an_id(BAD_DOMAIN)));
}

#[test]
fn refuses_percent_encoding_in_the_path() {
    check_name("spiffe://example.org/%61pi", Err(not_an_id(BAD_PATH)));
}

#[test]
fn refuses_a_query_after_the_path() {
    check_name("spiffe://example.org/api?v=1", Err(not_an_id(BAD_PATH)));
}

#[test]
fn refuses_a_query_after_the_trust_domain() {
    check_name("spiffe://example.org?v=1", Err(not_an_id(BAD_DOMAIN)));
}

#[test]
fn refuses_a_fragment() {
    check_name("spiffe://example.org/api#1", Err(not_an_id(BAD_PATH)));
}

#[test]
fn refuses_other_characters_in_the_path() {
    check_name("spiffe://example.org/a~pi", Err(not_an_id(BAD_PATH)));
}

#[test]
fn takes_every_character_that_a_path_may_have() {
    check_name("spiffe://example.org/AZaz09.-_/...", Ok(()));
}

#[test]
fn refuses_an_empty_segment() {
    check_name(
        "spiffe://example.org//api",
        Err(not_an_id("path cannot contain empty segments")),
    );
}

#[test]
fn refuses_a_dot_segment() {
    check_name(
        "spiffe://example.org/./api",
        Err(not_an_id("path cannot contain dot segments")),
    );
}

#[test]
fn refuses_a_dot_dot_segment() {
    check_name(
        "spiffe://example.org/web/../api",
        Err(not_an_id("path cannot contain dot segments")),
    );
}

#[test]
fn refuses_a_trailing_slash() {
    check_name(
        "spiffe://example.org/api/",
        Err(not_an_id("path cannot have a trailing slash")),
    );
}

#[test]
fn refuses_a_slash_for_a_path() {
    check_name(
        "spiffe://example.org/",
        Err(not_an_id("path cannot have a trailing slash")),
    );
}

const NOT_CANONICAL: &str = "its SPIFFE ID is not in the canonical, lower-case form";

#[test]
fn refuses_a_trust_domain_in_upper_case() {
    check_name("spiffe://Example.org/api", Err(not_an_svid(NOT_CANONICAL)));
}

#[test]
fn refuses_a_scheme_in_upper_case() {
    check_name("SPIFFE://example.org/api", Err(not_an_svid(NOT_CANONICAL)));
}

fn name_of(bytes: usize) -> String {
    let start = "spiffe://example.org/";
    format!("{start}{}", "a".repeat(bytes - start.len()))
}

#[test]
fn takes_a_name_of_2048_bytes() {
    check_name(&name_of(2048), Ok(()));
}

#[test]
fn refuses_a_name_of_2049_bytes() {
    check_name(
        &name_of(2049),
        Err(not_an_svid("its URI name has 2049 bytes; 2048 is the most")),
    );
}

#[test]
fn takes_a_trust_domain_of_255_bytes() {
    let (name, ca) = ("a".repeat(255), Authority::new("example.org"));
    let peer = format!("spiffe://{name}/api");
    let trust = Trust::none().bundle(&name, &[ca.der()]);
    check(&trust, &leaf(&ca, &peer, |_| {}).chain, Ok(&peer));
}

#[test]
fn refuses_a_trust_domain_of_256_bytes() {
    check_name(
        &format!("spiffe://{}/api", "a".repeat(256)),
        Err(not_an_id("trust domain exceeds maximum length (255 bytes)")),
    );
}

// X509-SVID, section 2: one URI name.

#[test]
fn refuses_a_second_uri_after_the_spiffe_id() {
    check_leaf(
        |params| params.subject_alt_names.push(uri("https://example.org/")),
        Err(not_an_svid("it has 2 URI names")),
    );
}

#[test]
fn refuses_a_second_uri_before_the_spiffe_id() {
    check_leaf(
        |params| {
            params
                .subject_alt_names
                .insert(0, uri("https://example.org/"))
        },
        Err(not_an_svid("it has 2 URI names")),
    );
}

#[test]
fn refuses_the_same_spiffe_id_twice() {
    check_leaf(
        |params| params.subject_alt_names.push(uri(API)),
        Err(not_an_svid("it has 2 URI names")),
    );
}

#[test]
fn refuses_dns_names_alone() {
    check_leaf(
        |params| {
            params.subject_alt_names = vec![SanType::DnsName("example.org".try_into().unwrap())];
        },
        Err(not_an_svid("it has no URI name")),
    );
}

#[test]
fn refuses_a_certificate_without_names() {
    check_leaf(
        |params| params.subject_alt_names.clear(),
        Err(not_an_svid("it has no URI name")),
    );
}

#[test]
fn takes_other_names_beside_the_spiffe_id() {
    check_leaf(
        |params| {
            params.subject_alt_names.extend([
                SanType::DnsName("api.example.org".try_into().unwrap()),
                SanType::IpAddress(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
                SanType::Rfc822Name("api@example.org".try_into().unwrap()),
            ]);
        },
        Ok(API),
    );
}

#[test]
fn takes_a_critical_subject_alt_name_below_an_empty_subject() {
    // rcgen makes the extension critical when there is no subject.
    check_leaf(
        |params| params.distinguished_name = DistinguishedName::new(),
        Ok(API),
    );
}

#[test]
fn refuses_a_name_that_is_not_text() {
    check_leaf(
        |params| {
            params.subject_alt_names.clear();
            let names = extension(&[2, 5, 29, 17], false, &[0x30, 0x03, 0x86, 0x01, 0xff]);
            params.custom_extensions.push(names);
        },
        Err(malformed("a subjectAltName is malformed")),
    );
}

// X509-SVID, sections 3.1, 4 and 5.2: the leaf.

#[test]
fn refuses_the_id_of_a_trust_domain() {
    check_name(
        "spiffe://example.org",
        Err(not_an_svid(
            "spiffe://example.org is the ID of a trust domain, not of a workload",
        )),
    );
}

#[test]
fn refuses_an_authority_that_presents_itself() {
    let ca = Authority::new("example.org");
    check(
        &trusting(&ca),
        &[ca.der()],
        Err(not_an_svid(
            "spiffe://example.org is the ID of a trust domain, not of a workload",
        )),
    );
}

#[test]
fn refuses_a_leaf_that_is_a_ca() {
    check_leaf(
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Err(not_an_svid("it is a CA")),
    );
}

#[test]
fn refuses_a_leaf_without_basic_constraints() {
    check_leaf(
        |params| params.is_ca = IsCa::NoCa,
        Err(not_an_svid("it has no basicConstraints")),
    );
}

#[test]
fn refuses_a_leaf_without_key_usage() {
    check_leaf(
        |params| params.key_usages.clear(),
        Err(not_an_svid("it has no keyUsage")),
    );
}

#[test]
fn refuses_a_leaf_without_digital_signature() {
    check_leaf(
        |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
        Err(not_an_svid("it may not make digital signatures")),
    );
}

#[test]
fn refuses_a_leaf_with_key_cert_sign() {
    check_leaf(
        |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign),
        Err(not_an_svid("it may sign certificates or CRLs")),
    );
}

#[test]
fn refuses_a_leaf_with_crl_sign() {
    check_leaf(
        |params| params.key_usages.push(KeyUsagePurpose::CrlSign),
        Err(not_an_svid("it may sign certificates or CRLs")),
    );
}

#[test]
fn takes_the_key_usages_that_spire_sets() {
    check_leaf(
        |params| {
            params.key_usages.extend([
                KeyUsagePurpose::KeyEncipherment,
                KeyUsagePurpose::KeyAgreement,
            ]);
        },
        Ok(API),
    );
}

/// digitalSignature alone, as the content of the extension.
const DIGITAL_SIGNATURE: [u8; 4] = [0x03, 0x02, 0x07, 0x80];

#[test]
fn takes_a_key_usage_that_is_not_critical() {
    check_leaf(
        |params| {
            params.key_usages.clear();
            let usage = extension(&[2, 5, 29, 15], false, &DIGITAL_SIGNATURE);
            params.custom_extensions.push(usage);
        },
        Ok(API),
    );
}

#[test]
fn refuses_a_leaf_with_two_key_usages() {
    check_leaf(
        |params| {
            let usage = extension(&[2, 5, 29, 15], true, &DIGITAL_SIGNATURE);
            params.custom_extensions.push(usage);
        },
        Err(malformed("keyUsage: duplicate extensions")),
    );
}

#[test]
fn refuses_an_unknown_critical_extension() {
    check_leaf(
        |params| {
            let unknown = extension(&UNKNOWN_EXTENSION, true, &DER_NULL);
            params.custom_extensions.push(unknown);
        },
        Err(malformed("UnsupportedCriticalExtension")),
    );
}

#[test]
fn takes_an_unknown_extension_that_is_not_critical() {
    check_leaf(
        |params| {
            let unknown = extension(&UNKNOWN_EXTENSION, false, &DER_NULL);
            params.custom_extensions.push(unknown);
        },
        Ok(API),
    );
}

#[test]
fn refuses_a_known_extension_that_cannot_be_read() {
    check_leaf(
        |params| {
            let authority_information_access = [1, 3, 6, 1, 5, 5, 7, 1, 1];
            let broken = extension(&authority_information_access, false, &DER_NULL);
            params.custom_extensions.push(broken);
        },
        Err(malformed("an extension cannot be read")),
    );
}

// X509-SVID, section 4.4: the extended key usage must cover the role.

#[track_caller]
fn check_purposes(purposes: &[ExtendedKeyUsagePurpose], as_server: bool, as_client: bool) {
    let ca = Authority::new("example.org");
    let peer = leaf(&ca, API, |params| {
        params.extended_key_usages = purposes.to_vec();
    });
    for (role, is_good) in [(Role::Server, as_server), (Role::Client, as_client)] {
        let expected = if is_good {
            Ok(API)
        } else {
            Err(untrusted(API, PathError::WrongPurpose))
        };
        check_role(&trusting(&ca), &peer.chain, role, expected);
    }
}

#[test]
fn takes_server_auth_alone_from_a_server_only() {
    check_purposes(&[ExtendedKeyUsagePurpose::ServerAuth], true, false);
}

#[test]
fn takes_client_auth_alone_from_a_client_only() {
    check_purposes(&[ExtendedKeyUsagePurpose::ClientAuth], false, true);
}

#[test]
fn takes_a_leaf_without_extended_key_usage() {
    check_purposes(&[], true, true);
}

#[test]
fn refuses_another_purpose_alone() {
    check_purposes(&[ExtendedKeyUsagePurpose::CodeSigning], false, false);
}

#[test]
fn refuses_any_purpose_alone() {
    // Not a wildcard: X509-SVID asks for serverAuth and clientAuth by name.
    check_purposes(&[ExtendedKeyUsagePurpose::Any], false, false);
}

#[test]
fn takes_another_purpose_beside_the_needed_ones() {
    check_purposes(
        &[
            ExtendedKeyUsagePurpose::CodeSigning,
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        true,
        true,
    );
}

// Dates of the leaf.

/// A leaf that is valid from 2029 to 2031, at a number of seconds from one of
/// these days.
#[track_caller]
fn check_date(day: UnixTime, offset: i64, expected: Result<&str, PeerError>) {
    let ca = Authority::new("example.org");
    let peer = leaf(&ca, API, |params| {
        params.not_before = date_time_ymd(2029, 1, 1);
        params.not_after = date_time_ymd(2031, 1, 1);
    });
    let now = second(i64::try_from(day.as_secs()).unwrap() + offset);
    check(&trusting(&ca).at(now), &peer.chain, expected);
}

#[test]
fn refuses_a_leaf_a_second_after_its_last() {
    let last = at(2031, 1, 1);
    check_date(last, 0, Ok(API));
    check_date(last, 1, Err(untrusted(API, PathError::Expired)));
}

#[test]
fn refuses_a_leaf_a_second_before_its_first() {
    let first = at(2029, 1, 1);
    check_date(first, 0, Ok(API));
    check_date(first, -1, Err(untrusted(API, PathError::NotValidYet)));
}

// X509-SVID, sections 3.2, 4 and 5.1: intermediates.

/// A chain of a leaf, one intermediate and a good authority.
#[track_caller]
fn check_intermediate(
    customise: impl FnOnce(&mut CertificateParams),
    expected: Result<&str, PeerError>,
) {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("example.org", customise);
    check(&trusting(&ca), &leaf(&below, API, |_| {}).chain, expected);
}

#[test]
fn refuses_an_intermediate_without_key_cert_sign() {
    check_intermediate(
        |params| params.key_usages = vec![KeyUsagePurpose::CrlSign],
        Err(untrusted(API, PathError::IssuerMayNotSign)),
    );
}

#[test]
fn takes_an_intermediate_without_key_usage() {
    check_intermediate(|params| params.key_usages.clear(), Ok(API));
}

#[test]
fn refuses_an_intermediate_that_is_not_a_ca() {
    check_intermediate(
        |params| params.is_ca = IsCa::ExplicitNoCa,
        Err(untrusted(API, PathError::IssuerMayNotSign)),
    );
}

#[test]
fn refuses_an_intermediate_without_basic_constraints() {
    check_intermediate(
        |params| params.is_ca = IsCa::NoCa,
        Err(untrusted(API, PathError::IssuerMayNotSign)),
    );
}

#[test]
fn refuses_an_intermediate_whose_spiffe_id_has_a_path() {
    check_intermediate(
        |params| params.subject_alt_names = vec![uri("spiffe://example.org/ca")],
        Err(untrusted(API, PathError::IssuerIsWorkload)),
    );
}

#[test]
fn refuses_a_workload_that_signs_for_another() {
    check_intermediate(
        |params| {
            params.subject_alt_names = vec![uri("spiffe://example.org/web")];
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        },
        Err(untrusted(API, PathError::IssuerMayNotSign)),
    );
}

#[test]
fn takes_an_intermediate_without_a_spiffe_id() {
    check_intermediate(|params| params.subject_alt_names.clear(), Ok(API));
}

#[test]
fn takes_an_intermediate_of_another_trust_domain() {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("partner.org", |_| {});
    check(&trusting(&ca), &leaf(&below, API, |_| {}).chain, Ok(API));
}

#[test]
fn refuses_an_intermediate_for_another_purpose() {
    check_intermediate(
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        Err(untrusted(API, PathError::WrongPurpose)),
    );
}

#[test]
fn refuses_an_expired_intermediate() {
    check_intermediate(
        |params| params.not_after = date_time_ymd(2029, 1, 1),
        Err(untrusted(API, PathError::Expired)),
    );
}

#[test]
fn refuses_an_intermediate_that_is_not_valid_yet() {
    check_intermediate(
        |params| params.not_before = date_time_ymd(2031, 1, 1),
        Err(untrusted(API, PathError::NotValidYet)),
    );
}

#[test]
fn refuses_an_intermediate_with_an_unknown_critical_extension() {
    check_intermediate(
        |params| {
            let unknown = extension(&UNKNOWN_EXTENSION, true, &DER_NULL);
            params.custom_extensions.push(unknown);
        },
        Err(untrusted(
            API,
            PathError::Other("it has a critical extension that is not known here"),
        )),
    );
}

const FORBIDDEN_NAME: PathError = PathError::Other("a name constraint forbids its name");

#[test]
fn refuses_a_uri_name_constraint_even_if_it_matches() {
    // There is no support for them, so that none of them may be passed over.
    check_intermediate(
        |params| {
            params
                .custom_extensions
                .push(permits_uris_of("example.org"));
        },
        Err(untrusted(API, FORBIDDEN_NAME)),
    );
}

#[test]
fn takes_a_name_constraint_on_names_of_another_kind() {
    check_intermediate(
        |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
                excluded_subtrees: Vec::new(),
            });
        },
        Ok(API),
    );
}

#[test]
fn refuses_more_intermediates_than_an_intermediate_allows() {
    let ca = Authority::new("example.org");
    for (limit, expected) in [(0, Err(untrusted(API, PathError::TooLong))), (1, Ok(API))] {
        let upper = ca.intermediate("example.org", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(limit));
        });
        let lower = upper.intermediate("example.org", |_| {});
        check(&trusting(&ca), &leaf(&lower, API, |_| {}).chain, expected);
    }
}

#[test]
fn takes_a_leaf_right_below_an_intermediate_that_allows_no_other() {
    check_intermediate(
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
        Ok(API),
    );
}

#[test]
fn takes_the_good_one_of_two_certificates_for_an_intermediate() {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("example.org", |_| {});
    let bad = ca.certify(&below, |params| {
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    let peer = leaf(&below, API, |_| {});
    let [own, good] = [peer.chain[0].clone(), peer.chain[1].clone()];
    let trust = trusting(&ca);
    check(&trust, &[own.clone(), bad.clone(), good.clone()], Ok(API));
    check(&trust, &[own.clone(), good, bad.clone()], Ok(API));
    check(
        &trust,
        &[own, bad],
        Err(untrusted(API, PathError::IssuerMayNotSign)),
    );
}

// The authorities of a bundle.

/// A leaf right below an authority that is not as others.
#[track_caller]
fn check_authority(
    customise: impl FnOnce(&mut CertificateParams),
    expected: Result<&str, PeerError>,
) {
    let ca = Authority::with("example.org", customise);
    check(&trusting(&ca), &leaf(&ca, API, |_| {}).chain, expected);
}

#[test]
fn refuses_an_authority_without_key_cert_sign() {
    check_authority(
        |params| params.key_usages = vec![KeyUsagePurpose::CrlSign],
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn takes_an_authority_without_key_usage() {
    check_authority(|params| params.key_usages.clear(), Ok(API));
}

#[test]
fn refuses_an_authority_that_is_not_a_ca() {
    check_authority(
        |params| params.is_ca = IsCa::ExplicitNoCa,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_an_authority_without_basic_constraints() {
    check_authority(
        |params| params.is_ca = IsCa::NoCa,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_an_expired_authority_that_is_still_in_the_bundle() {
    check_authority(
        |params| params.not_after = date_time_ymd(2029, 1, 1),
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_an_authority_that_is_not_valid_yet() {
    check_authority(
        |params| params.not_before = date_time_ymd(2031, 1, 1),
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn takes_an_authority_on_its_first_and_last_second() {
    let ca = Authority::with("example.org", |params| {
        params.not_before = date_time_ymd(2029, 1, 1);
        params.not_after = date_time_ymd(2031, 1, 1);
    });
    let peer = leaf(&ca, API, |_| {});
    let unknown = Err(untrusted(API, PathError::UnknownIssuer));
    let (first, last) = (
        date_time_ymd(2029, 1, 1).unix_timestamp(),
        date_time_ymd(2031, 1, 1).unix_timestamp(),
    );
    for (now, expected) in [
        (first - 1, unknown.clone()),
        (first, Ok(API)),
        (last, Ok(API)),
        (last + 1, unknown),
    ] {
        check(&trusting(&ca).at(second(now)), &peer.chain, expected);
    }
}

#[test]
fn refuses_an_intermediate_below_an_authority_that_allows_none() {
    let ca = Authority::with("example.org", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = ca.intermediate("example.org", |_| {});
    let trust = trusting(&ca);
    check(
        &trust,
        &leaf(&below, API, |_| {}).chain,
        Err(untrusted(API, PathError::TooLong)),
    );
    check(&trust, &leaf(&ca, API, |_| {}).chain, Ok(API));
}

#[test]
fn refuses_a_uri_name_constraint_of_an_authority() {
    check_authority(
        |params| {
            params
                .custom_extensions
                .push(permits_uris_of("example.org"));
        },
        Err(untrusted(API, FORBIDDEN_NAME)),
    );
}

#[test]
fn takes_an_authority_that_did_not_sign_itself() {
    let below = Authority::new("example.org").intermediate("example.org", |_| {});
    check(&trusting(&below), &leaf(&below, API, |_| {}).chain, Ok(API));
}

#[test]
fn takes_an_old_authority_beside_a_new_one() {
    let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
    for bundle in [[old.der(), new.der()], [new.der(), old.der()]] {
        let trust = Trust::none().bundle("example.org", &bundle);
        check(&trust, &leaf(&old, API, |_| {}).chain, Ok(API));
        check(&trust, &leaf(&new, API, |_| {}).chain, Ok(API));
    }
}

#[test]
fn takes_a_good_authority_beside_bad_ones() {
    let ca = Authority::new("example.org");
    let expired = Authority::with("example.org", |params| {
        params.not_after = date_time_ymd(2029, 1, 1);
    });
    let no_ca = Authority::with("example.org", |params| params.is_ca = IsCa::ExplicitNoCa);
    let garbage = CertificateDer::from(b"garbage".to_vec());
    let bundle = [garbage, no_ca.der(), expired.der(), ca.der()];
    let trust = Trust::none().bundle("example.org", &bundle);
    check(&trust, &leaf(&ca, API, |_| {}).chain, Ok(API));
    // Of the same name as the good one, whose key it does not have.
    let unsigned = Err(untrusted(API, PathError::BadSignature));
    check(&trust, &leaf(&expired, API, |_| {}).chain, unsigned.clone());
    check(&trust, &leaf(&no_ca, API, |_| {}).chain, unsigned);
}

#[test]
fn takes_a_renewed_authority_beside_its_expired_certificate() {
    let ca = Authority::with("example.org", |params| {
        params.not_after = date_time_ymd(2029, 1, 1);
    });
    let renewed = ca.certify(&ca, |params| params.not_after = date_time_ymd(2040, 1, 1));
    let trust = Trust::none().bundle("example.org", &[ca.der(), renewed]);
    check(&trust, &leaf(&ca, API, |_| {}).chain, Ok(API));
}

#[test]
fn refuses_an_authority_that_nobody_knows() {
    let stranger = Authority::with("example.org", |params| {
        params.distinguished_name = distinguished_name("stranger");
    });
    check(
        &trusting(&Authority::new("example.org")),
        &leaf(&stranger, API, |_| {}).chain,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_an_authority_of_the_same_name_with_another_key() {
    check(
        &trusting(&Authority::new("example.org")),
        &leaf(&Authority::new("example.org"), API, |_| {}).chain,
        Err(untrusted(API, PathError::BadSignature)),
    );
}

#[test]
fn refuses_an_authority_that_the_peer_brings_along() {
    let stranger = Authority::with("example.org", |params| {
        params.distinguished_name = distinguished_name("stranger");
    });
    let mut chain = leaf(&stranger, API, |_| {}).chain;
    chain.push(stranger.der());
    check(
        &trusting(&Authority::new("example.org")),
        &chain,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn takes_an_authority_that_the_peer_sends_with_its_chain() {
    let ca = Authority::new("example.org");
    let mut chain = leaf(&ca, API, |_| {}).chain;
    chain.push(ca.der());
    check(&trusting(&ca), &chain, Ok(API));
}

// Federation, section 7.3: the bundle of the peer's own trust domain.

const PARTNER: &str = "spiffe://partner.org/api";

/// Two trust domains whose authorities have the same name, and both bundles.
fn federated() -> (Authority, Authority, Trust) {
    let same_name = |params: &mut CertificateParams| {
        params.distinguished_name = distinguished_name("authority");
    };
    let ours = Authority::with("example.org", same_name);
    let theirs = Authority::with("partner.org", same_name);
    let trust = Trust::none()
        .bundle("example.org", &[ours.der()])
        .bundle("partner.org", &[theirs.der()]);
    (ours, theirs, trust)
}

#[test]
fn takes_a_peer_of_a_federated_trust_domain() {
    let (ours, theirs, trust) = federated();
    check(&trust, &leaf(&theirs, PARTNER, |_| {}).chain, Ok(PARTNER));
    check(&trust, &leaf(&ours, API, |_| {}).chain, Ok(API));
}

#[test]
fn refuses_our_trust_domain_signed_by_another() {
    let (_, theirs, trust) = federated();
    check(
        &trust,
        &leaf(&theirs, API, |_| {}).chain,
        Err(untrusted(API, PathError::BadSignature)),
    );
}

#[test]
fn refuses_another_trust_domain_signed_by_ours() {
    let (ours, _, trust) = federated();
    check(
        &trust,
        &leaf(&ours, PARTNER, |_| {}).chain,
        Err(untrusted(PARTNER, PathError::BadSignature)),
    );
}

#[test]
fn refuses_our_trust_domain_below_an_intermediate_of_ours_that_another_signed() {
    let theirs = Authority::new("partner.org");
    let below = theirs.intermediate("example.org", |_| {});
    let trust = trusting(&Authority::new("example.org")).bundle("partner.org", &[theirs.der()]);
    check(
        &trust,
        &leaf(&below, API, |_| {}).chain,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn takes_an_authority_for_no_trust_domain_but_those_whose_bundle_it_is_in() {
    let shared = Authority::new("example.org");
    let trust = trusting(&shared)
        .bundle("partner.org", &[shared.der()])
        .bundle("third.org", &[Authority::new("third.org").der()]);
    check(&trust, &leaf(&shared, API, |_| {}).chain, Ok(API));
    check(&trust, &leaf(&shared, PARTNER, |_| {}).chain, Ok(PARTNER));
    let third = "spiffe://third.org/api";
    check(
        &trust,
        &leaf(&shared, third, |_| {}).chain,
        Err(untrusted(third, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_a_trust_domain_without_a_bundle() {
    let theirs = Authority::new("partner.org");
    check(
        &trusting(&Authority::new("example.org")),
        &leaf(&theirs, PARTNER, |_| {}).chain,
        Err(no_bundle(PARTNER)),
    );
}

#[test]
fn refuses_a_subdomain_of_a_trust_domain_with_a_bundle() {
    let ca = Authority::new("example.org");
    let peer = "spiffe://sub.example.org/api";
    check(
        &trusting(&ca),
        &leaf(&ca, peer, |_| {}).chain,
        Err(no_bundle(peer)),
    );
}

#[test]
fn refuses_everyone_of_a_trust_domain_whose_bundle_is_empty() {
    let ca = Authority::new("example.org");
    let trust = Trust::none()
        .bundle("example.org", &[])
        .bundle("partner.org", &[ca.der()]);
    check(
        &trust,
        &leaf(&ca, API, |_| {}).chain,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

#[test]
fn refuses_everyone_of_a_trust_domain_whose_bundle_is_unusable() {
    let ca = Authority::new("example.org");
    let garbage = CertificateDer::from(b"garbage".to_vec());
    let trust = Trust::none()
        .bundle("example.org", &[garbage])
        .bundle("partner.org", &[ca.der()]);
    check(
        &trust,
        &leaf(&ca, API, |_| {}).chain,
        Err(untrusted(API, PathError::UnknownIssuer)),
    );
}

// The allowlist, which only an authenticated peer gets to.

/// A peer whose chain is good, under an allowlist.
#[track_caller]
fn check_allowed(allowlist: Allowlist, peer: &str, expected: Result<(), &str>) {
    let name = id(peer).trust_domain().to_string();
    let ca = Authority::new(&name);
    let trust = Trust::none().bundle(&name, &[ca.der()]).allowing(allowlist);
    let expected = expected
        .map(|()| peer)
        .map_err(|rule| not_allowed(peer, rule));
    check(&trust, &leaf(&ca, peer, |_| {}).chain, expected);
}

const ONLY_API: &str = "ids spiffe://example.org/api";

#[test]
fn takes_a_listed_id() {
    check_allowed(ids(&[API]), API, Ok(()));
    check_allowed(ids(&[PARTNER, API]), PARTNER, Ok(()));
}

#[test]
fn refuses_an_id_that_is_not_listed() {
    check_allowed(ids(&[API]), "spiffe://example.org/web", Err(ONLY_API));
}

#[test]
fn refuses_a_prefix_of_a_listed_id() {
    check_allowed(ids(&[API]), "spiffe://example.org/ap", Err(ONLY_API));
}

#[test]
fn refuses_an_id_that_goes_on_where_a_listed_one_ends() {
    check_allowed(ids(&[API]), "spiffe://example.org/api2", Err(ONLY_API));
    check_allowed(ids(&[API]), "spiffe://example.org/api/v2", Err(ONLY_API));
}

#[test]
fn refuses_a_listed_path_in_another_case() {
    check_allowed(ids(&[API]), "spiffe://example.org/API", Err(ONLY_API));
}

#[test]
fn refuses_a_listed_path_in_another_trust_domain() {
    check_allowed(ids(&[API]), PARTNER, Err(ONLY_API));
}

#[test]
fn refuses_everyone_when_no_id_is_listed() {
    check_allowed(Allowlist::Ids(BTreeSet::new()), API, Err("ids "));
}

#[test]
fn takes_every_id_of_a_listed_trust_domain_alone() {
    let partner = Allowlist::TrustDomain(domain("partner.org"));
    let rule = "trustDomain partner.org";
    check_allowed(partner.clone(), PARTNER, Ok(()));
    check_allowed(partner.clone(), "spiffe://partner.org/a/b", Ok(()));
    check_allowed(partner.clone(), API, Err(rule));
    check_allowed(partner, "spiffe://sub.partner.org/api", Err(rule));
}

#[test]
fn takes_every_id_of_our_own_trust_domain_alone() {
    let rule = "our own trust domain (no ids, no trustDomain)";
    check_allowed(Allowlist::OwnTrustDomain, API, Ok(()));
    check_allowed(Allowlist::OwnTrustDomain, OWN_ID, Ok(()));
    check_allowed(Allowlist::OwnTrustDomain, PARTNER, Err(rule));
}

#[test]
fn takes_every_trust_domain_with_a_bundle_when_all_are_allowed() {
    check_allowed(Allowlist::Any, API, Ok(()));
    check_allowed(Allowlist::Any, PARTNER, Ok(()));
}

#[test]
fn authenticates_before_it_asks_the_allowlist() {
    let ca = Authority::new("example.org");
    let web = "spiffe://example.org/web";
    let trust = trusting(&Authority::new("partner.org")).allowing(ids(&[API]));
    check(
        &trust,
        &leaf(&ca, web, |_| {}).chain,
        Err(untrusted(web, PathError::UnknownIssuer)),
    );
}

// The handshake around it.

fn transport(allowlist: Allowlist, versions: TlsVersions) -> Transport {
    Transport {
        name: "test".to_owned(),
        authentication: Authentication::Spiffe(allowlist),
        server_name: None,
        versions,
        alpn: &[],
        dial_timeout: None,
        handshake_timeout: Duration::from_secs(5),
        keep_alive: None,
    }
}

/// Ours, within `ca`'s trust domain.
fn snapshot_of(ca: &Authority, own: &Leaf) -> Arc<Snapshot> {
    Snapshot::for_tests(
        OWN_ID,
        own.chain.clone(),
        own.key_pkcs8_der.clone(),
        vec![("example.org", vec![ca.der().to_vec()])],
    )
    .unwrap()
}

/// A client of ours that presents `own` and verifies by `ca`.
fn client(
    ca: &Authority,
    own: &Leaf,
    allowlist: Allowlist,
    versions: TlsVersions,
) -> (Arc<ClientConfig>, Arc<SvidVerifier>) {
    let transport = transport(allowlist, versions);
    let client = tls::client(&transport, Some(&snapshot_of(ca, own)), tls::unix_now()).unwrap();
    (client.config, client.svid_verifier.unwrap())
}

/// A server that presents `leaf` and verifies clients by `ca`.
fn server(ca: &Authority, leaf: &Leaf, allowlist: Allowlist) -> Arc<ServerConfig> {
    let provider = provider();
    let verifier = SvidVerifier::new(
        snapshot_of(ca, leaf),
        allowlist,
        provider.signature_verification_algorithms,
    );
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key_pkcs8_der.clone()));
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(leaf.chain.clone(), key)
        .unwrap();
    Arc::new(config)
}

/// Two ends after their last byte, each with its first error.
struct Ends {
    client: Connection,
    server: Connection,
    client_result: Result<(), rustls::Error>,
    server_result: Result<(), rustls::Error>,
}

fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Ends {
    let name = ServerName::try_from("backend.invalid").unwrap();
    let mut ends = Ends {
        client: ClientConnection::new(Arc::clone(client), name)
            .unwrap()
            .into(),
        server: ServerConnection::new(Arc::clone(server)).unwrap().into(),
        client_result: Ok(()),
        server_result: Ok(()),
    };
    loop {
        let (up, down) = (written(&mut ends.client), written(&mut ends.server));
        if up.is_empty() && down.is_empty() {
            return ends;
        }
        ends.server_result = ends
            .server_result
            .and_then(|()| read(&mut ends.server, &up));
        ends.client_result = ends
            .client_result
            .and_then(|()| read(&mut ends.client, &down));
    }
}

fn written(end: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while end.wants_write() {
        end.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn read(end: &mut Connection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        assert_ne!(end.read_tls(&mut bytes).unwrap(), 0, "it reads no more");
        end.process_new_packets()?;
    }
    Ok(())
}

const VERSIONS: [TlsVersions; 2] = [TlsVersions::Only12, TlsVersions::Only13];

#[test]
fn an_allowed_pair_shakes_hands_and_sees_each_other() {
    let ca = Authority::new("example.org");
    let below = ca.intermediate("example.org", |_| {});
    let (own, api) = (leaf(&below, OWN_ID, |_| {}), leaf(&below, API, |_| {}));
    for versions in VERSIONS {
        let (client, verifier) = client(&ca, &own, ids(&[API]), versions);
        let ends = handshake(&client, &server(&ca, &api, ids(&[OWN_ID])));
        assert_eq!(ends.client_result, Ok(()), "{versions:?}");
        assert_eq!(ends.server_result, Ok(()), "{versions:?}");
        for (end, other) in [(&ends.client, &api), (&ends.server, &own)] {
            assert!(!end.is_handshaking(), "{versions:?}");
            assert_eq!(end.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(end.peer_certificates(), Some(&other.chain[..]));
        }
        assert_eq!(verifier.take_refusal(), None);
    }
}

/// A server that our client refuses: what it is told, and what we remember.
#[track_caller]
fn check_refused(
    ca: &Authority,
    peer: &Leaf,
    certificate_error: CertificateError,
    alert: AlertDescription,
    refusal: PeerError,
) {
    let own = leaf(ca, OWN_ID, |_| {});
    for versions in VERSIONS {
        let (client, verifier) = client(ca, &own, ids(&[API]), versions);
        let ends = handshake(&client, &server(ca, peer, Allowlist::Any));
        assert_eq!(
            (ends.client_result, ends.server_result),
            (
                Err(rustls::Error::InvalidCertificate(certificate_error.clone())),
                Err(rustls::Error::AlertReceived(alert)),
            ),
            "{versions:?}"
        );
        assert_eq!(verifier.take_refusal(), Some(refusal.clone()));
        assert_eq!(verifier.take_refusal(), None, "it was taken");
    }
}

#[test]
fn a_server_that_is_not_allowed_is_told_access_denied() {
    let ca = Authority::new("example.org");
    let web = "spiffe://example.org/web";
    check_refused(
        &ca,
        &leaf(&ca, web, |_| {}),
        CertificateError::ApplicationVerificationFailure,
        AlertDescription::AccessDenied,
        not_allowed(web, ONLY_API),
    );
}

#[test]
fn a_server_of_an_unknown_authority_is_told_unknown_ca() {
    let stranger = Authority::with("example.org", |params| {
        params.distinguished_name = distinguished_name("stranger");
    });
    check_refused(
        &Authority::new("example.org"),
        &leaf(&stranger, API, |_| {}),
        CertificateError::UnknownIssuer,
        AlertDescription::UnknownCA,
        untrusted(API, PathError::UnknownIssuer),
    );
}

#[test]
fn a_server_without_a_bundle_for_its_trust_domain_is_told_unknown_ca() {
    check_refused(
        &Authority::new("example.org"),
        &leaf(&Authority::new("partner.org"), PARTNER, |_| {}),
        CertificateError::UnknownIssuer,
        AlertDescription::UnknownCA,
        no_bundle(PARTNER),
    );
}

#[test]
fn an_expired_server_is_told_certificate_expired() {
    let ca = Authority::new("example.org");
    let expired = leaf(&ca, API, |params| {
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    check_refused(
        &ca,
        &expired,
        CertificateError::Expired,
        AlertDescription::CertificateExpired,
        untrusted(API, PathError::Expired),
    );
}

#[test]
fn a_client_that_is_not_allowed_is_told_access_denied() {
    let ca = Authority::new("example.org");
    let (own, api) = (leaf(&ca, OWN_ID, |_| {}), leaf(&ca, API, |_| {}));
    for versions in VERSIONS {
        let (client, _) = client(&ca, &own, ids(&[API]), versions);
        let ends = handshake(&client, &server(&ca, &api, ids(&[API])));
        assert_eq!(
            (ends.client_result, ends.server_result),
            (
                Err(rustls::Error::AlertReceived(AlertDescription::AccessDenied)),
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::ApplicationVerificationFailure
                )),
            ),
            "{versions:?}"
        );
    }
}

#[test]
fn no_session_is_resumed_though_the_server_offers_it() {
    let ca = Authority::new("example.org");
    let (own, api) = (leaf(&ca, OWN_ID, |_| {}), leaf(&ca, API, |_| {}));
    for versions in VERSIONS {
        let (client, _) = client(&ca, &own, ids(&[API]), versions);
        let server = server(&ca, &api, ids(&[OWN_ID]));
        let second = |config: &Arc<ClientConfig>| {
            let first = handshake(config, &server);
            assert_eq!(first.client.handshake_kind(), Some(HandshakeKind::Full));
            handshake(config, &server).client.handshake_kind()
        };
        assert_eq!(second(&client), Some(HandshakeKind::Full), "{versions:?}");
        // The offer is real: a client that wants to resume can.
        let mut resuming = ClientConfig::clone(&client);
        resuming.resumption = Resumption::in_memory_sessions(8);
        assert_eq!(
            second(&Arc::new(resuming)),
            Some(HandshakeKind::Resumed),
            "{versions:?}"
        );
    }
}

#[test]
fn there_is_no_client_without_an_identity() {
    let transport = transport(Allowlist::Any, TlsVersions::Both);
    let client = tls::client(&transport, None, tls::unix_now());
    assert_eq!(client.err(), Some(ConfigError::NoIdentity));
}
