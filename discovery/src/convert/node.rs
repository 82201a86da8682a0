//! `v1/Node` and `v1/Namespace`.

use super::{Findings, NOT_A_LABEL, address, is_dns_label, name, parse_cidr, wire};
use crate::model::{Namespace, Node};

/// The taint that the cluster autoscaler adds before it removes a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node.
pub(crate) fn node(node: wire::Node, findings: &mut Findings) -> Option<Node> {
    let name = name(&node.metadata, findings)?;
    let spec = node.spec;
    let mut pod_cidrs = Vec::new();
    let single =
        spec.pod_cidr.iter().filter(|cidr| !cidr.is_empty()).map(|cidr| ("spec.podCIDR".to_owned(), cidr));
    let many = spec.pod_cidrs.iter().enumerate();
    let many = many.map(|(index, cidr)| (format!("spec.podCIDRs[{index}]"), cidr));
    for (field, text) in single.chain(many) {
        match parse_cidr(text) {
            Ok(cidr) if !pod_cidrs.contains(&cidr) => pod_cidrs.push(cidr),
            Ok(_) => {}
            Err(message) => findings.error(&field, message),
        }
    }
    let (mut addresses, mut external_addresses) = (Vec::new(), Vec::new());
    for (index, found) in node.status.addresses.iter().enumerate() {
        let field = format!("status.addresses[{index}].address");
        let read = |findings: &mut Findings| address(&field, &found.address, findings);
        match found.type_.as_str() {
            "InternalIP" => addresses.extend(read(findings)),
            // No traffic is sent to an external address: it only serves to recognise the address
            // of a node. So an error in it is a warning.
            "ExternalIP" => external_addresses.extend(findings.optional(read)),
            _ => {}
        }
    }
    let labels = node.metadata.labels.into_inner();
    let is_marked = spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
    let leaving = is_marked || node.metadata.deletion_timestamp.is_some();
    Some(Node { name: name.into(), labels, addresses, external_addresses, pod_cidrs, leaving })
}

/// Converts a Namespace.
pub(crate) fn namespace(namespace: wire::Namespace, findings: &mut Findings) -> Option<Namespace> {
    let name = name(&namespace.metadata, findings)?;
    if !is_dns_label(&name) {
        findings.error("metadata.name", format!("{name:?} {NOT_A_LABEL}"));
    }
    Some(Namespace { name: name.into() })
}
