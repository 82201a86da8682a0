//! What a Service has to be served on, and by which endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use discovery::ServiceEntry;
use discovery::model::{IpFamily, Protocol, ServicePort};

use crate::backend::endpoints::{Scope, Selection};
use crate::frontend::FrontendKey;
use crate::surroundings::Surroundings;

/// Everywhere a Service is to be served.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Without endpoints there is no frontend: the kernel then refuses, which is what Kubernetes asks for.
    pub(crate) frontends: BTreeMap<FrontendKey, Planned>,
    /// External addresses, and ports of the node, of Services without endpoints. Without a rule a packet would go where it
    /// went before there was the Service.
    pub(crate) refused: BTreeSet<FrontendKey>,
    /// For each port and family of which a policy of `Local` leaves clients without any endpoint though there are
    /// others: the policy (`internal` or `external`) and the family.
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
    entry.service.has_virtual_ip() && entry.service.rules.carrier.is(around.proxy_name.as_deref())
}

/// The plan for a Service.
pub(crate) fn plan(entry: &ServiceEntry, around: &Surroundings) -> Plan {
    let mut plan = Plan::default();
    if !entry.service.rules.carrier.is(around.proxy_name.as_deref()) {
        return plan;
    }
    for port in entry.service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        let mut without_local = BTreeSet::new();
        for (address, scope) in entrances(entry, port, around) {
            let family = IpFamily::of(address.ip());
            let selection = Selection::of(entry, port, family, scope, around);
            if selection.without_local {
                without_local.insert((scope.policy(), family));
            }
            let key = FrontendKey { protocol: port.protocol, address };
            if !selection.is_empty() {
                // An address may be named twice; a cluster IP is the most specific and comes first.
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
    if entry.service.rules.carrier.is(around.proxy_name.as_deref()) {
        entry.cluster_ips.iter().copied().collect()
    } else {
        BTreeSet::new()
    }
}

/// How many endpoints on this node are ready.
pub(crate) fn local_ready(entry: &ServiceEntry, around: &Surroundings) -> usize {
    let slices = entry.slices.iter().filter(|slice| slice.carrier.is(around.proxy_name.as_deref()));
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

fn entrances(entry: &ServiceEntry, port: &ServicePort, around: &Surroundings) -> Vec<(SocketAddr, Scope)> {
    let rules = &entry.service.rules;
    let at = |number: u16, scope: Scope| move |ip: &IpAddr| (SocketAddr::new(*ip, number), scope);
    let mut entrances: Vec<_> = entry.cluster_ips.iter().map(at(port.port, Scope::Internal)).collect();
    let external = if around.ignores_external_ips { &[] } else { &rules.external_ips[..] };
    let balanced = &rules.load_balancer_ips;
    entrances.extend(around.not_of_others(external).map(at(port.port, Scope::External)));
    entrances.extend(around.not_of_others(balanced).map(at(port.port, Scope::LoadBalancer)));
    if let Some(number) = port.node_port {
        entrances.extend(around.node_port_addresses.iter().map(at(number, Scope::External)));
    }
    entrances
}
