//! One complete state of our identity, checked before anyone sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use spiffe::{SpiffeId, TrustDomain, X509Bundle, X509Svid};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::bundle::Bundle;
use super::wire;
use crate::tls::certified;

/// Our SVID and all bundles, as of one message of the Workload API.
#[derive(Debug)]
pub struct Snapshot {
    generation: u64,
    material: Material,
}

impl Snapshot {
    pub(super) fn new(generation: u64, material: Material) -> Self {
        Self {
            generation,
            material,
        }
    }

    /// A snapshot that no agent has sent, of generation 1 and without expiry
    /// checks: for tests of what reads one.
    ///
    /// # Errors
    /// What is wrong with the parts.
    #[doc(hidden)]
    pub fn for_tests(
        own_id: &str,
        own_chain: Vec<CertificateDer<'static>>,
        own_key_pkcs8: Vec<u8>,
        bundles: Vec<(&str, Vec<Vec<u8>>)>,
    ) -> Result<Arc<Self>, String> {
        let say = |error: &dyn fmt::Display| error.to_string();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own_key_pkcs8));
        let key = certified(own_chain, key)?;
        let svid = Svid {
            id: SpiffeId::new(own_id).map_err(|error| say(&error))?,
            key: Arc::new(key),
            not_after: i64::MAX,
            serial: String::new(),
        };
        let bundles = bundles
            .into_iter()
            .map(|(domain, authorities)| {
                let domain = TrustDomain::new(domain).map_err(|error| say(&error))?;
                let bundle = Bundle::new(authorities.iter().map(Vec::as_slice));
                Ok((domain, Arc::new(bundle)))
            })
            .collect::<Result<_, String>>()?;
        let material = Material {
            svid,
            bundles,
            notes: Vec::new(),
        };
        Ok(Arc::new(Self::new(1, material)))
    }

    #[cfg(test)]
    pub(super) fn renumbered(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// Which state this is; each has its own number.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Our own SVID.
    #[must_use]
    pub fn svid(&self) -> &Svid {
        &self.material.svid
    }

    /// The bundle of a trust domain. `None`: its SVIDs cannot be verified.
    #[must_use]
    pub fn bundle(&self, domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.material.bundles.get(domain)
    }

    /// All bundles, by trust domain.
    pub fn bundles(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        self.material.bundles.iter()
    }

    /// One line for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let bundles: Vec<String> = self
            .material
            .bundles
            .iter()
            .map(|(domain, bundle)| format!("{domain} ({})", bundle.len()))
            .collect();
        format!(
            "{}; bundles: {}; generation {}",
            self.svid(),
            bundles.join(", "),
            self.generation
        )
    }
}

/// What a snapshot is made of.
#[derive(Debug)]
pub struct Material {
    pub(super) svid: Svid,
    pub(super) bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// What was odd but not fatal.
    pub(super) notes: Vec<String>,
}

/// Our X509-SVID with its key. The key is never shown.
pub struct Svid {
    id: SpiffeId,
    pub(crate) key: Arc<CertifiedKey>,
    not_after: i64,
    serial: String,
}

impl Svid {
    /// Who we are.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The last second at which it is valid, Unix time.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The leaf's serial number, in hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether it must no longer be presented at `now` (Unix seconds).
    #[must_use]
    pub fn is_expired(&self, now: i64) -> bool {
        now > self.not_after
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({self})")
    }
}

impl fmt::Display for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, serial {}, valid until {}",
            self.id,
            self.serial,
            utc(self.not_after)
        )
    }
}

/// A time as RFC 3339 writes it, or the number when it is none.
pub(crate) fn utc(seconds: i64) -> String {
    let Ok(time) = x509_parser::time::ASN1Time::from_timestamp(seconds) else {
        return seconds.to_string();
    };
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Why a message of the Workload API was not published.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Unusable {
    /// It holds no identity for us: ours was taken away (section 5.2.1).
    NoIdentity(String),
    /// It is broken. The state before it stays.
    Broken(String),
}

fn broken(why: impl Into<String>) -> Unusable {
    Unusable::Broken(why.into())
}

impl Material {
    /// Takes over the bundles that have not changed, so that who has verified
    /// by one sees at a glance that it is the same.
    pub(super) fn keep_bundles_of(&mut self, known: &Snapshot) {
        for (domain, bundle) in &mut self.bundles {
            if let Some(same) = known.bundle(domain).filter(|it| *it == bundle) {
                *bundle = Arc::clone(same);
            }
        }
    }

    /// Checks a message whole. `hint` picks among several SVIDs; without one
    /// the first is ours (section 8). `now` is Unix seconds.
    pub(super) fn from_response(
        response: &wire::Response,
        hint: Option<&str>,
        now: i64,
    ) -> Result<Self, Unusable> {
        let mut notes = Vec::new();
        let mut candidates: Vec<(&wire::Svid, X509Svid)> = Vec::new();
        for (index, wire) in response.svids.iter().enumerate() {
            let svid = parse(wire).map_err(|why| broken(format!("SVID {}: {why}", index + 1)))?;
            let twin = |other: &(&wire::Svid, X509Svid)| other.0.hint == wire.hint;
            if !wire.hint.is_empty() && candidates.iter().any(twin) {
                notes.push(format!(
                    "{} has the hint \"{}\" of an earlier SVID and is not used (the first wins)",
                    svid.spiffe_id(),
                    wire.hint
                ));
                continue;
            }
            candidates.push((wire, svid));
        }
        if candidates.is_empty() {
            return Err(Unusable::NoIdentity(
                "the agent sent a message without any SVID".to_owned(),
            ));
        }
        let chosen = match hint {
            None => candidates.first(),
            Some(hint) => candidates.iter().find(|(wire, _)| wire.hint == hint),
        };
        let Some((wire, svid)) = chosen else {
            let hints: Vec<&str> = candidates.iter().map(|(w, _)| w.hint.as_str()).collect();
            return Err(Unusable::NoIdentity(format!(
                "no SVID has the hint \"{}\" (spiffe.hint); the agent sent {hints:?}",
                hint.unwrap_or_default()
            )));
        };
        let ours = Svid::new(svid, now).map_err(broken)?;

        let mut bundles: BTreeMap<TrustDomain, Arc<Bundle>> = BTreeMap::new();
        let own = own_bundle(wire, svid).map_err(broken)?;
        bundles.insert(svid.spiffe_id().trust_domain().clone(), Arc::new(own));
        for (wire, svid) in &candidates {
            let domain = svid.spiffe_id().trust_domain();
            if !bundles.contains_key(domain) {
                let bundle = own_bundle(wire, svid).map_err(broken)?;
                bundles.insert(domain.clone(), Arc::new(bundle));
            }
        }
        for (name, der) in &response.federated_bundles {
            let domain = match trust_domain_id(name) {
                Ok(domain) => domain,
                Err(why) => {
                    notes.push(format!("federated bundle \"{name}\" is not used: {why}"));
                    continue;
                }
            };
            if bundles.contains_key(&domain) {
                notes.push(format!(
                    "federated bundle \"{name}\" is not used: that trust domain is our own, and our SVID came with its bundle"
                ));
                continue;
            }
            // A partner's broken bundle must not stop our own renewal. The
            // entry stays, empty: nobody of that domain is trusted.
            let bundle = match X509Bundle::parse_from_der(domain.clone(), der) {
                Ok(parsed) => Bundle::new(parsed.authorities().iter().map(|c| c.as_bytes())),
                Err(error) => {
                    notes.push(format!(
                        "federated bundle \"{name}\" is broken, so nobody of it is trusted: {error}"
                    ));
                    Bundle::default()
                }
            };
            bundles.insert(domain, Arc::new(bundle));
        }
        for (domain, bundle) in &bundles {
            for why in bundle.unusable() {
                notes.push(format!("bundle of {domain}: {why}; it is not used"));
            }
        }
        if !response.crl.is_empty() {
            notes.push(format!(
                "{} CRLs were delivered and are not applied",
                response.crl.len()
            ));
        }
        Ok(Self {
            svid: ours,
            bundles,
            notes,
        })
    }
}

impl Svid {
    fn new(svid: &X509Svid, now: i64) -> Result<Self, String> {
        let id = svid.spiffe_id();
        let (_, leaf) = X509Certificate::from_der(svid.leaf().as_bytes())
            .map_err(|error| format!("{id}: {error}"))?;
        let not_before = leaf.validity().not_before.timestamp();
        let not_after = leaf.validity().not_after.timestamp();
        if now > not_after {
            return Err(format!("{id} expired at {}", utc(not_after)));
        }
        if now < not_before {
            return Err(format!(
                "{id} is not valid before {}; is the clock right?",
                utc(not_before)
            ));
        }
        let chain = svid
            .cert_chain()
            .iter()
            .map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()))
            .collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            svid.private_key().as_bytes().to_vec(),
        ));
        let key = certified(chain, key)
            .map_err(|error| format!("{id}: the private key does not fit: {error}"))?;
        Ok(Self {
            id: id.clone(),
            key: Arc::new(key),
            not_after,
            serial: leaf.raw_serial_as_string(),
        })
    }
}

fn parse(wire: &wire::Svid) -> Result<X509Svid, String> {
    for (name, empty) in [
        ("spiffe_id", wire.spiffe_id.is_empty()),
        ("x509_svid", wire.x509_svid.is_empty()),
        ("x509_svid_key", wire.x509_svid_key.is_empty()),
        ("bundle", wire.bundle.is_empty()),
    ] {
        if empty {
            return Err(format!("the mandatory field {name} is empty"));
        }
    }
    let svid = X509Svid::parse_from_der(&wire.x509_svid, &wire.x509_svid_key)
        .map_err(|error| chain(&error))?;
    if svid.spiffe_id().to_string() != wire.spiffe_id {
        return Err(format!(
            "the message says {:?}, the certificate {}",
            wire.spiffe_id,
            svid.spiffe_id()
        ));
    }
    Ok(svid)
}

fn own_bundle(wire: &wire::Svid, svid: &X509Svid) -> Result<Bundle, String> {
    let domain = svid.spiffe_id().trust_domain();
    let parsed = X509Bundle::parse_from_der(domain.clone(), &wire.bundle)
        .map_err(|error| format!("the bundle of {domain}: {}", chain(&error)))?;
    Ok(Bundle::new(
        parsed.authorities().iter().map(|c| c.as_bytes()),
    ))
}

/// The key of a federated bundle: the SPIFFE ID of a trust domain, no path.
fn trust_domain_id(text: &str) -> Result<TrustDomain, String> {
    let name = text
        .strip_prefix("spiffe://")
        .ok_or("it is not the SPIFFE ID of a trust domain")?;
    let domain = TrustDomain::new(name).map_err(|error| error.to_string())?;
    if domain.as_str() == name {
        Ok(domain)
    } else {
        Err("it is not the SPIFFE ID of a trust domain".to_owned())
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
