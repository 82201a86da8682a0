//! The addresses of the node.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;

/// The addresses on which node ports are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The source address of the default route.
    Primary,
    /// Every address of the node in a range.
    Range(IpNetwork),
    /// The loopback addresses (KEP-6032).
    Localhost,
    /// Every address of the node.
    All,
}

impl std::str::FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            range => discovery::parse_cidr(range).map(Self::Range),
        }
    }
}

/// Every address of an interface, except IPv6 link-local ones: each pod adds one, and none is served.
///
/// # Errors
/// An error of the kernel, usually that no file descriptor is free.
pub(crate) fn all() -> io::Result<HashSet<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let is_served = |ip: &IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    Ok(addresses.filter_map(ip).filter(is_served).collect())
}

/// The addresses of `own` on which node ports are opened.
///
/// # Errors
/// As [`all`].
pub(crate) fn for_node_ports(own: &HashSet<IpAddr>, wanted: &[NodePortAddress]) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = Vec::new();
    for wanted in wanted {
        match wanted {
            NodePortAddress::Primary => {
                found.extend(primary(true)?);
                found.extend(primary(false)?);
            }
            NodePortAddress::Localhost => found.extend(own.iter().filter(|ip| ip.is_loopback())),
            NodePortAddress::All => found.extend(own),
            NodePortAddress::Range(range) => found.extend(own.iter().filter(|ip| range.contains(**ip))),
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The source address of the default route, if there is one. Connecting a UDP socket sends nothing; the
/// destination is from the documentation ranges.
///
/// # Errors
/// As [`all`].
pub(crate) fn primary(v4: bool) -> io::Result<Option<IpAddr>> {
    let (local, remote): (SocketAddr, SocketAddr) = if v4 {
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(198, 51, 100, 1), 9).into())
    } else {
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
    };
    let ask = || {
        let socket = UdpSocket::bind(local)?;
        socket.connect(remote)?;
        Ok(socket.local_addr()?.ip())
    };
    match ask() {
        Ok(ip) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
        Err(error) if is_lack(&error) => Err(error),
        // The node has no such address, or no route.
        Err(_) => Ok(None),
    }
}

/// Whether the error is a lack of resources, which says nothing about the addresses.
fn is_lack(error: &io::Error) -> bool {
    let lack = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| lack.contains(&Errno::from_raw(code)))
}
