//! Telling a UDP client that nobody listens, in the name of an endpoint that said so.
//!
//! The endpoint's ICMP error ends at our socket. The client's kernel wants one that quotes the client's own datagram to
//! the virtual IP (RFC 792, RFC 4443 §3.1); then a connected socket reports `ECONNREFUSED` at once instead of waiting.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Destination unreachable, port unreachable.
const V4: [u8; 2] = [3, 3];
const V6: [u8; 2] = [1, 4];

/// Tells `client` that `frontend`, the virtual IP and port it sent to, is not served.
///
/// # Errors
/// As opening a raw socket (CAP_NET_RAW is needed), binding and sending.
pub(crate) fn tell(client: SocketAddr, frontend: SocketAddr) -> io::Result<()> {
    let (domain, protocol, message) = match (client.ip(), frontend.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (Domain::IPV4, Protocol::ICMPV4, v4((from, client.port()), (to, frontend.port())))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (Domain::IPV6, Protocol::ICMPV6, v6((from, client.port()), (to, frontend.port())))
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    if frontend.is_ipv6() {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(frontend.ip(), 0).into())?;
    socket.send_to(&message, &SocketAddr::new(client.ip(), 0).into()).map(drop)
}

fn v4((from, from_port): (Ipv4Addr, u16), (to, to_port): (Ipv4Addr, u16)) -> Vec<u8> {
    // Version and length, no options; total length 28; don't fragment; time to live 64; UDP.
    let mut quoted = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
    quoted.extend(from.octets());
    quoted.extend(to.octets());
    let sum = checksum(&quoted);
    quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    quoted.extend(udp_header(from_port, to_port));
    let mut message = [&V4[..], &[0; 6], &quoted].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The kernel fills in the checksum of ICMPv6 (RFC 3542 §3.1).
fn v6((from, from_port): (Ipv6Addr, u16), (to, to_port): (Ipv6Addr, u16)) -> Vec<u8> {
    // Version; payload length 8; UDP; hop limit 64.
    let header = [0x60, 0, 0, 0, 0, 8, 17, 64];
    let udp = udp_header(from_port, to_port);
    [&V6[..], &[0; 6], &header, &from.octets(), &to.octets(), &udp].concat()
}

fn udp_header(from: u16, to: u16) -> [u8; 8] {
    let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
    [a, b, c, d, 0, 8, 0, 0]
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_the_clients_datagram_and_the_sums_are_right() {
        let message = v4(([10, 22, 0, 2].into(), 4242), ([10, 96, 0, 9].into(), 53));
        assert_eq!(message.len(), 36);
        assert_eq!(message[..2], V4);
        assert_eq!((checksum(&message), checksum(&message[8..28])), (0, 0));
        assert_eq!(message[20..28], [10, 22, 0, 2, 10, 96, 0, 9]);
        assert_eq!(message[28..32], [16, 146, 0, 53]);
        let message = v6((Ipv6Addr::LOCALHOST, 1), (Ipv6Addr::LOCALHOST, 2));
        assert_eq!((message.len(), &message[..2]), (56, &V6[..]));
    }
}
