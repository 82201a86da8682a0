//! How a Service's traffic comes in, and where it may go.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// What a Service asks of the proxy beyond its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficRules {
    /// Who is to carry it.
    pub carrier: Carrier,
    /// `internalTrafficPolicy: Local`: clients of this node stay on this node.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`: clients from outside stay on the node they came to.
    pub external_local: bool,
    /// `trafficDistribution`: what hints derived endpoints get.
    pub distribution: Distribution,
    /// `sessionAffinity: ClientIP` and its timeout.
    pub affinity: Option<Duration>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, without those that a proxy in front of the node serves (`ipMode:
    /// Proxy`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty means all clients.
    pub source_ranges: Vec<IpNetwork>,
    /// `healthCheckNodePort`, where it has a meaning.
    pub health_check_node_port: Option<u16>,
    /// Annotation `portolan.dev/balancer`.
    pub balancer: BalancerKind,
    /// Annotation `portolan.dev/max-connections`: connections that each of its ports may have open on this
    /// node.
    pub max_connections: Option<usize>,
    /// Annotation `portolan.dev/proxy-protocol: v2`: TCP connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// Which proxy a Service or an EndpointSlice is meant for, by its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// The cluster's usual one.
    #[default]
    Usual,
    /// The one of that name: `service.kubernetes.io/service-proxy-name`.
    Named(Arc<str>),
    /// None: `service.kubernetes.io/headless`.
    None,
}

/// Which endpoints are near (KEP-4444, KEP-3015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// All are as good as each other.
    #[default]
    Anywhere,
    /// `PreferSameZone`, or `PreferClose` as it was called first.
    SameZone,
    /// `PreferSameNode`; without any on the node, those of its zone.
    SameNode,
}

/// How one of several endpoints is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancerKind {
    /// `random`: each as likely as any other. The default, as in kube-proxy.
    #[default]
    Random,
    /// `round-robin`: one after the other.
    RoundRobin,
    /// `least-connections`: of two taken at random, the one with fewer connections.
    LeastConnections,
    /// `maglev`: the same one for the same client address, on every node, as long as it is there.
    Maglev,
}

impl Carrier {
    /// Whether that is the proxy which goes by `name`; the usual one has none.
    pub fn is(&self, name: Option<&str>) -> bool {
        match self {
            Self::Usual => name.is_none(),
            Self::Named(wanted) => name == Some(wanted),
            Self::None => false,
        }
    }
}

impl TrafficRules {
    /// Whether anybody outside the cluster can reach the Service through this node.
    pub fn is_externally_accessible(&self, has_node_port: bool) -> bool {
        has_node_port || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}
