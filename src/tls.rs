//! Snapshot and transport to rustls configurations. The only place that names
//! rustls's configuration types.

pub(crate) mod key_usage;
pub mod names;
pub mod verifier;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme, SupportedProtocolVersion};

use crate::identity::Snapshot;
use crate::transport::{Authentication, TlsVersions, Transport};
use verifier::SvidVerifier;
use zeroize::Zeroize;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("choose a crypto provider: the feature `aws-lc-rs` (the default) or `ring`");

/// The cryptography of every TLS connection.
#[must_use]
pub fn provider() -> CryptoProvider {
    #[cfg(feature = "aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return rustls::crypto::ring::default_provider();
}

/// A chain with its key, once they are seen to fit. The key's bytes are wiped;
/// what stays in memory is the signer made of them.
///
/// # Errors
/// What is wrong, in words; never the key.
pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    mut key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    #[cfg(feature = "aws-lc-rs")]
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    let signer = rustls::crypto::ring::sign::any_supported_type(&key);
    key.zeroize();
    let certified = CertifiedKey::new(chain, signer.map_err(|error| error.to_string())?);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(error) => Err(error.to_string()),
    }
}

/// The time, Unix seconds. What decides by time takes it as an argument.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the clock"
)]
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A configuration for outgoing connections, and what it will verify with.
#[derive(Clone, Debug)]
pub struct Client {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// Of a SPIFFE transport: names the peer, and the reason of a refusal.
    pub svid_verifier: Option<Arc<SvidVerifier>>,
}

/// Why there is no configuration for a transport.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConfigError {
    /// The transport needs a SVID, and there is none.
    NoIdentity,
    /// Ours has expired. It is never presented.
    IdentityExpired,
    /// rustls or the platform says no.
    Unusable(String),
}

/// Makes the configuration of `transport` under `snapshot`. `alpn`: the
/// protocols to offer; none: no offer.
///
/// Session resumption is off: a resumed session skips the verifier, and a
/// peer whose trust was taken away would come back.
///
/// # Errors
/// See [`ConfigError`].
pub fn client(
    transport: &Transport,
    snapshot: Option<&Arc<Snapshot>>,
    now: i64,
    alpn: &[&[u8]],
) -> Result<Client, ConfigError> {
    let unusable = |error: &dyn std::fmt::Display| ConfigError::Unusable(error.to_string());
    let provider = Arc::new(provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(transport.versions))
        .map_err(|error| unusable(&error))?
        .dangerous();
    let (mut config, svid_verifier) = match &transport.authentication {
        Authentication::Spiffe(allowlist) => {
            let snapshot = snapshot.ok_or(ConfigError::NoIdentity)?;
            if snapshot.svid().is_expired(now) {
                return Err(ConfigError::IdentityExpired);
            }
            let verifier = Arc::new(SvidVerifier::new(
                Arc::clone(snapshot),
                allowlist.clone(),
                algorithms,
            ));
            let key = Arc::clone(&snapshot.svid().key);
            let config = builder
                .with_custom_certificate_verifier(verifier.clone())
                .with_client_cert_resolver(Arc::new(Always(key)));
            (config, Some(verifier))
        }
        Authentication::Names(names) => {
            let verifier = names::verifier(names, &provider).map_err(|why| unusable(&why))?;
            let builder = builder.with_custom_certificate_verifier(verifier);
            let config = match &names.certificate {
                Some(certificate) => {
                    builder.with_client_cert_resolver(Arc::new(Always(Arc::clone(&certificate.0))))
                }
                None => builder.with_no_client_auth(),
            };
            (config, None)
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|it| it.to_vec()).collect();
    Ok(Client {
        config: Arc::new(config),
        svid_verifier,
    })
}

fn versions(versions: TlsVersions) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match versions {
        TlsVersions::Both => &BOTH,
        TlsVersions::Only12 => &ONLY_12,
        TlsVersions::Only13 => &ONLY_13,
    }
}

/// Presents one certificate, whatever the server hints at.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
