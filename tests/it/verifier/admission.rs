//! Federation, section 7.3, and the allowlist: whose bundle counts, and who is wanted.

use super::*;

// Federation, section 7.3: the bundle of the peer's own trust domain.

pub(super) const PARTNER: &str = "spiffe://partner.org/api";

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

pub(super) const ONLY_API: &str = "ids spiffe://example.org/api";

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
