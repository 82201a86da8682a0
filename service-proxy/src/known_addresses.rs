//! The locations of addresses, and the source address that an endpoint therefore sees.
//!
//! The client's own, if the replies to it come back through this node: then policy routing delivers them to
//! the socket with that address (see [`crate::kernel::policy_routing`]). Otherwise the node's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use attachment::PortRange;
use ipnetwork::IpNetwork;

use crate::kernel::source_ports::{Owner, Source};

/// The known addresses of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownAddresses {
    /// The addresses of this node.
    pub(crate) node: HashSet<IpAddr>,
    /// Addresses of the other nodes.
    pub(crate) other_nodes: Arc<BTreeSet<IpAddr>>,
    /// Pods of this node, with the ports reserved in each.
    pub(crate) local_pods: Arc<HashMap<IpAddr, Option<PortRange>>>,
    /// Pod ranges of this node.
    pub(crate) local_ranges: Vec<IpNetwork>,
    /// Pod ranges of all nodes.
    pub(crate) cluster_ranges: Vec<IpNetwork>,
    /// Whether the kernel finds the socket of a reply to a masqueraded IPv6 address.
    pub(crate) finds_masqueraded_v6: bool,
}

impl KnownAddresses {
    /// The source to preserve for a connection from `client` to `endpoint`; `None` means the node's address.
    pub(crate) fn source(&self, client: SocketAddr, endpoint: IpAddr) -> Option<Source> {
        let ip = client.ip();
        // A pod would drop a packet from its own address.
        if ip == endpoint || ip.is_loopback() {
            return None;
        }
        let ends_here = self.is_local(endpoint) || self.node.contains(&endpoint);
        // A CNI plugin may masquerade what pods send to other nodes.
        let finds_masqueraded = ip.is_ipv4() || self.finds_masqueraded_v6;
        let is_other_node = self.other_nodes.contains(&endpoint) && finds_masqueraded;
        let comes_back = self.is_local(ip) && (self.is_pod(endpoint) || is_other_node);
        (ends_here || comes_back).then(|| Source { client, owner: self.owner(ip) })
    }

    fn owner(&self, client: IpAddr) -> Owner {
        if self.node.contains(&client) {
            return Owner::Node;
        }
        self.local_pods.get(&client).copied().flatten().map_or(Owner::Other, Owner::Pod)
    }

    /// Whether an endpoint may lead back to a proxy: an address that is not a pod's may be a virtual IP, or
    /// have a node port.
    pub(crate) fn may_come_back(&self, endpoint: IpAddr) -> bool {
        !self.is_pod(endpoint)
    }

    /// Whether it is in this cluster: a pod of any node, or this node itself.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        self.is_pod(address) || self.node.contains(&address)
    }

    /// Whether it is a pod of this node.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.local_pods.contains_key(&address)
            || self.local_ranges.iter().any(|range| range.contains(address))
    }

    /// Pods answer each other directly, without translation.
    fn is_pod(&self, address: IpAddr) -> bool {
        self.is_local(address) || self.cluster_ranges.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use attachment::RESERVED_PORTS;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn source_is_preserved_only_if_replies_come_back() {
        let known_addresses = KnownAddresses {
            node: [ip("192.0.2.2")].into(),
            other_nodes: Arc::new([ip("192.0.2.3")].into()),
            local_pods: Arc::new([(ip("10.22.0.2"), Some(RESERVED_PORTS)), (ip("10.22.0.3"), None)].into()),
            local_ranges: vec![],
            cluster_ranges: vec!["10.22.0.0/16".parse().unwrap(), "10.23.0.0/16".parse().unwrap()],
            finds_masqueraded_v6: false,
        };
        let (pod, other, remote) = (ip("10.22.0.2"), ip("10.22.0.3"), ip("10.23.0.9"));
        let (outside, node, other_node) = (ip("198.51.100.7"), ip("192.0.2.2"), ip("192.0.2.3"));
        let source = |client: IpAddr, endpoint: IpAddr| {
            let found = known_addresses.source(SocketAddr::new(client, 40_000), endpoint)?;
            assert_eq!(found.client, SocketAddr::new(client, 40_000));
            Some(found.owner)
        };
        let reserved = Owner::Pod(RESERVED_PORTS);
        assert_eq!(source(pod, other), Some(reserved));
        assert_eq!(source(pod, remote), Some(reserved));
        assert_eq!(source(other, pod), Some(Owner::Other), "its record is older");
        assert_eq!(source(outside, pod), Some(Owner::Other));
        assert_eq!(source(node, pod), Some(Owner::Node));
        assert_eq!(source(pod, node), Some(reserved), "a server of the node");
        assert_eq!(source(outside, node), Some(Owner::Other));
        assert_eq!(source(pod, other_node), Some(reserved));
        assert_eq!(source(outside, other_node), None, "the reply would not pass this node");
        assert_eq!(source(pod, pod), None, "hairpin");
        assert_eq!(source(outside, remote), None, "the reply would not pass this node");
        assert_eq!(source(pod, outside), None, "an outside host has no route to a pod");
        assert_eq!(source(ip("127.0.0.1"), pod), None);
    }

    #[test]
    fn source_of_v6_is_preserved_to_other_nodes_if_the_kernel_finds_masqueraded_replies() {
        let (pod, other_node) = (ip("fd00:10:22::2"), ip("fd00:192::3"));
        for finds_masqueraded_v6 in [false, true] {
            let known_addresses = KnownAddresses {
                other_nodes: Arc::new([other_node].into()),
                local_pods: Arc::new([(pod, None)].into()),
                finds_masqueraded_v6,
                ..KnownAddresses::default()
            };
            let source = known_addresses.source(SocketAddr::new(pod, 40_000), other_node);
            assert_eq!(source.is_some(), finds_masqueraded_v6);
        }
    }
}
