//! Keeps the kernel's interception rules in sync with the open frontends.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use discovery::SharedMap;
use ipnetwork::IpNetwork;
use tracing::error;

use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::interception::{Action, Interception, VirtualIps};
use crate::metrics::Metrics;
use crate::tcp::Registry;

type Frontends = SharedMap<FrontendKey, Frontend>;

/// The rules in the kernel, and the table by which the workers find the frontend of a connection.
#[derive(Debug)]
pub(super) struct Intercepted {
    kernel: Interception,
    registry: Arc<Registry>,
    /// The open frontends when the rules were last applied.
    applied: Frontends,
    /// The local addresses at that time.
    addresses: LocalAddresses,
    failure: Option<Failure>,
}

/// The addresses that are local to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LocalAddresses {
    /// The service ranges, and cluster IPs outside of them.
    pub(super) virtual_ips: Vec<IpNetwork>,
    /// The node's own addresses.
    pub(super) node: HashSet<IpAddr>,
}

/// The kernel has rejected the rules.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) since: Instant,
    pub(super) message: String,
}

impl LocalAddresses {
    fn action(&self, address: IpAddr, is_open: bool) -> Action {
        let is_local =
            self.node.contains(&address) || self.virtual_ips.iter().any(|range| range.contains(address));
        match (is_open, is_local) {
            (true, true) => Action::Intercept,
            (true, false) => Action::InterceptExternal,
            (false, true) => Action::Refuse,
            (false, false) => Action::RefuseExternal,
        }
    }

    fn virtual_ips(&self) -> VirtualIps {
        VirtualIps::new(self.virtual_ips.iter().copied(), &self.node)
    }
}

impl Intercepted {
    /// Nothing is intercepted yet.
    pub(super) fn new(kernel: Interception, registry: Arc<Registry>) -> Self {
        let (applied, addresses) = (SharedMap::default(), LocalAddresses::default());
        Self { kernel, registry, applied, addresses, failure: None }
    }

    /// Why the rules were not applied, if so.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Makes the kernel deliver packets for open frontends, refuse `refused`, and do nothing else. An empty
    /// first state is applied too: with it this proxy replaces the previous one.
    pub(super) fn apply(
        &mut self,
        open: &Frontends,
        refused: &BTreeSet<FrontendKey>,
        addresses: LocalAddresses,
        metrics: &Metrics,
    ) {
        let action = |key: &FrontendKey| {
            let is_open = open.get(key).is_some();
            (is_open || refused.contains(key)).then(|| addresses.action(key.address.ip(), is_open))
        };
        // A frontend must be registered before the kernel delivers connections. A connection to a closed one
        // that still waits to be accepted is reset, as it would be a moment later. A closed frontend lives as
        // long as it is registered.
        self.registry.store(Arc::new(open.clone()));
        let applied = self.kernel.applied();
        let mut changes: Vec<_> = if addresses == self.addresses {
            let changed = open.changed_since(&self.applied).map(|(key, _)| key);
            changed.chain(open.removed_since(&self.applied)).map(|key| (*key, action(key))).collect()
        } else {
            let open = open.values().map(|frontend| &frontend.key);
            open.chain(applied.keys()).map(|key| (*key, action(key))).collect()
        };
        changes.extend(refused.iter().map(|key| (*key, action(key))));
        let is_refused = |action: &Action| matches!(action, Action::Refuse | Action::RefuseExternal);
        let no_longer = applied.iter().filter(|(key, action)| is_refused(action) && !refused.contains(key));
        changes.extend(no_longer.map(|(key, _)| (*key, action(key))));
        changes.sort_by_key(|(key, _)| *key);
        changes.dedup();
        match self.kernel.change(changes, addresses.virtual_ips()) {
            Ok(()) => {
                (self.applied, self.addresses) = (open.clone(), addresses);
                self.failure = None;
            }
            Err(error) => self.failed(&error, metrics),
        }
    }

    /// Rewrites the rules if another program has deleted them.
    pub(super) fn check(&mut self, metrics: &Metrics) {
        if let Err(error) = self.kernel.check() {
            self.failed(&error, metrics);
        }
    }

    /// Whether the rules are for a node with bridges.
    pub(super) fn is_bridged(&self) -> bool {
        self.kernel.is_bridged()
    }

    /// Adds the rules for bridges.
    pub(super) fn add_bridged(&mut self, metrics: &Metrics) {
        if let Err(error) = self.kernel.add_bridged() {
            self.failed(&error, metrics);
        }
    }

    fn failed(&mut self, error: &io::Error, metrics: &Metrics) {
        let since = self.failure.as_ref().map_or_else(Instant::now, |failure| failure.since);
        let message = format!("cannot intercept connections (nft table inet portolan-proxy): {error}");
        // Logged once, not with every retry.
        if self.failure.as_ref().is_none_or(|failure| failure.message != message) {
            error!("{message}");
        }
        metrics.kube_proxy.nftables_failures.inc();
        self.failure = Some(Failure { since, message });
    }

    /// Refuses new connections. The rules of open connections stay. Without applied rules there is nothing to
    /// stop.
    pub(super) fn stop(&mut self) {
        if self.kernel.is_installed()
            && let Err(error) = self.kernel.refuse_all()
        {
            error!(%error, "cannot empty nft table inet portolan-proxy");
        }
    }

    /// Deletes the rules. Returns false if they belong to another proxy.
    pub(super) fn remove(&mut self) -> bool {
        self.kernel.remove().unwrap_or_else(|error| {
            error!(%error, "cannot delete nft table inet portolan-proxy");
            true
        })
    }
}
