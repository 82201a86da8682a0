//! Forgetting connections whose addresses mean something else by now.

mod listed;

use std::io;
use std::net::IpAddr;

use super::Netfilter;
use super::message::{self, Attributes};

/// `NFNL_SUBSYS_CTNETLINK << 8`, and `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = (1 << 8) | 1;
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

/// Half a tuple is none, or there is nobody to ask; a deletion has no filter.
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// Connections that have a part of their tuple in common: the request that deletes them.
#[derive(Debug)]
pub struct Flow(Vec<u8>);

impl Flow {
    /// What `address` has begun and what it was asked, translated or not.
    pub fn of_address(address: IpAddr) -> [Self; 2] {
        let tuple = |a: Attributes| a.nested(1, |ip| write_address(ip, address, true));
        [ORIGINAL, REPLY].map(|direction| Self::new(address.is_ipv4(), direction, SOURCE_ADDRESS, tuple))
    }

    /// What goes to a port of this node, at `address` or at any.
    pub fn to_port(v4: bool, protocol: u8, port: u16, address: Option<IpAddr>) -> Self {
        let flags = PROTOCOL | DESTINATION_PORT | if address.is_some() { DESTINATION_ADDRESS } else { 0 };
        Self::new(v4, ORIGINAL, flags, |a| {
            let a = match address {
                Some(address) => a.nested(1, |ip| write_address(ip, address, false)),
                None => a,
            };
            a.nested(2, |proto| proto.bytes(1, &[protocol]).bytes(3, &port.to_be_bytes()))
        })
    }

    fn new(v4: bool, direction: u16, flags: u32, tuple: impl FnOnce(Attributes) -> Attributes) -> Self {
        // Unlike the rest of this family the flags are in the host's byte order.
        let of = |wanted: u16| if wanted == direction { flags } else { 0 };
        let attributes = Attributes::default()
            .nested(direction, tuple)
            .nested(FILTER, |f| f.bytes(1, &of(ORIGINAL).to_ne_bytes()).bytes(2, &of(REPLY).to_ne_bytes()));
        Self(message::request(DELETE, if v4 { IPV4 } else { IPV6 }, &attributes))
    }
}

/// Forgets all of `flows`.
///
/// The kernel looks for them itself since 6.12 ("ctnetlink: support CTA_FILTER for flush"), in less than a
/// millisecond where there are few, a quarter of a second among 100,000. Before, all are listed: 10 ms however few there
/// are, since the kernel takes a lock for each bucket of its table, and half a second for 100,000.
///
/// # Errors
/// What the kernel says; one without conntrack has nothing to forget.
pub fn forget(netfilter: &Netfilter, flows: &[Flow]) -> io::Result<()> {
    for Flow(deletion) in flows {
        match netfilter.exchange(deletion) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if is_unsupported(&e) => return listed::forget(netfilter, flows),
            other => other?,
        }
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EINVAL | EOPNOTSUPP))
}

fn write_address(a: Attributes, address: IpAddr, source: bool) -> Attributes {
    match address {
        IpAddr::V4(ip) => a.bytes(if source { 1 } else { 2 }, &ip.octets()),
        IpAddr::V6(ip) => a.bytes(if source { 3 } else { 4 }, &ip.octets()),
    }
}
