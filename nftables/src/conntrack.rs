//! Conntrack entries of UDP flows: lists those that a change may have made wrong, and deletes single ones.
//!
//! The kernel filters by itself (`CTA_FILTER`, since 5.8). For that it visits every bucket of its table, 10
//! ms for 262,144 buckets, however full they are: so a command should list once per family. Each listed flow
//! costs 5 to 10 µs. An older kernel lists everything, so callers check each flow completely.

mod timeout;

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use nix::errno::Errno;

use super::Netfilter;
use super::message::{self, Attributes};

pub use timeout::{State, set_timeout};

/// `NFNL_SUBSYS_CTNETLINK << 8`, and `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 1 | 0x300;

/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`, `CTA_FILTER`. With an ID and a zone the tuple
/// identifies this connection and no later one.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// The fields that a filter compares (`CTA_FILTER_F_*`).
const SOURCE_ADDRESS: u32 = 1;
const PROTOCOL: u32 = 1 << 3;
const DESTINATION_PORT: u32 = 1 << 5;

/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`; `CTA_IP_V4_SRC` to `CTA_IP_V6_DST`; `CTA_PROTO_NUM` to
/// `CTA_PROTO_DST_PORT`.
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_V4: u16 = 1;
const DESTINATION_V4: u16 = 2;
const SOURCE_V6: u16 = 3;
const DESTINATION_V6: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const TO_PORT: u16 = 3;

/// The type of an attribute without its flags.
const KIND: u16 = 0x3fff;

/// The kernel fills a receive buffer up to this size.
const DATAGRAM: usize = 32 * 1024;

/// Bytes of `struct nlmsghdr`, and of it with `struct nfgenmsg`.
const HEADER: usize = 16;
const PREFIX: usize = HEADER + 4;

/// Which UDP flows to list.
#[derive(Clone, Debug)]
pub struct Filter(Vec<u8>);

/// A tracked UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The original destination.
    pub to: SocketAddr,
    /// The source of replies: the original destination, or the one it was translated to.
    pub replies_from: SocketAddr,
    /// The request that deletes it.
    deletion: Vec<u8>,
}

impl Filter {
    /// Flows of one family, to `port` or to any port.
    pub fn to_port(v4: bool, port: Option<u16>) -> Self {
        let flags = PROTOCOL | if port.is_some() { DESTINATION_PORT } else { 0 };
        let port = |a: Attributes| match port {
            Some(port) => a.bytes(TO_PORT, &port.to_be_bytes()),
            None => a,
        };
        Self::new(v4, ORIGINAL, flags, |a| {
            a.nested(TUPLE_PROTOCOL, |proto| port(proto.bytes(PROTOCOL_NUMBER, &[UDP])))
        })
    }

    /// Flows whose replies come from `address`.
    pub fn replies_from(address: IpAddr) -> Self {
        Self::new(address.is_ipv4(), REPLY, SOURCE_ADDRESS | PROTOCOL, |a| {
            a.nested(TUPLE_ADDRESSES, |ip| match address {
                IpAddr::V4(address) => ip.bytes(SOURCE_V4, &address.octets()),
                IpAddr::V6(address) => ip.bytes(SOURCE_V6, &address.octets()),
            })
            .nested(TUPLE_PROTOCOL, |proto| proto.bytes(PROTOCOL_NUMBER, &[UDP]))
        })
    }

    fn new(v4: bool, direction: u16, flags: u32, tuple: impl FnOnce(Attributes) -> Attributes) -> Self {
        // Unlike the other numbers the flags are in host byte order.
        let of = |wanted: u16| if wanted == direction { flags } else { 0 };
        let attributes = Attributes::default()
            .nested(direction, tuple)
            .nested(FILTER, |f| f.bytes(1, &of(ORIGINAL).to_ne_bytes()).bytes(2, &of(REPLY).to_ne_bytes()));
        let mut request = message::request(GET, if v4 { IPV4 } else { IPV6 }, &attributes);
        request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
        Self(request)
    }
}

/// Lists the flows that match the filter and `is_wanted`.
///
/// # Errors
/// An error of the kernel. A kernel without conntrack has no flows.
pub fn list(filter: &Filter, is_wanted: impl FnMut(&Flow) -> bool) -> io::Result<Vec<Flow>> {
    match dump(filter, is_wanted) {
        // The kernel does not understand the filter, or has no conntrack.
        Err(e)
            if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

fn dump(filter: &Filter, mut is_wanted: impl FnMut(&Flow) -> bool) -> io::Result<Vec<Flow>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&filter.0, 0)?;
    let (mut flows, mut datagram) = (Vec::new(), Vec::with_capacity(DATAGRAM));
    loop {
        datagram.clear();
        socket.recv(&mut datagram, 0)?;
        let mut rest = &*datagram;
        while let Some((kind, message, next)) = first(rest) {
            match kind {
                DONE => return Ok(flows),
                ERROR => message::first_error(message)?,
                _ => flows.extend(Flow::parse(message).filter(|flow| is_wanted(flow))),
            }
            rest = next;
        }
    }
}

impl Flow {
    /// Deletes the flow. One that has expired is fine.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn delete(&self, netfilter: &Netfilter) -> io::Result<()> {
        match netfilter.exchange(&self.deletion) {
            // It has expired meanwhile, or is in a flowtable.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => Ok(()),
            other => other,
        }
    }

    /// Parses a listed flow. `None` if it is not UDP.
    fn parse(message: &[u8]) -> Option<Self> {
        let tuple = |direction| attribute(message.get(PREFIX..)?, direction);
        let (original, reply) = (tuple(ORIGINAL)?, tuple(REPLY)?);
        if attribute(attribute(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)? != [UDP] {
            return None;
        }
        let named = within(message.get(PREFIX..)?);
        let named = named.filter(|(kind, _)| [ORIGINAL, ID, ZONE].contains(&(kind & KIND)));
        let named = named.fold(Attributes::default(), |a, (kind, value)| a.bytes(kind, value));
        Some(Self {
            to: end(original, DESTINATION_V4, DESTINATION_V6, TO_PORT)?,
            replies_from: end(reply, SOURCE_V4, SOURCE_V6, SOURCE_PORT)?,
            deletion: message::request(DELETE, message[HEADER], &named),
        })
    }
}

/// One end of a tuple.
fn end(tuple: &[u8], v4: u16, v6: u16, port: u16) -> Option<SocketAddr> {
    let addresses = attribute(tuple, TUPLE_ADDRESSES)?;
    let address: IpAddr = match attribute(addresses, v4) {
        Some(bytes) => <[u8; 4]>::try_from(bytes).ok()?.into(),
        None => <[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?.into(),
    };
    let port = attribute(attribute(tuple, TUPLE_PROTOCOL)?, port)?;
    Some((address, u16::from_be_bytes(port.try_into().ok()?)).into())
}

/// Splits the first message, with its type, from a datagram.
fn first(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = datagram.get(..HEADER)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let message = datagram.get(..length.max(HEADER))?;
    let next = message.len().next_multiple_of(4).min(datagram.len());
    Some((u16::from_ne_bytes([header[4], header[5]]), message, &datagram[next..]))
}

/// The value of an attribute.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    within(attributes).find_map(|(kind, value)| (kind & KIND == wanted).then_some(value))
}

/// Iterates over attributes: their types, with flags, and values.
fn within(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let (length, kind) =
            (u16::from_ne_bytes([header[0], header[1]]), u16::from_ne_bytes([header[2], header[3]]));
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
