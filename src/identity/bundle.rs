//! The authorities of a trust domain, ready for path building.

use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::tls::key_usage;

/// The X.509 authorities of one trust domain.
///
/// An authority that can sign nothing (no CA, no `keyCertSign`) is left out.
/// A bundle may so become empty; then nobody of that trust domain is trusted
/// (SPIFFE Trust Domain and Bundle, section 4.1.3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bundle {
    authorities: Vec<Authority>,
    unusable: Vec<String>,
}

/// One authority. Its dates are kept, because a bundle may hold expired ones
/// (SPIRE keeps them for a day), and an expired authority is no authority.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) subject: String,
    pub(crate) serial: String,
    /// Unix seconds, both ends included.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// How many intermediates may stand below it.
    pub(crate) path_len: Option<u32>,
}

impl Bundle {
    /// Takes each certificate that may sign others; notes why the rest may not.
    #[must_use]
    pub fn new<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut bundle = Self::default();
        for der in certificates {
            match Authority::parse(der) {
                Ok(authority) => bundle.authorities.push(authority),
                Err(why) => bundle.unusable.push(why),
            }
        }
        bundle
    }

    /// The authorities, expired ones included.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.authorities.iter()
    }

    /// Why certificates were left out, one sentence each.
    #[must_use]
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    /// How many authorities there are, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.authorities.len()
    }

    /// Whether nobody can be trusted by it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }
}

impl Authority {
    /// Whether it is valid at `now` (Unix seconds).
    pub(crate) fn is_valid_at(&self, now: i64) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let name = certificate.subject().to_string();
        let constraints = certificate
            .basic_constraints()
            .map_err(|error| format!("authority \"{name}\": basicConstraints: {error}"))?
            .ok_or_else(|| format!("authority \"{name}\" has no basicConstraints"))?;
        if !constraints.value.ca {
            return Err(format!("authority \"{name}\" is not a CA"));
        }
        let usage = key_usage::of(&certificate)
            .map_err(|error| format!("authority \"{name}\": {error}"))?;
        if usage.is_some_and(|usage| !usage.key_cert_sign) {
            return Err(format!("authority \"{name}\" may not sign certificates"));
        }
        let der = CertificateDer::from(der);
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| format!("authority \"{name}\": {error}"))?;
        Ok(Self {
            anchor: anchor.to_owned(),
            serial: certificate.raw_serial_as_string(),
            subject: name,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            path_len: constraints.value.path_len_constraint,
        })
    }
}
