//! Ranges of virtual IPs.

use std::sync::Arc;

use ipnetwork::IpNetwork;

/// Ranges from which the cluster assigns virtual IPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNetwork>,
}
