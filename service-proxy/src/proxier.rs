//! Turns a snapshot into open sockets: opens, changes and closes frontends until they match.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use discovery::model::{NamespacedName, Protocol};
use discovery::{ServiceEntry, Snapshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::backend::endpoints::Selection;
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::catcher::Catcher;
use crate::kernel::socket;
use crate::pages::health_check;
use crate::plan::{self, plan};
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
    /// Entries as last applied, to pass over those that did not change.
    entries: HashMap<NamespacedName, Arc<ServiceEntry>>,
    frontends: HashMap<FrontendKey, Arc<Frontend>>,
    /// Which of them each Service has.
    keys: HashMap<NamespacedName, Vec<FrontendKey>>,
    failures: BTreeMap<FrontendKey, Failure>,
    registry: Arc<Registry>,
    catcher: Catcher,
    catch_failure: Option<String>,
    /// A frontend was opened or closed since the kernel was told.
    untold: bool,
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
            entries: HashMap::new(),
            frontends: HashMap::new(),
            keys: HashMap::new(),
            failures: BTreeMap::new(),
            registry,
            catcher,
            catch_failure: None,
            // An empty first state is told too: it takes over from the proxy before.
            untold: true,
        })
    }

    /// Makes the frontends match the snapshot. A partial snapshot changes nothing.
    pub(crate) fn apply(&mut self, snapshot: &Snapshot) {
        self.context.metrics.discovery_problems.set(count(snapshot.problems.len()));
        if !snapshot.synced {
            return;
        }
        let surroundings = self.place.look_around(snapshot);
        let moved = surroundings != self.surroundings;
        if moved {
            self.context.locality.store(Arc::new(surroundings.locality.clone()));
            self.surroundings = surroundings;
        }
        let gone: Vec<_> =
            self.entries.keys().filter(|name| snapshot.service(name).is_none()).cloned().collect();
        for name in gone {
            if self.entries.remove(&name).is_some() {
                self.retain(&name, &BTreeMap::new());
            }
        }
        // What a Service no longer serves goes first: its address may have passed to another one.
        let is_news = |entry: &&Arc<ServiceEntry>| {
            self.is_news(entry) || (moved && plan::depends_on_surroundings(entry))
        };
        let changed: Vec<_> = snapshot.services().filter(is_news).cloned().collect();
        let plans: Vec<_> = changed.iter().map(|entry| plan(entry, &self.surroundings)).collect();
        for (entry, plan) in changed.iter().zip(&plans) {
            self.entries.insert(entry.service.name.clone(), Arc::clone(entry));
            self.retain(&entry.service.name, plan);
        }
        for (entry, plan) in changed.iter().zip(plans) {
            for (key, selection) in plan {
                self.ensure(key, &entry.service.name, selection);
            }
        }
        self.catch();
        self.context.metrics.snapshot_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.count_frontends();
    }

    /// Addresses that have to be local for all this to be reached, those of the node itself left out.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        let wanted = self.entries.values().flat_map(|entry| plan::addresses(entry, &self.surroundings));
        wanted.filter(|address| !self.surroundings.locality.node.contains(address)).collect()
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
            let entry = self.entries.get(&failure.service);
            let endpoints = entry.and_then(|entry| plan(entry, &self.surroundings).remove(&key));
            match endpoints {
                Some(_) if self.frontends.contains_key(&key) => {
                    self.failures.insert(key, failure);
                }
                Some(endpoints) => self.open(key, &failure.service, endpoints, Some(failure.message)),
                None => {}
            }
        }
        self.catch();
        self.count_frontends();
        true
    }

    /// What cannot be opened now, one line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failures = self.failures.values().map(|failure| failure.message.clone());
        failures.chain(self.catch_failure.clone()).collect()
    }

    /// Everything that is open, in order.
    pub(crate) fn frontends(&self) -> Vec<Arc<Frontend>> {
        let mut frontends: Vec<_> = self.frontends.values().cloned().collect();
        frontends.sort_by_key(|frontend| frontend.key);
        frontends
    }

    /// What load balancers in front want to be told about this node.
    pub(crate) fn health_checks(&self) -> Vec<health_check::Wanted> {
        let wanted = |entry: &Arc<ServiceEntry>| {
            let port = entry.service.rules.health_check_node_port?;
            let local = plan::local_ready(entry, &self.surroundings);
            Some(health_check::Wanted { port, service: entry.service.name.clone(), local })
        };
        self.entries.values().filter_map(wanted).collect()
    }

    /// Where node ports are open.
    pub(crate) fn node_port_addresses(&self) -> &[IpAddr] {
        &self.surroundings.node_port_addresses
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
        self.entries.get(&entry.service.name).is_none_or(|old| !Arc::ptr_eq(old, entry))
    }

    /// Closes what the Service has and `plan` has not.
    fn retain(&mut self, service: &NamespacedName, plan: &BTreeMap<FrontendKey, Selection>) {
        self.failures.retain(|key, failure| failure.service != *service || plan.contains_key(key));
        let keys = self.keys.remove(service).unwrap_or_default();
        let (kept, closed): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| plan.contains_key(key));
        for key in closed {
            if let Some(frontend) = self.frontends.remove(&key) {
                frontend.close();
                self.untold = true;
                info!(frontend = %key, %service, "closed");
            }
        }
        if !kept.is_empty() {
            self.keys.insert(service.clone(), kept);
        }
    }

    fn ensure(&mut self, key: FrontendKey, service: &NamespacedName, endpoints: Selection) {
        match self.frontends.get(&key) {
            Some(frontend) if frontend.service == *service => frontend.set_endpoints(endpoints),
            Some(other) => {
                let owner = &other.service;
                let message =
                    format!("cannot serve {key} of Service {service}: Service {owner} has it already");
                error!("{message}");
                self.failures.insert(key, Failure { service: service.clone(), message });
            }
            None => {
                let earlier = self.failures.remove(&key).map(|failure| failure.message);
                self.open(key, service, endpoints, earlier);
            }
        }
    }

    fn open(
        &mut self,
        key: FrontendKey,
        service: &NamespacedName,
        endpoints: Selection,
        earlier_failure: Option<String>,
    ) {
        match self.start(key, service, endpoints) {
            Ok(frontend) => {
                info!(frontend = %key, %service, "serving");
                self.keys.entry(service.clone()).or_default().push(key);
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
        &self,
        key: FrontendKey,
        service: &NamespacedName,
        endpoints: Selection,
    ) -> io::Result<Arc<Frontend>> {
        let FrontendKey { protocol, address } = key;
        let frontend = Arc::new(Frontend::new(key, service.clone(), endpoints));
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
        self.catch_failure = self.catcher.set(addresses).err().map(|error| {
            let message = format!("cannot catch connections (nft table inet portolan-proxy): {error}");
            error!("{message}");
            message
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
