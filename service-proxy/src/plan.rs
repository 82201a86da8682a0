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
    /// Without endpoints there is nothing to listen for: the kernel then refuses, which is what Kubernetes asks for.
    pub(crate) frontends: BTreeMap<FrontendKey, Planned>,
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
            if !selection.is_empty() {
                // An address may be named twice; a cluster IP is the most specific and comes first.
                let planned = Planned { port: Arc::clone(&port.name), selection };
                plan.frontends.entry(FrontendKey { protocol: port.protocol, address }).or_insert(planned);
            }
        }
        plan.without_local.extend(without_local);
    }
    plan
}

/// Addresses that have to be made local for the Service, other than its cluster IPs inside the service ranges.
pub(crate) fn addresses(entry: &ServiceEntry, around: &Surroundings) -> BTreeSet<IpAddr> {
    let rules = &entry.service.rules;
    if !rules.carrier.is(around.proxy_name.as_deref()) {
        return BTreeSet::new();
    }
    let (external, balanced) = (around.not_of_others(&rules.external_ips), &rules.load_balancer_ips);
    entry.cluster_ips.iter().chain(external).chain(around.not_of_others(balanced)).copied().collect()
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
    let (external, balanced) = (&rules.external_ips, &rules.load_balancer_ips);
    entrances.extend(around.not_of_others(external).map(at(port.port, Scope::External)));
    entrances.extend(around.not_of_others(balanced).map(at(port.port, Scope::LoadBalancer)));
    if let Some(number) = port.node_port {
        entrances.extend(around.node_port_addresses.iter().map(at(number, Scope::External)));
    }
    entrances
}
