//! The `keyUsage` of a certificate, read strictly.
//!
//! The parser is lenient about DER; a certificate whose `keyUsage` another
//! reader could take for something else, or not find at all, is not believed.

use x509_parser::certificate::X509Certificate;

/// What a certificate's key may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeyUsage {
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

/// `2.5.29.15`
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];

/// The usage, `None` without the extension.
///
/// # Errors
/// DER that X.690 does not allow, or the extension twice.
pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Option<KeyUsage>, &'static str> {
    let mut found = None;
    for extension in certificate.extensions() {
        let oid = extension.oid.as_bytes();
        // A padded OID would hide an extension from whoever compares bytes.
        let starts = std::iter::once(true).chain(oid.iter().map(|byte| byte & 0x80 == 0));
        if starts
            .zip(oid)
            .any(|(starts, byte)| starts && *byte == 0x80)
        {
            return Err("an extension's OID is padded");
        }
        if oid == KEY_USAGE {
            if found.is_some() {
                return Err("keyUsage stands twice");
            }
            found = Some(parse(extension.value)?);
        }
    }
    Ok(found)
}

/// `BIT STRING` of nine named bits, the first in the highest place, without
/// trailing zeros (X.690, section 11.2.2).
fn parse(der: &[u8]) -> Result<KeyUsage, &'static str> {
    let (unused, bits) = match der {
        [3, 2, unused, first] => (*unused, [*first, 0]),
        [3, 3, unused, first, second] => (*unused, [*first, *second]),
        _ => return Err("keyUsage is not a short bit string"),
    };
    let last = if der.len() == 4 { bits[0] } else { bits[1] };
    // The lowest bit in use is set, those below it are not.
    if u32::from(unused) != last.trailing_zeros() || unused > 7 {
        return Err("keyUsage has bits that it must not");
    }
    if bits[1] & 0x7f != 0 {
        return Err("keyUsage has a bit that is not defined");
    }
    Ok(KeyUsage {
        digital_signature: bits[0] & 0x80 != 0,
        key_cert_sign: bits[0] & 0x04 != 0,
        crl_sign: bits[0] & 0x02 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_strings_are_taken_in_their_one_form_only() {
        let usage = |digital_signature, key_cert_sign, crl_sign| KeyUsage {
            digital_signature,
            key_cert_sign,
            crl_sign,
        };
        assert_eq!(parse(&[3, 2, 7, 0x80]), Ok(usage(true, false, false)));
        assert_eq!(parse(&[3, 2, 1, 0x06]), Ok(usage(false, true, true)));
        assert_eq!(parse(&[3, 3, 7, 0x06, 0x80]), Ok(usage(false, true, true)));
        for der in [
            &[][..],
            &[3, 1, 0],
            &[3, 2, 0, 0x80],
            &[3, 2, 7, 0x81],
            &[3, 2, 8, 0],
            &[3, 2, 0, 0],
            &[3, 3, 0, 0x06, 0x00],
            &[3, 3, 6, 0x06, 0x40],
            &[3, 3, 6, 0x06, 0xc0],
            &[3, 0x81, 2, 1, 0x06],
            &[3, 2, 1, 0x06, 0],
            &[3, 4, 7, 0, 0, 0x80],
            &[4, 2, 1, 0x06],
        ] {
            assert!(parse(der).is_err(), "{der:?}");
        }
    }
}
