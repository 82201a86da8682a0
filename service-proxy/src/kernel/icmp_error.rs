//! ICMP errors for UDP clients: what an endpoint, or a router on the way to it, reports about a client's
//! datagram.
//!
//! The error arrives at the proxy's socket. The client's kernel needs one that quotes the client's own
//! datagram to the virtual IP (RFC 792, RFC 4443 §3). Then a connected socket reports it at once, and the
//! path MTU is learned.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Type, code and, if the datagram was too big, the MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// 0 except for "fragmentation needed" and "packet too big".
    pub(crate) mtu: u32,
}

impl IcmpError {
    /// Port unreachable: no process listens.
    pub(crate) fn refusal(v4: bool) -> Self {
        if v4 { Self::new(3, 3) } else { Self::new(1, 4) }
    }

    /// The datagram is too big.
    pub(crate) fn too_big(v4: bool, mtu: u32) -> Self {
        if v4 { Self { kind: 3, code: 4, mtu } } else { Self { kind: 2, code: 0, mtu } }
    }

    /// The ICMP error that the node would have sent as a router, for an error of its own.
    pub(crate) fn of_local(v4: bool, error: &io::Error) -> Option<Self> {
        let (code_v4, code_v6) = match error.raw_os_error()? {
            libc::ENETUNREACH => (0, 0),
            libc::EHOSTUNREACH => (1, 3),
            libc::ECONNREFUSED => (3, 4),
            libc::EACCES => (13, 1),
            _ => return None,
        };
        Some(if v4 { Self::new(3, code_v4) } else { Self::new(1, code_v6) })
    }

    fn new(kind: u8, code: u8) -> Self {
        Self { kind, code, mtu: 0 }
    }

    /// Sends it to `client`, which has sent a datagram to `frontend`, with the address of the frontend.
    ///
    /// # Errors
    /// If the raw socket cannot be opened (CAP_NET_RAW), bound or written.
    pub(crate) fn send(self, client: SocketAddr, frontend: SocketAddr) -> io::Result<()> {
        let (domain, protocol, message) = match (client.ip(), frontend.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let message = self.v4((from, client.port()), (to, frontend.port()));
                (Domain::IPV4, Protocol::ICMPV4, message)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let message = self.v6((from, client.port()), (to, frontend.port()));
                (Domain::IPV6, Protocol::ICMPV6, message)
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
        // An external IP is not an address of the node.
        if frontend.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        socket.bind(&SocketAddr::new(frontend.ip(), 0).into())?;
        let mut to = client;
        to.set_port(0);
        socket.send_to(&message, &to.into()).map(drop)
    }

    fn v4(self, (from, from_port): (Ipv4Addr, u16), (to, to_port): (Ipv4Addr, u16)) -> Vec<u8> {
        // Version and length, no options; total length 28; don't fragment; time to live 64; UDP.
        let mut quoted = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
        quoted.extend(from.octets());
        quoted.extend(to.octets());
        let sum = checksum(&quoted);
        quoted[10..12].copy_from_slice(&sum.to_be_bytes());
        quoted.extend(udp_header(from_port, to_port));
        let [_, _, mtu @ ..] = self.mtu.to_be_bytes();
        let mut message = [&[self.kind, self.code][..], &[0; 4], &mtu, &quoted].concat();
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    /// The kernel fills in the ICMPv6 checksum (RFC 3542 §3.1).
    fn v6(self, (from, from_port): (Ipv6Addr, u16), (to, to_port): (Ipv6Addr, u16)) -> Vec<u8> {
        // Version; payload length 8; UDP; hop limit 64.
        let header = [0x60, 0, 0, 0, 0, 8, 17, 64];
        let (mtu, udp) = (self.mtu.to_be_bytes(), udp_header(from_port, to_port));
        [&[self.kind, self.code][..], &[0; 2], &mtu, &header, &from.octets(), &to.octets(), &udp].concat()
    }
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
    fn quoted_datagram_is_the_clients_and_checksums_are_right() {
        let message = IcmpError::refusal(true).v4(([10, 22, 0, 2].into(), 4242), ([10, 96, 0, 9].into(), 53));
        assert_eq!(message.len(), 36);
        assert_eq!(message[..2], [3, 3]);
        assert_eq!((checksum(&message), checksum(&message[8..28])), (0, 0));
        assert_eq!(message[20..28], [10, 22, 0, 2, 10, 96, 0, 9]);
        assert_eq!(message[28..32], [16, 146, 0, 53]);
        let message = IcmpError::too_big(false, 1400).v6((Ipv6Addr::LOCALHOST, 1), (Ipv6Addr::LOCALHOST, 2));
        assert_eq!((message.len(), &message[..8]), (56, &[2, 0, 0, 0, 0, 0, 5, 120][..]));
        let message =
            IcmpError::too_big(true, 1400).v4(([10, 22, 0, 2].into(), 1), ([10, 96, 0, 9].into(), 2));
        assert_eq!(
            (&message[..2], &message[4..8], checksum(&message)),
            (&[3, 4][..], &[0, 0, 5, 120][..], 0)
        );
    }
}
