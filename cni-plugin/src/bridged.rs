//! Bridge mode: pods as ports of a bridge, as the reference plugin `bridge` has them.
//!
//! ```text
//! pod   eth0 10.22.0.7/24, default via 10.22.0.1 if it is the gateway
//! node  ptl<hash>, a port of cni0; cni0 10.22.0.1/24 if it is the gateway
//! ```
//! The bridge is made by the first ADD and stays when the last pod goes, as with the reference plugin; GC removes one that we
//! have made and that has no ports.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink_packet_route::link::InfoBridgePort;
use netns::NetNs;

use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{Assignment, Lease};
use crate::netconf::{self, Bridge};
use crate::netlink::{Batch, Link, Netlink, NewBridge, Route, RouteTarget, Veth};
use crate::{routed, veth};

/// The note on a bridge of ours. It is told from those of pods by having no container.
const ALIAS: &str = "portolan/bridge";

/// A port forwards once the kernel's link watcher has seen both ends up, which takes well under a millisecond. One that never
/// does so keeps nobody waiting: the reference plugin gives up after 2.5 s.
const FORWARDING: Duration = Duration::from_secs(1);

/// Duplicate address detection takes 1 to 2 s.
const DETECTION: Duration = Duration::from_secs(5);

/// Between two looks at something the kernel does by itself.
const PAUSE: Duration = Duration::from_millis(1);

/// What the pod got, for the result.
pub(crate) struct Bridged {
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) assignment: Assignment,
}

/// Connects a pod to the bridge, which is made if need be.
pub(crate) fn attach(
    host: &mut Netlink,
    pod: &mut Netlink,
    netns: &NetNs,
    veth: &Veth<'_>,
    alias: &str,
    bridge: &Bridge,
    assignment: Assignment,
) -> Result<Bridged> {
    let link = ensure_bridge(host, bridge, veth.mtu)?;
    let assignment = complete(bridge, assignment)?;
    // The gateway first: a pod that is up may use it.
    if bridge.is_gateway {
        for lease in &assignment.leases {
            ensure_gateway(host, &link, bridge, lease)?;
        }
    }
    veth::create(host, pod, netns, veth, alias, Some(link.index), false)?;
    let options = port_options(bridge);
    if !options.is_empty() {
        let mut batch = Batch::default();
        batch.set_port(veth.host, options);
        batch.commit(host)?;
    }
    if !bridge.disable_container_interface {
        configure_pod(pod, veth.pod, bridge, &assignment)?;
        await_forwarding(host, veth.host)?;
    }
    Ok(Bridged { mac: link.mac, mtu: link.mtu, assignment })
}

/// The bridge itself, up.
fn ensure_bridge(host: &mut Netlink, bridge: &Bridge, mtu: u32) -> Result<Link> {
    let name = &bridge.name;
    let find = |host: &mut Netlink| host.link(name).map_err(kernel(format!("look for bridge {name}")));
    let mut found = find(host)?;
    if found.is_none() {
        let mut batch = Batch::default();
        batch.add_bridge(&NewBridge { name, mac: veth::random_mac()?, mtu });
        batch.set_note(name, ALIAS);
        batch.set_up(name);
        batch.commit(host)?;
        refuse_advertisements(name)?;
        found = find(host)?;
    }
    let link = found.ok_or_else(|| conflict(format!("bridge {name} was deleted by somebody else")))?;
    if !link.is_bridge {
        return Err(conflict(format!(
            "{name} is already there and is not a bridge; choose another `bridge`"
        )));
    }
    if let Some(vlan) = &bridge.vlan {
        return Err(refuse_vlan(name, vlan));
    }
    let mut batch = Batch::default();
    if !link.is_up {
        batch.set_up(name);
    }
    if bridge.promisc_mode && !link.is_promiscuous {
        batch.set_promiscuous(name);
    }
    batch.commit(host)?;
    Ok(link)
}

/// Router advertisements of pods must not give the node a default route (CVE-2020-13401). A node without IPv6 takes none.
fn refuse_advertisements(name: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join("accept_ra");
    match std::fs::write(&path, "0") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(crate::error::io("write", &path)(e)),
        _ => Ok(()),
    }
}

/// A kernel without VLAN filtering takes the order for it, and does nothing: so what it has is asked for here.
fn refuse_vlan(name: &str, vlan: &str) -> Error {
    let has_filtering = Path::new("/sys/class/net").join(name).join("bridge/vlan_filtering").exists();
    let why = if has_filtering {
        "VLANs on a bridge are not there yet"
    } else {
        "this kernel cannot tell VLANs apart on a bridge (CONFIG_BRIDGE_VLAN_FILTERING)"
    };
    Error::new(Code::InvalidConfig, format!("{vlan}: {why}; leave it out, or use a bridge for each VLAN"))
}

/// Gateways and default routes where the configuration asks for them and IPAM has named none.
fn complete(bridge: &Bridge, mut assignment: Assignment) -> Result<Assignment> {
    for lease in assignment.leases.iter_mut().filter(|_| bridge.is_gateway) {
        lease.gateway = Some(lease.gateway.map_or_else(|| first_of(lease.address), Ok)?);
    }
    let leases = assignment.leases.clone();
    for lease in leases.iter().filter(|_| bridge.is_default_gateway) {
        let is_of_family = |route: &netconf::Route| route.dst.is_ipv4() == lease.address.is_ipv4();
        let has_default = |route: &netconf::Route| route.dst.prefix() == 0 && route.gw.is_some();
        if !assignment.routes.iter().any(|route| is_of_family(route) && has_default(route)) {
            assignment.routes.push(netconf::Route { dst: everywhere(lease.address.ip()), gw: lease.gateway });
        }
    }
    Ok(assignment)
}

/// The first address of a subnet.
fn first_of(address: IpNetwork) -> Result<IpAddr> {
    let first = match address.network() {
        IpAddr::V4(network) => network.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(network) => network.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    first.ok_or_else(|| conflict(format!("{address} has no room for a gateway")))
}

/// Gives the bridge a gateway's address. A bridge has one subnet of IPv4, and of IPv6 those that do not overlap.
fn ensure_gateway(host: &mut Netlink, link: &Link, bridge: &Bridge, lease: &Lease) -> Result<()> {
    let Some(gateway) = lease.gateway else { return Ok(()) };
    let wanted = network(gateway, lease.address.prefix());
    let mut batch = Batch::default();
    batch.ensure_address(link.index, wanted, &bridge.name, bridge.enable_dad);
    if batch.commit(host)?.made == [false] {
        return Ok(());
    }
    // It is new: what else does the bridge have?
    let others = host.addresses(link.index, gateway).map_err(kernel("look for the bridge's addresses"))?;
    for other in others.iter().filter(|other| (other.address, other.prefix) != (gateway, wanted.prefix())) {
        let theirs = other.network();
        if !(gateway.is_ipv4() || theirs.contains(gateway) || wanted.contains(other.address)) {
            continue;
        }
        let unwanted = if bridge.force_address { theirs } else { wanted };
        let deleted = host.delete_address(link.index, unwanted.ip(), unwanted.prefix());
        deleted.map_err(kernel(format!("delete address {unwanted} of {}", bridge.name)))?;
        if !bridge.force_address {
            let way_out = "delete it, choose another `bridge`, or set forceAddress";
            return Err(conflict(format!("bridge {} has {theirs} and not {wanted}; {way_out}", bridge.name)));
        }
    }
    Ok(())
}

fn port_options(bridge: &Bridge) -> Vec<InfoBridgePort> {
    let hairpin = bridge.hairpin_mode.then_some(InfoBridgePort::HairpinMode(true));
    let isolated = bridge.port_isolation.then_some(InfoBridgePort::Isolated(true));
    hairpin.into_iter().chain(isolated).collect()
}

fn configure_pod(pod: &mut Netlink, ifname: &str, bridge: &Bridge, assignment: &Assignment) -> Result<()> {
    let mut batch = Batch::default();
    batch.set_up(ifname);
    batch.get_link(ifname);
    let index = veth::only(batch.commit(pod)?.links, ifname)?.index;
    let mut batch = Batch::default();
    for lease in &assignment.leases {
        batch.add_address(index, lease.address, ifname, bridge.enable_dad);
    }
    batch.commit(pod)?;
    if bridge.enable_dad {
        await_addresses(pod, index, assignment)?;
    }
    let mut batch = Batch::default();
    for route in &assignment.routes {
        let target = match gateway_of(route, assignment) {
            Some(gateway) => RouteTarget::Via(index, gateway),
            None => RouteTarget::Link(index),
        };
        // The pod may have other networks: the first one to come has the default route.
        let wording = format!("{} to the pod", describe(route, assignment));
        batch.add_route(&Route { destination: route.dst, target, table: None, metric: 0 }, &wording);
    }
    if batch.commit(pod)?.made.contains(&false) {
        let by_gateway = |route: &netconf::Route| Some((route.dst, gateway_of(route, assignment)?));
        let routes: Vec<_> = assignment.routes.iter().filter_map(by_gateway).collect();
        routed::answer_where_asked(index, &assignment.addresses(), &routes).commit(pod)?;
    }
    Ok(())
}

/// A route without a gateway goes by the first one of its family.
fn gateway_of(route: &netconf::Route, assignment: &Assignment) -> Option<IpAddr> {
    let gateways = assignment.leases.iter().filter_map(|lease| lease.gateway);
    route.gw.or_else(|| gateways.into_iter().find(|gateway| gateway.is_ipv4() == route.dst.is_ipv4()))
}

fn describe(route: &netconf::Route, assignment: &Assignment) -> String {
    match gateway_of(route, assignment) {
        Some(gateway) => format!("{} via {gateway}", route.dst),
        None => route.dst.to_string(),
    }
}

/// Waits until nobody has answered that an address is his.
fn await_addresses(pod: &mut Netlink, index: u32, assignment: &Assignment) -> Result<()> {
    let deadline = Instant::now() + DETECTION;
    for lease in assignment.leases.iter().filter(|lease| lease.address.is_ipv6()) {
        let wanted = lease.address.ip();
        loop {
            let own = pod.addresses(index, wanted).map_err(kernel(format!("look for address {wanted}")))?;
            let own = own.into_iter().find(|own| own.address == wanted);
            if own.is_none_or(|own| own.is_duplicate) {
                return Err(conflict(format!("another interface of the bridge has {wanted}")));
            }
            if !own.is_some_and(|own| own.is_tentative) || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Waits until the bridge passes on what the pod sends: its first packets are not to be lost.
fn await_forwarding(host: &mut Netlink, name: &str) -> Result<()> {
    let deadline = Instant::now() + FORWARDING;
    loop {
        let link = veth::required(host, name)?;
        if link.port.is_forwarding || Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether an attachment is as [`attach`] left it, by the result of ADD. Additions by others are fine.
pub(crate) fn check(
    host: &mut Netlink,
    pod: &mut Netlink,
    host_name: &str,
    ifname: &str,
    bridge: &Bridge,
    assignment: &Assignment,
) -> Result<()> {
    let link = veth::required(host, &bridge.name)?;
    let (port, own) = (veth::required(host, host_name)?, veth::required(pod, ifname)?);
    let wrong = |message: String| Err(conflict(message));
    if !link.is_bridge {
        return wrong(format!("{} is not a bridge", bridge.name));
    }
    if port.master != Some(link.index) {
        return wrong(format!("interface {host_name} is not a port of bridge {}", bridge.name));
    }
    let must_be_up = [(&link, &*bridge.name), (&port, host_name), (&own, ifname)];
    let count = if bridge.disable_container_interface { 2 } else { 3 };
    if let Some((_, name)) = must_be_up[..count].iter().find(|(link, _)| !link.is_up) {
        return wrong(format!("interface {name} is down"));
    }
    for (key, wanted, found) in [
        ("hairpinMode", bridge.hairpin_mode, port.port.is_hairpin),
        ("portIsolation", bridge.port_isolation, port.port.is_isolated),
        ("promiscMode", bridge.promisc_mode, link.is_promiscuous),
    ] {
        if wanted && !found {
            return wrong(format!("{key}: bridge {} no longer has it for {host_name}", bridge.name));
        }
    }
    for lease in &assignment.leases {
        let address = lease.address.ip();
        let failed = || kernel(format!("look for address {address}"));
        if !pod.has_address(own.index, address).map_err(failed())? {
            return wrong(format!("interface {ifname} has lost its address {address}"));
        }
        let Some(gateway) = lease.gateway.filter(|_| bridge.is_gateway) else { continue };
        if !host.has_address(link.index, gateway).map_err(failed())? {
            return wrong(format!("bridge {} has lost its address {gateway}", bridge.name));
        }
    }
    Ok(())
}

/// Removes the bridges that we have made, or the one of that name, if they have no port left.
pub(crate) fn collect(host: &mut Netlink, name: Option<&str>) -> Result<()> {
    let links = host.links().map_err(kernel("list interfaces"))?;
    let is_wanted = |link: &&Link| link.alias == ALIAS && name.is_none_or(|name| link.name == name);
    for link in links.iter().filter(is_wanted) {
        if !links.iter().any(|port| port.master == Some(link.index)) {
            host.delete_link(&link.name).map_err(kernel(format!("delete bridge {}", link.name)))?;
        }
    }
    Ok(())
}

fn everywhere(like: IpAddr) -> IpNetwork {
    let any = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    network(any, 0)
}

/// An address with a prefix that comes from one of its family.
fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).expect("the prefix is that of an address of the same family")
}

fn conflict(message: String) -> Error {
    Error::new(Code::Conflict, message)
}
