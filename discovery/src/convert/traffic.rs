//! The fields of `v1/Service` about exposure, traffic policies and load balancing.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::wire::{self, ObjectMeta};
use super::{Findings, address, parse_address, port_number};
use crate::model::{BalancerKind, Distribution, ProxyClass, TrafficRules};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

const BALANCER: &str = "portolan.dev/balancer";
const MAX_CONNECTIONS: &str = "portolan.dev/max-connections";
const PROXY_PROTOCOL: &str = "portolan.dev/proxy-protocol";

/// The default range of the API server.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The default timeout of `ClientIP` in seconds.
const DEFAULT_AFFINITY: i32 = 10_800;

pub(super) fn traffic_rules(
    metadata: &ObjectMeta,
    spec: &wire::ServiceSpec,
    status: &wire::ServiceStatus,
    findings: &mut Findings,
) -> TrafficRules {
    let external_local =
        is_local("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), findings);
    let internal_local =
        is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), findings);
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let check = spec.health_check_node_port;
    let checks = check != 0 && is_load_balancer && external_local;
    TrafficRules {
        proxy_class: proxy_class(metadata),
        internal_local,
        external_local,
        distribution: distribution(spec, findings),
        affinity: affinity(spec, findings),
        external_ips: addresses("spec.externalIPs", spec.external_ips.iter(), findings),
        load_balancer_ips: if is_load_balancer { load_balancer_ips(status, findings) } else { Vec::new() },
        source_ranges: if is_load_balancer { source_ranges(spec, findings) } else { Vec::new() },
        health_check_node_port: checks
            .then(|| port_number("spec.healthCheckNodePort", check, findings))
            .flatten(),
        balancer: findings.optional(|findings| balancer(metadata, findings)),
        max_connections: findings.optional(|findings| max_connections(metadata, findings)),
        proxy_protocol: findings.optional(|findings| proxy_protocol(metadata, findings)),
    }
}

/// The proxy that a Service or an EndpointSlice is for. Only the presence of `headless` counts, as with
/// kube-proxy.
pub(super) fn proxy_class(metadata: &ObjectMeta) -> ProxyClass {
    match metadata.labels.get(PROXY_NAME) {
        _ if metadata.labels.get(HEADLESS).is_some() => ProxyClass::None,
        Some(name) => ProxyClass::Named(name.into()),
        None => ProxyClass::Default,
    }
}

/// `nodePort` of one port, which only some types have. Go writes 0 for none.
pub(super) fn node_port(
    field: &str,
    spec: &wire::ServiceSpec,
    port: &wire::ServicePort,
    findings: &mut Findings,
) -> Option<u16> {
    let opens_node_ports = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    match port.node_port {
        number if number != 0 && opens_node_ports => {
            let port = port_number(field, number, findings)?;
            if !NODE_PORTS.contains(&port) {
                findings.warn(field, format!(
                    "{port} is not from 30000 to 32767: an API server would refuse it, and another program \
                     of the node may use it"
                ));
            }
            Some(port)
        }
        _ if spec.type_.as_deref() == Some("NodePort") => {
            findings.warn(
                field,
                "is missing, and none is assigned without a cluster: only the cluster IP is served",
            );
            None
        }
        _ => None,
    }
}

fn is_local(field: &str, policy: Option<&str>, findings: &mut Findings) -> bool {
    match policy {
        Some("Local") => true,
        None | Some("" | "Cluster") => false,
        Some(other) => {
            findings.error(field, format!("{other:?} is not Cluster or Local"));
            false
        }
    }
}

/// An unknown value is a preference that need not be met, so it is no error (KEP-4444).
fn distribution(spec: &wire::ServiceSpec, findings: &mut Findings) -> Distribution {
    match spec.traffic_distribution.as_deref() {
        None | Some("") => Distribution::Anywhere,
        Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
        Some("PreferSameNode") => Distribution::SameNode,
        Some(other) => {
            let known = "PreferSameZone, PreferSameNode or PreferClose";
            findings.warn("spec.trafficDistribution", format!("{other:?} is not {known}: it has no effect"));
            Distribution::Anywhere
        }
    }
}

fn affinity(spec: &wire::ServiceSpec, findings: &mut Findings) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            findings.error("spec.sessionAffinity", format!("{other:?} is not None or ClientIP"));
            return None;
        }
    }
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_AFFINITY);
    match u64::try_from(seconds) {
        Ok(seconds @ 1..=86_400) => Some(Duration::from_secs(seconds)),
        _ => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            findings.error(field, format!("{seconds} is not from 1 to 86400"));
            None
        }
    }
}

fn addresses<'a>(
    field: &str,
    texts: impl Iterator<Item = &'a String>,
    findings: &mut Findings,
) -> Vec<IpAddr> {
    texts
        .enumerate()
        .filter_map(|(index, text)| address(&format!("{field}[{index}]"), text, findings))
        .collect()
}

/// An entry with a hostname or with `ipMode: Proxy` is served by a load balancer in front of the node
/// (KEP-1860).
fn load_balancer_ips(status: &wire::ServiceStatus, findings: &mut Findings) -> Vec<IpAddr> {
    let is_vip = |entry: &&wire::LoadBalancerIngress| entry.ip_mode.as_deref() != Some("Proxy");
    let ips = status.load_balancer.ingress.iter().filter(is_vip).map(|entry| &entry.ip);
    addresses("status.loadBalancer.ingress", ips.filter(|ip| !ip.is_empty()), findings)
}

fn source_ranges(spec: &wire::ServiceSpec, findings: &mut Findings) -> Vec<IpNetwork> {
    let written = spec.load_balancer_source_ranges.iter().enumerate();
    written.filter_map(|(index, text)| source_range(index, text, findings)).collect()
}

/// Host bits are ignored, as with kube-proxy.
fn source_range(index: usize, text: &str, findings: &mut Findings) -> Option<IpNetwork> {
    let field = format!("spec.loadBalancerSourceRanges[{index}]");
    let text = text.trim();
    let range = text
        .split_once('/')
        .and_then(|(ip, prefix)| IpNetwork::new(parse_address(ip)?, prefix.parse().ok()?).ok());
    let Some(range) = range else {
        findings.error(&field, format!("{text:?} is not a range of addresses (ADDRESS/PREFIX)"));
        return None;
    };
    let network = IpNetwork::new(range.network(), range.prefix()).ok()?;
    if network != range {
        findings.warn(&field, format!("{text:?} has host bits set; the range is {network}"));
    }
    Some(network)
}

fn balancer(metadata: &ObjectMeta, findings: &mut Findings) -> BalancerKind {
    match metadata.annotations.get(BALANCER) {
        None | Some("random") => BalancerKind::Random,
        Some("round-robin") => BalancerKind::RoundRobin,
        Some("least-connections") => BalancerKind::LeastConnections,
        Some("maglev") => BalancerKind::Maglev,
        Some(other) => {
            let known = "random, round-robin, least-connections or maglev";
            findings.error("metadata.annotations", format!("{BALANCER}: {other:?} is not {known}"));
            BalancerKind::Random
        }
    }
}

fn max_connections(metadata: &ObjectMeta, findings: &mut Findings) -> Option<usize> {
    let text = metadata.annotations.get(MAX_CONNECTIONS)?;
    let number = text.parse().ok().filter(|number| *number > 0);
    if number.is_none() {
        findings.error(
            "metadata.annotations",
            format!("{MAX_CONNECTIONS}: {text:?} is not a number of connections (\"100\")"),
        );
    }
    number
}

fn proxy_protocol(metadata: &ObjectMeta, findings: &mut Findings) -> bool {
    match metadata.annotations.get(PROXY_PROTOCOL) {
        None => false,
        Some("v2") => true,
        Some(other) => {
            findings.error("metadata.annotations", format!("{PROXY_PROTOCOL}: {other:?} is not v2"));
            false
        }
    }
}
