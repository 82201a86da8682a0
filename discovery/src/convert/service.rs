//! `v1/Service`.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::traffic::{node_port, traffic_rules};
use super::{Findings, NOT_A_LABEL, address, is_dns_label, namespaced_name, port_number, protocol, wire};
use crate::model::{FamilyPolicy, IpFamily, Protocol, Service, ServiceKind, ServicePort, TargetPort};

/// The predecessor of `publishNotReadyAddresses`, still found in old manifests.
const TOLERATE_UNREADY: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// Converts a Service.
pub(crate) fn service(service: wire::Service, findings: &mut Findings) -> Option<Service> {
    let name = namespaced_name(&service.metadata, findings)?;
    if !is_dns_label(&name.name) {
        findings.error("metadata.name", format!("{:?} {NOT_A_LABEL}", name.name));
    }
    let Some(spec) = service.spec else {
        findings.error("spec", "is missing");
        return None;
    };
    let publish_not_ready = spec.publish_not_ready_addresses
        || service.metadata.annotations.get(TOLERATE_UNREADY) == Some("true");
    let kind = kind(&spec, findings)?;
    let ports = ports(&spec, &kind, findings);
    let rules = traffic_rules(&service.metadata, &spec, &service.status, findings);
    Some(Service { name, kind, ports, selector: spec.selector.into_inner(), publish_not_ready, rules })
}

fn kind(spec: &wire::ServiceSpec, findings: &mut Findings) -> Option<ServiceKind> {
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ExternalName" => external_name(&spec.external_name, findings),
        "ClusterIP" | "NodePort" | "LoadBalancer" => cluster_ip(spec, findings),
        other => {
            let known = "ClusterIP, NodePort, LoadBalancer or ExternalName";
            findings.error("spec.type", format!("{other:?} is not {known}"));
            None
        }
    }
}

fn external_name(name: &str, findings: &mut Findings) -> Option<ServiceKind> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name.is_empty() {
        findings.error("spec.externalName", "is missing");
    } else if name.parse::<IpAddr>().is_ok() {
        findings.warn(
            "spec.externalName",
            format!(
                "{name:?} is an address, and an alias needs a name; use an EndpointSlice with that address"
            ),
        );
    } else if name.len() > 253 || !name.split('.').all(|label| is_dns_label(&label.replace('_', "-"))) {
        findings.error("spec.externalName", format!("{name:?} is not a DNS name"));
    }
    Some(ServiceKind::ExternalName(name.into()))
}

fn cluster_ip(spec: &wire::ServiceSpec, findings: &mut Findings) -> Option<ServiceKind> {
    let mut written: Vec<(String, &str)> = Vec::new();
    if !spec.cluster_ip.is_empty() {
        written.push(("spec.clusterIP".to_owned(), &spec.cluster_ip));
    }
    for (index, ip) in spec.cluster_ips.iter().enumerate() {
        // The first of clusterIPs repeats clusterIP.
        if !written.iter().any(|(_, known)| known == ip) {
            written.push((format!("spec.clusterIPs[{index}]"), ip));
        }
    }
    let families = families(spec, findings);
    if written.iter().any(|(_, ip)| *ip == "None") {
        if written.len() > 1 {
            findings.error("spec.clusterIPs", "\"None\" cannot stand beside an address");
        }
        return Some(ServiceKind::Headless);
    }
    let mut requested: Vec<IpAddr> = Vec::new();
    for (field, text) in &written {
        let Some(ip) = address(field, text, findings) else { continue };
        let family = IpFamily::of(ip);
        if requested.iter().any(|other| IpFamily::of(*other) == family) {
            findings.error(field, format!("{ip} is a second {family} address; each family has at most one"));
        } else if let Some(wanted) = spec.ip_families.get(requested.len())
            && *wanted != family.to_string()
        {
            let position = requested.len();
            findings.error(field, format!("{ip} is {family}, but spec.ipFamilies[{position}] is {wanted}"));
        }
        requested.push(ip);
    }
    Some(ServiceKind::ClusterIp { requested, families: FamilyPolicy(families) })
}

/// The families in which an address is assigned if none is set.
fn families(spec: &wire::ServiceSpec, findings: &mut Findings) -> Vec<IpFamily> {
    let mut families = Vec::new();
    for (index, text) in spec.ip_families.iter().enumerate() {
        match text.as_str() {
            "IPv4" => families.push(IpFamily::V4),
            "IPv6" => families.push(IpFamily::V6),
            other => {
                findings.error(&format!("spec.ipFamilies[{index}]"), format!("{other:?} is not IPv4 or IPv6"))
            }
        }
    }
    let both = match spec.ip_family_policy.as_deref().unwrap_or("SingleStack") {
        "SingleStack" => families.len() > 1,
        "PreferDualStack" | "RequireDualStack" => true,
        other => {
            let known = "SingleStack, PreferDualStack or RequireDualStack";
            findings.error("spec.ipFamilyPolicy", format!("{other:?} is not {known}"));
            false
        }
    };
    let first = families.first().copied().unwrap_or(IpFamily::V4);
    let second = if first == IpFamily::V4 { IpFamily::V6 } else { IpFamily::V4 };
    if both { vec![first, second] } else { vec![first] }
}

fn ports(spec: &wire::ServiceSpec, kind: &ServiceKind, findings: &mut Findings) -> Vec<ServicePort> {
    let written = &spec.ports;
    if written.is_empty() && matches!(kind, ServiceKind::ClusterIp { .. }) {
        findings.error("spec.ports", "is empty; only a headless or ExternalName Service may have no port");
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    let mut ports = Vec::new();
    for (index, port) in written.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port.name.clone();
        if name.is_empty() && written.len() > 1 {
            findings.error(&field("name"), "is missing; every port needs one where there are several");
        } else if !name.is_empty() && !is_dns_label(&name) {
            findings.error(&field("name"), format!("{name:?} {NOT_A_LABEL}"));
        } else if !names.insert(name.clone()) {
            findings.error(&field("name"), format!("{name:?} is the name of an earlier port"));
        }
        let number = port_number(&field("port"), port.port, findings);
        let protocol = protocol(&field("protocol"), port.protocol.as_deref(), findings);
        let target = number.and_then(|number| target_port(&field("targetPort"), port, number, findings));
        if let (Some(number), Some(protocol), Some(target_port)) = (number, protocol, target) {
            if !numbers.insert((number, protocol)) {
                findings.error(&field("port"), format!("{number}/{protocol} is already an earlier port"));
            }
            if protocol == Protocol::Sctp {
                findings.warn(
                    &field("protocol"),
                    "SCTP is not proxied: its names resolve, but its port refuses connections",
                );
            }
            let node_port = node_port(&field("nodePort"), spec, port, findings);
            ports.push(ServicePort { name: name.into(), protocol, port: number, target_port, node_port });
        }
    }
    ports
}

fn target_port(
    field: &str,
    port: &wire::ServicePort,
    default: u16,
    findings: &mut Findings,
) -> Option<TargetPort> {
    match &port.target_port {
        // Go writes 0 or an empty string for none.
        None | Some(IntOrString::Int(0)) => Some(TargetPort::Number(default)),
        Some(IntOrString::String(name)) if name.is_empty() => Some(TargetPort::Number(default)),
        Some(IntOrString::Int(number)) => port_number(field, *number, findings).map(TargetPort::Number),
        Some(IntOrString::String(name)) => Some(TargetPort::Name(name.as_str().into())),
    }
}
