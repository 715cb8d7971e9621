//! TLS without SPIFFE: `rootCAs`, `serverName`, `certificates`, `peerCertURI`,
//! `insecureSkipVerify`, versions. With the certificates in `fixtures/pki`.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::support::backend::{Backend, echo_heads};
use crate::support::proxy::{On, Running};

crate::on_both!(
    names_are_verified_against_the_authorities_given,
    a_client_certificate_is_shown,
    peer_cert_uri_is_asked_for_on_top,
    versions_are_kept_to,
);

const PKI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pki");

fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(format!("{PKI}/{name}"))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

fn backend(versions: &[&'static SupportedProtocolVersion], wants_client: bool) -> Backend {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots.add(certificates("ca.pem").remove(0)).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_file(format!("{PKI}/server.key")).unwrap();
    let config = builder
        .with_single_cert(certificates("server.pem"), key)
        .unwrap();
    Backend::tls(Arc::new(config), echo_heads)
}

/// The status of a request through a transport with these keys.
fn status(on: On, backend: &Backend, transport: &str) -> String {
    let proxy = Running::start(
        on,
        &format!(
            r#"
[entryPoints.web]
address = "127.0.0.1:0"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://{}" }}]
[http.serversTransports.t]
{}
"#,
            backend.address,
            transport.replace("PKI", PKI)
        ),
    );
    let answer = proxy.get("web", "/");
    answer.split(' ').nth(1).unwrap().to_owned()
}

const BOTH: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

fn names_are_verified_against_the_authorities_given(on: On) {
    let backend = backend(BOTH, false);
    for (transport, expected) in [
        (
            "rootCAs = [\"PKI/ca.pem\"]\nserverName = \"backend.test\"",
            "200",
        ),
        (
            "rootCAs = [\"PKI/other-ca.pem\", \"PKI/ca.pem\"]\nserverName = \"backend.test\"",
            "200",
        ),
        (
            "rootCAs = [\"PKI/ca.pem\"]\nserverName = \"other.test\"",
            "502",
        ),
        // The address is 127.0.0.1, which the certificate does not name.
        ("rootCAs = [\"PKI/ca.pem\"]", "502"),
        (
            "rootCAs = [\"PKI/other-ca.pem\"]\nserverName = \"backend.test\"",
            "502",
        ),
        ("insecureSkipVerify = true", "200"),
    ] {
        assert_eq!(status(on, &backend, transport), expected, "{transport}");
    }
}

fn a_client_certificate_is_shown(on: On) {
    let backend = backend(BOTH, true);
    let trust = "rootCAs = [\"PKI/ca.pem\"]\nserverName = \"backend.test\"";
    assert_eq!(status(on, &backend, trust), "502");
    let with = format!(
        "{trust}\ncertificates = [{{ certFile = \"PKI/client.pem\", keyFile = \"PKI/client.key\" }}]"
    );
    assert_eq!(status(on, &backend, &with), "200");
}

fn peer_cert_uri_is_asked_for_on_top(on: On) {
    let backend = backend(BOTH, false);
    for (transport, expected) in [
        (
            "rootCAs = [\"PKI/ca.pem\"]\nserverName = \"backend.test\"\npeerCertURI = \"spiffe://fixture.test/server\"",
            "200",
        ),
        (
            "rootCAs = [\"PKI/ca.pem\"]\nserverName = \"backend.test\"\npeerCertURI = \"spiffe://fixture.test/other\"",
            "502",
        ),
        // Then the chain still counts, and the name does not.
        (
            "rootCAs = [\"PKI/ca.pem\"]\ninsecureSkipVerify = true\npeerCertURI = \"spiffe://fixture.test/server\"",
            "200",
        ),
        (
            "rootCAs = [\"PKI/other-ca.pem\"]\ninsecureSkipVerify = true\npeerCertURI = \"spiffe://fixture.test/server\"",
            "502",
        ),
    ] {
        assert_eq!(status(on, &backend, transport), expected, "{transport}");
    }
}

fn versions_are_kept_to(on: On) {
    let (only_12, only_13) = (
        backend(&[&rustls::version::TLS12], false),
        backend(&[&rustls::version::TLS13], false),
    );
    let statuses = |transport: &str| {
        let transport = format!("insecureSkipVerify = true\n{transport}");
        (
            status(on, &only_12, &transport),
            status(on, &only_13, &transport),
        )
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(statuses(""), pair("200", "200"));
    assert_eq!(
        statuses("minVersion = \"VersionTLS13\""),
        pair("502", "200")
    );
    assert_eq!(
        statuses("maxVersion = \"VersionTLS12\""),
        pair("200", "502")
    );
}
