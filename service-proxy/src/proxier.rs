//! Applies snapshots: opens, changes and closes frontends until they match.

mod interception;
pub(crate) mod ownership;
mod proxied_service;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use daemon::log::RateLimit;
use discovery::model::{NamespacedName, Protocol};
use discovery::{Precedence, ServiceEntry, SharedMap, Snapshot};
use ipnetwork::IpNetwork;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::interception::{Intercepted, LocalAddresses};
use self::ownership::Ownership;
use self::proxied_service::ProxiedService;
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::interception::{Interception, Listeners};
use crate::kernel::{datagram, local_dns, socket};
use crate::node_context::{NodeConfig, NodeContext};
use crate::plan::{self, Plan, Planned, plan};
use crate::service_port::ServicePort;
use crate::tcp::{self, Registry};
use crate::udp;
use crate::worker::{Context, Worker};

/// Lanes of UDP sockets per family: a full queue of one lane does not affect the others.
const UDP_LANES: usize = 8;

/// Owns every frontend.
#[derive(Debug)]
pub(crate) struct Proxier {
    /// The workers. They end when they are dropped.
    _workers: Vec<Worker>,
    context: Arc<Context>,
    node_config: NodeConfig,
    service_cidrs: Vec<IpNetwork>,
    node_context: NodeContext,
    /// The applied snapshot.
    snapshot: Arc<Snapshot>,
    services: HashMap<NamespacedName, ProxiedService>,
    /// Cluster IPs outside the service ranges of the flags, by Service.
    outside: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
    /// Addresses and ports of Services without endpoints that the kernel would not refuse by itself.
    refused: BTreeMap<NamespacedName, BTreeSet<FrontendKey>>,
    /// Services with external load balancers.
    health_checked: BTreeSet<NamespacedName>,
    frontends: SharedMap<FrontendKey, Frontend>,
    ownership: Ownership,
    /// Claims of Services that other Services own, with the logged text.
    conflicts: BTreeMap<NamespacedName, BTreeMap<FrontendKey, String>>,
    /// Addresses on which portolan-dns listens on this node.
    dns_listeners: BTreeSet<SocketAddr>,
    /// Addresses that have changed since the last state was applied.
    changed_dns_listeners: BTreeSet<SocketAddr>,
    /// Frontends of Services that portolan-dns serves.
    served_by_dns: BTreeMap<NamespacedName, BTreeSet<FrontendKey>>,
    intercepted: Intercepted,
    address_warnings: RateLimit,
    started: SystemTime,
}

impl Proxier {
    /// Opens the sockets for intercepted traffic. They end with their workers.
    ///
    /// # Errors
    /// If a socket cannot be opened, which needs CAP_NET_ADMIN and CAP_NET_RAW.
    pub(crate) fn new(
        workers: Vec<Worker>,
        context: Arc<Context>,
        node_config: NodeConfig,
        service_cidrs: Vec<IpNetwork>,
    ) -> io::Result<Self> {
        let registry: Arc<Registry> = Arc::default();
        let mut listeners = Listeners::default();
        // Workers open theirs with the first reply. A missing privilege must show now.
        let _checked = datagram::open_reply_socket(true)?;
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let opened = socket::listen_transparent(loopback, workers.len());
            let (address, sockets) = match opened {
                // A node without IPv6 has no IPv6 virtual IPs either.
                Err(_) if loopback.is_ipv6() => continue,
                opened => opened?,
            };
            listeners.tcp.push(address);
            for (worker, listener) in workers.iter().zip(sockets) {
                let (registry, context) = (Arc::clone(&registry), Arc::clone(&context));
                let local = Arc::clone(&worker.local);
                worker.spawn(tcp::serve(listener, registry, context, local, CancellationToken::new()));
            }
            for _ in 0..UDP_LANES {
                let (address, sockets) = datagram::receive_transparent(loopback, workers.len())?;
                listeners.udp.push(address);
                for (worker, socket) in workers.iter().zip(sockets) {
                    let (registry, context) = (Arc::clone(&registry), Arc::clone(&context));
                    let poller = Arc::clone(&worker.local.poller);
                    worker.spawn(udp::serve(socket, registry, context, poller));
                }
            }
        }
        let intercepted = Intercepted::new(Interception::new(listeners, context.udp_idle_timeout), registry);
        Ok(Self {
            _workers: workers,
            context,
            node_config,
            service_cidrs,
            node_context: NodeContext::default(),
            snapshot: Arc::new(Snapshot::empty()),
            services: HashMap::new(),
            outside: BTreeMap::new(),
            refused: BTreeMap::new(),
            health_checked: BTreeSet::new(),
            frontends: SharedMap::default(),
            ownership: Ownership::default(),
            conflicts: BTreeMap::new(),
            dns_listeners: local_dns::listeners(),
            changed_dns_listeners: BTreeSet::new(),
            served_by_dns: BTreeMap::new(),
            intercepted,
            address_warnings: RateLimit::default(),
            started: SystemTime::now(),
        })
    }

    /// Ranges that belong to Services only: those of the flags and of ServiceCIDR objects. A range that
    /// contains a Node or its pods would cut them off, so it is left out: each of its cluster IPs is made
    /// local separately.
    pub(crate) fn ranges(&self) -> Vec<IpNetwork> {
        let overlaps = |a: &IpNetwork, b: &IpNetwork| a.contains(b.network()) || b.contains(a.network());
        let nodes = &self.snapshot.nodes;
        let is_free = |range: &IpNetwork| {
            let mut addresses = nodes
                .values()
                .flat_map(|node| &node.addresses)
                .chain(&self.node_context.known_addresses.node);
            let mut pods = nodes.values().flat_map(|node| &node.pod_cidrs);
            !addresses.any(|ip| range.contains(*ip)) && !pods.any(|pods| overlaps(range, pods))
        };
        let added = self.snapshot.service_cidrs.iter();
        let added = added.filter(|range| !self.service_cidrs.contains(range) && is_free(range));
        self.service_cidrs.iter().chain(added).copied().collect()
    }

    /// Updates the frontends to the snapshot. A partial snapshot changes nothing.
    pub(crate) fn apply(&mut self, snapshot: &Arc<Snapshot>) {
        self.context.metrics.discovery_problems.set(count(snapshot.problems.len()));
        if !snapshot.synced {
            return;
        }
        let started = Instant::now();
        self.context.metrics.kube_proxy.queued();
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let node_context = self.node_config.node_context(snapshot, &self.node_context);
        let mut changed: Vec<_> = snapshot.changed_since(&before).cloned().collect();
        if node_context != self.node_context {
            self.context.known_addresses.store(Arc::new(node_context.known_addresses.clone()));
            self.node_context = node_context;
            let is_same = |entry: &Arc<ServiceEntry>| {
                before.service(&entry.service.name).is_some_and(|old| Arc::ptr_eq(old, entry))
            };
            let others = snapshot.services().filter(|entry| is_same(entry));
            changed.extend(others.filter(|entry| plan::depends_on_node_context(entry)).cloned());
        }
        let mut affected = BTreeSet::new();
        for name in snapshot.removed_since(&before) {
            affected.extend(self.end(name));
        }
        affected.extend(self.changed_by_dns());
        let happened = self.apply_changes(changed, affected, &before);
        self.intercept();
        self.record_sync(snapshot, started, &happened);
    }

    /// Applies the changes. Returns the trigger times of the applied changes. `affected` are Services to
    /// which an address may have passed.
    fn apply_changes(
        &mut self,
        changed: Vec<Arc<ServiceEntry>>,
        mut affected: BTreeSet<NamespacedName>,
        before: &Snapshot,
    ) -> Vec<SystemTime> {
        let mut happened = Vec::new();
        let mut plans: Vec<_> = Vec::with_capacity(changed.len());
        for entry in changed {
            let mut plan = plan(&entry, &self.node_context);
            let claims = std::mem::take(&mut plan.claims);
            affected.extend(self.ownership.set(&entry.service.name, &entry.precedence, claims));
            happened.extend(self.count_changes(&entry, before));
            plans.push((entry, plan));
        }
        for (entry, _) in &plans {
            affected.remove(&entry.service.name);
        }
        for entry in affected.iter().filter_map(|name| self.snapshot.service(name)) {
            plans.push((Arc::clone(entry), plan(entry, &self.node_context)));
        }
        // Close first what a Service no longer serves: its address may have passed to another one.
        for (entry, plan) in &mut plans {
            let name = &entry.service.name;
            let is_served = |key: &FrontendKey| {
                self.ownership.owner(key) == Some(name) && !self.dns_listeners.contains(&key.address)
            };
            plan.frontends.retain(|key, _| is_served(key));
            plan.refused.retain(is_served);
            self.log_conflicts(name);
            self.log_served_by_dns(name);
            self.retain(name, plan);
            self.index_rules(entry, plan);
            let is_proxied = plan::is_proxied(entry, &self.node_context);
            let ports = if is_proxied { &entry.service.ports[..] } else { &[] };
            let without_local = &self.context.metrics.kube_proxy.without_local;
            self.services.entry(name.clone()).or_default().update(ports, plan, without_local);
        }
        for (entry, plan) in plans {
            for (key, planned) in plan.frontends {
                self.ensure(key, &entry.service.name, planned);
            }
        }
        happened
    }

    /// Counts a changed Service as kube-proxy does. Returns the trigger times of its changed endpoints.
    fn count_changes(&self, entry: &ServiceEntry, before: &Snapshot) -> Vec<SystemTime> {
        let counts = &self.context.metrics.kube_proxy;
        counts.service_changes.inc();
        let slices: Vec<_> = entry.slices_since(before.service(&entry.service.name)).collect();
        counts.endpoint_changes.inc_by(slices.len() as u64);
        slices.iter().filter_map(|slice| slice.triggered_at).collect()
    }

    /// Logs once which claims of a Service another one owns.
    fn log_conflicts(&mut self, service: &NamespacedName) {
        let known = self.conflicts.remove(service).unwrap_or_default();
        let lost = self.ownership.lost(service).map(|(key, owner)| {
            let message =
                format!("cannot serve {key} of Service {service}: Service {owner} has it, and comes first");
            (key, message)
        });
        let lost: BTreeMap<FrontendKey, String> = lost.collect();
        for (_, message) in lost.iter().filter(|(key, message)| known.get(key) != Some(message)) {
            error!("{message}");
        }
        if !lost.is_empty() {
            self.conflicts.insert(service.clone(), lost);
        }
    }

    /// Services of addresses on which portolan-dns has started or stopped listening.
    fn changed_by_dns(&mut self) -> BTreeSet<NamespacedName> {
        let moved = std::mem::take(&mut self.changed_dns_listeners).into_iter();
        let keys = moved.flat_map(|address| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| FrontendKey { protocol, address })
        });
        keys.filter_map(|key| self.ownership.owner(&key).cloned()).collect()
    }

    /// Logs once which frontends of a Service portolan-dns serves.
    fn log_served_by_dns(&mut self, service: &NamespacedName) {
        let known = self.served_by_dns.remove(service).unwrap_or_default();
        let owned = self.ownership.owned(service);
        let left: BTreeSet<_> = owned.filter(|key| self.dns_listeners.contains(&key.address)).collect();
        for key in left.difference(&known) {
            info!(frontend = %key, %service, "left to portolan-dns, which listens there on this node");
        }
        if !left.is_empty() {
            self.served_by_dns.insert(service.clone(), left);
        }
    }

    /// Removes a Service. Returns the Services that get its addresses.
    fn end(&mut self, name: &NamespacedName) -> BTreeSet<NamespacedName> {
        self.retain(name, &Plan::default());
        self.outside.remove(name);
        self.refused.remove(name);
        self.health_checked.remove(name);
        self.conflicts.remove(name);
        self.served_by_dns.remove(name);
        if let Some(mut carried) = self.services.remove(name) {
            carried.set_without_local(Vec::new(), &self.context.metrics.kube_proxy.without_local);
        }
        self.ownership.set(name, &Precedence::default(), BTreeMap::new())
    }

    /// Indexes rare settings of a Service, so that finding them does not mean to iterate over all.
    fn index_rules(&mut self, entry: &ServiceEntry, plan: &Plan) {
        let name = &entry.service.name;
        let mut outside = plan::cluster_ips(entry, &self.node_context);
        outside.retain(|ip| !self.service_cidrs.iter().any(|range| range.contains(*ip)));
        if outside.is_empty() {
            self.outside.remove(name);
        } else {
            self.outside.insert(name.clone(), outside);
        }
        if plan.refused.is_empty() {
            self.refused.remove(name);
        } else {
            self.refused.insert(name.clone(), plan.refused.clone());
        }
        if entry.service.rules.health_check_node_port.is_some() {
            self.health_checked.insert(name.clone());
        } else {
            self.health_checked.remove(name);
        }
    }

    /// Updates the kernel's rules to the open frontends.
    fn intercept(&mut self) {
        let refused = self.refused.values().flatten().copied().collect();
        let singles = self.outside().into_iter().map(IpNetwork::from);
        let addresses = LocalAddresses {
            virtual_ips: self.ranges().into_iter().chain(singles).collect(),
            node: self.node_context.known_addresses.node.clone(),
        };
        self.intercepted.apply(&self.frontends, &refused, addresses, &self.context.metrics);
    }

    fn record_sync(&self, snapshot: &Snapshot, started: Instant, happened: &[SystemTime]) {
        let metrics = &self.context.metrics;
        metrics.snapshot_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.count_frontends();
        if self.intercepted.failure().is_none() {
            metrics.kube_proxy.synced(started.elapsed());
            // Like kube-proxy: changes before the start of the process do not count.
            let recent = happened.iter().filter(|happened| **happened >= self.started);
            recent.for_each(|happened| metrics.kube_proxy.programmed(*happened));
        }
    }

    /// Retries what the kernel rejected. Returns false if there was nothing to retry.
    pub(crate) fn retry_failures(&mut self) -> bool {
        self.intercepted.check(&self.context.metrics);
        if self.intercepted.failure().is_none() {
            return false;
        }
        self.intercept();
        true
    }

    /// Whether the rules are for a node with bridges.
    pub(crate) fn is_bridged(&self) -> bool {
        self.intercepted.is_bridged()
    }

    /// Adds the rules for bridges.
    pub(crate) fn add_bridged(&mut self) {
        self.intercepted.add_bridged(&self.context.metrics);
    }

    /// Refuses new connections. The rules of open connections stay.
    pub(crate) fn stop_intercepting(&mut self) {
        self.intercepted.stop();
    }

    /// Closes every frontend.
    pub(crate) fn close_all(&mut self) {
        self.frontends.values().for_each(|frontend| frontend.close());
        self.frontends = SharedMap::default();
    }

    /// Removes the rules from the kernel. Returns false if they belong to another proxy.
    pub(crate) fn remove_rules(&mut self) -> bool {
        self.intercepted.remove()
    }

    /// Closes the frontends of the Service that `plan` does not have, or has for another port.
    fn retain(&mut self, service: &NamespacedName, plan: &Plan) {
        let Some(carried) = self.services.get_mut(service) else { return };
        let stays = |key: &FrontendKey| {
            let port = self.frontends.get(key).map(|frontend| &frontend.traffic.port.name);
            plan.frontends.get(key).map(|planned| &planned.port) == port
        };
        let closed: Vec<_> = carried.keys.extract_if(.., |key| !stays(key)).collect();
        for key in closed {
            if let Some(frontend) = self.frontends.remove(&key) {
                frontend.close();
                info!(frontend = %key, %service, "closed");
            }
        }
    }

    /// Opens a frontend or updates its endpoints.
    fn ensure(&mut self, key: FrontendKey, service: &NamespacedName, planned: Planned) {
        match self.frontends.get(&key) {
            Some(frontend) => frontend.set_endpoints(planned.selection),
            None => self.open(key, service, planned),
        }
    }

    fn open(&mut self, key: FrontendKey, service: &NamespacedName, planned: Planned) {
        let carried = self.services.entry(service.clone()).or_default();
        let port = ServicePort { service: service.clone(), name: planned.port, protocol: key.protocol };
        let traffic = carried.traffic(port, &self.context.metrics);
        info!(frontend = %key, %service, "serving");
        carried.keys.push(key);
        self.frontends.insert(key, Arc::new(Frontend::new(key, traffic, planned.selection)));
    }

    fn count_frontends(&self) {
        self.context.metrics.frontends.set(count(self.frontends.len()));
        let conflicts = self.conflicts.values().map(BTreeMap::len).sum();
        self.context.metrics.frontend_failures.set(count(conflicts));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
