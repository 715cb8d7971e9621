//! The verifier inside a TLS handshake: what each side sees.

use super::admission::{ONLY_API, PARTNER};
use super::*;

// The handshake around it.

fn transport(allowlist: Allowlist, versions: TlsVersions) -> Transport {
    Transport {
        name: "test".to_owned(),
        authentication: Authentication::Spiffe(allowlist),
        server_name: None,
        versions,
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
    let client = tls::client(
        &transport,
        Some(&snapshot_of(ca, own)),
        tls::unix_now(),
        &[],
    )
    .unwrap();
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
    let client = tls::client(&transport, None, tls::unix_now(), &[]);
    assert_eq!(client.err(), Some(ConfigError::NoIdentity));
}
