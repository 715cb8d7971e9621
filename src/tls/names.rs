//! Verification by names: what a transport without `spiffe` does.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::transport::Names;

/// The verifier that a transport's keys ask for.
///
/// # Errors
/// When there is no authority to trust, in words.
pub(super) fn verifier(
    names: &Names,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let algorithms = provider.signature_verification_algorithms;
    // As in Traefik: with a peerCertURI the chain is still verified when
    // rootCAs are given, and the name alone is skipped.
    let chain_only = names.insecure_skip_verify && names.peer_cert_uri.is_some();
    let inner: Option<Arc<WebPkiServerVerifier>> = if names.insecure_skip_verify && !chain_only {
        None
    } else {
        let roots = Arc::new(roots(names)?);
        let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
            .build()
            .map_err(|error| error.to_string())?;
        Some(inner)
    };
    Ok(Arc::new(NamesVerifier {
        inner,
        ignore_name: chain_only,
        uri: names.peer_cert_uri.clone(),
        algorithms,
    }))
}

fn roots(names: &Names) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match &names.roots {
        Some(roots) => {
            for root in roots {
                store
                    .add(root.clone())
                    .map_err(|error| format!("a certificate in rootCAs: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
                return Err(format!(
                    "this machine has no root certificates ({}); name some in rootCAs",
                    why.join("; ")
                ));
            }
        }
    }
    Ok(store)
}

#[derive(Debug)]
struct NamesVerifier {
    /// `None`: `insecureSkipVerify`.
    inner: Option<Arc<WebPkiServerVerifier>>,
    ignore_name: bool,
    uri: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NamesVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(inner) = &self.inner {
            match inner.verify_server_cert(leaf, intermediates, name, ocsp, now) {
                Ok(_) => {}
                // rustls checks the name last, so the chain is good.
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )) if self.ignore_name => {}
                Err(error) => return Err(error),
            }
        }
        match &self.uri {
            Some(uri) if !has_uri(leaf, uri) => Err(rustls::Error::InvalidCertificate(
                CertificateError::Other(OtherError(Arc::new(NoSuchUri(uri.clone())))),
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn has_uri(leaf: &CertificateDer<'_>, wanted: &str) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else {
        return false;
    };
    names
        .value
        .general_names
        .iter()
        .any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted))
}

#[derive(Debug)]
struct NoSuchUri(String);

impl std::fmt::Display for NoSuchUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "no URI name of its certificate is {} (peerCertURI)",
            self.0
        )
    }
}

impl std::error::Error for NoSuchUri {}
