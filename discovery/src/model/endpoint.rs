//! EndpointSlices: where a Service's traffic may go.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Carrier, IpFamily, NamespacedName, Protocol};

/// A batch of endpoints that share a family and a set of ports. A Service may have many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`; derived slices are named after their Service.
    pub name: NamespacedName,
    /// The Service of label `kubernetes.io/service-name`.
    pub service: NamespacedName,
    /// Which proxy it is meant for.
    pub carrier: Carrier,
    /// When that happened to the pods of which this is the news
    /// (`endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered_at: Option<SystemTime>,
    /// `addressType`.
    pub family: IpFamily,
    /// `ports`, without those that have no number.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
}

/// A port of every endpoint in the slice, joined to a Service port by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name of the Service port; empty for the only one.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub port: u16,
}

/// One pod, or anything else that answers on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of `addresses`; the others are redundant by the API's own definition.
    pub address: IpAddr,
    /// May it get traffic?
    pub conditions: Conditions,
    /// `hostname`: its name below a headless Service.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name` of a Pod, where [`crate::Interest::pod_names`] asks for it.
    pub pod: Option<Arc<str>>,
    /// `nodeName`.
    pub node_name: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints`; most endpoints have none, and those that have share few.
    pub hints: Option<Arc<Hints>>,
}

/// `hints`: the clients the endpoint is meant for; empty means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forNodes[].name`.
    pub nodes: Vec<Arc<str>>,
    /// `forZones[].name`.
    pub zones: Vec<Arc<str>>,
}

/// `conditions`, with the API's defaults for absent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Accepts new traffic. Never true while terminating, unless unready addresses are published.
    pub ready: bool,
    /// Would be ready but for terminating.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

impl Endpoint {
    /// Nodes for which it is meant; none means no such hint.
    pub fn hinted_nodes(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }

    /// Zones for which it is meant; none means no such hint.
    pub fn hinted_zones(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }
}

impl Conditions {
    /// A healthy endpoint.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };
}
