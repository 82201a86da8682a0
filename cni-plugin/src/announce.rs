//! Unsolicited neighbour advertisements (RFC 4861 §7.2.6): they announce the MAC address of an IPv6 address.
//! For IPv4 the kernel sends the announcement, see [`crate::netlink::Batch::announce`].
//!
//! A packet socket would serve both families, but closing one makes the kernel wait for an RCU grace period,
//! some 10 ms.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};

/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// RFC 4861 §7.1.2: receivers ignore a lower hop limit, because a router has forwarded such a packet.
const HOP_LIMIT: i32 = 255;

const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The override flag: the receiver replaces its cache entry. The solicited flag is not set.
const OVERRIDE: u8 = 0x20;

/// The target link-layer address option. Its length is in units of 8 bytes.
const TARGET_ADDRESS: u8 = 2;

/// A socket for advertisements, in the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Advertiser(OwnedFd);

impl Advertiser {
    pub(crate) fn open() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Inet6, kind, flags, SockProtocol::IcmpV6)?;
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &HOP_LIMIT)?;
        Ok(Self(socket))
    }

    /// Advertises `address` at `mac` on the link with that index.
    pub(crate) fn advertise(&self, index: u32, address: Ipv6Addr, mac: [u8; 6]) -> io::Result<()> {
        let all_nodes = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
        sendto(self.0.as_raw_fd(), &message(address, mac), &all_nodes, MsgFlags::empty())?;
        Ok(())
    }
}

/// RFC 4861 §4.4. The kernel fills in the checksum.
fn message(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let header = [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    [&header[..], &address.octets(), &[TARGET_ADDRESS, 1], &mac].concat()
}
