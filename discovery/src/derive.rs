//! Derives endpoints for Services with a selector and without EndpointSlices: what the EndpointSlice
//! controller does on a cluster, as a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use attachment::Attachment;

use crate::model::{
    Conditions, Distribution, Endpoint, EndpointPort, EndpointSlice, Hints, IpFamily, NamespacedName, Node,
    Pod, Service, ServicePort, TargetPort,
};

/// The zone label of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A pod with its addresses: its manifest, with the addresses of its attachments unless it has its own.
/// Without a manifest, a pod made from its attachments. `None` if there is neither.
pub(crate) fn addressed_pod<'a>(
    name: &NamespacedName,
    manifest: Option<&Arc<Pod>>,
    attachments: impl Iterator<Item = &'a Arc<Attachment>>,
) -> Option<Pod> {
    let attached: Vec<&Attachment> = attachments.map(|attachment| &**attachment).collect();
    if let Some(manifest) = manifest {
        let mut pod = Pod::clone(manifest);
        if pod.ips.is_empty() {
            pod.ips = addresses(attached);
        }
        return Some(pod);
    }
    if attached.is_empty() {
        return None;
    }
    let labels = attached.iter().flat_map(|a| a.labels.clone()).collect();
    Some(pod_of_attachments(name.clone(), labels, addresses(attached)))
}

/// Returns the slices that the EndpointSlice controller would write: one per family and set of resolved
/// ports.
pub(crate) fn slices<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(IpFamily, Vec<EndpointPort>), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.filter(|pod| !pod.finished && selects(service, pod)) {
        let ports: Vec<EndpointPort> = service.ports.iter().filter_map(|port| resolve(port, pod)).collect();
        for family in [IpFamily::V4, IpFamily::V6] {
            if let Some(&address) = pod.ips.iter().find(|ip| IpFamily::of(**ip) == family) {
                let endpoint = endpoint(service, pod, address, nodes);
                groups.entry((family, ports.clone())).or_default().push(endpoint);
            }
        }
    }
    groups
        .into_iter()
        .enumerate()
        .map(|(number, ((family, ports), mut endpoints))| {
            endpoints.sort_by_key(|e| e.address);
            let name = format!("{}-derived-{number}", service.name.name);
            EndpointSlice {
                name: NamespacedName::new(Arc::clone(&service.name.namespace), name),
                service: service.name.clone(),
                proxy_class: service.rules.proxy_class.clone(),
                triggered_at: None,
                family,
                ports,
                endpoints,
            }
        })
        .collect()
}

/// Whether the Service's selector matches the pod.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// A pod without the named port still serves the other ports of the Service.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    let number = match &port.target_port {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => {
            pod.ports.iter().find(|p| p.name == *name && p.protocol == port.protocol)?.port
        }
    };
    Some(EndpointPort { name: Arc::clone(&port.name), protocol: port.protocol, port: number })
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: IpAddr,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
) -> Endpoint {
    let serving = pod.ready;
    let conditions = Conditions {
        ready: service.publish_not_ready || (serving && !pod.terminating),
        serving: service.publish_not_ready || serving,
        terminating: pod.terminating,
    };
    // A pod has its hostname only below the Service of its subdomain.
    let hostname = pod.hostname.clone().filter(|_| pod.subdomain.as_ref() == Some(&service.name.name));
    let node = pod.node_name.as_ref().and_then(|name| nodes.get(name));
    let zone = node.and_then(|node| node.labels.get(ZONE_LABEL)).map(|zone| Arc::from(zone.as_str()));
    Endpoint {
        address,
        conditions,
        hostname,
        pod: Some(Arc::clone(&pod.name.name)),
        node_name: pod.node_name.clone(),
        hints: hints(service.rules.distribution, pod.node_name.as_ref(), zone.as_ref()),
        zone,
    }
}

/// Hints an endpoint for its own node or zone. An endpoint without a location is for all clients, and then
/// the hints of all endpoints are ignored.
fn hints(distribution: Distribution, node: Option<&Arc<str>>, zone: Option<&Arc<str>>) -> Option<Arc<Hints>> {
    let (nodes, zones) = match distribution {
        Distribution::Anywhere => (None, None),
        Distribution::SameZone => (None, zone),
        Distribution::SameNode => (node, zone),
    };
    (nodes.is_some() || zones.is_some()).then(|| {
        Arc::new(Hints {
            nodes: nodes.into_iter().cloned().collect(),
            zones: zones.into_iter().cloned().collect(),
        })
    })
}

/// A runtime without pods: the container is named by its ID, in the default namespace.
pub(crate) fn pod_name(attachment: &Attachment) -> NamespacedName {
    match &attachment.pod {
        Some(pod) => NamespacedName::new(pod.namespace.as_str(), pod.name.as_str()),
        None => NamespacedName::new("default", attachment.container_id.as_str()),
    }
}

/// Addresses in a stable order. A pod with several networks has the addresses of the first one by name.
fn addresses(mut attachments: Vec<&Attachment>) -> Vec<IpAddr> {
    attachments.sort_by(|a, b| (&a.network, &a.ifname).cmp(&(&b.network, &b.ifname)));
    attachments.iter().flat_map(|a| a.ips.iter().copied()).collect()
}

fn pod_of_attachments(name: NamespacedName, labels: BTreeMap<String, String>, ips: Vec<IpAddr>) -> Pod {
    Pod {
        name,
        labels,
        ports: Vec::new(),
        ips,
        ready: true,
        terminating: false,
        finished: false,
        hostname: None,
        subdomain: None,
        node_name: None,
    }
}

#[cfg(test)]
mod tests;
