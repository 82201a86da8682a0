//! Routing netlink, synchronous: the few requests of the plugin, many of them in one call.

mod batch;
mod request;
mod traffic;

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, State,
};
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub(crate) use batch::{Batch, Outcome};
pub(crate) use request::{NewBridge, Route, RouteTarget, Veth};

use crate::trace::{Span, span};
use traffic::RateLimit;

/// The kernel has no such object.
const MISSING: [Errno; 4] = [Errno::ESRCH, Errno::ENODEV, Errno::ENOENT, Errno::EADDRNOTAVAIL];

/// There is no route, or an unreachable route.
const UNREACHABLE: [Errno; 2] = [Errno::ENETUNREACH, Errno::EHOSTUNREACH];

/// `NLM_F_DUMP_INTR`: something changed during the dump.
const DUMP_INTERRUPTED: u16 = 0x10;

/// Under constant change even this many dumps may be interrupted. Then the last one is used.
const DUMP_ATTEMPTS: usize = 20;

/// The kernel sends no larger datagrams.
const DATAGRAM: usize = 32 * 1024;

type Answers = io::Result<Vec<RouteNetlinkMessage>>;

/// A socket in one network namespace, whichever namespace its user is in.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    interrupted: bool,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) is_up: bool,
    /// Whether packets leave by it: it is up and the kernel has noticed its carrier.
    pub(crate) is_operational: bool,
    /// Index of the other end of a veth, in the namespace of that end.
    pub(crate) peer: Option<u32>,
    pub(crate) is_promiscuous: bool,
    pub(crate) is_bridge: bool,
    /// The bridge that it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) port: Port,
}

/// The options of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) is_forwarding: bool,
    pub(crate) is_hairpin: bool,
    pub(crate) is_isolated: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// Duplicate address detection has not completed.
    pub(crate) is_tentative: bool,
    /// Duplicate address detection has found the address elsewhere.
    pub(crate) is_duplicate: bool,
}

impl Assigned {
    /// The address with its prefix length.
    pub(crate) fn network(&self) -> IpNetwork {
        IpNetwork::new(self.address, self.prefix).expect("the kernel's prefixes suit its addresses")
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        // Binding assigns the socket its netlink address.
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers within `send`: an answer that is not queued by then never arrives.
        socket.set_non_blocking(true)?;
        // The kernel filters dumps only in strict mode. An older kernel does not filter.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, interrupted: false })
    }

    /// Returns the interface with that name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        match self.one(request::get_link(name), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns all interfaces.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        Ok(self.dump(&request::get_links())?.into_iter().filter_map(link_of).collect())
    }

    /// Deletes an interface. Returns false if there is none.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        missing_is_false(self.one(request::delete_link(name), NLM_F_ACK))
    }

    /// Sets an interface down. Returns false if there is none.
    pub(crate) fn set_down(&mut self, name: &str) -> io::Result<bool> {
        missing_is_false(self.one(request::set_down(name), NLM_F_ACK))
    }

    /// Whether the interface has the address.
    pub(crate) fn has_address(&mut self, index: u32, address: IpAddr) -> io::Result<bool> {
        Ok(self.addresses(index, address)?.iter().any(|own| own.address == address))
    }

    /// Returns the addresses of the interface of the same family as `like`.
    pub(crate) fn addresses(&mut self, index: u32, like: IpAddr) -> io::Result<Vec<Assigned>> {
        let answers = self.dump(&request::get_addresses(index, like))?;
        Ok(answers.into_iter().filter_map(|answer| assigned_of(index, answer)).collect())
    }

    /// Removes an address from an interface. Returns false if it has no such address.
    pub(crate) fn delete_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<bool> {
        missing_is_false(self.one(request::delete_address(index, address, prefix), NLM_F_ACK))
    }

    /// Deletes a route. Returns false if there is none.
    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<bool> {
        missing_is_false(self.one(request::delete_route(route), NLM_F_ACK))
    }

    /// The destinations of the plugin's [`RouteTarget::Unreachable`] routes.
    pub(crate) fn unreachable(&mut self) -> io::Result<Vec<IpNetwork>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            found.extend(self.dump(&request::get_routes(family))?.iter().filter_map(request::last_resort));
        }
        Ok(found)
    }

    /// The interface by which a packet to `destination` would leave. `None` if there is no route.
    pub(crate) fn route_device(&mut self, destination: IpAddr) -> io::Result<Option<u32>> {
        Ok(self.route(request::get_route(destination))?.and_then(device_of))
    }

    /// Whether all addresses are local to this namespace and usable.
    pub(crate) fn are_local(&mut self, addresses: &[IpAddr]) -> io::Result<bool> {
        let routes = self.routes(addresses.iter().map(|address| request::get_route(*address)))?;
        let is_local = |route: &Option<RouteMessage>| {
            route.as_ref().is_some_and(|route| route.header.kind == RouteType::Local)
        };
        Ok(routes.into_iter().collect::<io::Result<Vec<_>>>()?.iter().all(is_local))
    }

    /// Whether there is a route to exactly this address: it is local to this namespace, or an interface leads
    /// to it.
    pub(crate) fn has_route_to(&mut self, address: IpAddr) -> io::Result<bool> {
        self.has_route_to_beside(address, &[]).map(|(found, _)| found)
    }

    /// Like [`Self::has_route_to`], and the interfaces by which packets to `others` would leave, in one
    /// request.
    pub(crate) fn has_route_to_beside(
        &mut self,
        address: IpAddr,
        others: &[IpAddr],
    ) -> io::Result<(bool, Vec<Option<u32>>)> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let others = others.iter().map(|other| request::get_route(*other));
        let mut routes = self.routes([request::match_route(address)].into_iter().chain(others))?.into_iter();
        let found = routes.next().transpose()?.flatten();
        let is_own = found.is_some_and(|route| route.header.destination_prefix_length == length);
        Ok((is_own, routes.map(|route| route.ok().flatten().and_then(device_of)).collect()))
    }

    fn route(&mut self, request: RouteNetlinkMessage) -> io::Result<Option<RouteMessage>> {
        self.routes([request])?.pop().unwrap_or(Ok(None))
    }

    /// Looks up several routes in one request. `None` if there is no route, or an unreachable one.
    fn routes(
        &mut self,
        requests: impl IntoIterator<Item = RouteNetlinkMessage>,
    ) -> io::Result<Vec<io::Result<Option<RouteMessage>>>> {
        let requests = requests.into_iter().map(|request| (request, NLM_F_ACK)).collect();
        let route_of = |answers: Answers| match answers {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })),
            Err(e) if has_errno(&e, &UNREACHABLE) => Ok(None),
            Err(e) => Err(e),
        };
        Ok(self.exchange(requests)?.into_iter().map(route_of).collect())
    }

    /// Whether an interface of the node has the address. A virtual IP, which is local by a route alone, does
    /// not count.
    pub(crate) fn has_own(&mut self, address: IpAddr) -> io::Result<bool> {
        self.route(request::match_route(address))
            .map(|route| route.is_some_and(|route| is_of_interface(&route)))
    }

    /// The MAC address of a neighbour, if it is known.
    pub(crate) fn neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<Option<Vec<u8>>> {
        match self.one(request::get_neighbour(index, address), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(neighbour_of)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The MTU of the interface with that index.
    pub(crate) fn mtu(&mut self, index: u32) -> io::Result<Option<u32>> {
        let answers = self.one(request::get_link_by_index(index), NLM_F_ACK)?;
        Ok(answers.into_iter().find_map(link_of).map(|link| link.mtu))
    }

    /// Creates an ifb interface.
    pub(crate) fn add_ifb(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        self.one(request::new_ifb(name, mtu), NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK)?;
        Ok(())
    }

    /// The rate limit of an interface, if it has one.
    pub(crate) fn rate_limit(&mut self, index: u32) -> io::Result<Option<RateLimit>> {
        // The kernel answers the sender only if the request has the echo flag.
        let answers = self.one(traffic::get_qdisc(index), NLM_F_ACK | NLM_F_ECHO)?;
        Ok(answers.into_iter().find_map(traffic::rate_limit_of))
    }

    /// Whether packets that arrive at an interface are redirected to `to`.
    pub(crate) fn redirects(&mut self, index: u32, to: u32) -> io::Result<bool> {
        let answers = self.dump(&traffic::get_filters(index))?;
        Ok(answers.iter().any(|answer| traffic::redirects(answer, to)))
    }

    fn dump(&mut self, message: &RouteNetlinkMessage) -> Answers {
        for _ in 1..DUMP_ATTEMPTS {
            let answers = self.one(message.clone(), NLM_F_DUMP)?;
            if !self.interrupted {
                return Ok(answers);
            }
        }
        self.one(message.clone(), NLM_F_DUMP)
    }

    fn one(&mut self, message: RouteNetlinkMessage, flags: u16) -> Answers {
        let mut answers = self.exchange(vec![(message, flags)])?;
        answers.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Sends requests in one datagram and collects the answers to each, up to its acknowledgement. The kernel
    /// processes all of them, even if one fails.
    fn exchange(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<Vec<Answers>> {
        span(Span::Netlink, || {
            let first = self.sequence + 1;
            let count = requests.len();
            let mut bytes = Vec::new();
            for (message, flags) in requests {
                self.sequence += 1;
                let mut request = NetlinkMessage::from(message);
                request.header.flags = NLM_F_REQUEST | flags;
                request.header.sequence_number = self.sequence;
                request.finalize();
                let start = bytes.len();
                bytes.resize(start + request.buffer_len().next_multiple_of(4), 0);
                request.serialize(&mut bytes[start..]);
            }
            self.interrupted = false;
            self.socket.send(&bytes, 0)?;
            self.receive(first, count)
        })
    }

    fn receive(&mut self, first: u32, count: usize) -> io::Result<Vec<Answers>> {
        let mut results: Vec<Answers> = (0..count).map(|_| Ok(Vec::new())).collect();
        let mut waiting = count;
        let mut datagram = Vec::with_capacity(DATAGRAM);
        while waiting > 0 {
            datagram.clear();
            self.socket.recv(&mut datagram, 0)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(rest.len()).next_multiple_of(4);
                rest = &rest[length.clamp(1, rest.len())..];
                self.interrupted |= answer.header.flags & DUMP_INTERRUPTED != 0;
                let position = answer.header.sequence_number.wrapping_sub(first) as usize;
                let Some(result) = results.get_mut(position) else { continue };
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        if let Ok(answers) = result {
                            answers.push(message);
                        }
                    }
                    NetlinkPayload::Done(_) => waiting -= 1,
                    NetlinkPayload::Error(error) => {
                        waiting -= 1;
                        if error.code.is_some() {
                            *result = Err(error.to_io());
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(results)
    }
}

fn has_errno(error: &io::Error, codes: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

/// Whether the error means that there is no such object.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    has_errno(error, &MISSING)
}

fn missing_is_false(result: Answers) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if is_missing(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        is_up: flags.contains(LinkFlags::Up),
        is_promiscuous: flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => link.name = value,
            LinkAttribute::IfAlias(value) => link.alias = value,
            LinkAttribute::Mtu(value) => link.mtu = value,
            LinkAttribute::Address(value) => link.mac = value,
            LinkAttribute::Controller(value) => link.master = Some(value),
            LinkAttribute::Link(value) => link.peer = Some(value),
            LinkAttribute::OperState(state) => {
                link.is_operational = matches!(state, State::Up | State::Unknown)
            }
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                link.port = port_of(&infos);
            }
            _ => {}
        }
    }
    Some(link)
}

fn port_of(infos: &[LinkInfo]) -> Port {
    let mut port = Port::default();
    for info in infos {
        let LinkInfo::PortData(InfoPortData::BridgePort(says)) = info else { continue };
        port.is_forwarding = says.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
        port.is_hairpin = says.contains(&InfoBridgePort::HairpinMode(true));
        port.is_isolated = says.contains(&InfoBridgePort::Isolated(true));
    }
    port
}

fn assigned_of(index: u32, answer: RouteNetlinkMessage) -> Option<Assigned> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    let flags = message.header.flags;
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(own) | AddressAttribute::Address(own) => Some(*own),
        _ => None,
    };
    (message.header.index == index).then_some(Assigned {
        address: message.attributes.iter().find_map(address)?,
        prefix: message.header.prefix_len,
        is_tentative: flags.contains(AddressHeaderFlags::Tentative),
        is_duplicate: flags.contains(AddressHeaderFlags::Dadfailed),
    })
}

fn neighbour_of(answer: RouteNetlinkMessage) -> Option<Vec<u8>> {
    let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
    message.attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac),
        _ => None,
    })
}

/// Whether the kernel created this local route for an address of an interface.
fn is_of_interface(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::Local && message.header.protocol == RouteProtocol::Kernel
}

fn device_of(message: RouteMessage) -> Option<u32> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    message.attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    })
}
