//! `v1/Pod`.

use super::{Findings, address, is_dns_label, namespaced_name, port_number, protocol, wire};
use crate::model::{Pod, PodPort};

/// Converts a Pod.
pub(crate) fn pod(pod: wire::Pod, findings: &mut Findings) -> Option<Pod> {
    let name = namespaced_name(&pod.metadata, findings)?;
    let Some(spec) = pod.spec else {
        findings.error("spec", "is missing");
        return None;
    };
    let status = pod.status;
    let ready = is_ready(&spec, &status);
    let mut ips = Vec::new();
    let single = status.pod_ip.iter().filter(|ip| !ip.is_empty()).map(|ip| ("status.podIP".to_owned(), ip));
    let many = status.pod_ips.iter().enumerate();
    let many = many.map(|(index, ip)| (format!("status.podIPs[{index}].ip"), &ip.ip));
    for (field, text) in single.chain(many) {
        ips.extend(address(&field, text, findings).filter(|ip| !ips.contains(ip)));
    }
    for (field, value) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if !value.is_empty() && !is_dns_label(value) {
            findings.error(field, format!("{value:?} {}", super::NOT_A_LABEL));
        }
    }
    let text = |value: String| (!value.is_empty()).then(|| value.into());
    Some(Pod {
        name,
        labels: pod.metadata.labels.into_inner(),
        ports: ports(&spec, findings),
        ips,
        ready,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        hostname: text(spec.hostname),
        subdomain: text(spec.subdomain),
        node_name: text(spec.node_name),
    })
}

/// A pod without reported conditions is ready once it is attached. Reported conditions take precedence.
fn is_ready(spec: &wire::PodSpec, status: &wire::PodStatus) -> bool {
    let find = |name: &str| status.conditions.iter().find(|condition| condition.type_ == name);
    let is_true = |condition: &wire::PodCondition| condition.status == "True";
    spec.readiness_gates.iter().all(|gate| find(&gate.condition_type).is_some_and(is_true))
        && find("Ready").is_none_or(is_true)
}

fn ports(spec: &wire::PodSpec, findings: &mut Findings) -> Vec<PodPort> {
    // Init containers with `restartPolicy: Always` are sidecars, which may serve (KEP-753).
    let sidecars = spec.init_containers.iter().enumerate();
    let sidecars = sidecars.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"));
    let sidecars = sidecars.map(|(index, c)| (format!("spec.initContainers[{index}]"), c));
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(index, c)| (format!("spec.containers[{index}]"), c));
    let mut found = Vec::new();
    for (at, container) in containers.chain(sidecars) {
        for (index, port) in container.ports.iter().enumerate() {
            let field = |name: &str| format!("{at}.ports[{index}].{name}");
            let number = port_number(&field("containerPort"), port.container_port, findings);
            let protocol = protocol(&field("protocol"), port.protocol.as_deref(), findings);
            if let (Some(number), Some(protocol), Some(name)) = (number, protocol, &port.name) {
                found.push(PodPort { name: name.as_str().into(), protocol, port: number });
            }
        }
    }
    found
}
