//! Routing netlink, synchronously: the few requests the plugin makes, each with its acknowledgement.

mod request;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteAttribute, RouteType};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

pub(crate) use request::{RouteTarget, Veth};

use crate::trace::{Span, span};

/// `ESRCH`, `ENODEV`, `ENOENT`, `EADDRNOTAVAIL`: what the kernel says of things that are gone.
const GONE: [i32; 4] = [3, 19, 2, 99];

/// A socket in one network namespace; it stays there whoever uses it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) is_up: bool,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Dumps obey their filters only when asked to be strict; an older kernel filters nothing.
        drop(socket.set_netlink_get_strict_chk(true));
        Ok(Self { socket, sequence: 0 })
    }

    /// Creates both ends of a veth, each in its final namespace with its final name, address and MTU.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>, peer_netns: RawFd) -> io::Result<()> {
        self.change(request::new_veth(veth, peer_netns), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The interface of that name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        match self.exchange(request::get_link(name), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.change(request::set_up(index), 0)
    }

    /// Deletes an interface. False if there is none.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        gone_is_false(self.change(request::delete_link(name), 0))
    }

    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.change(request::new_address(index, address, prefix), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Whether the interface has the address.
    pub(crate) fn has_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<bool> {
        let answers = self.exchange(request::get_addresses(index), NLM_F_DUMP)?;
        Ok(answers.into_iter().any(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                message.header.index == index
                    && message.attributes.contains(&AddressAttribute::Local(address.into()))
            }
            _ => false,
        }))
    }

    /// Adds a route, or replaces the one to the same destination.
    pub(crate) fn replace_route(
        &mut self,
        destination: (Ipv4Addr, u8),
        target: RouteTarget,
    ) -> io::Result<()> {
        self.change(request::new_route(destination, target), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Deletes a route. False if there is none.
    pub(crate) fn delete_route(
        &mut self,
        destination: (Ipv4Addr, u8),
        target: RouteTarget,
    ) -> io::Result<bool> {
        gone_is_false(self.change(request::delete_route(destination, target), 0))
    }

    /// The interface by which a packet to `destination` would leave; `None` where it would not.
    pub(crate) fn route_device(&mut self, destination: Ipv4Addr) -> io::Result<Option<u32>> {
        // ENETUNREACH, EHOSTUNREACH: there is no route, or one that refuses.
        match self.exchange(request::get_route(destination), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(device_of)),
            Err(e) if matches!(e.raw_os_error(), Some(101 | 113)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Fixes the hardware address of a neighbour, so that nobody has to ask for it.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: &[u8]) -> io::Result<()> {
        self.change(request::new_neighbour(index, address, mac), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The MTU of the interface with that index.
    pub(crate) fn mtu(&mut self, index: u32) -> io::Result<Option<u32>> {
        let answers = self.exchange(request::get_link_by_index(index), NLM_F_ACK)?;
        Ok(answers.into_iter().find_map(link_of).map(|link| link.mtu))
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK).map(drop)
    }

    /// Sends a request and collects the answers up to the acknowledgement. The kernel answers within `send`, so
    /// receiving never waits.
    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        span(Span::Netlink, || self.exchange_untraced(message, flags))
    }

    fn exchange_untraced(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(rest.len()).next_multiple_of(4);
                rest = &rest[length.clamp(1, rest.len())..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => return Err(error.to_io()),
                    },
                    _ => {}
                }
            }
        }
    }
}

/// Whether an error says that the thing is not there.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| GONE.contains(&code))
}

fn gone_is_false(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let (mut mac, mut mtu) = (Vec::new(), 0);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::Address(address) => mac = address,
            LinkAttribute::Mtu(value) => mtu = value,
            _ => {}
        }
    }
    let is_up = message.header.flags.contains(LinkFlags::Up);
    Some(Link { index: message.header.index, mac, mtu, is_up })
}

fn device_of(answer: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    message.attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    })
}
