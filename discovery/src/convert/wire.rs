//! The fields of API objects that the data plane uses, in JSON.
//!
//! All other fields are skipped without parsing and at any depth, so they cannot make an object unreadable.
//! `null` means the same as in Go: an absent field, or an empty element.

use std::collections::BTreeMap;
use std::ops::Deref;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// An array. `null` is an empty one.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(Vec<T>);

/// Labels, annotations or a selector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map(BTreeMap<String, String>);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let elements: Vec<Option<T>> = or_default(deserializer)?;
        Ok(Self(elements.into_iter().map(Option::unwrap_or_default).collect()))
    }
}

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries: BTreeMap<String, Option<String>> = or_default(deserializer)?;
        Ok(Self(entries.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()))
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Map {
    /// The value of a key, if it is present.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(crate) fn into_inner(self) -> BTreeMap<String, String> {
        self.0
    }
}

fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Defines types whose fields may all be absent or `null`.
macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(crate) struct $name {
            $($(#[$field_meta])* #[serde(deserialize_with = "or_default")] pub(crate) $field: $type,)*
        }
    )*};
}

wire! {
    /// `metadata` of every object.
    ObjectMeta {
        name: String,
        namespace: String,
        labels: Map,
        annotations: Map,
        /// Only its presence matters.
        deletion_timestamp: Option<IgnoredAny>,
    }

    /// `v1/Service`.
    Service {
        metadata: ObjectMeta,
        spec: Option<ServiceSpec>,
        status: ServiceStatus,
    }
    ServiceSpec {
        #[serde(rename = "type")]
        type_: Option<String>,
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        #[serde(rename = "clusterIPs")]
        cluster_ips: List<String>,
        ports: List<ServicePort>,
        selector: Map,
        external_name: String,
        #[serde(rename = "externalIPs")]
        external_ips: List<String>,
        ip_families: List<String>,
        ip_family_policy: Option<String>,
        external_traffic_policy: Option<String>,
        internal_traffic_policy: Option<String>,
        session_affinity: Option<String>,
        session_affinity_config: SessionAffinityConfig,
        load_balancer_source_ranges: List<String>,
        health_check_node_port: i32,
        publish_not_ready_addresses: bool,
        traffic_distribution: Option<String>,
    }
    ServicePort {
        name: String,
        protocol: Option<String>,
        port: i32,
        target_port: Option<IntOrString>,
        node_port: i32,
    }
    SessionAffinityConfig {
        #[serde(rename = "clientIP")]
        client_ip: ClientIpConfig,
    }
    ClientIpConfig {
        timeout_seconds: Option<i32>,
    }
    ServiceStatus {
        load_balancer: LoadBalancerStatus,
    }
    LoadBalancerStatus {
        ingress: List<LoadBalancerIngress>,
    }
    LoadBalancerIngress {
        ip: String,
        ip_mode: Option<String>,
    }

    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlice {
        metadata: ObjectMeta,
        address_type: String,
        ports: List<EndpointPort>,
        endpoints: List<Endpoint>,
    }
    EndpointPort {
        name: String,
        protocol: Option<String>,
        port: i32,
    }
    Endpoint {
        addresses: List<String>,
        conditions: EndpointConditions,
        hostname: Option<String>,
        target_ref: ObjectReference,
        node_name: Option<String>,
        zone: Option<String>,
        hints: EndpointHints,
    }
    EndpointConditions {
        ready: Option<bool>,
        serving: Option<bool>,
        terminating: Option<bool>,
    }
    ObjectReference {
        kind: String,
        name: Option<String>,
    }
    EndpointHints {
        for_nodes: List<Named>,
        for_zones: List<Named>,
    }
    Named {
        name: String,
    }

    /// `v1/Node`.
    Node {
        metadata: ObjectMeta,
        spec: NodeSpec,
        status: NodeStatus,
    }
    NodeSpec {
        #[serde(rename = "podCIDR")]
        pod_cidr: Option<String>,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: List<String>,
        taints: List<Taint>,
    }
    Taint {
        key: String,
    }
    NodeStatus {
        addresses: List<NodeAddress>,
    }
    NodeAddress {
        #[serde(rename = "type")]
        type_: String,
        address: String,
    }

    /// `v1/Namespace`.
    Namespace {
        metadata: ObjectMeta,
    }

    /// `networking.k8s.io/v1/ServiceCIDR`.
    ServiceCidr {
        metadata: ObjectMeta,
        spec: ServiceCidrSpec,
    }
    ServiceCidrSpec {
        cidrs: List<String>,
    }

    /// `v1/Pod`.
    Pod {
        metadata: ObjectMeta,
        spec: Option<PodSpec>,
        status: PodStatus,
    }
    PodSpec {
        hostname: String,
        subdomain: String,
        node_name: String,
        readiness_gates: List<ReadinessGate>,
        init_containers: List<Container>,
        containers: List<Container>,
    }
    ReadinessGate {
        condition_type: String,
    }
    Container {
        ports: List<ContainerPort>,
        restart_policy: Option<String>,
    }
    ContainerPort {
        name: Option<String>,
        container_port: i32,
        protocol: Option<String>,
    }
    PodStatus {
        conditions: List<PodCondition>,
        phase: String,
        #[serde(rename = "podIP")]
        pod_ip: Option<String>,
        #[serde(rename = "podIPs")]
        pod_ips: List<PodIp>,
    }
    PodCondition {
        #[serde(rename = "type")]
        type_: String,
        status: String,
    }
    PodIp {
        ip: String,
    }
}
