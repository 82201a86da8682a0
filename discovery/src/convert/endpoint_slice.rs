//! `discovery.k8s.io/v1/EndpointSlice`.

use std::sync::Arc;

use jiff::Timestamp;

use super::traffic::proxy_class;
use super::{Findings, NOT_A_LABEL, address, is_dns_label, namespaced_name, port_number, protocol, wire};
use crate::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, IpFamily, NamespacedName};

/// The label with the name of the Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Converts an EndpointSlice.
pub(crate) fn endpoint_slice(slice: wire::EndpointSlice, findings: &mut Findings) -> Option<EndpointSlice> {
    let name = namespaced_name(&slice.metadata, findings)?;
    let label = slice.metadata.labels.get(SERVICE_NAME);
    let Some(service) = label.filter(|service| !service.is_empty()) else {
        findings.error(
            "metadata.labels",
            format!("the label {SERVICE_NAME} is missing: whose endpoints are these?"),
        );
        return None;
    };
    let family = match slice.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => {
            findings.warn("addressType", "FQDN is not carried: a proxy needs addresses, not names");
            return None;
        }
        other => {
            findings.error("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN"));
            return None;
        }
    };
    let ports = ports(slice.ports, findings);
    let endpoints = slice.endpoints.into_iter().enumerate();
    let mut endpoints: Vec<_> =
        endpoints.filter_map(|(index, e)| endpoint(index, e, family, findings)).collect();
    // They were collected into the allocation of the API's endpoints, which are three times as large.
    endpoints.shrink_to_fit();
    let service = NamespacedName::new(Arc::clone(&name.namespace), service);
    // An invalid time loses a measurement, but no traffic.
    let triggered_at = slice.metadata.annotations.get(TRIGGER_TIME);
    let triggered_at = triggered_at.and_then(|text| text.parse::<Timestamp>().ok());
    Some(EndpointSlice {
        name,
        service,
        proxy_class: proxy_class(&slice.metadata),
        triggered_at: triggered_at.map(Into::into),
        family,
        ports,
        endpoints,
    })
}

fn ports(ports: wire::List<wire::EndpointPort>, findings: &mut Findings) -> Vec<EndpointPort> {
    let mut found = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        // A port without a number means all ports, which a Service cannot use. Go writes 0 for none.
        if port.port == 0 {
            continue;
        }
        let number = port_number(&format!("ports[{index}].port"), port.port, findings);
        let protocol = protocol(&format!("ports[{index}].protocol"), port.protocol.as_deref(), findings);
        if let (Some(port_number), Some(protocol)) = (number, protocol) {
            found.push(EndpointPort { name: port.name.into(), protocol, port: port_number });
        }
    }
    found
}

fn endpoint(
    index: usize,
    endpoint: wire::Endpoint,
    family: IpFamily,
    findings: &mut Findings,
) -> Option<Endpoint> {
    let field = format!("endpoints[{index}].addresses[0]");
    let Some(text) = endpoint.addresses.first() else {
        findings.error(&format!("endpoints[{index}].addresses"), "is empty");
        return None;
    };
    let address = address(&field, text, findings)?;
    if IpFamily::of(address) != family {
        // Like kube-proxy's event KubeProxyIncorrectIPVersion: the other endpoints of the slice are used.
        findings.warn(
            &field,
            format!("{address} is not an {family} address, as addressType says; it is left out"),
        );
        return None;
    }
    let conditions = endpoint.conditions;
    // The defaults of the API: `ready` defaults to true, and `serving` to `ready`.
    let ready = conditions.ready.unwrap_or(true);
    let conditions = Conditions {
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
    };
    Some(Endpoint {
        address,
        conditions,
        hostname: endpoint.hostname.and_then(|name| hostname(index, &name, findings)),
        pod: endpoint.target_ref.name.filter(|_| endpoint.target_ref.kind == "Pod").map(Into::into),
        node_name: endpoint.node_name.map(Into::into),
        zone: endpoint.zone.map(Into::into),
        hints: hints(endpoint.hints),
    })
}

/// A hostname that is not a DNS label is ignored; the name of the endpoint is then derived from its address.
fn hostname(index: usize, name: &str, findings: &mut Findings) -> Option<Arc<str>> {
    let lower = name.to_ascii_lowercase();
    if is_dns_label(&lower) {
        return Some(lower.into());
    }
    if !name.is_empty() {
        findings.warn(&format!("endpoints[{index}].hostname"), format!("{name:?} {NOT_A_LABEL}; ignored"));
    }
    None
}

fn hints(hints: wire::EndpointHints) -> Option<Arc<Hints>> {
    let nodes = hints.for_nodes.into_iter().map(|node| node.name.into());
    let zones = hints.for_zones.into_iter().map(|zone| zone.name.into());
    let hints = Hints { nodes: nodes.collect(), zones: zones.collect() };
    (hints != Hints::default()).then(|| Arc::new(hints))
}
