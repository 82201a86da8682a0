//! The UDP header of a reply, and its source address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a header (RFC 768).
pub(super) const LENGTH: usize = 8;

/// `IPPROTO_UDP`.
const UDP: u64 = 17;

/// The header of a datagram.
pub(super) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> [u8; LENGTH] {
    let length = payload.len() + LENGTH;
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum(&from.octets()) + sum(&to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => sum(&from.octets()) + sum(&to.octets()),
        _ => 0,
    };
    let ports = u64::from(from.port()) + u64::from(to.port());
    // The length is in the pseudo header and in the header.
    let checksum = !fold(addresses + ports + UDP + 2 * length as u64 + sum(payload));
    // 0 would mean that there is no checksum.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    // A datagram of an endpoint fits with its own header, which is as long.
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    let ([e, f], [g, h]) = (length.to_be_bytes(), checksum.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

/// The sum of the 16-bit words (RFC 1071), four at a time: the sum of 32-bit halves folds to the same value.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut sum = 0;
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut rest = [0; 4];
    let tail = words.remainder();
    rest[..tail.len()].copy_from_slice(tail);
    sum + u64::from(u32::from_be_bytes(rest))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// `IP_PKTINFO`
pub(super) fn source_v4(ip: Ipv4Addr) -> libc::in_pktinfo {
    let address = |ip: Ipv4Addr| libc::in_addr { s_addr: ip.to_bits().to_be() };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address(ip), ipi_addr: address(Ipv4Addr::UNSPECIFIED) }
}

/// `IPV6_PKTINFO`
pub(super) fn source_v6(ip: Ipv6Addr) -> libc::in6_pktinfo {
    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over pseudo header, header and payload is all ones.
    #[test]
    fn checksum_is_right_for_any_length() {
        let (from, to): (SocketAddr, SocketAddr) =
            ("10.96.0.10:53".parse().unwrap(), "10.22.0.7:40000".parse().unwrap());
        let payload: Vec<u8> = (0..=255).rev().chain(0..=255).collect();
        for length in [0, 1, 2, 3, 4, 5, 300, 511, 512] {
            let header = udp(from, to, &payload[..length]);
            let total = u16::try_from(length + 8).unwrap();
            assert_eq!(header[4..6], total.to_be_bytes());
            let pseudo = [10, 96, 0, 10, 10, 22, 0, 7, 0, 17];
            let mut bytes = [&pseudo[..], &total.to_be_bytes(), &header, &payload[..length]].concat();
            bytes.resize(bytes.len().next_multiple_of(2), 0);
            let words = bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])));
            assert_eq!(fold(words.sum()), 0xffff, "{length}");
        }
    }
}
