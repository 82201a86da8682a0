//! The frontends of a Service, and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use discovery::ServiceEntry;
use discovery::model::{IpFamily, Protocol, ServicePort};

use crate::backend::endpoints::{Scope, Selection};
use crate::frontend::FrontendKey;
use crate::node_context::NodeContext;
use crate::proxier::ownership::ClaimKind;

/// All frontends of a Service.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Without endpoints there is no frontend: the kernel then refuses, as Kubernetes requires.
    pub(crate) frontends: BTreeMap<FrontendKey, Planned>,
    /// External addresses and node ports of Services without endpoints. Without a rule a packet would be
    /// routed as without a Service.
    pub(crate) refused: BTreeSet<FrontendKey>,
    /// Everything that the Service claims, with or without endpoints.
    pub(crate) claims: BTreeMap<FrontendKey, ClaimKind>,
    /// Each port and family for which a policy of `Local` leaves clients without endpoints although there are
    /// others: the policy (`internal` or `external`) and the family.
    pub(crate) without_local: Vec<(&'static str, IpFamily)>,
}

/// A frontend to open.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Name of the Service port.
    pub(crate) port: Arc<str>,
    pub(crate) selection: Selection,
}

/// Whether this proxy serves the Service, as soon as it has endpoints.
pub(crate) fn is_proxied(entry: &ServiceEntry, node_context: &NodeContext) -> bool {
    entry.service.has_virtual_ip()
        && entry.service.rules.proxy_class.matches(node_context.proxy_name.as_deref())
}

/// The plan for a Service.
pub(crate) fn plan(entry: &ServiceEntry, node_context: &NodeContext) -> Plan {
    let mut plan = Plan::default();
    if !is_proxied(entry, node_context) {
        return plan;
    }
    plan.claims.extend(health_check_keys(entry, node_context).map(|key| (key, ClaimKind::NodePort)));
    for port in entry.service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        let mut without_local = BTreeSet::new();
        for (address, scope, kind) in listen_addresses(entry, port, node_context) {
            let family = IpFamily::of(address.ip());
            let selection = Selection::of(entry, port, family, scope, node_context);
            if selection.without_local {
                without_local.insert((scope.policy(), family));
            }
            let key = FrontendKey { protocol: port.protocol, address };
            // An address may be listed twice. A cluster IP is the most specific and takes precedence.
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

/// The cluster IPs of the Service, which belong to it with all ports.
pub(crate) fn cluster_ips(entry: &ServiceEntry, node_context: &NodeContext) -> BTreeSet<IpAddr> {
    if entry.service.rules.proxy_class.matches(node_context.proxy_name.as_deref()) {
        entry.cluster_ips.iter().copied().collect()
    } else {
        BTreeSet::new()
    }
}

/// The number of ready endpoints on this node.
pub(crate) fn local_ready(entry: &ServiceEntry, node_context: &NodeContext) -> usize {
    let slices =
        entry.slices.iter().filter(|slice| slice.proxy_class.matches(node_context.proxy_name.as_deref()));
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.conditions.ready && node_context.is_local(endpoint));
    ready.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

/// Whether a change of the node's context can change the plan.
pub(crate) fn depends_on_node_context(entry: &ServiceEntry) -> bool {
    let rules = &entry.service.rules;
    rules.internal_local
        || rules.external_local
        || !rules.external_ips.is_empty()
        || !rules.load_balancer_ips.is_empty()
        || entry.service.ports.iter().any(|port| port.node_port.is_some())
        || entry.slices.iter().flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.hints.is_some())
}

/// The health checks of the Service.
pub(crate) fn health_check_keys<'a>(
    entry: &'a ServiceEntry,
    node_context: &'a NodeContext,
) -> impl Iterator<Item = FrontendKey> + 'a {
    let port = entry.service.rules.health_check_node_port;
    let addresses = node_context.node_port_addresses.iter().copied();
    addresses.filter_map(move |ip| {
        Some(FrontendKey { protocol: Protocol::Tcp, address: SocketAddr::new(ip, port?) })
    })
}

fn listen_addresses(
    entry: &ServiceEntry,
    port: &ServicePort,
    node_context: &NodeContext,
) -> Vec<(SocketAddr, Scope, ClaimKind)> {
    let rules = &entry.service.rules;
    let at = |number: u16, scope: Scope, kind: ClaimKind| {
        move |ip: &IpAddr| (SocketAddr::new(*ip, number), scope, kind)
    };
    let number = port.port;
    let cluster_ips = entry.cluster_ips.iter();
    let mut listen_addresses: Vec<_> =
        cluster_ips.map(at(number, Scope::Internal, ClaimKind::ClusterIp)).collect();
    let external = if node_context.ignores_external_ips { &[] } else { &rules.external_ips[..] };
    let external = node_context.without_other_nodes(external);
    listen_addresses.extend(external.map(at(number, Scope::External, ClaimKind::ExternalIp)));
    let balanced = node_context.without_other_nodes(&rules.load_balancer_ips);
    listen_addresses.extend(balanced.map(at(number, Scope::LoadBalancer, ClaimKind::LoadBalancerIp)));
    if let Some(number) = port.node_port {
        let addresses = node_context.node_port_addresses.iter();
        listen_addresses.extend(addresses.map(at(number, Scope::External, ClaimKind::NodePort)));
    }
    listen_addresses
}
