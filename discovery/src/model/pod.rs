//! Pods, as far as endpoints and names depend on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedName, Protocol};

/// A Pod manifest, or an attachment that stands for a pod without a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Container ports that have a name.
    pub ports: Vec<PodPort>,
    /// `status.podIPs`; usually empty in a manifest, where an attachment record supplies them.
    pub ips: Vec<IpAddr>,
    /// Whether readiness gates and the `Ready` condition, where present, allow traffic.
    pub ready: bool,
    /// Whether it carries a deletion timestamp.
    pub terminating: bool,
    /// Whether it has ended for good (phase `Succeeded` or `Failed`).
    pub finished: bool,
    /// `spec.hostname`.
    pub hostname: Option<Arc<str>>,
    /// `spec.subdomain`: the headless Service that lends it a name.
    pub subdomain: Option<Arc<str>>,
    /// `spec.nodeName`.
    pub node_name: Option<Arc<str>>,
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// `ports[].name`.
    pub name: Arc<str>,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// `ports[].containerPort`.
    pub port: u16,
}
