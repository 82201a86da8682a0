//! Pods, with the fields that endpoints and names depend on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedName, Protocol};

/// A Pod manifest, or an attachment without a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Container ports that have a name.
    pub ports: Vec<PodPort>,
    /// `status.podIPs`. Usually empty in a manifest; the attachment record has the addresses.
    pub ips: Vec<IpAddr>,
    /// Whether readiness gates and the `Ready` condition, if present, allow traffic.
    pub ready: bool,
    /// Whether it has a deletion timestamp.
    pub terminating: bool,
    /// Whether it has finished (phase `Succeeded` or `Failed`).
    pub finished: bool,
    /// `spec.hostname`.
    pub hostname: Option<Arc<str>>,
    /// `spec.subdomain`: the headless Service under which it has a name.
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
