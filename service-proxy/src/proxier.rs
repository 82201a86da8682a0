//! Turns a snapshot into open sockets: opens, changes and closes frontends until they match.

mod carried;
mod outlook;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use discovery::model::{IpFamily, NamespacedName, Protocol};
use discovery::{ServiceEntry, Snapshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::carried::Carried;
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::catcher::Catcher;
use crate::kernel::socket;
use crate::plan::{self, Plan, Planned, plan};
use crate::service_port::ServicePort;
use crate::surroundings::{Place, Surroundings};
use crate::tcp::{self, Registry};
use crate::udp;
use crate::worker::{Context, Worker};

/// Owns every frontend.
#[derive(Debug)]
pub(crate) struct Proxier {
    workers: Vec<Worker>,
    context: Arc<Context>,
    place: Place,
    surroundings: Surroundings,
    services: HashMap<NamespacedName, Carried>,
    frontends: HashMap<FrontendKey, Arc<Frontend>>,
    failures: BTreeMap<FrontendKey, Failure>,
    registry: Arc<Registry>,
    catcher: Catcher,
    catch_failure: Option<CatchFailure>,
    /// A frontend was opened or closed since the kernel was told.
    untold: bool,
    started: SystemTime,
}

/// The kernel does not take the rules.
#[derive(Debug)]
struct CatchFailure {
    since: Instant,
    message: String,
}

/// A frontend that could not be opened.
#[derive(Debug)]
struct Failure {
    service: NamespacedName,
    message: String,
}

impl Proxier {
    /// Starts the listeners that connections are handed to. They end with their workers.
    ///
    /// # Errors
    /// When a listener cannot be opened, which needs CAP_NET_ADMIN.
    pub(crate) fn new(workers: Vec<Worker>, context: Arc<Context>, place: Place) -> io::Result<Self> {
        let registry: Arc<Registry> = Arc::default();
        let mut addresses = Vec::new();
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let opened = socket::listen_for_others(loopback, workers.len());
            let (address, listeners) = match opened {
                // A node without IPv6 has no virtual IPs of that family either.
                Err(_) if loopback.is_ipv6() => continue,
                opened => opened?,
            };
            addresses.push(address);
            for (worker, listener) in workers.iter().zip(listeners) {
                let (registry, context) = (Arc::clone(&registry), Arc::clone(&context));
                let local = Arc::clone(&worker.local);
                worker.spawn(tcp::serve(listener, registry, context, local, CancellationToken::new()));
            }
        }
        let catcher = Catcher::new(addresses);
        Ok(Self {
            workers,
            context,
            place,
            surroundings: Surroundings::default(),
            services: HashMap::new(),
            frontends: HashMap::new(),
            failures: BTreeMap::new(),
            registry,
            catcher,
            catch_failure: None,
            // An empty first state is told too: it takes over from the proxy before.
            untold: true,
            started: SystemTime::now(),
        })
    }

    /// Makes the frontends match the snapshot. A partial snapshot changes nothing.
    pub(crate) fn apply(&mut self, snapshot: &Snapshot) {
        self.context.metrics.discovery_problems.set(count(snapshot.problems.len()));
        if !snapshot.synced {
            return;
        }
        let started = Instant::now();
        self.context.metrics.kube_proxy.queued();
        let surroundings = self.place.look_around(snapshot);
        let moved = surroundings != self.surroundings;
        if moved {
            self.context.locality.store(Arc::new(surroundings.locality.clone()));
            self.surroundings = surroundings;
        }
        let gone = self.services.keys().filter(|name| snapshot.service(name).is_none());
        for name in gone.cloned().collect::<Vec<_>>() {
            self.retain(&name, &Plan::default());
            self.services.remove(&name);
        }
        let is_news = |entry: &&Arc<ServiceEntry>| {
            self.is_news(entry) || (moved && plan::depends_on_surroundings(entry))
        };
        let changed: Vec<_> = snapshot.services().filter(is_news).cloned().collect();
        let happened = self.put_into_force(changed);
        self.catch();
        self.note(snapshot, started, &happened);
    }

    /// Returns when that happened which is now in force.
    fn put_into_force(&mut self, changed: Vec<Arc<ServiceEntry>>) -> Vec<SystemTime> {
        let mut happened = Vec::new();
        let plans: Vec<_> = changed.iter().map(|entry| plan(entry, &self.surroundings)).collect();
        // What a Service no longer serves goes first: its address may have passed to another one.
        for (entry, plan) in changed.iter().zip(&plans) {
            self.retain(&entry.service.name, plan);
            let counts = &self.context.metrics.kube_proxy;
            let carried = self.services.entry(entry.service.name.clone()).or_default();
            let slices = carried.update(entry, plan);
            counts.service_changes.inc();
            counts.endpoint_changes.inc_by(slices.len() as u64);
            happened.extend(slices.iter().filter_map(|slice| slice.triggered_at));
        }
        for (entry, plan) in changed.iter().zip(plans) {
            for (key, planned) in plan.frontends {
                self.ensure(key, &entry.service.name, planned);
            }
        }
        happened
    }

    fn note(&self, snapshot: &Snapshot, started: Instant, happened: &[SystemTime]) {
        let metrics = &self.context.metrics;
        metrics.snapshot_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.count_frontends();
        for policy in ["internal", "external"] {
            for family in [IpFamily::V4, IpFamily::V6] {
                let ports = self.services.values().map(|carried| carried.without_local(policy, family)).sum();
                let gauge =
                    metrics.kube_proxy.without_local.with_label_values(&[&family.to_string(), policy]);
                gauge.set(count(ports));
            }
        }
        if self.catch_failure.is_none() {
            metrics.kube_proxy.synced(started.elapsed());
            // As kube-proxy: what happened before it started says nothing about it.
            let recent = happened.iter().filter(|happened| **happened >= self.started);
            recent.for_each(|happened| metrics.kube_proxy.programmed(*happened));
        }
    }

    /// Tries again what could not be opened. False if there was nothing to try.
    pub(crate) fn retry_failures(&mut self) -> bool {
        if let Err(error) = self.catcher.check() {
            error!(%error, "cannot look after nft table inet portolan-proxy");
        }
        if self.failures.is_empty() && self.catch_failure.is_none() {
            return false;
        }
        let failures = std::mem::take(&mut self.failures);
        for (key, failure) in failures {
            let entry = self.services.get(&failure.service).and_then(|carried| carried.entry.clone());
            let planned = entry.and_then(|entry| plan(&entry, &self.surroundings).frontends.remove(&key));
            match planned {
                Some(_) if self.frontends.contains_key(&key) => {
                    self.failures.insert(key, failure);
                }
                Some(planned) => self.open(key, &failure.service, planned, Some(failure.message)),
                None => {}
            }
        }
        self.catch();
        self.count_frontends();
        true
    }

    /// New connections are refused from now on; the rule that open ones need stays.
    pub(crate) fn stop_catching(&mut self) {
        if let Err(error) = self.catcher.set(BTreeSet::new()) {
            error!(%error, "cannot empty nft table inet portolan-proxy");
        }
    }

    /// Closes every socket of a frontend.
    pub(crate) fn close_all(&mut self) {
        for (_, frontend) in self.frontends.drain() {
            frontend.close();
        }
    }

    /// Takes the rules out of the kernel.
    pub(crate) fn forget(&mut self) {
        if let Err(error) = self.catcher.remove() {
            error!(%error, "cannot delete nft table inet portolan-proxy");
        }
    }

    fn is_news(&self, entry: &Arc<ServiceEntry>) -> bool {
        let carried = self.services.get(&entry.service.name).and_then(|carried| carried.entry.as_ref());
        carried.is_none_or(|old| !Arc::ptr_eq(old, entry))
    }

    /// The Services as last applied.
    fn entries(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values().filter_map(|carried| carried.entry.as_ref())
    }

    /// Closes what the Service has and `plan` has not, or has for another of its ports.
    fn retain(&mut self, service: &NamespacedName, plan: &Plan) {
        self.failures.retain(|key, failure| failure.service != *service || plan.frontends.contains_key(key));
        let Some(carried) = self.services.get_mut(service) else { return };
        let stays = |key: &FrontendKey| {
            let port = self.frontends.get(key).map(|frontend| &frontend.traffic.port.name);
            plan.frontends.get(key).map(|planned| &planned.port) == port
        };
        let closed: Vec<_> = carried.keys.extract_if(.., |key| !stays(key)).collect();
        for key in closed {
            if let Some(frontend) = self.frontends.remove(&key) {
                frontend.close();
                self.untold = true;
                info!(frontend = %key, %service, "closed");
            }
        }
    }

    fn ensure(&mut self, key: FrontendKey, service: &NamespacedName, planned: Planned) {
        match self.frontends.get(&key) {
            Some(frontend) if frontend.service() == service => frontend.set_endpoints(planned.selection),
            Some(other) => {
                let owner = other.service();
                let message =
                    format!("cannot serve {key} of Service {service}: Service {owner} has it already");
                error!("{message}");
                self.failures.insert(key, Failure { service: service.clone(), message });
            }
            None => {
                let earlier = self.failures.remove(&key).map(|failure| failure.message);
                self.open(key, service, planned, earlier);
            }
        }
    }

    fn open(
        &mut self,
        key: FrontendKey,
        service: &NamespacedName,
        planned: Planned,
        earlier_failure: Option<String>,
    ) {
        match self.start(key, service, planned) {
            Ok(frontend) => {
                info!(frontend = %key, %service, "serving");
                self.services.entry(service.clone()).or_default().keys.push(key);
                self.frontends.insert(key, frontend);
                self.untold = true;
            }
            Err(cause) => {
                let message = format!("cannot serve {key} of Service {service}: {}", explain(&cause));
                // Said once, not with every retry.
                if earlier_failure.as_ref() != Some(&message) {
                    error!("{message}");
                }
                self.failures.insert(key, Failure { service: service.clone(), message });
            }
        }
    }

    fn start(
        &mut self,
        key: FrontendKey,
        service: &NamespacedName,
        planned: Planned,
    ) -> io::Result<Arc<Frontend>> {
        let FrontendKey { protocol, address } = key;
        let port = ServicePort { service: service.clone(), name: planned.port, protocol };
        let traffic = self.services.entry(service.clone()).or_default().traffic(port, &self.context.metrics);
        let frontend = Arc::new(Frontend::new(key, traffic, planned.selection));
        let worker = &self.workers[usize::from(address.port()) % self.workers.len()];
        if protocol == Protocol::Udp {
            let socket = socket::bind_udp(address)?;
            let (frontend, context) = (Arc::clone(&frontend), Arc::clone(&self.context));
            worker.spawn(udp::serve(socket, frontend, context, Arc::clone(&worker.local.poller)));
        } else if self.surroundings.locality.node.contains(&address.ip()) {
            // Connections are caught here too, but nobody else may take the port of the node's own address.
            let listener = socket::listen_tcp(address)?;
            let (registry, context) = (Arc::clone(&self.registry), Arc::clone(&self.context));
            let local = Arc::clone(&worker.local);
            worker.spawn(tcp::serve(listener, registry, context, local, frontend.closing()));
        }
        Ok(frontend)
    }

    /// Makes the kernel hand over the connections to what is open now, and no others.
    fn catch(&mut self) {
        if !self.untold && self.catch_failure.is_none() {
            return;
        }
        self.untold = false;
        let tcp = self.frontends.values().filter(|frontend| frontend.key.protocol == Protocol::Tcp);
        let by_address: HashMap<_, _> = tcp.map(|f| (f.key.address, Arc::clone(f))).collect();
        let addresses = by_address.keys().copied().collect();
        // A connection that is caught has to be known; one that is no longer caught may still wait to be accepted and
        // is reset, as it would be a moment later.
        self.registry.store(Arc::new(by_address));
        let since = self.catch_failure.as_ref().map_or_else(Instant::now, |failure| failure.since);
        self.catch_failure = self.catcher.set(addresses).err().map(|error| {
            let message = format!("cannot catch connections (nft table inet portolan-proxy): {error}");
            error!("{message}");
            self.context.metrics.kube_proxy.nftables_failures.inc();
            CatchFailure { since, message }
        });
    }

    fn count_frontends(&self) {
        self.context.metrics.frontends.set(count(self.frontends.len()));
        self.context.metrics.frontend_failures.set(count(self.failures.len()));
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{error}; another process listens there: find it with `ss -lntup`, or change the port")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{error}; is the address inside --service-cidr, and the family enabled on this node?")
        }
        _ => error.to_string(),
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
