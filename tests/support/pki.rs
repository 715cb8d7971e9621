//! Certificates for tests: authorities, intermediates and X509-SVIDs. They
//! are good ones, valid from 2020 to 2050; a closure over their parameters
//! makes them bad.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority, with its key.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    params: CertificateParams,
    /// What a peer presents above its leaf: of a root nothing, of an
    /// intermediate its own certificate and those of the intermediates above.
    presented: Vec<CertificateDer<'static>>,
    presented_pem: String,
}

impl Authority {
    /// A root of a trust domain.
    ///
    /// Two roots of one trust domain have the same name and different keys.
    pub fn new(domain: &str) -> Self {
        Self::with(domain, |_| {})
    }

    /// A root that is unlike others.
    pub fn with(domain: &str, customise: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(domain, domain);
        customise(&mut params);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params.clone(), key).unwrap(),
            params,
            presented: Vec::new(),
            presented_pem: String::new(),
        }
    }

    /// An authority below this one, of the same trust domain or another.
    ///
    /// Its name is made from that of this one, so that neither is taken for
    /// the other.
    pub fn intermediate(
        &self,
        domain: &str,
        customise: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let name = format!("{domain}, depth {}", self.presented.len() + 1);
        let mut params = authority_params(domain, &name);
        customise(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params.clone(), key, &self.issuer).unwrap();
        let mut presented = vec![issuer.der().clone()];
        presented.extend_from_slice(&self.presented);
        Self {
            presented_pem: format!("{}{}", issuer.pem(), self.presented_pem),
            issuer,
            params,
            presented,
        }
    }

    /// Another certificate for the name and key of `subject`, from this
    /// authority: a renewal, or a cross-signature.
    pub fn certify(
        &self,
        subject: &Self,
        customise: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = subject.params.clone();
        customise(&mut params);
        let certificate = params.signed_by(subject.issuer.key(), &self.issuer);
        certificate.unwrap().into()
    }

    /// Its own certificate.
    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Its own certificate, for a file.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }
}

/// What a workload has: its chain, leaf first, and the key of the leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key_pkcs8_der: Vec<u8>,
    chain_pem: String,
    key_pem: String,
}

impl Leaf {
    /// The chain as it was issued, for a file.
    pub fn chain_pem(&self) -> String {
        self.chain_pem.clone()
    }

    /// The key, for rustls.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_pkcs8_der.clone()).into()
    }

    /// The key, for a file.
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }
}

/// An X509-SVID, unless `customise` makes something else of it.
pub fn leaf(issuer: &Authority, id: &str, customise: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let mut params = params("workload");
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    customise(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer.issuer).unwrap();
    let mut chain = vec![certificate.der().clone()];
    chain.extend_from_slice(&issuer.presented);
    Leaf {
        chain,
        key_pkcs8_der: key.serialize_der(),
        chain_pem: format!("{}{}", certificate.pem(), issuer.presented_pem),
        key_pem: key.serialize_pem(),
    }
}

/// A URI name for a certificate. Anything in ASCII will do.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A subject or issuer name.
pub fn distinguished_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::OrganizationName, "SPIFFE");
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn authority_params(domain: &str, name: &str) -> CertificateParams {
    let mut params = params(name);
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2050, 1, 1);
    params
}
