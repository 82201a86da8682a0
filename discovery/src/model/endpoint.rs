//! EndpointSlices: the destinations of a Service's traffic.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{IpFamily, NamespacedName, Protocol, ProxyClass};

/// Endpoints with a common family and set of ports. A Service may have many slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`. A derived slice has the name of its Service.
    pub name: NamespacedName,
    /// The Service in label `kubernetes.io/service-name`.
    pub service: NamespacedName,
    /// The proxy that it is for.
    pub proxy_class: ProxyClass,
    /// When the pods changed that this slice describes (`endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered_at: Option<SystemTime>,
    /// `addressType`.
    pub family: IpFamily,
    /// `ports`, without those that have no number.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
}

/// A port of every endpoint in the slice. It belongs to the Service port with the same name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name of the Service port; empty for the only one.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub port: u16,
}

/// A pod, or another backend with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of `addresses`. The API defines the others as redundant.
    pub address: IpAddr,
    /// Whether it may get traffic.
    pub conditions: Conditions,
    /// `hostname`: its name below a headless Service.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name` of a Pod, if [`crate::Interest::pod_names`] requests it.
    pub pod: Option<Arc<str>>,
    /// `nodeName`.
    pub node_name: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints`. Most endpoints have none, and the others share a few.
    pub hints: Option<Arc<Hints>>,
}

/// `hints`: the clients that the endpoint is for; empty means all.
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
    /// Ready except for terminating.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

impl Endpoint {
    /// The nodes that it is for; empty without a hint.
    pub fn hinted_nodes(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }

    /// The zones that it is for; empty without a hint.
    pub fn hinted_zones(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }
}

impl Conditions {
    /// A healthy endpoint.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };
}
