//! The timeouts of conntrack, set without `/proc/sys`.
//!
//! A container with a read-only `/proc/sys` may still have CAP_NET_ADMIN, which is sufficient for this.

use std::io;

use crate::Netfilter;
use crate::message::{self, Attributes};

/// `NFNL_SUBSYS_CTNETLINK_TIMEOUT << 8`, and `IPCTNL_MSG_TIMEOUT_DEFAULT_SET`.
const DEFAULT_SET: u16 = (8 << 8) | 3;

/// `CTA_TIMEOUT_L3PROTO`, `CTA_TIMEOUT_L4PROTO`, `CTA_TIMEOUT_DATA`.
const L3_PROTOCOL: u16 = 2;
const L4_PROTOCOL: u16 = 3;
const DATA: u16 = 4;

/// `NFPROTO_IPV4`. The kernel requires a network protocol, but TCP and UDP have one set of timeouts for both.
const IPV4: u16 = 2;

/// `IPPROTO_TCP`, `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The states whose timeouts can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `nf_conntrack_tcp_timeout_established`.
    TcpEstablished,
    /// `nf_conntrack_tcp_timeout_close_wait`: one side has closed.
    TcpCloseWait,
    /// `nf_conntrack_udp_timeout`: no reply has been seen.
    Udp,
    /// `nf_conntrack_udp_timeout_stream`: both sides have sent.
    UdpStream,
}

impl State {
    /// The protocol, and `CTA_TIMEOUT_TCP_*` or `CTA_TIMEOUT_UDP_*`.
    fn attribute(self) -> (u8, u16) {
        match self {
            Self::TcpEstablished => (TCP, 3),
            Self::TcpCloseWait => (TCP, 5),
            Self::Udp => (UDP, 1),
            Self::UdpStream => (UDP, 2),
        }
    }
}

/// Sets the timeout of all connections of this network namespace in `state`. It applies from their next
/// packet on.
///
/// # Errors
/// An error of the kernel: `EINVAL` without `nfnetlink_cttimeout`.
pub fn set_timeout(netfilter: &Netfilter, state: State, seconds: u32) -> io::Result<()> {
    let (protocol, attribute) = state.attribute();
    let attributes = Attributes::default()
        .bytes(L3_PROTOCOL, &IPV4.to_be_bytes())
        .bytes(L4_PROTOCOL, &[protocol])
        .nested(DATA, |timeouts| timeouts.number(attribute, seconds));
    netfilter.exchange(&message::request(DEFAULT_SET, 0, &attributes))
}
