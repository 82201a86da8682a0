//! Services as the API server describes them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedName, TrafficRules};

/// A Service: a stable name, usually a stable address, and the ports it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// What its name and address stand for.
    pub kind: ServiceKind,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty means that the EndpointSlices come from elsewhere.
    pub selector: BTreeMap<String, String>,
    /// `spec.publishNotReadyAddresses`: unready pods count as ready.
    pub publish_not_ready: bool,
    /// Ways in, policies, affinity.
    pub rules: TrafficRules,
}

/// The shapes a Service comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Reached through virtual IPs. NodePort and LoadBalancer Services are this, with more ways in.
    ClusterIp {
        /// `spec.clusterIPs` as written; empty means that one is assigned (see [`crate::Snapshot`]).
        requested: Vec<IpAddr>,
        /// Families for which an address is assigned when none is written.
        families: FamilyPolicy,
    },
    /// `clusterIP: None`: the name stands for the endpoints themselves.
    Headless,
    /// The name is an alias of another one.
    ExternalName(Arc<str>),
}

/// `spec.ipFamilyPolicy` and `spec.ipFamilies`, resolved to the order wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyPolicy(pub Vec<IpFamily>);

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the virtual IP.
    pub port: u16,
    /// Port in the pod; a name is looked up in each pod.
    pub target_port: TargetPort,
    /// `nodePort`: the port on the node's own addresses.
    pub node_port: Option<u16>,
}

/// A port given by number or by the name a container gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The number itself.
    Number(u16),
    /// Name of a container port; different pods may resolve it differently.
    Name(Arc<str>),
}

/// Transport protocols Kubernetes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: read and shown, not carried.
    Sctp,
}

impl Service {
    /// Whether the Service is reached through virtual IPs.
    pub fn has_virtual_ip(&self) -> bool {
        matches!(self.kind, ServiceKind::ClusterIp { .. })
    }
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Protocol {
    /// Lower case, as in DNS names and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
