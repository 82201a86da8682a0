//! Merges what the sources say into one picture. The only writer.
//!
//! A change costs what it touches: each event notes the names it is about, and [`Index::publish`] looks at these alone.
//! What it finds is the same as if everything were looked at anew, which a test holds it to.

mod addresses;
mod claims;
mod grouping;
mod pods;
mod population;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use ipnetwork::IpNetwork;

use crate::derive;
use crate::event::{Event, Object, Origin, Outage, Sourced};
use crate::model::{EndpointSlice, Namespace, NamespacedName, Node, Pod, Service};
use crate::problem::Problem;
use crate::snapshot::{ServiceEntry, Snapshot, SourceState};
use addresses::Addresses;
use claims::{Claim, Claims, Rank};
use grouping::Grouping;
use pods::Pods;
use population::Population;

/// The state of every origin, and the snapshot made of it.
#[derive(Debug)]
pub struct Index {
    service_cidrs: Vec<IpNetwork>,
    /// Whether Services without slices get some from their selector. A cluster has a controller for that.
    derives_slices: bool,
    /// Whether snapshots have every pod's address.
    keeps_pod_addresses: bool,
    origins: BTreeMap<Arc<Origin>, OriginState>,
    sources: BTreeMap<&'static str, SourceState>,
    services: Claims<NamespacedName, Service>,
    slices: Claims<NamespacedName, EndpointSlice>,
    pod_manifests: Claims<NamespacedName, Pod>,
    nodes: Claims<Arc<str>, Node>,
    namespaces: Claims<Arc<str>, Namespace>,
    pods: Pods,
    addresses: Addresses,
    grouping: Grouping,
    population: Population,
    touched: Touched,
    published: Arc<Snapshot>,
}

/// What one origin has said.
#[derive(Debug, Default)]
struct OriginState {
    names: Vec<Named>,
    problems: Vec<Problem>,
}

/// An object of an origin, by kind and name.
#[derive(Debug)]
enum Named {
    Service(NamespacedName),
    EndpointSlice(NamespacedName),
    Pod(NamespacedName),
    Node(Arc<str>),
    Namespace(Arc<str>),
    Attachment(NamespacedName),
}

/// What may have changed since the last snapshot.
#[derive(Debug, Default)]
struct Touched {
    services: BTreeSet<NamespacedName>,
    slices: BTreeSet<NamespacedName>,
    nodes: bool,
    attachments: bool,
}

impl Index {
    /// An empty index that assigns virtual IPs from these ranges, and derives EndpointSlices where there are none.
    pub fn new(service_cidrs: Vec<IpNetwork>) -> Self {
        Self {
            service_cidrs,
            derives_slices: true,
            keeps_pod_addresses: false,
            origins: BTreeMap::new(),
            sources: BTreeMap::new(),
            services: Claims::new("Service"),
            slices: Claims::new("EndpointSlice"),
            pod_manifests: Claims::new("Pod"),
            nodes: Claims::new("Node"),
            namespaces: Claims::new("Namespace"),
            pods: Pods::default(),
            addresses: Addresses::default(),
            grouping: Grouping::default(),
            population: Population::default(),
            touched: Touched::default(),
            published: Arc::new(Snapshot::empty()),
        }
    }

    /// Takes EndpointSlices as they are, and those only: on a cluster a controller writes them.
    pub fn leave_slices_to_others(&mut self) {
        self.derives_slices = false;
    }

    /// Lists the address of every pod in its snapshots.
    pub fn keep_pod_addresses(&mut self) {
        self.keeps_pod_addresses = true;
    }

    /// Waits for this source before calling the state synced.
    pub fn expect_source(&mut self, name: &'static str) {
        self.sources.entry(name).or_default();
    }

    /// Takes in one event. Nothing is visible before [`Index::publish`].
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Replace { origin, objects, problems } => {
                let origin = Arc::new(origin);
                let mut names = self.origins.remove(&origin).unwrap_or_default().names;
                if let Some(objects) = objects {
                    self.withdraw(&origin, names);
                    let claims = objects.into_iter().enumerate();
                    names =
                        claims.map(|(place, said)| self.claim((Arc::clone(&origin), place), said)).collect();
                }
                if !names.is_empty() || !problems.is_empty() {
                    self.origins.insert(origin, OriginState { names, problems });
                }
            }
            Event::Source { name, outage } => {
                let known = &mut self.sources.entry(name).or_default().outage;
                // An outage that goes on began when it began.
                let since = known.as_ref().map(|outage| outage.since);
                *known = outage.map(|new| Outage { since: since.unwrap_or(new.since), ..new });
            }
            Event::Synced(name) => self.sources.entry(name).or_default().synced = true,
        }
    }

    /// Makes a snapshot of the present state. Returns whether it differs from the one before.
    pub fn publish(&mut self) -> bool {
        let before = Arc::clone(&self.published);
        let touched = std::mem::take(&mut self.touched);
        let nodes = if touched.nodes { self.nodes_in_force() } else { before.nodes.clone() };
        let stale = self.stale_services(touched.services, touched.slices, nodes != before.nodes);
        let services = self.rebuild(stale, &nodes);
        let local_pods =
            if touched.attachments { self.pods.attached_addresses() } else { before.local_pods.clone() };
        let pod_namespaces =
            if touched.attachments { self.pods.attached_namespaces() } else { before.pod_namespaces.clone() };
        let pods = if self.keeps_pod_addresses && self.pods.have_changed() {
            Arc::new(self.pods.namespaces())
        } else {
            Arc::clone(&before.pods)
        };
        let next = Snapshot {
            generation: before.generation + 1,
            synced: self.sources.values().all(|source| source.synced),
            changed_at: SystemTime::now(),
            namespaces: self.population.namespaces(),
            nodes,
            local_pods,
            pod_namespaces,
            pods,
            problems: self.problems(),
            sources: self.source_states(),
            services: services.clone().unwrap_or_default(),
            by_cluster_ip: Arc::clone(&self.addresses.owners),
        };
        let changed = services.is_some()
            || next.synced != before.synced
            || next.problems != before.problems
            || next.sources != before.sources
            || next.namespaces != before.namespaces
            || next.nodes != before.nodes
            || next.local_pods != before.local_pods
            || next.pod_namespaces != before.pod_namespaces
            || next.pods != before.pods;
        if changed {
            let services = services.unwrap_or_else(|| before.services.clone());
            self.published = Arc::new(Snapshot { services, ..next });
        }
        changed
    }

    /// The snapshot made last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    fn claim(&mut self, rank: Rank, Sourced { object, location }: Sourced) -> Named {
        match object {
            Object::Service(value) => {
                let name = value.name.clone();
                self.population.add(&name.namespace);
                self.touched.services.insert(name.clone());
                self.services.insert(name.clone(), Claim { rank, value, location });
                Named::Service(name)
            }
            Object::EndpointSlice(value) => {
                let name = value.name.clone();
                self.population.add(&name.namespace);
                self.touched.slices.insert(name.clone());
                self.slices.insert(name.clone(), Claim { rank, value, location });
                Named::EndpointSlice(name)
            }
            Object::Pod(value) => {
                let name = value.name.clone();
                self.population.add(&name.namespace);
                self.pods.touch(name.clone());
                self.pod_manifests.insert(name.clone(), Claim { rank, value, location });
                Named::Pod(name)
            }
            Object::Node(value) => {
                let name = Arc::clone(&value.name);
                self.touched.nodes = true;
                self.nodes.insert(Arc::clone(&name), Claim { rank, value, location });
                Named::Node(name)
            }
            Object::Namespace(value) => {
                let name = Arc::clone(&value.name);
                self.population.add(&name);
                self.namespaces.insert(Arc::clone(&name), Claim { rank, value, location });
                Named::Namespace(name)
            }
            Object::Attachment(value) => {
                self.touched.attachments = true;
                self.pods.attach(rank.0, &value);
                Named::Attachment(derive::pod_name(&value))
            }
        }
    }

    fn withdraw(&mut self, origin: &Arc<Origin>, names: Vec<Named>) {
        for (place, named) in names.into_iter().enumerate() {
            let rank = (Arc::clone(origin), place);
            match named {
                Named::Service(name) => {
                    self.services.remove(&name, &rank);
                    self.population.remove(&name.namespace);
                    self.touched.services.insert(name);
                }
                Named::EndpointSlice(name) => {
                    self.slices.remove(&name, &rank);
                    self.population.remove(&name.namespace);
                    self.touched.slices.insert(name);
                }
                Named::Pod(name) => {
                    self.pod_manifests.remove(&name, &rank);
                    self.population.remove(&name.namespace);
                    self.pods.touch(name);
                }
                Named::Node(name) => {
                    self.nodes.remove(&name, &rank);
                    self.touched.nodes = true;
                }
                Named::Namespace(name) => {
                    self.namespaces.remove(&name, &rank);
                    self.population.remove(&name);
                }
                Named::Attachment(name) => {
                    self.pods.detach(origin, name);
                    self.touched.attachments = true;
                }
            }
        }
    }

    /// Services whose entry may have to change.
    fn stale_services(
        &mut self,
        services: BTreeSet<NamespacedName>,
        slices: BTreeSet<NamespacedName>,
        nodes_changed: bool,
    ) -> BTreeSet<NamespacedName> {
        let mut stale = services;
        // A contested address has a problem, which names places in files: it is settled anew whenever a Service moves.
        let is_contested = !stale.is_empty() && !self.addresses.problems.is_empty();
        let moving: Vec<_> =
            stale.iter().filter(|name| self.asks_for_other_addresses(name)).cloned().collect();
        if is_contested || !moving.iter().all(|name| self.grant(name)) {
            let settled = Addresses::settle(&self.services, &self.service_cidrs);
            stale.extend(settled.moved(&self.addresses).cloned());
            self.addresses = settled;
        }
        for slice in slices {
            let owner = self.slices.get(&slice).map(|claim| claim.value.service.clone());
            stale.extend(self.grouping.note(slice, owner));
        }
        for pod in self.pods.join(&self.pod_manifests) {
            let selecting =
                self.selecting(&pod.name.namespace).filter(|service| derive::selects(service, &pod));
            stale.extend(selecting.map(|service| service.name.clone()));
        }
        if nodes_changed {
            let derived = self.services.iter().filter(|(name, _)| self.grouping.slices_of(name).is_none());
            stale.extend(derived.map(|(name, _)| name.clone()));
        }
        stale
    }

    /// Gives a new Service its addresses, if that can be done without looking at all the others.
    fn grant(&mut self, name: &NamespacedName) -> bool {
        let is_new = self.published.service(name).is_none();
        let kind = self.services.get(name).map(|claim| &claim.value.kind);
        is_new && kind.is_some_and(|kind| self.addresses.grant(name, kind, &self.service_cidrs))
    }

    fn asks_for_other_addresses(&self, name: &NamespacedName) -> bool {
        let now = self.services.get(name).map(|claim| &claim.value.kind);
        now != self.published.service(name).map(|entry| &entry.service.kind)
    }

    /// Services of a namespace that may select pods.
    fn selecting(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Service> {
        let first = NamespacedName::new(Arc::clone(namespace), "");
        let all = self.services.range(first..).take_while(move |(name, _)| name.namespace == *namespace);
        all.filter(|(name, _)| self.grouping.slices_of(name).is_none()).map(|(_, claim)| &*claim.value)
    }

    /// Every entry, those of the stale Services made anew; `None` if none of them says anything else than before.
    fn rebuild(
        &self,
        stale: BTreeSet<NamespacedName>,
        nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    ) -> Option<HashMap<NamespacedName, Arc<ServiceEntry>>> {
        let before = &self.published.services;
        let news = stale.into_iter().filter_map(|name| {
            let entry = self.services.get(&name).map(|claim| self.entry(&claim.value, nodes));
            // Readers tell by pointer what changed.
            (before.get(&name).map(|old| &**old) != entry.as_ref()).then_some((name, entry))
        });
        let news: Vec<_> = news.collect();
        if news.is_empty() {
            return None;
        }
        let mut services = before.clone();
        for (name, entry) in news {
            match entry {
                Some(entry) => services.insert(name, Arc::new(entry)),
                None => services.remove(&name),
            };
        }
        Some(services)
    }

    fn entry(&self, service: &Arc<Service>, nodes: &BTreeMap<Arc<str>, Arc<Node>>) -> ServiceEntry {
        let slices = match self.grouping.slices_of(&service.name) {
            Some(names) => {
                let claims = names.iter().filter_map(|name| self.slices.get(name));
                claims.map(|claim| Arc::clone(&claim.value)).collect()
            }
            // Without a selector nobody is meant; with an empty one everybody would be.
            None if service.selector.is_empty() || !self.derives_slices => Vec::new(),
            None => {
                let pods = self.pods.of(&service.name.namespace);
                derive::slices(service, pods, nodes).into_iter().map(Arc::new).collect()
            }
        };
        let cluster_ips = self.addresses.of(&service.name).to_vec();
        ServiceEntry { service: Arc::clone(service), cluster_ips, slices }
    }

    fn nodes_in_force(&self) -> BTreeMap<Arc<str>, Arc<Node>> {
        self.nodes.iter().map(|(name, claim)| (Arc::clone(name), Arc::clone(&claim.value))).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.origins.values().flat_map(|state| state.problems.iter().cloned()).collect();
        problems.extend(self.services.conflicts());
        problems.extend(self.slices.conflicts());
        problems.extend(self.pod_manifests.conflicts());
        problems.extend(self.nodes.conflicts());
        // Saying twice that a namespace exists is no conflict.
        problems.extend(self.addresses.problems.iter().cloned());
        problems.extend(
            self.sources
                .values()
                .filter_map(|source| source.outage.as_ref())
                .map(|outage| outage.problem.clone()),
        );
        problems
    }

    fn source_states(&self) -> BTreeMap<&'static str, SourceState> {
        let mut states = self.sources.clone();
        for origin in self.origins.keys() {
            if let Some(state) = states.get_mut(origin.source()) {
                state.size += 1;
            }
        }
        states
    }
}

#[cfg(test)]
mod tests;
