//! Routed mode: a pod behind a veth of its own, reached by routes and not by a bridge.
//!
//! ```text
//! pod   eth0 10.22.0.7/32, 169.254.1.1 dev eth0 scope link, default via 169.254.1.1
//! node  ptl<hash>, 10.22.0.7 dev ptl<hash> scope link
//! ```
//! Both ends know each other's hardware address for good, so there is no ARP. Every packet passes the node's routing.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network};
use netns::NetNs;

use crate::error::{Code, Error, Result, io, kernel};
use crate::netconf::Route;
use crate::netlink::{Link, Netlink, RouteTarget, Veth};

/// The pod's gateway. It exists nowhere: a permanent neighbour entry leads to the node's end of the veth.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// What an interface gets on a node without an uplink.
const DEFAULT_MTU: u32 = 1500;

/// Anywhere on the Internet: which way would it leave? (192.0.2.0/24 is for documentation.)
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The node's end of an attachment is named after it, so that DEL and GC find it when nothing else is left.
pub(crate) fn host_interface(network: &str, container_id: &str, ifname: &str) -> String {
    // FNV-1a, 48 bits of which fit: with 5,000 pods two names meet with a chance of 1 in 20 million.
    let text = format!("{network}/{container_id}/{ifname}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("ptl{:012x}", hash >> 16)
}

/// Creates the veth and sets both ends up.
pub(crate) fn attach(
    host: &mut Netlink,
    pod: &mut Netlink,
    netns: &NetNs,
    veth: &Veth<'_>,
    addresses: &[Ipv4Addr],
    routes: &[Route],
) -> Result<()> {
    let created = host.add_veth(veth, netns.as_fd().as_raw_fd());
    created.map_err(kernel(format!("create interface {} with its end {}", veth.pod, veth.host)))?;
    let host_link = required(host, veth.host)?;
    let pod_link = required(pod, veth.pod)?;
    host.set_up(host_link.index).map_err(kernel(format!("set {} up", veth.host)))?;
    for address in addresses {
        let added = pod.add_address(pod_link.index, *address, 32);
        added.map_err(kernel(format!("add address {address}/32 to {}", veth.pod)))?;
    }
    pod.set_up(pod_link.index).map_err(kernel(format!("set {} up", veth.pod)))?;
    let neighbour = pod.add_neighbour(pod_link.index, GATEWAY, &veth.host_mac);
    neighbour.map_err(kernel(format!("add neighbour {GATEWAY} to {}", veth.pod)))?;
    let gateway = pod.replace_route((GATEWAY, 32), RouteTarget::Link(pod_link.index));
    gateway.map_err(kernel(format!("add route {GATEWAY} dev {}", veth.pod)))?;
    for (destination, via) in pod_routes(routes) {
        let added = pod.replace_route(
            (destination.network(), destination.prefix()),
            RouteTarget::Via(pod_link.index, via),
        );
        added.map_err(kernel(format!("add route {destination} via {via} to the pod")))?;
    }
    for address in addresses {
        let neighbour = host.add_neighbour(host_link.index, *address, &veth.pod_mac);
        neighbour.map_err(kernel(format!("add neighbour {address} to {}", veth.host)))?;
        let route = host.replace_route((*address, 32), RouteTarget::Link(host_link.index));
        route.map_err(kernel(format!("add route {address} dev {}", veth.host)))?;
    }
    Ok(())
}

/// Whether an attachment is as [`attach`] left it. Additions by others are fine.
pub(crate) fn check(
    host: &mut Netlink,
    pod: &mut Netlink,
    host_name: &str,
    ifname: &str,
    addresses: &[Ipv4Addr],
) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Code::Conflict, message));
    let host_link = required(host, host_name)?;
    let pod_link = required(pod, ifname)?;
    for (link, name) in [(&host_link, host_name), (&pod_link, ifname)] {
        if !link.is_up {
            return wrong(format!("interface {name} is down"));
        }
    }
    for address in addresses {
        let failed = || kernel(format!("look for address {address}"));
        if !pod.has_address(pod_link.index, *address).map_err(failed())? {
            return wrong(format!("interface {ifname} has lost its address {address}"));
        }
        if host.route_device(*address).map_err(failed())? != Some(host_link.index) {
            return wrong(format!("the node's route to {address} does not lead to {host_name}"));
        }
    }
    if pod.route_device(GATEWAY).map_err(kernel("look for the pod's gateway"))? != Some(pod_link.index) {
        return wrong(format!("the pod's route to its gateway {GATEWAY} is gone"));
    }
    Ok(())
}

/// Whether the pod's default route, or the configured ones, are still there.
pub(crate) fn check_routes(pod: &mut Netlink, routes: &[Route]) -> Result<()> {
    for (destination, _) in pod_routes(routes) {
        let probe = if destination.prefix() == 0 { ANYWHERE } else { destination.network() };
        if pod.route_device(probe).map_err(kernel("look for the pod's routes"))?.is_none() {
            return Err(Error::new(Code::Conflict, format!("the pod's route to {destination} is gone")));
        }
    }
    Ok(())
}

/// The MTU of the way out of this node.
pub(crate) fn uplink_mtu(host: &mut Netlink) -> u32 {
    let device = host.route_device(ANYWHERE).ok().flatten();
    device.and_then(|index| host.mtu(index).ok().flatten()).filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU)
}

/// Without forwarding no packet passes between pods.
pub(crate) fn ensure_forwarding() -> Result<()> {
    let path = Path::new(FORWARDING);
    let value = std::fs::read(path).map_err(io("read", path))?;
    if value.first() != Some(&b'1') {
        std::fs::write(path, "1").map_err(io("write", path))?;
    }
    Ok(())
}

/// The configured routes with their gateways, or the default route where there are none.
pub(crate) fn pod_routes(routes: &[Route]) -> Vec<(Ipv4Network, Ipv4Addr)> {
    if routes.is_empty() {
        let everywhere = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("0.0.0.0/0 is a network");
        return vec![(everywhere, GATEWAY)];
    }
    let v4 = routes.iter().filter_map(|route| match (route.dst, route.gw) {
        (IpNetwork::V4(dst), Some(std::net::IpAddr::V4(gw))) => Some((dst, gw)),
        (IpNetwork::V4(dst), _) => Some((dst, GATEWAY)),
        (IpNetwork::V6(_), _) => None,
    });
    v4.collect()
}

fn required(netlink: &mut Netlink, name: &str) -> Result<Link> {
    let found = netlink.link(name).map_err(kernel(format!("look for interface {name}")))?;
    found.ok_or_else(|| Error::new(Code::Conflict, format!("interface {name} is not there")))
}
