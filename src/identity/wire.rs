//! The messages of `FetchX509SVID` (SPIFFE Workload API standard, section 5.2).

use std::fmt;

/// Empty: the agent knows the caller by its process.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Request {}

/// The full state, each time.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<Svid>,
    /// DER. No standard says how to apply them; they are counted, not used.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(super) crl: Vec<Vec<u8>>,
    /// Trust domain ID to concatenated DER.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: std::collections::BTreeMap<String, Vec<u8>>,
}

/// One identity of the caller. Its `Debug` shows no key.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// Concatenated DER, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) x509_svid: Vec<u8>,
    /// PKCS#8 DER, unencrypted.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) x509_svid_key: Vec<u8>,
    /// The authorities of its trust domain, concatenated DER.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(super) hint: String,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_key() {
        let svid = Svid {
            spiffe_id: "spiffe://example.org/a".to_owned(),
            x509_svid_key: vec![211, 212, 213],
            ..Svid::default()
        };
        let response = Response {
            svids: vec![svid],
            ..Response::default()
        };
        let text = format!("{response:?}");
        assert!(text.contains("spiffe://example.org/a"), "{text}");
        assert!(!text.contains("211"), "{text}");
    }
}
