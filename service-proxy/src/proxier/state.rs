//! The proxier's state for other parts of the program.

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
use crate::pages::health_check::HealthCheckSpec;
use crate::plan;

impl Proxier {
    /// Cluster IPs outside the service ranges, without addresses of the node. They are made local one by one.
    pub(crate) fn outside(&self) -> BTreeSet<IpAddr> {
        let ranges = self.ranges();
        let is_outside = |address: &IpAddr| {
            !self.node_context.known_addresses.node.contains(address)
                && !ranges.iter().any(|range| range.contains(*address))
        };
        self.outside.values().flatten().copied().filter(is_outside).collect()
    }

    /// Whether this node is about to be removed.
    pub(crate) fn is_node_leaving(&self, snapshot: &Snapshot) -> bool {
        snapshot.nodes.get(self.node_config.node_name.as_str()).is_some_and(|node| node.leaving)
    }

    /// Whether the node's addresses have changed since the last state was applied. If they cannot be read,
    /// the last ones count.
    pub(crate) fn node_addresses_changed(&self) -> bool {
        match self.node_config.own_addresses() {
            Ok((own, for_node_ports)) => {
                own != self.node_context.known_addresses.node
                    || for_node_ports != self.node_context.node_port_addresses
            }
            Err(error) => {
                if let Some(suppressed) = self.address_warnings.admit() {
                    warn!(%error, suppressed, "cannot read the node's addresses: those read last are used");
                }
                false
            }
        }
    }

    /// The current failures, one line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let conflicts = self.conflicts.values().flat_map(|lost| lost.values().cloned());
        conflicts.chain(self.intercepted.failure().map(|failure| failure.message.clone())).collect()
    }

    /// Whether the addresses of portolan-dns have changed.
    pub(crate) fn dns_listeners_changed(&mut self) -> bool {
        let now = local_dns::listeners();
        self.changed_dns_listeners.extend(now.symmetric_difference(&self.dns_listeners));
        self.dns_listeners = now;
        !self.changed_dns_listeners.is_empty()
    }

    /// Frontends that portolan-dns serves, by Service.
    pub(crate) fn served_by_dns(&self) -> BTreeMap<NamespacedName, BTreeSet<FrontendKey>> {
        self.served_by_dns.clone()
    }

    /// Since when the kernel has rejected the rules, if it does.
    pub(crate) fn rejected_since(&self) -> Option<Instant> {
        self.intercepted.failure().map(|failure| failure.since)
    }

    /// All open frontends.
    pub(crate) fn frontends(&self) -> SharedMap<FrontendKey, Frontend> {
        self.frontends.clone()
    }

    /// The health checks for external load balancers.
    pub(crate) fn health_checks(&self) -> Vec<HealthCheckSpec> {
        let wanted = |entry: &Arc<ServiceEntry>| {
            let port = entry.service.rules.health_check_node_port?;
            let name = &entry.service.name;
            // Another Service owns the port and its health check.
            let mut keys = plan::health_check_keys(entry, &self.node_context);
            if !keys.all(|key| self.ownership.owner(&key) == Some(name)) {
                return None;
            }
            let local = plan::local_ready(entry, &self.node_context);
            Some(HealthCheckSpec { port, service: entry.service.name.clone(), local })
        };
        self.health_checked.iter().filter_map(|name| self.snapshot.service(name)).filter_map(wanted).collect()
    }

    /// The addresses on which node ports are open.
    pub(crate) fn node_port_addresses(&self) -> &[IpAddr] {
        &self.node_context.node_port_addresses
    }
}
