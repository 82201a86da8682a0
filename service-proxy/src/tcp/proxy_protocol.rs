//! PROXY protocol version 2: a header with the client's address, for connections whose source address is not
//! preserved. <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, section 2.2.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;

/// Stream over IPv4, stream over IPv6.
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// The header before the client's first byte. Both addresses are of one family, as they are of one
/// connection.
pub(super) fn header(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut addresses = octets(client.ip());
    addresses.extend(octets(destination.ip()));
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    let length = u16::try_from(addresses.len()).expect("36 bytes at most");
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, if client.is_ipv4() { TCP_V4 } else { TCP_V6 }]);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_layout_of_the_specification() {
        let v4 = header("10.22.0.7:40000".parse().unwrap(), "10.96.0.1:80".parse().unwrap());
        let expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C\x0A\x16\x00\x07\x0A\x60\x00\x01\x9C\x40\x00\x50";
        assert_eq!(v4, expected);
        let v6 = header("[fd00::7]:40000".parse().unwrap(), "[fd00::1]:80".parse().unwrap());
        assert_eq!((v6.len(), &v6[12..16]), (16 + 36, &[0x21, 0x21, 0, 36][..]));
    }
}
