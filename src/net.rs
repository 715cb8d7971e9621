//! Addresses: of servers, and ranges of clients (`ClientIP`, `trustedIPs`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// An address or a CIDR range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IpRange {
    address: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// Parses `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("\"{text}\" is neither an IP address nor a CIDR range"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = match prefix {
            None => longest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("the prefix of \"{text}\" is not 0 to {longest}"))?,
        };
        // Addresses are compared in their IPv4 form where they have one.
        match (address, address.to_canonical(), prefix.checked_sub(96)) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_), Some(prefix)) => Ok(Self {
                address: canonical,
                prefix,
            }),
            (IpAddr::V6(_), IpAddr::V4(_), None) => Err(format!(
                "\"{text}\" is wider than the IPv4 addresses in IPv6 form; write ::/0 and 0.0.0.0/0"
            )),
            _ => Ok(Self { address, prefix }),
        }
    }

    /// Whether an address is in it. An IPv4 address in IPv6 form counts as
    /// the IPv4 address that it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        fn top<const N: usize>(bytes: [u8; N], prefix: u8) -> [u8; N] {
            let mut left = prefix;
            bytes.map(|byte| {
                let bits = left.min(8);
                left -= bits;
                byte & u8::MAX.checked_shl(u32::from(8 - bits)).unwrap_or(0)
            })
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                top(a.octets(), self.prefix) == top(b.octets(), self.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                top(a.octets(), self.prefix) == top(b.octets(), self.prefix)
            }
            _ => false,
        }
    }
}

/// A server's host and port, as the file has them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address {
    /// Resolved anew for each connection when it is a name.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// A name or an IP address.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Host {
    /// Needs no resolving.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(range: &str, address: &str, expected: bool) {
        let range = IpRange::parse(range).unwrap();
        assert_eq!(range.contains(address.parse().unwrap()), expected);
    }

    #[test]
    fn a_range_contains_what_its_prefix_says() {
        check("192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("192.0.2.0/25", "192.0.2.127", true);
        check("192.0.2.0/25", "192.0.2.128", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("2001:db8::/33", "2001:db8:7fff::1", true);
        check("2001:db8::/33", "2001:db8:8000::1", false);
        check("127.0.0.0/8", "::ffff:127.0.0.1", true);
        check("::ffff:127.0.0.0/104", "127.0.0.1", true);
        check("::ffff:127.0.0.0/104", "128.0.0.1", false);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "localhost",
            "192.0.2.0/33",
            "2001:db8::/129",
            "1.2.3.4/x",
            "::ffff:0.0.0.0/90",
        ] {
            assert!(IpRange::parse(text).is_err(), "{text}");
        }
    }
}
