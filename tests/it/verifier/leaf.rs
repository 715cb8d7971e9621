//! X509-SVID, sections 3.1, 4 and 5.2: the leaf, its purpose and its dates.

use super::issuers::check_intermediate;
use super::*;

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
        Err(malformed("keyUsage stands twice")),
    );
}

#[test]
fn refuses_a_leaf_whose_key_usage_is_not_in_its_one_form() {
    // digitalSignature, with the unused bits counted wrong.
    check_leaf(
        |params| {
            params.key_usages.clear();
            let usage = extension(&[2, 5, 29, 15], true, &[3, 2, 0, 0x80]);
            params.custom_extensions.push(usage);
        },
        Err(malformed("keyUsage has bits that it must not")),
    );
}

#[test]
fn refuses_an_intermediate_whose_key_usage_is_not_in_its_one_form() {
    // keyCertSign in each, and DER that another reader may refuse.
    for usage in [
        &[3, 2, 0, 0x04][..],
        &[3, 3, 0, 0x04, 0x00],
        &[3, 3, 6, 0x04, 0x40],
        &[3, 2, 2, 0x04, 0],
    ] {
        check_intermediate(
            |params| {
                params.key_usages.clear();
                let usage = extension(&[2, 5, 29, 15], true, usage);
                params.custom_extensions.push(usage);
            },
            Err(untrusted(
                API,
                PathError::Other("an issuer's keyUsage is malformed"),
            )),
        );
    }
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
