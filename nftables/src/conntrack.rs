//! Forgetting connections whose addresses mean something else by now.

use std::io;
use std::net::IpAddr;

use super::Netfilter;
use super::message::{self, Attributes};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = (1 << 8) | 2;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_FILTER` and what a filter looks at (`CTA_FILTER_F_*`).
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const FILTER: u16 = 25;
const SOURCE_ADDRESS: u32 = 1;
const DESTINATION_ADDRESS: u32 = 1 << 1;
const PROTOCOL: u32 = 1 << 3;
const DESTINATION_PORT: u32 = 1 << 5;

/// Forgets what `address` has begun and what it was asked, translated or not.
///
/// # Errors
/// What the kernel says; one without conntrack has nothing to forget.
pub fn forget_address(netfilter: &Netfilter, address: IpAddr) -> io::Result<()> {
    for direction in [ORIGINAL, REPLY] {
        let tuple = |a: Attributes| a.nested(1, |ip| write_address(ip, address, true));
        delete(netfilter, address.is_ipv4(), direction, SOURCE_ADDRESS, tuple)?;
    }
    Ok(())
}

/// Forgets what goes to a port of this node, at `address` or at any.
///
/// # Errors
/// As [`forget_address`].
pub fn forget_port(
    netfilter: &Netfilter,
    v4: bool,
    protocol: u8,
    port: u16,
    address: Option<IpAddr>,
) -> io::Result<()> {
    let flags = PROTOCOL | DESTINATION_PORT | if address.is_some() { DESTINATION_ADDRESS } else { 0 };
    let tuple = |a: Attributes| {
        let a = match address {
            Some(address) => a.nested(1, |ip| write_address(ip, address, false)),
            None => a,
        };
        a.nested(2, |proto| proto.bytes(1, &[protocol]).bytes(3, &port.to_be_bytes()))
    };
    delete(netfilter, v4, ORIGINAL, flags, tuple)
}

fn write_address(a: Attributes, address: IpAddr, source: bool) -> Attributes {
    match address {
        IpAddr::V4(ip) => a.bytes(if source { 1 } else { 2 }, &ip.octets()),
        IpAddr::V6(ip) => a.bytes(if source { 3 } else { 4 }, &ip.octets()),
    }
}

fn delete(
    netfilter: &Netfilter,
    v4: bool,
    direction: u16,
    flags: u32,
    tuple: impl FnOnce(Attributes) -> Attributes,
) -> io::Result<()> {
    // Unlike the rest of this family the flags are in the host's byte order.
    let of = |wanted: u16| if wanted == direction { flags } else { 0 };
    let attributes = Attributes::default()
        .nested(direction, tuple)
        .nested(FILTER, |f| f.bytes(1, &of(ORIGINAL).to_ne_bytes()).bytes(2, &of(REPLY).to_ne_bytes()));
    let request = message::request(DELETE, if v4 { IPV4 } else { IPV6 }, &attributes);
    match netfilter.exchange(&request) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
