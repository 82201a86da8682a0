//! The eligible endpoints of a Service by policy, topology and conditions: kube-proxy's `CategorizeEndpoints`
//! (`pkg/proxy/topology.go`), rule by rule.

use std::net::SocketAddr;
use std::sync::Arc;

use discovery::model::Endpoint;

/// The node and zone of this proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) node: Arc<str>,
    pub(crate) zone: Option<Arc<str>>,
}

/// An endpoint with what the rules need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) endpoint: &'a Endpoint,
    /// Whether it is on this node.
    pub(crate) is_local: bool,
}

/// The policies of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) externally_accessible: bool,
}

/// The endpoints for each kind of traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Categories {
    /// For traffic that may be sent to any node.
    pub(crate) cluster: Vec<SocketAddr>,
    /// For traffic that must stay on this node.
    pub(crate) local: Vec<SocketAddr>,
    /// Whether there is any endpoint at all. If not, traffic is refused.
    pub(crate) has_any: bool,
}

/// The topology preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    SameNode,
    SameZone,
    None,
}

impl Policy {
    /// With externalTrafficPolicy Local pods of this cluster may still use endpoints of any node.
    fn uses_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    fn uses_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// Selects the endpoints of one port and family.
pub(crate) fn categorize(candidates: &[Candidate<'_>], policy: Policy, location: &Location) -> Categories {
    let pick = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<SocketAddr> {
        candidates.iter().filter(|c| wanted(c)).map(|c| c.address).collect()
    };
    let ready = |c: &Candidate<'_>| c.endpoint.conditions.ready;
    let leaving = |c: &Candidate<'_>| c.endpoint.conditions.serving && c.endpoint.conditions.terminating;
    let mut categories = Categories::default();
    if policy.uses_cluster() {
        let preference = preference(candidates, location);
        categories.cluster = pick(&|c| ready(c) && is_close(c, preference, location));
        if categories.cluster.is_empty() {
            // KEP-1669: use serving terminating endpoints if there are no ready ones.
            categories.cluster = pick(&leaving);
        }
        categories.has_any = !categories.cluster.is_empty();
    }
    if policy.uses_local() {
        categories.has_any |= candidates.iter().any(|c| ready(c) || leaving(c));
        categories.local = pick(&|c| c.is_local && ready(c));
        if categories.local.is_empty() {
            categories.local = pick(&|c| c.is_local && leaving(c));
        }
    }
    categories
}

/// Hints apply only if every ready endpoint has one and one of them matches this node or zone. Nodes take
/// precedence.
fn preference(candidates: &[Candidate<'_>], location: &Location) -> Preference {
    let ready = || candidates.iter().filter(|c| c.endpoint.conditions.ready).map(|c| c.endpoint);
    let all_have_nodes = ready().all(|endpoint| !endpoint.hinted_nodes().is_empty());
    if all_have_nodes && ready().any(|endpoint| endpoint.hinted_nodes().contains(&location.node)) {
        return Preference::SameNode;
    }
    let all_have_zones = ready().all(|endpoint| !endpoint.hinted_zones().is_empty());
    match &location.zone {
        Some(zone) if all_have_zones && ready().any(|endpoint| endpoint.hinted_zones().contains(zone)) => {
            Preference::SameZone
        }
        _ => Preference::None,
    }
}

fn is_close(candidate: &Candidate<'_>, preference: Preference, location: &Location) -> bool {
    let endpoint = candidate.endpoint;
    match preference {
        Preference::SameNode => endpoint.hinted_nodes().contains(&location.node),
        Preference::SameZone => {
            location.zone.as_ref().is_some_and(|zone| endpoint.hinted_zones().contains(zone))
        }
        Preference::None => true,
    }
}

#[cfg(test)]
mod tests;
