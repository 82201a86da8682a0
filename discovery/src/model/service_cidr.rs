//! Ranges of virtual IPs.

use std::sync::Arc;

use ipnetwork::IpNetwork;

/// Ranges that the cluster takes virtual IPs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNetwork>,
}
