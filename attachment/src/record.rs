//! The content of a record.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ports::{self, PortMapping};

/// One interface of one container on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Name of the CNI network (`name` of the conflist).
    pub network: String,
    /// `CNI_CONTAINERID`. For a pod this is its sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`, the interface inside the pod.
    pub ifname: String,
    /// Path of the pod's network namespace, as the runtime passed it.
    pub netns: String,
    /// The pod's addresses, in the order of the CNI result.
    pub ips: Vec<IpAddr>,
    /// MAC address of the interface inside the pod.
    pub mac: String,
    /// Name of the node's end of the interface.
    pub host_interface: String,
    /// The bridge of the node's end; absent for a routed pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The Kubernetes pod, from `K8S_POD_*` in `CNI_ARGS`; absent if the runtime has no pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// `args.cni.labels` of the network configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `runtimeConfig.portMappings`, consecutive ports merged.
    #[serde(default, deserialize_with = "ports::read_merged", skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Ports that the pod's kernel does not choose for outgoing connections
    /// (`net.ipv4.ip_local_reserved_ports`). The proxy uses them for connections with the pod's address.
    /// Absent if they could not be reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_ports: Option<PortRange>,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// The ports that the plugin reserves in each pod. They are below 32768, the default start of
/// `net.ipv4.ip_local_port_range`.
pub const RESERVED_PORTS: PortRange = PortRange { first: 10_000, last: 29_999 };

impl std::fmt::Display for PortRange {
    /// Formats the range like the kernel: `10000-29999`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The pod of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`, or `default` if the runtime passes a name only (podman).
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
