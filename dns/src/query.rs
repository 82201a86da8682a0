//! Names of the reverse zones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_server::proto::rr::Name;

/// The address a whole reverse name stands for: `1.0.96.10.in-addr.arpa` is 10.96.0.1 (RFC 1035 §3.5, RFC 3596 §2.5).
pub(crate) fn parse_reverse(name: &Name) -> Option<IpAddr> {
    let text = name.to_lowercase().to_ascii();
    let text = text.trim_end_matches('.');
    if let Some(digits) = text.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = digits.split('.').rev().map(|d| d.parse().ok()).collect::<Option<_>>()?;
        let octets: [u8; 4] = octets.try_into().ok()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let nibbles = text.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<&str> = nibbles.split('.').rev().collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    u128::from_str_radix(&nibbles.concat(), 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_reverse_names_are_addresses_and_others_are_not() {
        let parse = |text: &str| parse_reverse(&Name::from_ascii(text).unwrap()).map(|ip| ip.to_string());
        assert_eq!(parse("1.0.96.10.IN-ADDR.arpa."), Some("10.96.0.1".to_owned()));
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(parse(v6), Some("fd00:10:96::1".to_owned()));
        for other in
            ["96.10.in-addr.arpa.", "1.256.96.10.in-addr.arpa.", "x.1.0.96.10.in-addr.arpa.", "1.ip6.arpa."]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
