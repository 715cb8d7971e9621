//! SPIFFE-ID, section 2, and X509-SVID, section 2: the name, and that there is one.

use super::*;

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
