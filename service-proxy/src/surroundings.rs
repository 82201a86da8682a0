//! What is known of the node and the cluster around a Service.

use std::net::IpAddr;

use discovery::model::Endpoint;

use crate::source::Locality;
use crate::topology::Here;

/// The same for all Services; those that depend on it are planned anew when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub(crate) here: Here,
    pub(crate) locality: Locality,
    /// Addresses of the node that node ports are opened on.
    pub(crate) node_port_addresses: Vec<IpAddr>,
}

impl Surroundings {
    /// Whether an endpoint is on this node: by its `nodeName`, or where it has none, because its pod is attached here.
    pub(crate) fn is_local(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node_name {
            Some(node) => *node == self.here.node,
            None => self.locality.is_local(endpoint.address),
        }
    }
}
