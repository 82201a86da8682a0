//! The state of the node and the cluster that all Services depend on.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use discovery::Snapshot;
use discovery::model::Endpoint;
use ipnetwork::IpNetwork;

use crate::backend::topology::Location;
use crate::kernel::node_address::{self, NodePortAddress};
use crate::kernel::policy_routing;
use crate::known_addresses::KnownAddresses;

/// The zone label of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The configuration of the node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name, as in `nodeName` of endpoints and in hints.
    pub node_name: String,
    /// The proxy's own name, if it is not the default one.
    pub proxy_name: Option<String>,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The addresses on which node ports are opened.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Whether `externalIPs` of Services are served (KEP-5707).
    pub allow_external_ips: bool,
}

/// The same for all Services. Those that depend on it are planned again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeContext {
    /// The proxy's own name, if it is not the default one.
    pub(crate) proxy_name: Option<Arc<str>>,
    pub(crate) location: Location,
    /// The known addresses. Those of other nodes are not served, even if a Service lists them.
    pub(crate) known_addresses: KnownAddresses,
    /// Addresses of the node on which node ports are opened.
    pub(crate) node_port_addresses: Vec<IpAddr>,
    /// Whether `externalIPs` of Services are ignored.
    pub(crate) ignores_external_ips: bool,
}

impl NodeContext {
    /// Whether an endpoint is on this node: by its `nodeName`, or else because its pod is attached here.
    pub(crate) fn is_local(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node_name {
            Some(node) => *node == self.location.node,
            None => self.known_addresses.is_local(endpoint.address),
        }
    }

    /// The addresses that do not belong to another node.
    pub(crate) fn without_other_nodes<'a>(
        &self,
        addresses: &'a [IpAddr],
    ) -> impl Iterator<Item = &'a IpAddr> {
        addresses.iter().filter(|address| !self.known_addresses.other_nodes.contains(address))
    }
}

impl NodeConfig {
    /// The current context. If the node's addresses cannot be read, those of `last` count.
    pub(crate) fn node_context(&self, snapshot: &Snapshot, last: &NodeContext) -> NodeContext {
        let node = snapshot.nodes.get(self.node_name.as_str());
        let (own, node_port_addresses) = self
            .own_addresses()
            .unwrap_or_else(|_| (last.known_addresses.node.clone(), last.node_port_addresses.clone()));
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL)).map(|zone| Arc::from(zone.as_str()));
        let others = snapshot.nodes.values().filter(|other| *other.name != *self.node_name);
        let others = others.flat_map(|other| other.addresses.iter().chain(&other.external_addresses));
        let local_ranges = node.into_iter().flat_map(|node| &node.pod_cidrs).chain(&self.pod_cidrs);
        NodeContext {
            proxy_name: self.proxy_name.as_deref().map(Arc::from),
            location: Location { node: self.node_name.as_str().into(), zone },
            ignores_external_ips: !self.allow_external_ips,
            node_port_addresses,
            known_addresses: KnownAddresses {
                other_nodes: Arc::new(others.filter(|address| !own.contains(address)).copied().collect()),
                node: own,
                local_pods: Arc::clone(&snapshot.local_pods),
                local_ranges: local_ranges.copied().collect(),
                finds_masqueraded_v6: policy_routing::finds_masqueraded_v6(),
                cluster_ranges: snapshot.nodes.values().flat_map(|node| node.pod_cidrs.clone()).collect(),
            },
        }
    }

    /// The node's addresses, and those among them on which node ports are opened.
    ///
    /// # Errors
    /// An error of the kernel, usually that no file descriptor is free.
    pub(crate) fn own_addresses(&self) -> io::Result<(HashSet<IpAddr>, Vec<IpAddr>)> {
        let own = node_address::all()?;
        let for_node_ports = node_address::for_node_ports(&own, &self.node_port_addresses)?;
        Ok((own, for_node_ports))
    }
}
