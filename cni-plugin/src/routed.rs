//! Mode `routed`: each pod has a veth of its own and is reached by routes, without a bridge.
//!
//! ```text
//! pod   eth0 10.22.0.7/32 fd00:22::7/128, 169.254.1.1 dev eth0 scope link,
//!       default via 169.254.1.1 and via fe80::1
//! node  ptl<hash>, 10.22.0.7 dev ptl<hash> scope link, fd00:22::7 dev ptl<hash>
//! ```
//! Both ends have permanent neighbour entries, so there is no ARP and no neighbour discovery. Every packet is
//! routed by the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnetwork::IpNetwork;

use crate::error::{Code, Error, Result, io, kernel};
use crate::ipam::{Assignment, Lease};
use crate::mode::Mode;
use crate::netconf::{self, NetConf, RouteOptions};
use crate::netlink::{Batch, Link, Netlink, Route, RouteTarget, Veth};
use crate::pod::Pod;
use crate::result::Attached;
use crate::uplink::{ANYWHERE_V4, ANYWHERE_V6};
use crate::veth;

/// The pod's gateways. No interface has these addresses: permanent neighbour entries map them to the node's
/// end of the veth.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

const FORWARDING_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// `IP6_RT_PRIO_USER`, the default metric of IPv6 routes. For IPv4 it is 0.
const DEFAULT_METRIC_V6: u32 = 1024;

/// Both ends have permanent neighbour entries. If `tuning` sets a MAC address later, the pod loses its
/// gateway entry, and the node keeps the old address.
const MAC_ADVICE: &str =
    "have portolan-cni set the hardware address (capability mac, or MAC in CNI_ARGS), not another plugin";

/// More interfaces than any pod has. Interface names may end in any number.
const MAX_RANK: u32 = 1000;

/// First table number for pods with several networks, away from the numbers that users choose.
const FIRST_TABLE: u32 = 7000;

fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}

/// The addresses of a pod as the result reports them.
fn leases(addresses: &[IpAddr]) -> Vec<Lease> {
    let lease = |ip: &IpAddr| Lease { address: host_prefix(*ip), gateway: Some(gateway(*ip)) };
    addresses.iter().map(lease).collect()
}

/// The address as a /32 or /128.
fn host_prefix(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// Mode `routed`.
pub(crate) struct Routed;

impl Mode for Routed {
    fn attach<'a>(
        &'a self,
        host: &mut Netlink,
        pod: &mut Pod,
        veth: &Veth<'_>,
        conf: &NetConf,
        assignment: Assignment,
    ) -> Result<Attached<'a>> {
        let addresses = assignment.addresses();
        let routes = pod_routes(&via_own_gateways(conf, &assignment), &addresses);
        let host_link = veth::create(host, pod, veth, None, addresses.iter().any(IpAddr::is_ipv6))?;
        let index = veth::peer(&host_link, &mut pod.netlink, veth.pod)?;
        let changes = || configure_pod(veth, index, &addresses, &routes);
        let outcome = veth::configure(pod, veth.pod, changes)?;
        if outcome.found_route || rank(veth.pod) > 0 {
            source_routing(index, &addresses, &routes, &[]).commit(&mut pod.netlink)?;
        }
        configure_host(host, &host_link, veth, &addresses)?;
        let (leases, dns) = (leases(&addresses), assignment.dns);
        Ok(Attached { interfaces: Vec::new(), leases, routes, awaited: addresses, dns })
    }

    fn check(
        &self,
        host: &mut Netlink,
        pod: &mut Netlink,
        ends: [&str; 2],
        conf: &NetConf,
        given: &Assignment,
    ) -> Result<()> {
        let addresses = given.addresses();
        check_ends(host, pod, ends, &addresses)?;
        check_routes(pod, pod_routes(&conf.routes, &addresses).into_iter().map(|route| route.dst))
    }

    fn uplink<'a>(&'a self, host_interface: &'a str) -> &'a str {
        host_interface
    }

    fn forwards(&self, _masquerade: bool) -> bool {
        true
    }
}

/// Adds the node's routes to the pod, and the neighbour entry.
fn configure_host(host: &mut Netlink, link: &Link, veth: &Veth<'_>, addresses: &[IpAddr]) -> Result<()> {
    let mut batch = Batch::default();
    for address in addresses {
        batch.add_neighbour(link.index, *address, veth.pod_mac, veth.host);
        let route = Route::new(host_prefix(*address), RouteTarget::Link(link.index));
        // Never replace a route: it would belong to a living pod.
        batch.add_own_route(&route, &format!("{address} dev {}", veth.host));
    }
    batch.get_link(veth.host);
    let taken = |error: Error| match error.code == Code::Conflict as u32 {
        true => Error { code: Code::AddressTaken as u32, ..error },
        false => error,
    };
    let links = batch.commit(host).map_err(taken)?.links;
    if links.iter().all(|link| link.is_operational) {
        return Ok(());
    }
    veth::await_carrier(host, &[veth.host], |_| true)
}

fn configure_pod(veth: &Veth<'_>, index: u32, addresses: &[IpAddr], routes: &[netconf::Route]) -> Batch {
    let mut batch = Batch::default();
    batch.set_up(veth.pod);
    for address in addresses {
        batch.ensure_address(index, host_prefix(*address), veth.pod, false);
    }
    for gateway in gateways(addresses) {
        batch.add_neighbour(index, gateway, veth.host_mac, veth.pod);
        let options = RouteOptions { priority: metric(veth.pod, gateway), ..RouteOptions::default() };
        let route = Route { options, ..Route::new(host_prefix(gateway), RouteTarget::Link(index)) };
        batch.replace_route(&route, &format!("{gateway} dev {}", veth.pod));
    }
    for route in routes {
        // The pod may have other networks. eth0 has the default route in whichever order they are attached.
        let metric = metric(veth.pod, route.dst.network());
        let priority = if route.options.priority > 0 { route.options.priority } else { metric };
        let options = RouteOptions { priority, ..route.options };
        batch.add_route(&kernel_route(index, route, options), &format!("{} to the pod", described(route)));
    }
    batch
}

/// Converts a route to a netlink route.
pub(crate) fn kernel_route(index: u32, route: &netconf::Route, options: RouteOptions) -> Route {
    let target = route.gw.map_or(RouteTarget::Link(index), |gateway| RouteTarget::Via(index, gateway));
    Route { destination: route.dst, target, options }
}

/// For messages.
pub(crate) fn described(route: &netconf::Route) -> String {
    match route.gw {
        Some(gateway) => format!("{} via {gateway}", route.dst),
        None => route.dst.to_string(),
    }
}

/// The number at the end of an interface's name: eth0 precedes eth1. Runtimes attach a pod's networks in any
/// order (podman's order varies).
fn rank(ifname: &str) -> u32 {
    let digits = ifname.len() - ifname.bytes().rev().take_while(u8::is_ascii_digit).count();
    ifname[digits..].parse().unwrap_or(0)
}

fn metric(ifname: &str, gateway: IpAddr) -> u32 {
    match rank(ifname).min(MAX_RANK) {
        0 => 0,
        rank if gateway.is_ipv6() => DEFAULT_METRIC_V6 + rank,
        rank => rank,
    }
}

/// Another network has the default route. Packets to an address of this interface must be answered by this
/// interface, so its addresses get a routing table of their own. `connected` are the subnets on the link,
/// whose neighbours are answered directly.
pub(crate) fn source_routing(
    index: u32,
    addresses: &[IpAddr],
    routes: &[netconf::Route],
    connected: &[IpNetwork],
) -> Batch {
    let table = FIRST_TABLE + index;
    let mut batch = Batch::default();
    let on_link = connected.iter().map(|subnet| netconf::Route::new(*subnet, None));
    let elsewhere = |route: &&netconf::Route| route.options.table.is_none();
    for route in on_link.chain(routes.iter().filter(elsewhere).cloned()) {
        let options = RouteOptions { table: Some(table), priority: 0, ..route.options };
        let wording = format!("{} table {table}", described(&route));
        batch.replace_route(&kernel_route(index, &route, options), &wording);
    }
    for address in addresses {
        batch.add_rule(*address, table);
    }
    batch
}

fn check_ends(
    host: &mut Netlink,
    pod: &mut Netlink,
    [host_name, ifname]: [&str; 2],
    addresses: &[IpAddr],
) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Code::Conflict, message));
    let host_link = veth::required(host, host_name)?;
    let pod_link = veth::required(pod, ifname)?;
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
        let known = host.neighbour(host_link.index, *address).map_err(failed())?;
        if known.is_some_and(|known| known != pod_link.mac) {
            return wrong(format!(
                "{ifname} has another hardware address than the node sends to: {MAC_ADVICE}"
            ));
        }
    }
    for gateway in gateways(addresses) {
        let device = pod.route_device(gateway).map_err(kernel("look for the pod's gateway"))?;
        // Another routed interface of the pod may have the same gateway.
        if device.is_none() {
            return wrong(format!("the pod's route to its gateway {gateway} is missing"));
        }
        let known = pod.neighbour(pod_link.index, gateway).map_err(kernel("look for the pod's gateway"))?;
        // IPv6 has no proxy_arp: a solicitation would not be answered.
        if gateway.is_ipv6() && known.is_none() {
            return wrong(format!("{ifname} has lost its entry for the gateway {gateway}: {MAC_ADVICE}"));
        }
    }
    Ok(())
}

/// Checks that the pod still has a route to each of these.
pub(crate) fn check_routes(
    pod: &mut Netlink,
    destinations: impl IntoIterator<Item = IpNetwork>,
) -> Result<()> {
    for destination in destinations {
        let probe = match (destination.prefix(), destination) {
            (0, IpNetwork::V4(_)) => ANYWHERE_V4,
            (0, IpNetwork::V6(_)) => ANYWHERE_V6,
            _ => destination.network(),
        };
        if pod.route_device(probe).map_err(kernel("look for the pod's routes"))?.is_none() {
            return Err(Error::new(Code::Conflict, format!("the pod's route to {destination} is missing")));
        }
    }
    Ok(())
}

/// Enables forwarding. Without it no packet passes between pods.
pub(crate) fn ensure_forwarding(addresses: &[IpAddr]) -> Result<()> {
    for (path, is_wanted) in [
        (FORWARDING_V4, addresses.iter().any(IpAddr::is_ipv4)),
        (FORWARDING_V6, addresses.iter().any(IpAddr::is_ipv6)),
    ] {
        let path = Path::new(path);
        if is_wanted && std::fs::read(path).map_err(io("read", path))?.first() != Some(&b'1') {
            std::fs::write(path, "1").map_err(io("write", path))?;
        }
    }
    Ok(())
}

/// The routes of the configuration or of another IPAM plugin. In this mode the plugin provides the gateway,
/// so a route via a subnet's gateway becomes one via ours.
fn via_own_gateways(conf: &NetConf, assignment: &Assignment) -> Vec<netconf::Route> {
    let named = if conf.routes.is_empty() { &assignment.routes } else { &conf.routes };
    let is_replaced =
        |gateway: &IpAddr| assignment.leases.iter().any(|lease| lease.gateway == Some(*gateway));
    let by_own = |route: &netconf::Route| netconf::Route {
        gw: route.gw.filter(|gateway| !is_replaced(gateway)),
        ..route.clone()
    };
    named.iter().map(by_own).collect()
}

/// The configured routes with their gateways, or the default routes if there are none, for the families of
/// the pod.
fn pod_routes(routes: &[netconf::Route], addresses: &[IpAddr]) -> Vec<netconf::Route> {
    let has = |address: IpAddr| addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    if routes.is_empty() {
        let everywhere = |gateway: IpAddr| {
            let any: IpAddr =
                if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            netconf::Route::new(IpNetwork::new(any, 0).expect("everywhere is a network"), Some(gateway))
        };
        return gateways(addresses).map(everywhere).collect();
    }
    let with_gateway = |route: &netconf::Route| {
        let implied = (!route.is_on_link()).then(|| gateway(route.dst.network()));
        netconf::Route { gw: route.gw.or(implied), ..route.clone() }
    };
    let mut all: Vec<netconf::Route> = Vec::new();
    for route in routes.iter().map(with_gateway).filter(|route| has(route.dst.network())) {
        // Remove duplicates: a second one would look like a route of another network.
        if !all.contains(&route) {
            all.push(route);
        }
    }
    all
}

fn gateways(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    [GATEWAY_V4, GATEWAY_V6]
        .into_iter()
        .filter(|gateway| addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4()))
}
