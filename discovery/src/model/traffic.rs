//! Exposure of a Service and selection of endpoints.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// The settings of a Service for the proxy beside its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficRules {
    /// The proxy that it is for.
    pub proxy_class: ProxyClass,
    /// `internalTrafficPolicy: Local`: clients of this node use endpoints of this node.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`: external clients use endpoints of the node that they connect to.
    pub external_local: bool,
    /// `trafficDistribution`: the hints of derived endpoints.
    pub distribution: Distribution,
    /// `sessionAffinity: ClientIP` and its timeout.
    pub affinity: Option<Duration>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, without those that a load balancer in front of the node serves
    /// (`ipMode: Proxy`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty means all clients.
    pub source_ranges: Vec<IpNetwork>,
    /// `healthCheckNodePort`, if it applies.
    pub health_check_node_port: Option<u16>,
    /// Annotation `portolan.dev/balancer`.
    pub balancer: BalancerKind,
    /// Annotation `portolan.dev/max-connections`: open connections per port and node.
    pub max_connections: Option<usize>,
    /// Annotation `portolan.dev/proxy-protocol: v2`: TCP connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// The proxy that a Service or an EndpointSlice is for, by its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyClass {
    /// The default proxy of the cluster.
    #[default]
    Default,
    /// The proxy with that name: `service.kubernetes.io/service-proxy-name`.
    Named(Arc<str>),
    /// No proxy: `service.kubernetes.io/headless`.
    None,
}

/// The preference for near endpoints (KEP-4444, KEP-3015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// No preference.
    #[default]
    Anywhere,
    /// `PreferSameZone`, formerly `PreferClose`.
    SameZone,
    /// `PreferSameNode`. Without endpoints on the node, those of its zone.
    SameNode,
}

/// How an endpoint is selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancerKind {
    /// `random`: all with the same probability. The default, as in kube-proxy.
    #[default]
    Random,
    /// `round-robin`: in turn.
    RoundRobin,
    /// `least-connections`: of two random endpoints, the one with fewer connections.
    LeastConnections,
    /// `maglev`: consistent hashing by client address, the same on every node.
    Maglev,
}

impl ProxyClass {
    /// Whether it is the proxy with this name; the default proxy has none.
    pub fn matches(&self, name: Option<&str>) -> bool {
        match self {
            Self::Default => name.is_none(),
            Self::Named(wanted) => name == Some(wanted),
            Self::None => false,
        }
    }
}

impl TrafficRules {
    /// Whether clients outside the cluster can reach the Service through this node.
    pub fn is_externally_accessible(&self, has_node_port: bool) -> bool {
        has_node_port || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}
