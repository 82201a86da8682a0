//! Where addresses are, and so which one an endpoint sees as its client's.
//!
//! The client's own, wherever the replies to it come back through this node: then they can be diverted to the socket
//! that borrowed it (see [`crate::kernel::divert`]). Otherwise the node's.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

/// What is known about where addresses are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locality {
    /// This node's own addresses.
    pub(crate) node: HashSet<IpAddr>,
    /// Pods of this node.
    pub(crate) local_pods: Arc<HashSet<IpAddr>>,
    /// Ranges of pods of this node.
    pub(crate) local_ranges: Vec<IpNetwork>,
    /// Ranges of pods of any node.
    pub(crate) cluster_ranges: Vec<IpNetwork>,
}

impl Locality {
    /// The address to borrow for a connection from `client` to `endpoint`; `None` means the node's own.
    pub(crate) fn source(&self, client: IpAddr, endpoint: IpAddr) -> Option<IpAddr> {
        // A pod that is sent back to itself would drop a packet from its own address.
        if client == endpoint || client.is_loopback() {
            return None;
        }
        let through_here = self.is_local(endpoint) || (self.is_local(client) && self.is_pod(endpoint));
        through_here.then_some(client)
    }

    /// Whether it is of this cluster: a pod of any node, or this node itself.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        self.is_pod(address) || self.node.contains(&address)
    }

    /// Whether it is a pod of this node.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.local_pods.contains(&address) || self.local_ranges.iter().any(|range| range.contains(address))
    }

    /// Pods answer each other directly, without translation in between.
    fn is_pod(&self, address: IpAddr) -> bool {
        self.is_local(address) || self.cluster_ranges.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_borrowed_only_where_its_replies_come_back() {
        let locality = Locality {
            node: HashSet::new(),
            local_pods: Arc::new([ip("10.22.0.2"), ip("10.22.0.3")].into()),
            local_ranges: vec![],
            cluster_ranges: vec!["10.22.0.0/16".parse().unwrap(), "10.23.0.0/16".parse().unwrap()],
        };
        let (pod, other, remote) = (ip("10.22.0.2"), ip("10.22.0.3"), ip("10.23.0.9"));
        let outside = ip("198.51.100.7");
        assert_eq!(locality.source(pod, other), Some(pod));
        assert_eq!(locality.source(pod, remote), Some(pod));
        assert_eq!(locality.source(outside, pod), Some(outside));
        assert_eq!(locality.source(pod, pod), None, "hairpin");
        assert_eq!(locality.source(outside, remote), None, "the reply would not pass this node");
        assert_eq!(locality.source(pod, outside), None, "nobody out there knows the way to a pod");
        assert_eq!(locality.source(ip("127.0.0.1"), pod), None);
    }
}
