//! The desired routes. Pure functions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use discovery::model::Node;
use fnv::FnvHasher;
use ipnetwork::IpNetwork;

use super::of_family;

/// The MAC address of a node inside the tunnel.
pub(super) type Mac = [u8; 6];

/// This node.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) addresses: HashSet<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNetwork>,
    pub(super) service_cidrs: Vec<IpNetwork>,
    /// The local address of tunnels. Its family is that of all tunnels.
    pub(super) underlay: Option<IpAddr>,
}

/// How the kernel would send to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Without a gateway.
    pub(super) on_link: bool,
    /// MTU of the interface in bytes.
    pub(super) mtu: u32,
}

/// The next hop of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextHop {
    /// The node's own address, on the same link.
    Direct(IpAddr),
    /// The tunnel.
    Tunnel(Mac),
}

/// The desired state of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) routes: BTreeMap<IpNetwork, NextHop>,
    /// The remote ends of tunnels.
    pub(super) peers: BTreeMap<Mac, IpAddr>,
    /// The smallest MTU towards any of them, in bytes.
    pub(super) underlay_mtu: u32,
    /// Ranges that cannot be reached, with the reason.
    pub(super) problems: Vec<String>,
}

impl Own {
    /// Whether it is this node, even if its name is wrong.
    pub(super) fn is(&self, node: &Node) -> bool {
        *node.name == *self.name || node.addresses.iter().any(|address| self.addresses.contains(address))
    }
}

/// A node's MAC address inside the tunnel is derived from its name, so it need not be distributed (48 bits of
/// a hash; locally administered, unicast).
pub(super) fn mac(node: &str) -> Mac {
    let mut hash = FnvHasher::default();
    hash.write(node.as_bytes());
    let [_, _, first, rest @ ..] = hash.finish().to_be_bytes();
    let [b, c, d, e, f] = rest;
    [(first | 2) & !1, b, c, d, e, f]
}

/// If two nodes claim the same range, the first one by name gets it.
pub(super) fn plan(own: &Own, others: &[&Arc<Node>], paths: &HashMap<IpAddr, Path>, tunnels: bool) -> Plan {
    let mut plan = Plan { underlay_mtu: u32::MAX, ..Plan::default() };
    let addresses: Vec<IpAddr> =
        others.iter().flat_map(|node| &node.addresses).chain(&own.addresses).copied().collect();
    for node in others {
        for cidr in &node.pod_cidrs {
            let next_hop = acceptable(own, &addresses, &plan, *cidr)
                .and_then(|()| next_hop(own, node, *cidr, paths, tunnels, &mut plan));
            match next_hop {
                Ok(next_hop) => {
                    plan.routes.insert(*cidr, next_hop);
                }
                Err(why) => plan.problems.push(format!("{cidr} of node {}: {why}", node.name)),
            }
        }
    }
    plan
}

/// An error in one Node must not break the routes of others.
fn acceptable(own: &Own, addresses: &[IpAddr], plan: &Plan, cidr: IpNetwork) -> Result<(), String> {
    let overlaps = |other: &&IpNetwork| cidr.contains(other.network()) || other.contains(cidr.network());
    if let Some(other) = own.pod_cidrs.iter().find(overlaps) {
        return Err(format!("it overlaps {other} of this node"));
    }
    if let Some(other) = own.service_cidrs.iter().find(overlaps) {
        return Err(format!("it overlaps the virtual IPs {other}"));
    }
    if let Some(other) = plan.routes.keys().find(overlaps) {
        return Err(format!("it overlaps {other} of another node"));
    }
    addresses
        .iter()
        .find(|address| cidr.contains(**address))
        .map_or(Ok(()), |address| Err(format!("the address {address} of a node is in it")))
}

fn next_hop(
    own: &Own,
    node: &Node,
    cidr: IpNetwork,
    paths: &HashMap<IpAddr, Path>,
    tunnels: bool,
    plan: &mut Plan,
) -> Result<NextHop, String> {
    let direct = of_family(&node.addresses, cidr.is_ipv4());
    if let Some(address) = direct.filter(|address| paths.get(address).is_some_and(|path| path.on_link)) {
        return Ok(NextHop::Direct(address));
    }
    if !tunnels {
        return Err("the node is not on this link, and --node-routes is direct".into());
    }
    let underlay = own.underlay.ok_or("this node has no route to anywhere")?;
    let family = if underlay.is_ipv4() { "IPv4" } else { "IPv6" };
    let end = of_family(&node.addresses, underlay.is_ipv4())
        .ok_or_else(|| format!("the node has no InternalIP of family {family} in status.addresses"))?;
    let found = paths.get(&end).ok_or_else(|| format!("there is no route to {end}"))?;
    plan.underlay_mtu = plan.underlay_mtu.min(found.mtu);
    let mac = mac(&node.name);
    plan.peers.insert(mac, end);
    Ok(NextHop::Tunnel(mac))
}

#[cfg(test)]
mod tests;
