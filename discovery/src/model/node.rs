//! Nodes and namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`; the zone is `topology.kubernetes.io/zone`.
    pub labels: BTreeMap<String, String>,
    /// `status.addresses` of type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// `status.addresses` of type `ExternalIP`.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// It is about to be removed: deleted, or tainted by the cluster autoscaler. Load balancers should stop
    /// using it.
    pub leaving: bool,
}

/// A namespace, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
}
