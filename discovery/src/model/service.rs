//! Services as in the API.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedName, TrafficRules};

/// A Service: a stable name, usually a stable address, and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// What its name and address refer to.
    pub kind: ServiceKind,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`. If it is empty, the EndpointSlices come from another controller.
    pub selector: BTreeMap<String, String>,
    /// `spec.publishNotReadyAddresses`: unready pods count as ready.
    pub publish_not_ready: bool,
    /// Exposure, policies, affinity.
    pub rules: TrafficRules,
}

/// The kinds of Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Reached by virtual IPs. NodePort and LoadBalancer Services are of this kind, with further frontends.
    ClusterIp {
        /// `spec.clusterIPs` as written. If empty, one is assigned (see [`crate::Snapshot`]).
        requested: Vec<IpAddr>,
        /// Families in which an address is assigned if none is set.
        families: FamilyPolicy,
    },
    /// `clusterIP: None`: the name resolves to the endpoints.
    Headless,
    /// The name is an alias of another name.
    ExternalName(Arc<str>),
}

/// `spec.ipFamilyPolicy` and `spec.ipFamilies`, resolved to an order of families.
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
    /// Port in the pod. A name is resolved in each pod.
    pub target_port: TargetPort,
    /// `nodePort`: the port on the node's addresses.
    pub node_port: Option<u16>,
}

/// A port number, or the name of a container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// Name of a container port, which may differ between pods.
    Name(Arc<str>),
}

/// Transport protocols of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: read and shown, not proxied.
    Sctp,
}

impl Service {
    /// Whether the Service is reached by virtual IPs.
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
