//! X509-SVID, sections 3.2, 4 and 5.1: intermediates and authorities.

use super::*;

// X509-SVID, sections 3.2, 4 and 5.1: intermediates.

/// A chain of a leaf, one intermediate and a good authority.
#[track_caller]
pub(super) fn check_intermediate(
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
