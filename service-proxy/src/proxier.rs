//! Turns a snapshot into open sockets: opens, changes and closes frontends until they match.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use discovery::model::{IpFamily, NamespacedName, Protocol};
use discovery::{ServiceEntry, Snapshot};
use ipnetwork::IpNetwork;
use tracing::{error, info};

use crate::endpoints::EndpointSet;
use crate::frontend::{Frontend, FrontendKey};
use crate::source::Locality;
use crate::worker::{Context, Worker};
use crate::{socket, tcp, udp};

/// Owns every frontend.
#[derive(Debug)]
pub(crate) struct Proxier {
    workers: Vec<Worker>,
    context: Arc<Context>,
    /// Ranges of this node's pods.
    pod_cidrs: Vec<IpNetwork>,
    /// Entries as last applied, to pass over those that did not change.
    entries: HashMap<NamespacedName, Arc<ServiceEntry>>,
    frontends: HashMap<FrontendKey, Arc<Frontend>>,
    failures: BTreeMap<FrontendKey, Failure>,
}

/// A frontend that could not be opened.
#[derive(Debug)]
struct Failure {
    service: NamespacedName,
    message: String,
}

impl Proxier {
    pub(crate) fn new(workers: Vec<Worker>, context: Arc<Context>, pod_cidrs: Vec<IpNetwork>) -> Self {
        Self {
            workers,
            context,
            pod_cidrs,
            entries: HashMap::new(),
            frontends: HashMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Makes the frontends match the snapshot. A partial snapshot changes nothing.
    pub(crate) fn apply(&mut self, snapshot: &Snapshot) {
        self.context.metrics.discovery_problems.set(count(snapshot.problems.len()));
        if !snapshot.synced {
            return;
        }
        let gone: Vec<_> =
            self.entries.keys().filter(|name| snapshot.service(name).is_none()).cloned().collect();
        for name in gone {
            if let Some(entry) = self.entries.remove(&name) {
                self.retain(&entry, &BTreeMap::new());
            }
        }
        // What a Service no longer serves goes first: its address may have passed to another one.
        let changed: Vec<_> = snapshot.services().filter(|entry| self.is_news(entry)).cloned().collect();
        let wanted: Vec<_> = changed.iter().map(|entry| wanted(entry)).collect();
        for (entry, wanted) in changed.iter().zip(&wanted) {
            if let Some(old) = self.entries.insert(entry.service.name.clone(), Arc::clone(entry)) {
                self.retain(&old, wanted);
            }
        }
        for (entry, wanted) in changed.iter().zip(wanted) {
            for (key, endpoints) in wanted {
                self.ensure(key, &entry.service.name, endpoints);
            }
        }
        if let Some(locality) = &self.context.locality {
            locality.store(Arc::new(self.locality(snapshot)));
        }
        self.context.metrics.snapshot_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.count_frontends();
    }

    fn locality(&self, snapshot: &Snapshot) -> Locality {
        let node_ranges = snapshot.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
        Locality {
            local_pods: snapshot.local_pods.clone(),
            local_ranges: self.pod_cidrs.clone(),
            cluster_ranges: node_ranges.collect(),
        }
    }

    /// Tries again what could not be opened.
    pub(crate) fn retry_failures(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        for (key, failure) in failures {
            let entry = self.entries.get(&failure.service);
            if let Some(endpoints) = entry.and_then(|entry| wanted(entry).remove(&key)) {
                self.open(key, &failure.service, endpoints, Some(failure.message));
            }
        }
        self.count_frontends();
    }

    /// What cannot be opened now, one line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.values().map(|failure| failure.message.clone()).collect()
    }

    /// How many frontends are open.
    pub(crate) fn open_count(&self) -> usize {
        self.frontends.len()
    }

    /// Stops accepting everywhere.
    pub(crate) fn close_all(&mut self) {
        for (_, frontend) in self.frontends.drain() {
            frontend.close();
        }
    }

    fn is_news(&self, entry: &Arc<ServiceEntry>) -> bool {
        self.entries.get(&entry.service.name).is_none_or(|old| !Arc::ptr_eq(old, entry))
    }

    /// Closes what `old` had and `wanted` has not.
    fn retain(&mut self, old: &ServiceEntry, wanted: &BTreeMap<FrontendKey, EndpointSet>) {
        for key in keys(old).filter(|key| !wanted.contains_key(key)) {
            if self.failures.get(&key).is_some_and(|failure| failure.service == old.service.name) {
                self.failures.remove(&key);
            }
            if self.frontends.get(&key).is_some_and(|frontend| frontend.service == old.service.name)
                && let Some(frontend) = self.frontends.remove(&key)
            {
                frontend.close();
                info!(frontend = %key, service = %old.service.name, "closed");
            }
        }
    }

    fn ensure(&mut self, key: FrontendKey, service: &NamespacedName, endpoints: EndpointSet) {
        match self.frontends.get(&key) {
            Some(frontend) => frontend.set_endpoints(endpoints),
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
        endpoints: EndpointSet,
        earlier_failure: Option<String>,
    ) {
        let frontend = Arc::new(Frontend::new(key, service.clone(), endpoints));
        match self.listen(&frontend) {
            Ok(()) => {
                info!(frontend = %key, %service, "serving");
                self.frontends.insert(key, frontend);
            }
            Err(cause) => {
                frontend.close();
                let message = format!("cannot serve {key} of Service {service}: {}", explain(&cause));
                // Said once, not with every retry.
                if earlier_failure.as_ref() != Some(&message) {
                    error!("{message}");
                }
                self.failures.insert(key, Failure { service: service.clone(), message });
            }
        }
    }

    fn listen(&self, frontend: &Arc<Frontend>) -> io::Result<()> {
        let FrontendKey { protocol, address } = frontend.key;
        if protocol == Protocol::Udp {
            let socket = socket::bind_udp(address)?;
            let worker = &self.workers[usize::from(address.port()) % self.workers.len()];
            worker.spawn(udp::serve(socket, Arc::clone(frontend), Arc::clone(&self.context)));
        } else {
            let listeners = socket::listen_tcp(address, self.workers.len())?;
            for (worker, listener) in self.workers.iter().zip(listeners) {
                let (frontend, context) = (Arc::clone(frontend), Arc::clone(&self.context));
                worker.spawn(tcp::serve(listener, frontend, context, Arc::clone(&worker.local)));
            }
        }
        Ok(())
    }

    fn count_frontends(&self) {
        self.context.metrics.frontends.set(count(self.frontends.len()));
        self.context.metrics.frontend_failures.set(count(self.failures.len()));
    }
}

/// Where a Service would listen, whether or not it has endpoints.
fn keys(entry: &ServiceEntry) -> impl Iterator<Item = FrontendKey> {
    let ports = entry.service.ports.iter().filter(|port| port.protocol != Protocol::Sctp);
    ports.flat_map(|port| {
        let key = |ip: &_| FrontendKey { protocol: port.protocol, address: SocketAddr::new(*ip, port.port) };
        entry.cluster_ips.iter().map(key)
    })
}

/// Where a Service has to listen, and the endpoints behind. Without endpoints there is nothing to listen for: the
/// kernel then refuses, which is what Kubernetes asks for.
fn wanted(entry: &ServiceEntry) -> BTreeMap<FrontendKey, EndpointSet> {
    let mut wanted = BTreeMap::new();
    for port in entry.service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        for ip in &entry.cluster_ips {
            let endpoints = EndpointSet::of(entry, port, IpFamily::of(*ip));
            if !endpoints.is_empty() {
                let address = SocketAddr::new(*ip, port.port);
                wanted.insert(FrontendKey { protocol: port.protocol, address }, endpoints);
            }
        }
    }
    wanted
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
