//! What a Service has to be served on, and by which endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use discovery::ServiceEntry;
use discovery::model::{IpFamily, Protocol, ServicePort};

use crate::backend::endpoints::{Scope, Selection};
use crate::frontend::FrontendKey;
use crate::proxier::ownership::ClaimKind;
use crate::surroundings::Surroundings;

/// Everywhere a Service is to be served.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Without endpoints there is no frontend: the kernel then refuses, which is what Kubernetes asks for.
    pub(crate) frontends: BTreeMap<FrontendKey, Planned>,
    /// External addresses, and ports of the node, of Services without endpoints. Without a rule a packet
    /// would go where it went before there was the Service.
    pub(crate) refused: BTreeSet<FrontendKey>,
    /// Everything the Service claims, with endpoints or without.
    pub(crate) claims: BTreeMap<FrontendKey, ClaimKind>,
    /// For each port and family of which a policy of `Local` leaves clients without any endpoint though there
    /// are others: the policy (`internal` or `external`) and the family.
    pub(crate) without_local: Vec<(&'static str, IpFamily)>,
}

/// A frontend to be.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Name of the Service port.
    pub(crate) port: Arc<str>,
    pub(crate) selection: Selection,
}

/// Whether a Service is this proxy's to carry, as soon as it has endpoints.
pub(crate) fn is_carried(entry: &ServiceEntry, around: &Surroundings) -> bool {
    entry.service.has_virtual_ip() && entry.service.rules.proxy_class.matches(around.proxy_name.as_deref())
}

/// The plan for a Service.
pub(crate) fn plan(entry: &ServiceEntry, around: &Surroundings) -> Plan {
    let mut plan = Plan::default();
    if !is_carried(entry, around) {
        return plan;
    }
    plan.claims.extend(health_check_keys(entry, around).map(|key| (key, ClaimKind::NodePort)));
    for port in entry.service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        let mut without_local = BTreeSet::new();
        for (address, scope, kind) in entrances(entry, port, around) {
            let family = IpFamily::of(address.ip());
            let selection = Selection::of(entry, port, family, scope, around);
            if selection.without_local {
                without_local.insert((scope.policy(), family));
            }
            let key = FrontendKey { protocol: port.protocol, address };
            // An address may be named twice; a cluster IP is the most specific and comes first.
            plan.claims.entry(key).and_modify(|known| *known = kind.min(*known)).or_insert(kind);
            if !selection.is_empty() {
                let planned = Planned { port: Arc::clone(&port.name), selection };
                plan.frontends.entry(key).or_insert(planned);
            } else if scope != Scope::Internal {
                plan.refused.insert(key);
            }
        }
        plan.without_local.extend(without_local);
    }
    let Plan { frontends, refused, .. } = &mut plan;
    refused.retain(|key| !frontends.contains_key(key));
    plan
}

/// The cluster IPs of the Service, which belong to it whole.
pub(crate) fn cluster_ips(entry: &ServiceEntry, around: &Surroundings) -> BTreeSet<IpAddr> {
    if entry.service.rules.proxy_class.matches(around.proxy_name.as_deref()) {
        entry.cluster_ips.iter().copied().collect()
    } else {
        BTreeSet::new()
    }
}

/// How many endpoints on this node are ready.
pub(crate) fn local_ready(entry: &ServiceEntry, around: &Surroundings) -> usize {
    let slices = entry.slices.iter().filter(|slice| slice.proxy_class.matches(around.proxy_name.as_deref()));
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.conditions.ready && around.is_local(endpoint));
    ready.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

/// Whether a change of the surroundings can change the plan.
pub(crate) fn depends_on_surroundings(entry: &ServiceEntry) -> bool {
    let rules = &entry.service.rules;
    rules.internal_local
        || rules.external_local
        || !rules.external_ips.is_empty()
        || !rules.load_balancer_ips.is_empty()
        || entry.service.ports.iter().any(|port| port.node_port.is_some())
        || entry.slices.iter().flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.hints.is_some())
}

/// Where load balancers ask about the Service.
pub(crate) fn health_check_keys<'a>(
    entry: &'a ServiceEntry,
    around: &'a Surroundings,
) -> impl Iterator<Item = FrontendKey> + 'a {
    let port = entry.service.rules.health_check_node_port;
    let addresses = around.node_port_addresses.iter().copied();
    addresses.filter_map(move |ip| {
        Some(FrontendKey { protocol: Protocol::Tcp, address: SocketAddr::new(ip, port?) })
    })
}

fn entrances(
    entry: &ServiceEntry,
    port: &ServicePort,
    around: &Surroundings,
) -> Vec<(SocketAddr, Scope, ClaimKind)> {
    let rules = &entry.service.rules;
    let at = |number: u16, scope: Scope, kind: ClaimKind| {
        move |ip: &IpAddr| (SocketAddr::new(*ip, number), scope, kind)
    };
    let number = port.port;
    let cluster_ips = entry.cluster_ips.iter();
    let mut entrances: Vec<_> = cluster_ips.map(at(number, Scope::Internal, ClaimKind::ClusterIp)).collect();
    let external = if around.ignores_external_ips { &[] } else { &rules.external_ips[..] };
    let external = around.not_of_others(external);
    entrances.extend(external.map(at(number, Scope::External, ClaimKind::ExternalIp)));
    let balanced = around.not_of_others(&rules.load_balancer_ips);
    entrances.extend(balanced.map(at(number, Scope::LoadBalancer, ClaimKind::LoadBalancerIp)));
    if let Some(number) = port.node_port {
        let addresses = around.node_port_addresses.iter();
        entrances.extend(addresses.map(at(number, Scope::External, ClaimKind::NodePort)));
    }
    entrances
}
