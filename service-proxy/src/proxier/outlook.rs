//! What others want to know of the proxier.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use discovery::model::NamespacedName;
use discovery::{ServiceEntry, SharedMap, Snapshot};
use tracing::warn;

use super::Proxier;
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::local_dns;
use crate::pages::health_check;
use crate::plan;

impl Proxier {
    /// Cluster IPs outside the service ranges, which are made local one by one, those of the node itself left
    /// out.
    pub(crate) fn outside(&self) -> BTreeSet<IpAddr> {
        let ranges = self.ranges();
        let is_outside = |address: &IpAddr| {
            !self.surroundings.locality.node.contains(address)
                && !ranges.iter().any(|range| range.contains(*address))
        };
        self.outside.values().flatten().copied().filter(is_outside).collect()
    }

    /// Whether this node is about to go.
    pub(crate) fn is_leaving(&self, snapshot: &Snapshot) -> bool {
        snapshot.nodes.get(self.place.node_name.as_str()).is_some_and(|node| node.leaving)
    }

    /// Whether the node has other addresses than when the last state was applied. They stay what they were
    /// where the kernel does not say.
    pub(crate) fn node_has_moved(&self) -> bool {
        match self.place.own_addresses() {
            Ok((own, for_node_ports)) => {
                own != self.surroundings.locality.node
                    || for_node_ports != self.surroundings.node_port_addresses
            }
            Err(error) => {
                if let Some(suppressed) = self.address_warnings.admit() {
                    warn!(%error, suppressed, "cannot read the node's addresses: those read last are used");
                }
                false
            }
        }
    }

    /// What cannot be opened now, one line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let conflicts = self.conflicts.values().flat_map(|lost| lost.values().cloned());
        conflicts.chain(self.intercepted.failure().map(|failure| failure.message.clone())).collect()
    }

    /// Whether portolan-dns listens elsewhere than a moment ago.
    pub(crate) fn dns_has_moved(&mut self) -> bool {
        let now = local_dns::listeners();
        self.dns_moved.extend(now.symmetric_difference(&self.dns_listeners));
        self.dns_listeners = now;
        !self.dns_moved.is_empty()
    }

    /// What portolan-dns answers in place of the Services that have it.
    pub(crate) fn left_to_dns(&self) -> BTreeMap<NamespacedName, BTreeSet<FrontendKey>> {
        self.left_to_dns.clone()
    }

    /// Since when the kernel has not taken the rules, if it does not.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        self.intercepted.failure().map(|failure| failure.since)
    }

    /// Everything that is open.
    pub(crate) fn frontends(&self) -> SharedMap<FrontendKey, Frontend> {
        self.frontends.clone()
    }

    /// What load balancers in front want to be told about this node.
    pub(crate) fn health_checks(&self) -> Vec<health_check::Wanted> {
        let wanted = |entry: &Arc<ServiceEntry>| {
            let port = entry.service.rules.health_check_node_port?;
            let name = &entry.service.name;
            // Another one has the port, and answers for itself.
            let mut keys = plan::health_check_keys(entry, &self.surroundings);
            if !keys.all(|key| self.ownership.owner(&key) == Some(name)) {
                return None;
            }
            let local = plan::local_ready(entry, &self.surroundings);
            Some(health_check::Wanted { port, service: entry.service.name.clone(), local })
        };
        self.health_checked.iter().filter_map(|name| self.snapshot.service(name)).filter_map(wanted).collect()
    }

    /// Where node ports are open.
    pub(crate) fn node_port_addresses(&self) -> &[IpAddr] {
        &self.surroundings.node_port_addresses
    }
}
