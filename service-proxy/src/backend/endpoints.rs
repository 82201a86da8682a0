//! The endpoints of one frontend.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::ServiceEntry;
use discovery::model::{BalancerKind, IpFamily, ServicePort};
use ipnetwork::IpNetwork;

use crate::backend::endpoint::Endpoint;
use crate::backend::pool::Pool;
use crate::backend::topology::{Candidate, Categories, Policy, categorize};
use crate::node_context::NodeContext;

/// The clients of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A cluster IP: pods and nodes of the cluster.
    Internal,
    /// A node port or an external IP: any client.
    External,
    /// The IP of a load balancer: clients in `loadBalancerSourceRanges`.
    LoadBalancer,
}

impl Scope {
    /// The traffic policy that applies, as named in metrics.
    pub(crate) fn policy(self) -> &'static str {
        if self == Self::Internal { "internal" } else { "external" }
    }
}

/// The settings of a Service for a frontend. Comparable: equal ones need no change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// For clients inside the cluster.
    inside: Vec<SocketAddr>,
    /// For clients outside, if different.
    outside: Option<Vec<SocketAddr>>,
    /// Endpoints that serve but get no new traffic: existing UDP flows may stay with them.
    retired: Vec<SocketAddr>,
    balancer: BalancerKind,
    pub(crate) affinity: Option<Duration>,
    /// Maximum number of open connections of the Service port.
    pub(crate) max_connections: Option<usize>,
    /// A policy of `Local` leaves clients without endpoints, although others exist.
    pub(crate) without_local: bool,
    /// Whether endpoints expect a PROXY protocol header.
    pub(crate) proxy_protocol: bool,
    /// Allowed clients; empty means all.
    source_ranges: Vec<IpNetwork>,
}

/// A selection with its balancers.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    pub(crate) selection: Selection,
    pub(crate) since: Instant,
    inside: Pool,
    outside: Option<Pool>,
}

impl Selection {
    /// Selects the endpoints of `port` for clients of `scope`.
    pub(crate) fn of(
        entry: &ServiceEntry,
        port: &ServicePort,
        family: IpFamily,
        scope: Scope,
        node_context: &NodeContext,
    ) -> Self {
        let rules = &entry.service.rules;
        let has_node_port = entry.service.ports.iter().any(|port| port.node_port.is_some());
        let policy = Policy {
            internal_local: rules.internal_local,
            external_local: rules.external_local,
            externally_accessible: rules.is_externally_accessible(has_node_port),
        };
        // Like kube-proxy: if two slices disagree about the node of an endpoint, it counts as local.
        let proxy = node_context.proxy_name.as_deref();
        let endpoints = entry.endpoints(port, family, proxy, |endpoint| node_context.is_local(endpoint));
        let candidates: Vec<Candidate<'_>> = endpoints
            .iter()
            .map(|(address, endpoint)| Candidate {
                address: *address,
                endpoint,
                is_local: node_context.is_local(endpoint),
            })
            .collect();
        let Categories { cluster, local, has_any } = categorize(&candidates, policy, &node_context.location);
        let is_local = if scope == Scope::Internal { policy.internal_local } else { policy.external_local };
        let without_local = is_local && local.is_empty() && has_any;
        let (inside, outside) = match scope {
            Scope::Internal if policy.internal_local => (local, None),
            Scope::Internal => (cluster, None),
            // Clients inside the cluster may use any endpoint (kube-proxy's short-circuit).
            _ if policy.external_local => (cluster, Some(local)),
            _ => (cluster, None),
        };
        let used: HashSet<SocketAddr> = inside.iter().chain(outside.iter().flatten()).copied().collect();
        let serving =
            candidates.iter().filter(|c| c.endpoint.conditions.ready || c.endpoint.conditions.serving);
        let retired = serving.map(|c| c.address).filter(|address| !used.contains(address)).collect();
        Self {
            inside,
            outside,
            retired,
            balancer: rules.balancer,
            affinity: rules.affinity,
            max_connections: rules.max_connections,
            without_local,
            proxy_protocol: rules.proxy_protocol,
            source_ranges: if scope == Scope::LoadBalancer {
                rules.source_ranges.clone()
            } else {
                Vec::new()
            },
        }
    }

    /// Whether new traffic has no endpoint.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.outside.as_ref().is_none_or(Vec::is_empty)
    }
}

impl EndpointSet {
    /// Creates the set. State of endpoints that were in the previous set is kept, but failures are reset.
    pub(crate) fn new(selection: Selection, before: Option<&Self>) -> Self {
        let known = |address: &SocketAddr| {
            let found = before.into_iter().flat_map(Self::pools).find_map(|pool| pool.find(*address));
            found
                .filter(|endpoint| !endpoint.is_ejected())
                .map_or_else(|| Arc::new(Endpoint::new(*address)), Arc::clone)
        };
        let pool = |addresses: &Vec<SocketAddr>| {
            Pool::new(addresses.iter().map(known).collect(), selection.balancer)
        };
        let (inside, outside) = (pool(&selection.inside), selection.outside.as_ref().map(pool));
        Self { selection, since: Instant::now(), inside, outside }
    }

    /// The endpoints for a client. `is_inside` returns whether the client belongs to the cluster.
    pub(crate) fn pool(&self, is_inside: impl FnOnce() -> bool) -> &Pool {
        match &self.outside {
            Some(outside) if !is_inside() => outside,
            _ => &self.inside,
        }
    }

    /// Whether the client is allowed.
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        let ranges = &self.selection.source_ranges;
        ranges.is_empty() || ranges.iter().any(|range| range.contains(client))
    }

    /// Whether a UDP flow may stay with this endpoint.
    pub(crate) fn may_keep(&self, endpoint: SocketAddr) -> bool {
        let Selection { inside, outside, retired, .. } = &self.selection;
        inside.iter().chain(outside.iter().flatten()).chain(retired).any(|address| *address == endpoint)
    }

    /// Every endpoint once.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let more = self.outside.iter().flat_map(Pool::endpoints);
        let more = more.filter(|endpoint| self.inside.find(endpoint.address).is_none());
        self.inside.endpoints().iter().chain(more)
    }

    /// All pools.
    fn pools(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.inside).chain(&self.outside)
    }
}

#[cfg(test)]
mod tests;
