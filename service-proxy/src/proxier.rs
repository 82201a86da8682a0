//! Turns a snapshot into frontends: opens, changes and closes them until they match.

mod carried;
mod interception;
mod outlook;
pub(crate) mod ownership;

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

use self::carried::Carried;
use self::interception::{Intercepted, LocalAddresses};
use self::ownership::Ownership;
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::interception::{Interception, Listeners};
use crate::kernel::{datagram, local_dns, socket};
use crate::plan::{self, Plan, Planned, plan};
use crate::service_port::ServicePort;
use crate::surroundings::{Place, Surroundings};
use crate::tcp::{self, Registry};
use crate::udp;
use crate::worker::{Context, Worker};

/// Lanes of UDP sockets, in each family: what fills the queue of one leaves those of the others alone.
const UDP_LANES: usize = 8;

/// Owns every frontend.
#[derive(Debug)]
pub(crate) struct Proxier {
    /// They end when they are dropped.
    _workers: Vec<Worker>,
    context: Arc<Context>,
    place: Place,
    service_cidrs: Vec<IpNetwork>,
    surroundings: Surroundings,
    /// What is in force.
    snapshot: Arc<Snapshot>,
    services: HashMap<NamespacedName, Carried>,
    /// Cluster IPs outside the service ranges of the flags, of the Services that have any.
    outside: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
    /// Addresses and ports of Services without endpoints that the kernel would not refuse by itself.
    refused: BTreeMap<NamespacedName, BTreeSet<FrontendKey>>,
    /// Services that load balancers in front ask about.
    health_checked: BTreeSet<NamespacedName>,
    frontends: SharedMap<FrontendKey, Frontend>,
    ownership: Ownership,
    /// What Services claim and others have, with what is said about it.
    conflicts: BTreeMap<NamespacedName, BTreeMap<FrontendKey, String>>,
    /// Where portolan-dns listens on this node, which answers there itself.
    dns_listeners: BTreeSet<SocketAddr>,
    /// Where that has changed since the last state was applied.
    dns_moved: BTreeSet<SocketAddr>,
    /// What Services have and portolan-dns answers for them.
    left_to_dns: BTreeMap<NamespacedName, BTreeSet<FrontendKey>>,
    intercepted: Intercepted,
    address_warnings: RateLimit,
    started: SystemTime,
}

impl Proxier {
    /// Opens the sockets that connections and datagrams are handed to. They end with their workers.
    ///
    /// # Errors
    /// When a socket cannot be opened, which needs CAP_NET_ADMIN and CAP_NET_RAW.
    pub(crate) fn new(
        workers: Vec<Worker>,
        context: Arc<Context>,
        place: Place,
        service_cidrs: Vec<IpNetwork>,
    ) -> io::Result<Self> {
        let registry: Arc<Registry> = Arc::default();
        let mut listeners = Listeners::default();
        // Workers open theirs with the first reply. A missing privilege is to show now.
        drop(datagram::open_reply_socket(true)?);
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let opened = socket::listen_for_others(loopback, workers.len());
            let (address, sockets) = match opened {
                // A node without IPv6 has no virtual IPs of that family either.
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
            place,
            service_cidrs,
            surroundings: Surroundings::default(),
            snapshot: Arc::new(Snapshot::empty()),
            services: HashMap::new(),
            outside: BTreeMap::new(),
            refused: BTreeMap::new(),
            health_checked: BTreeSet::new(),
            frontends: SharedMap::default(),
            ownership: Ownership::default(),
            conflicts: BTreeMap::new(),
            dns_listeners: local_dns::listeners(),
            dns_moved: BTreeSet::new(),
            left_to_dns: BTreeMap::new(),
            intercepted,
            address_warnings: RateLimit::default(),
            started: SystemTime::now(),
        })
    }

    /// Ranges that belong to Services alone: those of the flags, and those of ServiceCIDR objects. One of
    /// these that a Node or its pods are in would cut them off: each cluster IP in it is local by itself.
    pub(crate) fn ranges(&self) -> Vec<IpNetwork> {
        let overlaps = |a: &IpNetwork, b: &IpNetwork| a.contains(b.network()) || b.contains(a.network());
        let nodes = &self.snapshot.nodes;
        let is_free = |range: &IpNetwork| {
            let mut addresses =
                nodes.values().flat_map(|node| &node.addresses).chain(&self.surroundings.locality.node);
            let mut pods = nodes.values().flat_map(|node| &node.pod_cidrs);
            !addresses.any(|ip| range.contains(*ip)) && !pods.any(|pods| overlaps(range, pods))
        };
        let added = self.snapshot.service_cidrs.iter();
        let added = added.filter(|range| !self.service_cidrs.contains(range) && is_free(range));
        self.service_cidrs.iter().chain(added).copied().collect()
    }

    /// Makes the frontends match the snapshot. A partial snapshot changes nothing.
    pub(crate) fn apply(&mut self, snapshot: &Arc<Snapshot>) {
        self.context.metrics.discovery_problems.set(count(snapshot.problems.len()));
        if !snapshot.synced {
            return;
        }
        let started = Instant::now();
        self.context.metrics.kube_proxy.queued();
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let surroundings = self.place.look_around(snapshot, &self.surroundings);
        let mut changed: Vec<_> = snapshot.changed_since(&before).cloned().collect();
        if surroundings != self.surroundings {
            self.context.locality.store(Arc::new(surroundings.locality.clone()));
            self.surroundings = surroundings;
            let is_same = |entry: &Arc<ServiceEntry>| {
                before.service(&entry.service.name).is_some_and(|old| Arc::ptr_eq(old, entry))
            };
            let others = snapshot.services().filter(|entry| is_same(entry));
            changed.extend(others.filter(|entry| plan::depends_on_surroundings(entry)).cloned());
        }
        let mut affected = BTreeSet::new();
        for name in snapshot.removed_since(&before) {
            affected.extend(self.end(name));
        }
        affected.extend(self.moved_to_or_from_dns());
        let happened = self.put_into_force(changed, affected, &before);
        self.intercept();
        self.note(snapshot, started, &happened);
    }

    /// Returns when that happened which is now in force. `affected` are Services that an address has passed
    /// to, or may have.
    fn put_into_force(
        &mut self,
        changed: Vec<Arc<ServiceEntry>>,
        mut affected: BTreeSet<NamespacedName>,
        before: &Snapshot,
    ) -> Vec<SystemTime> {
        let mut happened = Vec::new();
        let mut plans: Vec<_> = Vec::with_capacity(changed.len());
        for entry in changed {
            let mut plan = plan(&entry, &self.surroundings);
            let claims = std::mem::take(&mut plan.claims);
            affected.extend(self.ownership.set(&entry.service.name, &entry.precedence, claims));
            happened.extend(self.count_changes(&entry, before));
            plans.push((entry, plan));
        }
        for (entry, _) in &plans {
            affected.remove(&entry.service.name);
        }
        for entry in affected.iter().filter_map(|name| self.snapshot.service(name)) {
            plans.push((Arc::clone(entry), plan(entry, &self.surroundings)));
        }
        // What a Service no longer serves goes first: its address may have passed to another one.
        for (entry, plan) in &mut plans {
            let name = &entry.service.name;
            let is_served = |key: &FrontendKey| {
                self.ownership.owner(key) == Some(name) && !self.dns_listeners.contains(&key.address)
            };
            plan.frontends.retain(|key, _| is_served(key));
            plan.refused.retain(is_served);
            self.note_conflicts(name);
            self.note_left_to_dns(name);
            self.retain(name, plan);
            self.note_rules(entry, plan);
            let is_carried = plan::is_carried(entry, &self.surroundings);
            let ports = if is_carried { &entry.service.ports[..] } else { &[] };
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

    /// Counts a changed Service as kube-proxy does, and returns when that happened to its endpoints which is
    /// news.
    fn count_changes(&self, entry: &ServiceEntry, before: &Snapshot) -> Vec<SystemTime> {
        let counts = &self.context.metrics.kube_proxy;
        counts.service_changes.inc();
        let slices: Vec<_> = entry.slices_since(before.service(&entry.service.name)).collect();
        counts.endpoint_changes.inc_by(slices.len() as u64);
        slices.iter().filter_map(|slice| slice.triggered_at).collect()
    }

    /// Says what a Service claims and another one has, once.
    fn note_conflicts(&mut self, service: &NamespacedName) {
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

    /// Services of addresses at which portolan-dns listens since a moment ago, or does not any more.
    fn moved_to_or_from_dns(&mut self) -> BTreeSet<NamespacedName> {
        let moved = std::mem::take(&mut self.dns_moved).into_iter();
        let keys = moved.flat_map(|address| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| FrontendKey { protocol, address })
        });
        keys.filter_map(|key| self.ownership.owner(&key).cloned()).collect()
    }

    /// Says what of a Service portolan-dns answers in its place, once.
    fn note_left_to_dns(&mut self, service: &NamespacedName) {
        let known = self.left_to_dns.remove(service).unwrap_or_default();
        let owned = self.ownership.owned(service);
        let left: BTreeSet<_> = owned.filter(|key| self.dns_listeners.contains(&key.address)).collect();
        for key in left.difference(&known) {
            info!(frontend = %key, %service, "left to portolan-dns, which listens there on this node");
        }
        if !left.is_empty() {
            self.left_to_dns.insert(service.clone(), left);
        }
    }

    /// A Service is no more. Returns those that get what it had.
    fn end(&mut self, name: &NamespacedName) -> BTreeSet<NamespacedName> {
        self.retain(name, &Plan::default());
        self.outside.remove(name);
        self.refused.remove(name);
        self.health_checked.remove(name);
        self.conflicts.remove(name);
        self.left_to_dns.remove(name);
        if let Some(mut carried) = self.services.remove(name) {
            carried.set_without_local(Vec::new(), &self.context.metrics.kube_proxy.without_local);
        }
        self.ownership.set(name, &Precedence::default(), BTreeMap::new())
    }

    /// Notes what few Services ask for, so that finding those does not mean to look at all.
    fn note_rules(&mut self, entry: &ServiceEntry, plan: &Plan) {
        let name = &entry.service.name;
        let mut outside = plan::cluster_ips(entry, &self.surroundings);
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

    /// Makes the rules in the kernel match what is open.
    fn intercept(&mut self) {
        let refused = self.refused.values().flatten().copied().collect();
        let singles = self.outside().into_iter().map(IpNetwork::from);
        let addresses = LocalAddresses {
            virtual_ips: self.ranges().into_iter().chain(singles).collect(),
            node: self.surroundings.locality.node.clone(),
        };
        self.intercepted.follow(&self.frontends, &refused, addresses, &self.context.metrics);
    }

    fn note(&self, snapshot: &Snapshot, started: Instant, happened: &[SystemTime]) {
        let metrics = &self.context.metrics;
        metrics.snapshot_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.count_frontends();
        if self.intercepted.failure().is_none() {
            metrics.kube_proxy.synced(started.elapsed());
            // As kube-proxy: what happened before it started says nothing about it.
            let recent = happened.iter().filter(|happened| **happened >= self.started);
            recent.for_each(|happened| metrics.kube_proxy.programmed(*happened));
        }
    }

    /// Tries again what the kernel did not take. False if there was nothing to try.
    pub(crate) fn retry_failures(&mut self) -> bool {
        self.intercepted.check(&self.context.metrics);
        if self.intercepted.failure().is_none() {
            return false;
        }
        self.intercept();
        true
    }

    /// Whether the rules are written for a node with bridges.
    pub(crate) fn is_bridged(&self) -> bool {
        self.intercepted.is_bridged()
    }

    /// There is a bridge on the node.
    pub(crate) fn add_bridged(&mut self) {
        self.intercepted.add_bridged(&self.context.metrics);
    }

    /// New connections are refused from now on; the rule that open ones need stays.
    pub(crate) fn stop_intercepting(&mut self) {
        self.intercepted.stop();
    }

    /// Closes every frontend.
    pub(crate) fn close_all(&mut self) {
        self.frontends.values().for_each(|frontend| frontend.close());
        self.frontends = SharedMap::default();
    }

    /// Takes the rules out of the kernel; false if they are another proxy's by now.
    pub(crate) fn forget(&mut self) -> bool {
        self.intercepted.remove()
    }

    /// Closes what the Service has and `plan` has not, or has for another of its ports.
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

    /// Serves what the Service has: its endpoints may have changed, or it is not open yet.
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
