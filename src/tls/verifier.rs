//! The X509-SVID verifier: who the other end is, and whether we may talk.
//!
//! [`verify`] is pure: it takes the chain, the bundles, the allowlist and the
//! time, and gives a [`VerifiedPeer`] or the reason why there is none. The
//! rustls traits around it only carry it into a handshake.
//!
//! The order matters. First what the leaf claims (X509-SVID, sections 2 to
//! 5.2), then the path to an authority of **that** trust domain and no other
//! (Federation, section 7.3), and only for a peer so authenticated whether the
//! transport wants it.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use spiffe::SpiffeId;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::key_usage;
use crate::identity::Snapshot;
use crate::transport::Allowlist;

/// The longest SPIFFE ID (SPIFFE-ID, section 2.3).
const SPIFFE_ID_BYTES_MAX: usize = 2048;

/// A SPIFFE ID that the other end has *proved*: its chain leads to the bundle
/// of its own trust domain, and the transport's allowlist permits it.
///
/// Only this module makes one, so what asks for a `VerifiedPeer` cannot be
/// reached by a peer that nobody checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedPeer(SpiffeId);

impl VerifiedPeer {
    #[cfg(test)]
    #[allow(clippy::unwrap_used, reason = "test code")]
    pub(crate) fn for_tests(id: &str) -> Self {
        Self(SpiffeId::new(id).unwrap())
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}

/// Which end of the handshake the peer is: it needs the matching extended key
/// usage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The peer accepted the connection (`serverAuth`).
    Server,
    /// The peer opened the connection (`clientAuth`).
    Client,
}

/// A peer, and for how long what it showed is good. Unix seconds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Verified {
    pub(crate) peer: VerifiedPeer,
    /// As of when it was verified.
    pub(crate) at: UnixTime,
    /// The first end of a life on the path, from the leaf to the authority.
    pub(crate) until: i64,
    /// The end of the authority's.
    pub(crate) authority_until: i64,
}

/// Which authorities of a bundle may vouch for a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Authorities {
    /// Those that are valid at the time.
    Valid,
    /// Those that had not expired at the time. For a second look: that one was
    /// valid then was seen in the handshake, and it may have been issued anew
    /// since, for the same key and with a later beginning.
    NotExpired,
}

/// Why a peer was not admitted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PeerError {
    /// The certificate is not DER that X.509 allows.
    Malformed(String),
    /// The leaf breaks a rule of the X509-SVID standard.
    NotAnSvid(String),
    /// We have no bundle for the trust domain that it claims.
    NoBundle {
        /// What the leaf claims to be.
        id: SpiffeId,
    },
    /// No path leads from the leaf to an authority that is valid now.
    Untrusted {
        /// What the leaf claims to be.
        id: SpiffeId,
        /// Why the best path failed.
        why: PathError,
    },
    /// It is who it says, and the transport does not want it.
    NotAllowed {
        /// Who it is.
        id: SpiffeId,
        /// The rule, in words.
        rule: String,
    },
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathError {
    /// No authority of the bundle has signed it, or the one that has is
    /// expired, not yet valid or not allowed to sign.
    UnknownIssuer,
    /// A certificate in it has expired.
    Expired,
    /// A certificate in it is not valid yet.
    NotValidYet,
    /// A signature in it is wrong.
    BadSignature,
    /// An intermediate may not sign certificates.
    IssuerMayNotSign,
    /// An intermediate has a SPIFFE ID with a path (X509-SVID, section 3.2).
    IssuerIsWorkload,
    /// It is longer than an issuer allows.
    TooLong,
    /// The extended key usage does not cover its role.
    WrongPurpose,
    /// Anything else; the verifier's own name for it.
    Other(&'static str),
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownIssuer => "no authority in the bundle that is valid now has issued it",
            Self::Expired => "a certificate has expired",
            Self::NotValidYet => "a certificate is not valid yet; are the clocks right?",
            Self::BadSignature => "a signature is wrong",
            Self::IssuerMayNotSign => "an intermediate may not sign certificates",
            Self::IssuerIsWorkload => "an intermediate has a SPIFFE ID with a path",
            Self::TooLong => "the chain is longer than an issuer allows",
            Self::WrongPurpose => "the extended key usage does not cover this role",
            Self::Other(why) => why,
        })
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "its certificate is malformed: {why}"),
            Self::NotAnSvid(why) => write!(f, "its certificate is not an X509-SVID: {why}"),
            Self::NoBundle { id } => write!(
                f,
                "it claims to be {id}, and we have no bundle for {}; is that trust domain federated with ours?",
                id.trust_domain()
            ),
            Self::Untrusted { id, why } => write!(f, "it claims to be {id}: {why}"),
            Self::NotAllowed { id, rule } => {
                write!(f, "it is {id}, which the allowlist does not permit: {rule}")
            }
        }
    }
}

impl std::error::Error for PeerError {}

impl PeerError {
    /// The alert that the peer gets, by way of rustls's own mapping.
    fn to_rustls(&self) -> rustls::Error {
        let certificate = match self {
            Self::Malformed(_) => CertificateError::BadEncoding,
            Self::NotAnSvid(_) => CertificateError::Other(OtherError(Arc::new(self.clone()))),
            Self::NoBundle { .. } => CertificateError::UnknownIssuer,
            // access_denied
            Self::NotAllowed { .. } => CertificateError::ApplicationVerificationFailure,
            Self::Untrusted { why, .. } => match why {
                PathError::UnknownIssuer | PathError::IssuerMayNotSign => {
                    CertificateError::UnknownIssuer
                }
                PathError::Expired => CertificateError::Expired,
                PathError::NotValidYet => CertificateError::NotValidYet,
                PathError::BadSignature => CertificateError::BadSignature,
                PathError::WrongPurpose => CertificateError::InvalidPurpose,
                PathError::IssuerIsWorkload | PathError::TooLong | PathError::Other(_) => {
                    CertificateError::Other(OtherError(Arc::new(self.clone())))
                }
            },
        };
        rustls::Error::InvalidCertificate(certificate)
    }
}

/// Decides whether a peer may be talked to.
///
/// `chain` is what it sent, leaf first; it has already shown that it holds the
/// leaf's key. `now` is Unix time.
///
/// # Errors
/// The first rule that it breaks, see [`PeerError`].
pub fn verify(
    chain: &[CertificateDer<'_>],
    role: Role,
    snapshot: &Snapshot,
    allowlist: &Allowlist,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let by = Authorities::Valid;
    let verified = authenticate(chain, role, snapshot, by, algorithms, now)?;
    authorise(&verified.peer, allowlist, snapshot)?;
    Ok(verified.peer)
}

/// Whether an authenticated peer is one that we want.
pub(crate) fn authorise(
    peer: &VerifiedPeer,
    allowlist: &Allowlist,
    snapshot: &Snapshot,
) -> Result<(), PeerError> {
    if allowlist.permits(peer.id(), snapshot.svid().id().trust_domain()) {
        return Ok(());
    }
    Err(PeerError::NotAllowed {
        id: peer.id().clone(),
        rule: allowlist.to_string(),
    })
}

/// Who a peer is, whether we want it or not.
pub(crate) fn authenticate(
    chain: &[CertificateDer<'_>],
    role: Role,
    snapshot: &Snapshot,
    by: Authorities,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<Verified, PeerError> {
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| PeerError::Malformed("there is none".to_owned()))?;
    let (id, leaf_until) = claimed_id(leaf)?;
    let domain = id.trust_domain();
    let Some(bundle) = snapshot.bundle(domain) else {
        return Err(PeerError::NoBundle { id });
    };
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let authorities = bundle.authorities().filter(|it| match by {
        Authorities::Valid => it.is_valid_at(seconds),
        Authorities::NotExpired => seconds <= it.not_after,
    });
    let authorities: Vec<_> = authorities.collect();
    let anchors: Vec<_> = authorities.iter().map(|a| a.anchor.clone()).collect();
    let untrusted = |why| PeerError::Untrusted {
        id: id.clone(),
        why,
    };
    let end_entity =
        EndEntityCert::try_from(leaf).map_err(|error| PeerError::Malformed(error.to_string()))?;
    let usage = match role {
        Role::Server => KeyUsage::server_auth(),
        Role::Client => KeyUsage::client_auth(),
    };
    // webpki looks at neither an anchor's dates and path length nor an
    // issuer's keyUsage. An error from here makes it try the next path; the
    // last of ours is remembered, as webpki's own does not say what failed.
    let ours = Cell::new(None);
    let lives = Cell::new((leaf_until, 0));
    let path_rules = |path: &VerifiedPath<'_>| {
        let mut intermediates_on_path = 0u32;
        let mut until = leaf_until;
        for issuer in path.intermediate_certificates() {
            intermediates_on_path = intermediates_on_path.saturating_add(1);
            match issuer_rules(&issuer.der()) {
                Ok(not_after) => until = until.min(not_after),
                Err(why) => {
                    ours.set(Some(why));
                    return Err(webpki::Error::UnknownIssuer);
                }
            }
        }
        let anchor = path.anchor();
        // There may be several of one name and key: the one that lasts.
        let lasting = authorities.iter().filter(|authority| {
            authority.anchor.subject == anchor.subject
                && authority.anchor.subject_public_key_info == anchor.subject_public_key_info
                && authority
                    .path_len
                    .is_none_or(|limit| intermediates_on_path <= limit)
        });
        match lasting.map(|authority| authority.not_after).max() {
            Some(not_after) => {
                lives.set((until.min(not_after), not_after));
                Ok(())
            }
            None => {
                ours.set(Some(PathError::TooLong));
                Err(webpki::Error::UnknownIssuer)
            }
        }
    };
    end_entity
        .verify_for_usage(
            algorithms.all,
            &anchors,
            intermediates,
            now,
            usage,
            None,
            Some(&path_rules),
        )
        .map_err(|error| {
            let why = match (error, ours.take()) {
                (webpki::Error::UnknownIssuer, Some(ours)) => ours,
                (error, _) => path_error(&error),
            };
            untrusted(why)
        })?;
    let (until, authority_until) = lives.get();
    Ok(Verified {
        peer: VerifiedPeer(id),
        at: now,
        until,
        authority_until,
    })
}

fn path_error(error: &webpki::Error) -> PathError {
    use webpki::Error;
    match error {
        Error::UnknownIssuer => PathError::UnknownIssuer,
        Error::CertExpired { .. } => PathError::Expired,
        Error::CertNotValidYet { .. } => PathError::NotValidYet,
        Error::InvalidSignatureForPublicKey => PathError::BadSignature,
        Error::RequiredEkuNotFoundContext(_) => PathError::WrongPurpose,
        Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => PathError::TooLong,
        Error::UnsupportedCriticalExtension => {
            PathError::Other("it has a critical extension that is not known here")
        }
        Error::NameConstraintViolation => PathError::Other("a name constraint forbids its name"),
        Error::CaUsedAsEndEntity => PathError::Other("its leaf is a CA"),
        Error::EndEntityUsedAsCa => PathError::IssuerMayNotSign,
        _ => PathError::Other("its chain does not verify"),
    }
}

/// The rules for a certificate between the leaf and an authority. Returns the
/// end of its life.
fn issuer_rules(der: &[u8]) -> Result<i64, PathError> {
    let (_, issuer) =
        X509Certificate::from_der(der).map_err(|_| PathError::Other("an issuer is malformed"))?;
    let usage = key_usage::of(&issuer)
        .map_err(|_| PathError::Other("an issuer's keyUsage is malformed"))?;
    if usage.is_some_and(|usage| !usage.key_cert_sign) {
        return Err(PathError::IssuerMayNotSign);
    }
    let names = issuer
        .subject_alternative_name()
        .map_err(|_| PathError::Other("an issuer's names are malformed"))?;
    let is_workload = names.is_some_and(|names| {
        names.value.general_names.iter().any(|name| {
            matches!(name, GeneralName::URI(uri)
                if SpiffeId::new(uri).is_ok_and(|id| !id.path().is_empty()))
        })
    });
    if is_workload {
        return Err(PathError::IssuerIsWorkload);
    }
    Ok(issuer.validity().not_after.timestamp())
}

/// Who a leaf says it is, when it obeys the leaf rules of X509-SVID, and the
/// end of its life.
fn claimed_id(leaf: &CertificateDer<'_>) -> Result<(SpiffeId, i64), PeerError> {
    let malformed = |error: &dyn fmt::Display| PeerError::Malformed(error.to_string());
    let not_an_svid = |why: String| PeerError::NotAnSvid(why);
    let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"bytes follow the certificate"));
    }
    // 2: exactly one URI, of any scheme.
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| malformed(&format!("subjectAltName: {error}")))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    if names
        .iter()
        .any(|name| matches!(name, GeneralName::Invalid(..)))
    {
        return Err(malformed(&"a subjectAltName is malformed"));
    }
    let Some(uri) = uris.next() else {
        return Err(not_an_svid("it has no URI name".to_owned()));
    };
    let more = uris.count();
    if more > 0 {
        return Err(not_an_svid(format!("it has {} URI names", more + 1)));
    }
    if uri.len() > SPIFFE_ID_BYTES_MAX {
        return Err(not_an_svid(format!(
            "its URI name has {} bytes; {SPIFFE_ID_BYTES_MAX} is the most",
            uri.len()
        )));
    }
    let id = SpiffeId::new(uri)
        .map_err(|error| not_an_svid(format!("its URI name is not a SPIFFE ID: {error}")))?;
    // The parser lower-cases; SPIFFE-ID 2.1 wants it written so.
    if id.to_string() != uri {
        return Err(not_an_svid(
            "its SPIFFE ID is not in the canonical, lower-case form".to_owned(),
        ));
    }
    // 3.1, 5.2: a workload has a path.
    if id.path().is_empty() {
        return Err(not_an_svid(format!(
            "{id} is the ID of a trust domain, not of a workload"
        )));
    }
    // 4.1
    match leaf.basic_constraints() {
        Err(error) => return Err(malformed(&format!("basicConstraints: {error}"))),
        Ok(None) => return Err(not_an_svid("it has no basicConstraints".to_owned())),
        Ok(Some(constraints)) if constraints.value.ca => {
            return Err(not_an_svid("it is a CA".to_owned()));
        }
        Ok(Some(_)) => {}
    }
    // 4.3
    let usage = key_usage::of(&leaf).map_err(|error| malformed(&error))?;
    let Some(usage) = usage else {
        return Err(not_an_svid("it has no keyUsage".to_owned()));
    };
    if usage.key_cert_sign || usage.crl_sign {
        return Err(not_an_svid("it may sign certificates or CRLs".to_owned()));
    }
    if !usage.digital_signature {
        return Err(not_an_svid("it may not make digital signatures".to_owned()));
    }
    let broken = leaf.extensions().iter().any(|extension| {
        matches!(
            extension.parsed_extension(),
            ParsedExtension::ParseError { .. }
        )
    });
    if broken {
        return Err(malformed(&"an extension cannot be read"));
    }
    Ok((id, leaf.validity().not_after.timestamp()))
}

/// [`verify`] inside a TLS handshake, with one snapshot and one allowlist.
///
/// One is made per worker, transport and snapshot, so the last refusal that
/// it remembers is that of the handshake which has just failed.
pub struct SvidVerifier {
    snapshot: Arc<Snapshot>,
    allowlist: Allowlist,
    algorithms: WebPkiSupportedAlgorithms,
    /// rustls's error type has no room for the reason behind an alert such as
    /// `access_denied`; whoever logs the failure takes it from here.
    refusal: Mutex<Option<PeerError>>,
    /// The last one that was admitted, and its leaf. Another handshake may
    /// have come in between by the time somebody asks.
    admitted: Mutex<Option<(CertificateDer<'static>, Verified)>>,
}

impl SvidVerifier {
    /// A verifier for handshakes that begin now.
    #[must_use]
    pub fn new(
        snapshot: Arc<Snapshot>,
        allowlist: Allowlist,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            snapshot,
            allowlist,
            algorithms,
            refusal: Mutex::new(None),
            admitted: Mutex::new(None),
        }
    }

    /// The snapshot that it judges by.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Verified, PeerError> {
        let (by, algorithms) = (Authorities::Valid, &self.algorithms);
        let verified = authenticate(chain, role, &self.snapshot, by, algorithms, now)?;
        authorise(&verified.peer, &self.allowlist, &self.snapshot)?;
        Ok(verified)
    }

    /// The peer of a handshake that has just ended, and that this verifier
    /// has admitted. `now` counts only if it has to look again.
    pub(crate) fn verified(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Verified, PeerError> {
        let admitted = self.admitted.lock();
        let last = admitted.unwrap_or_else(PoisonError::into_inner).take();
        match last {
            Some((leaf, verified)) if chain.first() == Some(&leaf) => Ok(verified),
            _ => self.check(chain, role, now),
        }
    }

    /// Why the handshake that has just failed on this thread was refused.
    pub fn take_refusal(&self) -> Option<PeerError> {
        let refusal = self.refusal.lock();
        refusal.unwrap_or_else(PoisonError::into_inner).take()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = Vec::with_capacity(1 + intermediates.len());
        chain.push(leaf.clone());
        chain.extend_from_slice(intermediates);
        match self.check(&chain, role, now) {
            Ok(verified) => {
                let admitted = self.admitted.lock();
                *admitted.unwrap_or_else(PoisonError::into_inner) =
                    Some((leaf.clone().into_owned(), verified));
                Ok(())
            }
            Err(error) => {
                let alert = error.to_rustls();
                let refusal = self.refusal.lock();
                *refusal.unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(alert)
            }
        }
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier")
            .field("generation", &self.snapshot.generation())
            .field("allowlist", &self.allowlist)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // A SPIFFE peer is known by its ID; the name is for its SNI only.
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, Role::Server, now)
            .map(|()| ServerCertVerified::assertion())
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

impl ClientCertVerifier for SvidVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, Role::Client, now)
            .map(|()| ClientCertVerified::assertion())
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
