//! Unsolicited neighbour advertisements: who has an address of IPv6 says by which hardware address it is
//! reached (RFC 4861 §7.2.6). For IPv4 the kernel announces by itself, see
//! [`crate::netlink::Batch::announce`].
//!
//! A socket for frames would do for both, but the kernel waits for an RCU grace period, some 10 ms, when one
//! is closed.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};

/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Less is a packet that has passed a router, and counts for nothing.
const HOP_LIMIT: i32 = 255;

const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Unsolicited, and the receiver replaces what it knows.
const OVERRIDE: u8 = 0x20;

/// The option with the target's hardware address, in units of 8 bytes.
const TARGET_ADDRESS: u8 = 2;

/// A socket for advertisements in the namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Advertiser(OwnedFd);

impl Advertiser {
    pub(crate) fn open() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Inet6, kind, flags, SockProtocol::IcmpV6)?;
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &HOP_LIMIT)?;
        Ok(Self(socket))
    }

    /// Says on the link with that index that `address` is at `mac`.
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
