//! Merges the sources into one state. The only writer.
//!
//! The cost of a change is proportional to what it affects: each event marks names, and [`Index::publish`]
//! recomputes these only. The result is the same as a complete recomputation, which a test verifies.

mod addresses;
mod claims;
mod namespace_references;
mod origins;
mod pods;
mod slices_by_service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use ipnetwork::IpNetwork;

use crate::derive;
use crate::event::{Event, Object, Origin, Sourced};
use crate::model::{EndpointSlice, Namespace, NamespacedName, Node, Pod, Service, ServiceCidr};
use crate::problem::Problem;
use crate::shared_map::SharedMap;
use crate::snapshot::{Precedence, ServiceEntry, Snapshot};
use addresses::Addresses;
use claims::{Claim, Claims, Rank};
use namespace_references::NamespaceReferences;
use origins::{Named, Origins};
use pods::Pods;
use slices_by_service::SlicesByService;

/// The state of every origin, and the current snapshot.
#[derive(Debug)]
pub struct Index {
    /// The ranges of the flags.
    configured_cidrs: Vec<IpNetwork>,
    /// The ranges of the flags and of ServiceCIDR objects.
    service_cidrs: Arc<Vec<IpNetwork>>,
    /// Whether to derive slices for Services without any. On a cluster a controller does that.
    derives_slices: bool,
    /// Whether snapshots contain the address of every pod.
    keeps_pod_addresses: bool,
    origins: Origins,
    services: Claims<NamespacedName, Service>,
    slices: Claims<NamespacedName, EndpointSlice>,
    pod_manifests: Claims<NamespacedName, Pod>,
    nodes: Claims<Arc<str>, Node>,
    namespaces: Claims<Arc<str>, Namespace>,
    cidr_objects: Claims<Arc<str>, ServiceCidr>,
    pods: Pods,
    addresses: Addresses,
    slices_by_service: SlicesByService,
    namespace_references: NamespaceReferences,
    touched: Touched,
    published: Arc<Snapshot>,
}

/// What may have changed since the last snapshot.
#[derive(Debug, Default)]
struct Touched {
    services: BTreeSet<NamespacedName>,
    slices: BTreeSet<NamespacedName>,
    nodes: bool,
    attachments: bool,
    service_cidrs: bool,
}

impl Index {
    /// Returns an empty index that assigns virtual IPs from these ranges and derives missing EndpointSlices.
    pub fn new(service_cidrs: Vec<IpNetwork>) -> Self {
        let cidrs = Arc::new(service_cidrs.clone());
        Self {
            service_cidrs: Arc::clone(&cidrs),
            configured_cidrs: service_cidrs,
            derives_slices: true,
            keeps_pod_addresses: false,
            origins: Origins::default(),
            services: Claims::new("Service"),
            slices: Claims::new("EndpointSlice"),
            pod_manifests: Claims::new("Pod"),
            nodes: Claims::new("Node"),
            namespaces: Claims::new("Namespace"),
            cidr_objects: Claims::new("ServiceCIDR"),
            pods: Pods::default(),
            addresses: Addresses::default(),
            slices_by_service: SlicesByService::default(),
            namespace_references: NamespaceReferences::default(),
            touched: Touched::default(),
            published: Arc::new(Snapshot { service_cidrs: cidrs, ..Snapshot::empty() }),
        }
    }

    /// Uses EndpointSlices as they are and derives none: on a cluster a controller writes them.
    pub fn disable_derived_slices(&mut self) {
        self.derives_slices = false;
    }

    /// Includes the address of every pod in the snapshots.
    pub fn keep_pod_addresses(&mut self) {
        self.keeps_pod_addresses = true;
    }

    /// Requires this source before the state is synced.
    pub fn expect_source(&mut self, name: &'static str) {
        self.origins.source(name);
    }

    /// Applies one event. It becomes visible with [`Index::publish`].
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Replace { origin, objects, problems } => {
                let origin = Arc::new(origin);
                let mut names = self.origins.take(&origin);
                if let Some(objects) = objects {
                    self.withdraw(&origin, names);
                    let claims = objects.into_iter().enumerate();
                    names = claims
                        .map(|(place, object)| self.claim((Arc::clone(&origin), place), object))
                        .collect();
                }
                self.origins.put(origin, names, problems);
            }
            Event::Source { name, failure } => self.origins.set_failure(name, failure),
            Event::Synced(name) => self.origins.source(name).synced = true,
        }
    }

    /// Makes a snapshot of the current state. Returns whether it differs from the previous one.
    pub fn publish(&mut self) -> bool {
        let before = Arc::clone(&self.published);
        let touched = std::mem::take(&mut self.touched);
        let nodes = if touched.nodes { Arc::new(self.effective_nodes()) } else { Arc::clone(&before.nodes) };
        let mut stale = self.stale_services(touched.services, touched.slices, nodes != before.nodes);
        if touched.service_cidrs {
            stale.extend(self.apply_service_cidrs());
        }
        let services = self.rebuild(stale, &nodes);
        let (local_pods, pod_namespaces) = if touched.attachments {
            (Arc::new(self.pods.attached_addresses()), Arc::new(self.pods.attached_namespaces()))
        } else {
            (Arc::clone(&before.local_pods), Arc::clone(&before.pod_namespaces))
        };
        let pods = if self.keeps_pod_addresses && self.pods.have_changed() {
            Arc::new(self.pods.namespaces())
        } else {
            Arc::clone(&before.pods)
        };
        let sources = self.origins.sources();
        let next = Snapshot {
            generation: before.generation + 1,
            synced: sources.values().all(|source| source.synced),
            changed_at: SystemTime::now(),
            namespaces: self.namespace_references.namespaces(),
            nodes,
            service_cidrs: Arc::clone(&self.service_cidrs),
            local_pods,
            pod_namespaces,
            pods,
            problems: self.problems(),
            sources: sources.clone(),
            services: services.as_ref().unwrap_or(&before.services).clone(),
        };
        let changed = services.is_some()
            || next.synced != before.synced
            || next.problems != before.problems
            || next.sources != before.sources
            || next.namespaces != before.namespaces
            || next.nodes != before.nodes
            || next.service_cidrs != before.service_cidrs
            || next.local_pods != before.local_pods
            || next.pod_namespaces != before.pod_namespaces
            || next.pods != before.pods;
        if changed {
            self.published = Arc::new(next);
        }
        changed
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    fn claim(&mut self, rank: Rank, Sourced { object, location }: Sourced) -> Named {
        match object {
            Object::Service(value) => {
                let name = value.name.clone();
                self.namespace_references.add(&name.namespace);
                self.touched.services.insert(name.clone());
                self.services.insert(name.clone(), Claim { rank, value, location });
                Named::Service(name)
            }
            Object::EndpointSlice(value) => {
                let name = value.name.clone();
                self.namespace_references.add(&name.namespace);
                self.touched.slices.insert(name.clone());
                self.slices.insert(name.clone(), Claim { rank, value, location });
                Named::EndpointSlice(name)
            }
            Object::Pod(value) => {
                let name = value.name.clone();
                self.namespace_references.add(&name.namespace);
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
                self.namespace_references.add(&name);
                self.namespaces.insert(Arc::clone(&name), Claim { rank, value, location });
                Named::Namespace(name)
            }
            Object::ServiceCidr(value) => {
                let name = Arc::clone(&value.name);
                self.touched.service_cidrs = true;
                self.cidr_objects.insert(Arc::clone(&name), Claim { rank, value, location });
                Named::ServiceCidr(name)
            }
            Object::Attachment(value) => {
                let name = derive::pod_name(&value);
                self.namespace_references.add(&name.namespace);
                self.touched.attachments = true;
                self.pods.attach(rank.0, &value);
                Named::Attachment(name)
            }
        }
    }

    fn withdraw(&mut self, origin: &Arc<Origin>, names: Vec<Named>) {
        for (place, named) in names.into_iter().enumerate() {
            let rank = (Arc::clone(origin), place);
            match named {
                Named::Service(name) => {
                    self.services.remove(&name, &rank);
                    self.namespace_references.remove(&name.namespace);
                    self.touched.services.insert(name);
                }
                Named::EndpointSlice(name) => {
                    self.slices.remove(&name, &rank);
                    self.namespace_references.remove(&name.namespace);
                    self.touched.slices.insert(name);
                }
                Named::Pod(name) => {
                    self.pod_manifests.remove(&name, &rank);
                    self.namespace_references.remove(&name.namespace);
                    self.pods.touch(name);
                }
                Named::Node(name) => {
                    self.nodes.remove(&name, &rank);
                    self.touched.nodes = true;
                }
                Named::Namespace(name) => {
                    self.namespaces.remove(&name, &rank);
                    self.namespace_references.remove(&name);
                }
                Named::ServiceCidr(name) => {
                    self.cidr_objects.remove(&name, &rank);
                    self.touched.service_cidrs = true;
                }
                Named::Attachment(name) => {
                    self.namespace_references.remove(&name.namespace);
                    self.pods.detach(origin, name);
                    self.touched.attachments = true;
                }
            }
        }
    }

    /// Applies a change of ServiceCIDR objects. Returns the Services whose addresses changed.
    fn apply_service_cidrs(&mut self) -> Vec<NamespacedName> {
        let mut cidrs = self.configured_cidrs.clone();
        for cidr in self.cidr_objects.iter().flat_map(|(_, claim)| &claim.value.cidrs) {
            if !cidrs.contains(cidr) {
                cidrs.push(*cidr);
            }
        }
        if cidrs == *self.service_cidrs {
            return Vec::new();
        }
        self.service_cidrs = Arc::new(cidrs);
        self.addresses.recompute(&self.services, &self.service_cidrs)
    }

    /// Services whose entry may change.
    fn stale_services(
        &mut self,
        services: BTreeSet<NamespacedName>,
        slices: BTreeSet<NamespacedName>,
        nodes_changed: bool,
    ) -> BTreeSet<NamespacedName> {
        let mut stale = services;
        stale.extend(self.addresses.update(&stale, &self.services, &self.published, &self.service_cidrs));
        for slice in slices {
            let owner = self.slices.get(&slice).map(|claim| claim.value.service.clone());
            stale.extend(self.slices_by_service.update(slice, owner));
        }
        for pod in self.pods.join(&self.pod_manifests) {
            let selecting =
                self.selecting(&pod.name.namespace).filter(|service| derive::selects(service, &pod));
            stale.extend(selecting.map(|service| service.name.clone()));
        }
        if nodes_changed {
            let derived =
                self.services.iter().filter(|(name, _)| self.slices_by_service.slices_of(name).is_none());
            stale.extend(derived.map(|(name, _)| name.clone()));
        }
        stale
    }

    /// Services of a namespace that may select pods.
    fn selecting(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Service> {
        let first = NamespacedName::new(Arc::clone(namespace), "");
        let all = self.services.range(first..).take_while(move |(name, _)| name.namespace == *namespace);
        all.filter(|(name, _)| self.slices_by_service.slices_of(name).is_none())
            .map(|(_, claim)| &*claim.value)
    }

    /// Returns all entries, with those of the stale Services recomputed. `None` if no entry differs from
    /// before.
    fn rebuild(
        &self,
        stale: BTreeSet<NamespacedName>,
        nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    ) -> Option<SharedMap<NamespacedName, ServiceEntry>> {
        let before = &self.published.services;
        let news = stale.into_iter().filter_map(|name| {
            let entry = self.services.get(&name).map(|claim| self.entry(claim, nodes));
            // Readers detect changes by pointer.
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

    fn entry(&self, claim: &Claim<Service>, nodes: &BTreeMap<Arc<str>, Arc<Node>>) -> ServiceEntry {
        let service = &claim.value;
        let slices = match self.slices_by_service.slices_of(&service.name) {
            Some(names) => {
                let claims = names.iter().filter_map(|name| self.slices.get(name));
                claims.map(|claim| Arc::clone(&claim.value)).collect()
            }
            // A Service without a selector selects no pods; an empty selector would match every pod.
            None if service.selector.is_empty() || !self.derives_slices => Vec::new(),
            None => {
                let pods = self.pods.of(&service.name.namespace);
                derive::slices(service, pods, nodes).into_iter().map(Arc::new).collect()
            }
        };
        let cluster_ips = self.addresses.of(&service.name).to_vec();
        let precedence = Precedence(Some(claim.rank.clone()));
        ServiceEntry { service: Arc::clone(service), cluster_ips, slices, precedence }
    }

    fn effective_nodes(&self) -> BTreeMap<Arc<str>, Arc<Node>> {
        self.nodes.iter().map(|(name, claim)| (Arc::clone(name), Arc::clone(&claim.value))).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.origins.problems().cloned().collect();
        problems.extend(self.services.conflicts());
        problems.extend(self.slices.conflicts());
        problems.extend(self.pod_manifests.conflicts());
        problems.extend(self.nodes.conflicts());
        problems.extend(self.cidr_objects.conflicts());
        // Two definitions of a namespace are no conflict.
        problems.extend(self.addresses.problems.iter().cloned());
        problems.extend(self.origins.failures().cloned());
        problems
    }
}

#[cfg(test)]
mod tests;
