//! What is known of the node and the cluster around a Service.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use discovery::Snapshot;
use discovery::model::Endpoint;
use ipnetwork::IpNetwork;

use crate::backend::topology::Here;
use crate::kernel::divert;
use crate::kernel::node_address::{self, NodePortAddress};
use crate::locality::Locality;

/// Label of a node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What is known of the node this proxy runs on.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name, as in `nodeName` of endpoints and in hints.
    pub node_name: String,
    /// The proxy's own name, if it is not the usual one.
    pub proxy_name: Option<String>,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Which of its addresses node ports are opened on.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Whether `externalIPs` of Services count (KEP-5707).
    pub allow_external_ips: bool,
}

/// The same for all Services; those that depend on it are planned anew when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// The proxy's own name, if it is not the usual one.
    pub(crate) proxy_name: Option<Arc<str>>,
    pub(crate) here: Here,
    /// Where addresses are. Those of the other nodes are reached there, whatever a Service says.
    pub(crate) locality: Locality,
    /// Addresses of the node that node ports are opened on.
    pub(crate) node_port_addresses: Vec<IpAddr>,
    /// Whether `externalIPs` of Services are ignored.
    pub(crate) ignores_external_ips: bool,
}

impl Surroundings {
    /// Whether an endpoint is on this node: by its `nodeName`, or where it has none, because its pod is
    /// attached here.
    pub(crate) fn is_local(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node_name {
            Some(node) => *node == self.here.node,
            None => self.locality.is_local(endpoint.address),
        }
    }

    /// Those of a Service's addresses that are not another node's.
    pub(crate) fn not_of_others<'a>(&self, addresses: &'a [IpAddr]) -> impl Iterator<Item = &'a IpAddr> {
        addresses.iter().filter(|address| !self.locality.other_nodes.contains(address))
    }
}

impl Place {
    /// What is around right now. The node's addresses are those of `last` where the kernel does not say.
    pub(crate) fn look_around(&self, snapshot: &Snapshot, last: &Surroundings) -> Surroundings {
        let node = snapshot.nodes.get(self.node_name.as_str());
        let (own, node_port_addresses) = self
            .own_addresses()
            .unwrap_or_else(|_| (last.locality.node.clone(), last.node_port_addresses.clone()));
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL)).map(|zone| Arc::from(zone.as_str()));
        let others = snapshot.nodes.values().filter(|other| *other.name != *self.node_name);
        let others = others.flat_map(|other| other.addresses.iter().chain(&other.external_addresses));
        let local_ranges = node.into_iter().flat_map(|node| &node.pod_cidrs).chain(&self.pod_cidrs);
        Surroundings {
            proxy_name: self.proxy_name.as_deref().map(Arc::from),
            here: Here { node: self.node_name.as_str().into(), zone },
            ignores_external_ips: !self.allow_external_ips,
            node_port_addresses,
            locality: Locality {
                other_nodes: Arc::new(others.filter(|address| !own.contains(address)).copied().collect()),
                node: own,
                local_pods: Arc::clone(&snapshot.local_pods),
                local_ranges: local_ranges.copied().collect(),
                finds_masqueraded_v6: divert::finds_masqueraded_v6(),
                cluster_ranges: snapshot.nodes.values().flat_map(|node| node.pod_cidrs.clone()).collect(),
            },
        }
    }

    /// The node's addresses, and those among them that node ports are opened on.
    ///
    /// # Errors
    /// What the kernel says, most often that no file descriptor is free.
    pub(crate) fn own_addresses(&self) -> io::Result<(HashSet<IpAddr>, Vec<IpAddr>)> {
        let own = node_address::all()?;
        let for_node_ports = node_address::for_node_ports(&own, &self.node_port_addresses)?;
        Ok((own, for_node_ports))
    }
}
