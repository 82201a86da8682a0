//! Mode `bridge`: pods are ports of a bridge, as with the reference plugin `bridge`.
//!
//! ```text
//! pod   eth0 10.22.0.7/24, default via 10.22.0.1 if it is the gateway
//! node  ptl<hash>, a port of cni0; cni0 10.22.0.1/24 if it is the gateway
//! ```
//! The first ADD creates the bridge. It stays when the last pod is deleted, as with the reference plugin. GC
//! removes a bridge that the plugin created and that has no ports.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink_packet_route::link::InfoBridgePort;

use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{Assignment, Lease};
use crate::mode::Mode;
use crate::netconf::{self, Bridge, NetConf};
use crate::netlink::{Batch, Link, Netlink, NewBridge, Veth};
use crate::pod::Pod;
use crate::result::{Attached, Interface};
use crate::{routed, veth};

/// The alias of a bridge that the plugin created. Unlike the alias of a pod's interface it names no
/// container.
const ALIAS: &str = "portolan/bridge";

/// Duplicate address detection takes 1 to 2 s.
const DETECTION: Duration = Duration::from_secs(5);

/// Interval between two checks of something that the kernel does in the background.
const PAUSE: Duration = Duration::from_millis(1);

impl Mode for Bridge {
    fn attach<'a>(
        &'a self,
        host: &mut Netlink,
        pod: &mut Pod,
        veth: &Veth<'_>,
        _conf: &NetConf,
        assignment: Assignment,
    ) -> Result<Attached<'a>> {
        let link = ensure_bridge(host, self, veth.mtu)?;
        let mut assignment = complete(self, assignment)?;
        remove_duplicates(&mut assignment);
        // Configure the gateway first: the pod may use it as soon as it is up.
        let mut new_gateways = Vec::new();
        for lease in assignment.leases.iter().filter(|_| self.is_gateway) {
            new_gateways.extend(ensure_gateway(host, &link, self, lease)?);
        }
        let port = veth::create(host, pod, veth, Some(link.index), false)?;
        let options = port_options(self);
        if !options.is_empty() {
            let mut batch = Batch::default();
            batch.set_port(veth.host, options);
            batch.commit(host)?;
        }
        if !self.disable_container_interface {
            let index = veth::peer(&port, &mut pod.netlink, veth.pod)?;
            configure_pod(pod, veth.pod, index, self, &assignment)?;
            // Bring the port up first: the bridge has a carrier only when a port has one.
            veth::await_carrier(host, &[veth.host, &self.name], |link| {
                link.name != veth.host || link.port.is_forwarding
            })?;
            if !self.enable_dad {
                veth::await_ipv6(&mut pod.netlink, assignment.addresses())?;
                veth::await_ipv6(host, new_gateways)?;
            }
            announce(pod, index, veth, &assignment);
        }
        let mac = veth::format_mac(&link.mac);
        let interfaces = vec![Interface { name: &self.name, mac, mtu: link.mtu, netns: "" }];
        let Assignment { leases, routes, dns } = assignment;
        Ok(Attached { interfaces, leases, routes, awaited: Vec::new(), dns })
    }

    fn check(
        &self,
        host: &mut Netlink,
        pod: &mut Netlink,
        ends: [&str; 2],
        _conf: &NetConf,
        given: &Assignment,
    ) -> Result<()> {
        check_ends(host, pod, ends, self, given)?;
        routed::check_routes(pod, given.routes.iter().map(|route| route.dst))
    }

    fn uplink<'a>(&'a self, _host_interface: &'a str) -> &'a str {
        &self.name
    }

    /// A bridge without an address of its own does not route.
    fn forwards(&self, masquerade: bool) -> bool {
        self.is_gateway || masquerade
    }
}

/// Announces the pod's addresses on the bridge. Without an announcement, a neighbour with an older entry
/// sends to the old MAC address for up to 45 s and then resolves the address again. So ADD does not fail if
/// the announcement fails.
fn announce(pod: &mut Pod, index: u32, veth: &Veth<'_>, assignment: &Assignment) {
    let mut batch = Batch::default();
    for address in assignment.addresses() {
        match address {
            IpAddr::V4(_) => batch.announce(index, address, veth.pod),
            IpAddr::V6(address) => {
                // Best effort, see above.
                let _ = pod.advertiser.as_ref().map(|to| to.advertise(index, address, veth.pod_mac));
            }
        }
    }
    let _ = batch.commit(&mut pod.netlink);
}

/// Removes duplicate routes: a second one would look like a route of another network.
fn remove_duplicates(assignment: &mut Assignment) {
    let routes = std::mem::take(&mut assignment.routes);
    for route in &routes {
        let full = |route: &netconf::Route| (gateway_of(route, assignment), route.options, route.dst);
        // Keep the one that names its gateway, as in the result.
        let is_implied =
            route.gw.is_none() && routes.iter().any(|other| other.gw.is_some() && full(other) == full(route));
        if !is_implied && !assignment.routes.contains(route) {
            assignment.routes.push(route.clone());
        }
    }
}

/// Returns the bridge, created if necessary, and up.
fn ensure_bridge(host: &mut Netlink, bridge: &Bridge, mtu: u32) -> Result<Link> {
    let name = &bridge.name;
    let find = |host: &mut Netlink| host.link(name).map_err(kernel(format!("look for bridge {name}")));
    let mut found = find(host)?;
    if found.is_none() {
        let mut batch = Batch::default();
        batch.add_bridge(&NewBridge { name, mac: veth::random_mac()?, mtu });
        batch.set_alias(name, ALIAS);
        batch.set_up(name);
        batch.commit(host)?;
        configure_ipv6(name, bridge.enable_dad)?;
        found = find(host)?;
    }
    let link = found.ok_or_else(|| conflict(format!("bridge {name} was deleted by another process")))?;
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

/// The node must not take a default route from router advertisements of pods (CVE-2020-13401). The bridge's
/// link-local address, from which the node resolves the pods' addresses, is usable at once: no other
/// interface can have it, so duplicate address detection is off. A node without IPv6 has neither setting.
fn configure_ipv6(name: &str, enable_dad: bool) -> Result<()> {
    let keys = ["accept_ra", "accept_dad"];
    for key in &keys[..if enable_dad { 1 } else { 2 }] {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join(key);
        match std::fs::write(&path, "0") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(crate::error::io("write", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// A kernel without VLAN filtering accepts the request and ignores it. So read back what the kernel has.
fn refuse_vlan(name: &str, vlan: &str) -> Error {
    let has_filtering = Path::new("/sys/class/net").join(name).join("bridge/vlan_filtering").exists();
    let why = if has_filtering {
        "VLANs on a bridge are not supported yet"
    } else {
        "this kernel cannot tell VLANs apart on a bridge (CONFIG_BRIDGE_VLAN_FILTERING)"
    };
    Error::new(Code::InvalidConfig, format!("{vlan}: {why}; leave it out, or use a bridge for each VLAN"))
}

/// Adds gateways and default routes if the configuration asks for them and IPAM named none.
fn complete(bridge: &Bridge, mut assignment: Assignment) -> Result<Assignment> {
    for lease in assignment.leases.iter_mut().filter(|_| bridge.is_gateway) {
        lease.gateway = Some(lease.gateway.map_or_else(|| first_address(lease.address), Ok)?);
    }
    let leases = assignment.leases.clone();
    for lease in leases.iter().filter(|_| bridge.is_default_gateway) {
        let is_of_family = |route: &netconf::Route| route.dst.is_ipv4() == lease.address.is_ipv4();
        let has_default = |route: &netconf::Route| route.dst.prefix() == 0 && route.gw.is_some();
        if !assignment.routes.iter().any(|route| is_of_family(route) && has_default(route)) {
            assignment.routes.push(netconf::Route::new(default_network(lease.address.ip()), lease.gateway));
        }
    }
    Ok(assignment)
}

/// The first address of a subnet.
fn first_address(address: IpNetwork) -> Result<IpAddr> {
    let first = match address.network() {
        IpAddr::V4(network) => network.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(network) => network.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    first.ok_or_else(|| conflict(format!("{address} has no room for a gateway")))
}

/// Adds a gateway address to the bridge. Returns it if it is new. A bridge may have one IPv4 subnet, and
/// several IPv6 subnets that do not overlap.
fn ensure_gateway(host: &mut Netlink, link: &Link, bridge: &Bridge, lease: &Lease) -> Result<Option<IpAddr>> {
    let Some(gateway) = lease.gateway else { return Ok(None) };
    let wanted = network(gateway, lease.address.prefix());
    let mut batch = Batch::default();
    batch.ensure_address(link.index, wanted, &bridge.name, bridge.enable_dad);
    if batch.commit(host)?.made == [false] {
        return Ok(None);
    }
    // The address is new: which other addresses does the bridge have?
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
            let suggestion = "delete it, choose another `bridge`, or set forceAddress";
            return Err(conflict(format!(
                "bridge {} has {theirs} and not {wanted}; {suggestion}",
                bridge.name
            )));
        }
    }
    Ok(Some(gateway))
}

fn port_options(bridge: &Bridge) -> Vec<InfoBridgePort> {
    let hairpin = bridge.hairpin_mode.then_some(InfoBridgePort::HairpinMode(true));
    let isolated = bridge.port_isolation.then_some(InfoBridgePort::Isolated(true));
    hairpin.into_iter().chain(isolated).collect()
}

fn configure_pod(
    pod: &mut Pod,
    ifname: &str,
    index: u32,
    bridge: &Bridge,
    assignment: &Assignment,
) -> Result<()> {
    let with_gateway =
        |route: &netconf::Route| netconf::Route { gw: gateway_of(route, assignment), ..route.clone() };
    let routes: Vec<netconf::Route> = assignment.routes.iter().map(with_gateway).collect();
    let add_routes = |batch: &mut Batch| {
        for route in &routes {
            // The pod may have other networks. The network that is attached first has the default route.
            let wording = format!("{} to the pod", routed::described(route));
            batch.add_route(&routed::kernel_route(index, route, route.options), &wording);
        }
    };
    let changes = || {
        let mut batch = Batch::default();
        batch.set_up(ifname);
        for lease in &assignment.leases {
            batch.ensure_address(index, lease.address, ifname, bridge.enable_dad);
        }
        if !bridge.enable_dad {
            add_routes(&mut batch);
        }
        batch
    };
    let mut outcome = veth::configure(pod, ifname, changes)?;
    if bridge.enable_dad {
        await_addresses(&mut pod.netlink, index, assignment)?;
        let mut batch = Batch::default();
        add_routes(&mut batch);
        outcome = batch.commit(&mut pod.netlink)?;
    }
    if outcome.found_route {
        let addresses = assignment.leases.iter().map(|lease| lease.address);
        let connected: Vec<IpNetwork> =
            addresses.map(|address| network(address.network(), address.prefix())).collect();
        routed::source_routing(index, &assignment.addresses(), &routes, &connected)
            .commit(&mut pod.netlink)?;
    }
    Ok(())
}

/// The gateway of a route; by default the first gateway of its family.
fn gateway_of(route: &netconf::Route, assignment: &Assignment) -> Option<IpAddr> {
    let mut gateways = assignment.leases.iter().filter_map(|lease| lease.gateway);
    let implied = || gateways.find(|gateway| gateway.is_ipv4() == route.dst.is_ipv4());
    if route.is_on_link() { None } else { route.gw.or_else(implied) }
}

/// Waits until duplicate address detection has completed. Returns an error if another interface has an
/// address.
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

fn check_ends(
    host: &mut Netlink,
    pod: &mut Netlink,
    [host_name, ifname]: [&str; 2],
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

/// Removes the bridges that the plugin created, or the one with that name, if they have no ports.
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

fn default_network(like: IpAddr) -> IpNetwork {
    let any = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    network(any, 0)
}

/// The network of an address of the same family as the prefix length.
fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).expect("the prefix is that of an address of the same family")
}

fn conflict(message: String) -> Error {
    Error::new(Code::Conflict, message)
}
