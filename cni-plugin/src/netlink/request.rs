//! Constructors of the request messages.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netconf::RouteOptions;

/// The metric of unreachable routes, the worst but one: every other route to the destination takes
/// precedence.
const LAST_RESORT: u32 = u32::MAX - 1;

/// Both ends of a veth.
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a str,
    pub(crate) host_mac: [u8; 6],
    pub(crate) pod: &'a str,
    pub(crate) pod_mac: [u8; 6],
    pub(crate) mtu: u32,
    /// The alias of the node's end.
    pub(crate) note: &'a str,
}

/// A bridge to create.
pub(crate) struct NewBridge<'a> {
    pub(crate) name: &'a str,
    /// Set at creation: a bridge without a MAC address of its own takes the lowest of its ports', and changes
    /// it when ports come and go.
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNetwork,
    pub(crate) target: RouteTarget,
    /// The default table is the main one. `priority` is the metric.
    pub(crate) options: RouteOptions,
}

impl Route {
    /// A route without options.
    pub(crate) fn new(destination: IpNetwork, target: RouteTarget) -> Self {
        Self { destination, target, options: RouteOptions::default() }
    }
}

/// The target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteTarget {
    /// An interface, without a gateway.
    Link(u32),
    /// A gateway.
    Via(u32, IpAddr),
    /// None: the kernel answers with ICMP unreachable.
    Unreachable,
}

pub(super) fn new_veth(veth: &Veth<'_>, peer_netns: RawFd, master: Option<u32>) -> RouteNetlinkMessage {
    let end = |name: &str, mac: [u8; 6]| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // Set at creation: udev changes the MAC address of an interface without a fixed one.
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
        ];
        message
    };
    let mut peer = end(veth.pod, veth.pod_mac);
    peer.attributes.push(LinkAttribute::NetNsFd(peer_netns));
    let mut message = end(veth.host, veth.host_mac);
    message.attributes.extend(master.map(LinkAttribute::Controller));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

pub(super) fn new_bridge(bridge: &NewBridge<'_>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(bridge.name.to_owned()),
        LinkAttribute::Address(bridge.mac.to_vec()),
        LinkAttribute::Mtu(bridge.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// An interface that packets can be redirected to and queued on.
pub(super) fn new_ifb(name: &str, mtu: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// Options of a bridge port. The kernel accepts them with `RTM_NEWLINK` on an existing link, not with
/// `RTM_SETLINK`.
pub(super) fn set_port(name: &str, options: Vec<InfoBridgePort>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

pub(super) fn set_promiscuous(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Promisc;
    message.header.change_mask = LinkFlags::Promisc;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), without_statistics()];
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn get_link_by_index(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(without_statistics());
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn get_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(without_statistics());
    RouteNetlinkMessage::GetLink(message)
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

pub(super) fn set_up(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn set_alias(name: &str, alias: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
    RouteNetlinkMessage::SetLink(message)
}

/// Disables the link-local address and the routes that come with it.
pub(super) fn disable_link_local(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]),
    ];
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn set_down(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn route_localnet(name: &str) -> RouteNetlinkMessage {
    let mut conf = InetDevConf::default();
    conf.route_localnet = 1;
    configure_ipv4(name, conf)
}

pub(super) fn proxy_arp(name: &str) -> RouteNetlinkMessage {
    let mut conf = InetDevConf::default();
    conf.proxy_arp = 1;
    configure_ipv4(name, conf)
}

/// Sets the values that are not 0.
fn configure_ipv4(name: &str, conf: InetDevConf) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)])]),
    ];
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn delete_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::DelLink(message)
}

pub(super) fn new_address(index: u32, address: IpAddr, prefix: u8, detect: bool) -> RouteNetlinkMessage {
    let mut message = address_message(index, address, prefix);
    if address.is_ipv6() && !detect {
        // No other interface can have the address: without detection it is usable at once.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    RouteNetlinkMessage::NewAddress(message)
}

pub(super) fn delete_address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(address_message(index, address, prefix))
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if let Ok(IpNetwork::V4(network)) = IpNetwork::new(address, prefix)
        && prefix < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(network.broadcast()));
    }
    message
}

pub(super) fn get_addresses(index: u32, like: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(like);
    message.header.index = index;
    RouteNetlinkMessage::GetAddress(message)
}

pub(super) fn new_route(route: &Route) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(route_message(route))
}

pub(super) fn delete_route(route: &Route) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelRoute(route_message(route))
}

/// Packets from `source` use `table`.
pub(super) fn new_rule(source: IpAddr, table: u32) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(source);
    message.header.src_len = if source.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Source(source), RuleAttribute::Table(table)];
    RouteNetlinkMessage::NewRule(message)
}

pub(super) fn get_route(destination: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRoute(route_to(destination))
}

fn route_to(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(destination.into())];
    message
}

/// Requests the matching route as it is in its table.
pub(super) fn match_route(destination: IpAddr) -> RouteNetlinkMessage {
    let mut message = route_to(destination);
    message.header.flags = RouteFlags::FibMatch;
    RouteNetlinkMessage::GetRoute(message)
}

pub(super) fn get_routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    RouteNetlinkMessage::GetRoute(message)
}

/// The destination of a route that [`RouteTarget::Unreachable`] created.
pub(super) fn last_resort(answer: &RouteNetlinkMessage) -> Option<IpNetwork> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    let is_last = message.attributes.contains(&RouteAttribute::Priority(LAST_RESORT));
    if !is_last || message.header.kind != RouteType::Unreachable {
        return None;
    }
    message.attributes.iter().find_map(|attribute| {
        let address: IpAddr = match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => (*address).into(),
            _ => return None,
        };
        IpNetwork::new(address, message.header.destination_prefix_length).ok()
    })
}

pub(super) fn new_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Makes the kernel resolve the MAC address of `address`. For an address of the interface itself this sends
/// an ARP announcement (RFC 5227 §3): a broadcast from this address for this address.
pub(super) fn solicit_neighbour(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = neighbour_message(index, address);
    message.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(message)
}

pub(super) fn delete_neighbour(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(neighbour_message(index, address))
}

/// Requests the entry of one neighbour.
pub(super) fn get_neighbour(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(neighbour_message(index, address))
}

fn neighbour_message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = route.destination.network();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = route.destination.prefix();
    let RouteOptions { mtu, advmss, priority, table, scope } = route.options;
    match table {
        None => message.header.table = RouteHeader::RT_TABLE_MAIN,
        Some(table) => message.attributes.push(RouteAttribute::Table(table)),
    }
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.into()));
    }
    if priority > 0 {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let sizes = [(mtu, RouteMetric::Mtu(mtu)), (advmss, RouteMetric::Advmss(advmss))];
    let sizes: Vec<_> = sizes.into_iter().filter(|(size, _)| *size > 0).map(|(_, metric)| metric).collect();
    if !sizes.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(sizes));
    }
    match route.target {
        RouteTarget::Link(index) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTarget::Via(index, gateway) => {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTarget::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            message.attributes.push(RouteAttribute::Priority(LAST_RESORT));
        }
    }
    if let Some(scope) = scope {
        message.header.scope = scope.into();
    }
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
