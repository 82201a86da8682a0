//! Merges what the sources say into one picture. The only writer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use attachment::Attachment;
use ipnetwork::IpNetwork;

use crate::allocate;
use crate::derive;
use crate::event::{Event, Object, Origin, Sourced};
use crate::model::{EndpointSlice, FamilyPolicy, Namespace, NamespacedName, Node, Pod, Service, ServiceKind};
use crate::problem::{Location, Problem, Severity};
use crate::snapshot::{ServiceEntry, Snapshot, SourceState};

/// The state of every origin, and the snapshot made of it.
#[derive(Debug)]
pub struct Index {
    service_cidrs: Vec<IpNetwork>,
    origins: BTreeMap<Origin, OriginState>,
    sources: BTreeMap<&'static str, SourceState>,
    published: Arc<Snapshot>,
}

#[derive(Debug, Default)]
struct OriginState {
    objects: Vec<Sourced>,
    problems: Vec<Problem>,
}

/// The origins laid side by side: every object once, under its name.
#[derive(Default)]
struct Merged<'a> {
    services: BTreeMap<NamespacedName, (&'a Arc<Service>, &'a Location)>,
    /// Names in the order of their origins: who comes first keeps a contested address.
    service_order: Vec<NamespacedName>,
    slices: BTreeMap<NamespacedName, (&'a Arc<EndpointSlice>, &'a Location)>,
    pods: BTreeMap<NamespacedName, (&'a Arc<Pod>, &'a Location)>,
    nodes: BTreeMap<Arc<str>, (&'a Arc<Node>, &'a Location)>,
    namespaces: BTreeMap<Arc<str>, (&'a Arc<Namespace>, &'a Location)>,
    attachments: Vec<&'a Arc<Attachment>>,
    problems: Vec<Problem>,
}

impl Index {
    /// An empty index that assigns virtual IPs from these ranges.
    pub fn new(service_cidrs: Vec<IpNetwork>) -> Self {
        Self {
            service_cidrs,
            origins: BTreeMap::new(),
            sources: BTreeMap::new(),
            published: Arc::new(Snapshot::empty()),
        }
    }

    /// Waits for this source before calling the state synced.
    pub fn expect_source(&mut self, name: &'static str) {
        self.sources.entry(name).or_default();
    }

    /// Takes in one event. Nothing is visible before [`Index::publish`].
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Replace { origin, objects, problems } => {
                if objects.as_ref().is_some_and(Vec::is_empty) && problems.is_empty() {
                    self.origins.remove(&origin);
                    return;
                }
                let state = self.origins.entry(origin).or_default();
                state.problems = problems;
                if let Some(objects) = objects {
                    state.objects = objects;
                }
            }
            Event::Source { name, problem } => self.sources.entry(name).or_default().problem = problem,
            Event::Synced(name) => self.sources.entry(name).or_default().synced = true,
        }
    }

    fn is_synced(&self) -> bool {
        self.sources.values().all(|source| source.synced)
    }

    /// Makes a snapshot of the present state. Returns whether it differs from the one before.
    pub fn publish(&mut self) -> bool {
        let next = self.build();
        let changed = next.synced != self.published.synced
            || next.problems != self.published.problems
            || next.sources != self.published.sources
            || next.namespaces != self.published.namespaces
            || next.nodes != self.published.nodes
            || next.local_pods != self.published.local_pods
            || !same_entries(&next.services, &self.published.services);
        if changed {
            self.published = Arc::new(next);
        }
        changed
    }

    /// The snapshot made last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    fn build(&self) -> Snapshot {
        let mut merged = self.merge();
        let addresses = self.cluster_ips(&mut merged);
        let nodes =
            merged.nodes.iter().map(|(name, (node, _))| (Arc::clone(name), Arc::clone(node))).collect();
        let services = self.entries(&merged, addresses, &nodes);
        let by_cluster_ip = services
            .values()
            .flat_map(|entry| entry.cluster_ips.iter().map(|ip| (*ip, entry.service.name.clone())))
            .collect();
        let mut problems = merged.problems.clone();
        problems.extend(self.sources.values().filter_map(|source| source.problem.clone()));
        Snapshot {
            generation: self.published.generation + 1,
            synced: self.is_synced(),
            changed_at: SystemTime::now(),
            namespaces: namespaces(&merged),
            nodes,
            local_pods: merged.attachments.iter().flat_map(|a| a.ips.iter().copied()).collect(),
            problems,
            sources: self.source_states(),
            services,
            by_cluster_ip,
        }
    }

    fn merge(&self) -> Merged<'_> {
        let mut merged = Merged::default();
        for state in self.origins.values() {
            merged.problems.extend(state.problems.iter().cloned());
            for Sourced { object, location } in &state.objects {
                merged.insert(object, location);
            }
        }
        merged
    }

    /// Every Service's virtual IPs: those it asks for, first come first served by origin; then assigned ones.
    fn cluster_ips(&self, merged: &mut Merged<'_>) -> HashMap<NamespacedName, Vec<IpAddr>> {
        let mut owners: HashMap<IpAddr, NamespacedName> = HashMap::new();
        let mut addresses: HashMap<NamespacedName, Vec<IpAddr>> = HashMap::new();
        let mut wanted = BTreeMap::new();
        let mut problems = Vec::new();
        for name in &merged.service_order {
            let (service, location) = merged.services[name];
            let ServiceKind::ClusterIp { requested, families: FamilyPolicy(families) } = &service.kind else {
                continue;
            };
            if requested.is_empty() {
                wanted.insert(name.clone(), families.clone());
            }
            for &address in requested {
                if let Some(owner) = owners.get(&address) {
                    let other = merged.services[owner].1;
                    problems.push(service_problem(name, location, Severity::Error, format!(
                        "spec.clusterIP: {address} already belongs to Service {owner} ({other}); give it another address, or leave the field out to have one assigned",
                    )));
                    continue;
                }
                if !self.service_cidrs.iter().any(|cidr| cidr.contains(address)) {
                    problems.push(service_problem(name, location, Severity::Warning, format!(
                        "spec.clusterIP: {address} is outside the service ranges ({}); nothing routes it to the proxy unless you do",
                        join(&self.service_cidrs),
                    )));
                }
                owners.insert(address, name.clone());
                addresses.entry(name.clone()).or_default().push(address);
            }
        }
        let taken: HashSet<IpAddr> = owners.into_keys().collect();
        let (assigned, unassigned) = allocate::assign(&wanted, &taken, &self.service_cidrs);
        for (name, family) in unassigned {
            let (_, location) = merged.services[&name];
            problems.push(service_problem(&name, location, Severity::Error, format!(
                "no free {family} address is left in the service ranges ({}); widen --service-cidr or set spec.clusterIP",
                join(&self.service_cidrs),
            )));
        }
        addresses.extend(assigned);
        merged.problems.extend(problems);
        addresses
    }

    fn entries(
        &self,
        merged: &Merged<'_>,
        mut addresses: HashMap<NamespacedName, Vec<IpAddr>>,
        nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    ) -> HashMap<NamespacedName, Arc<ServiceEntry>> {
        let mut slices: HashMap<&NamespacedName, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for (slice, _) in merged.slices.values() {
            slices.entry(&slice.service).or_default().push(Arc::clone(slice));
        }
        let pods = derive::addressed_pods(
            merged.pods.values().map(|(pod, _)| *pod),
            merged.attachments.iter().copied(),
        );
        let mut entries = HashMap::with_capacity(merged.services.len());
        for (name, (service, _)) in &merged.services {
            let slices = slices.remove(name).unwrap_or_else(|| derived(service, &pods, nodes));
            let cluster_ips = addresses.remove(name).unwrap_or_default();
            let entry = ServiceEntry { service: Arc::clone(service), cluster_ips, slices };
            entries.insert(name.clone(), self.reuse(entry));
        }
        entries
    }

    /// The published entry if it says the same, so that readers can tell by pointer what changed.
    fn reuse(&self, entry: ServiceEntry) -> Arc<ServiceEntry> {
        match self.published.service(&entry.service.name) {
            Some(old) if **old == entry => Arc::clone(old),
            _ => Arc::new(entry),
        }
    }

    fn source_states(&self) -> BTreeMap<&'static str, SourceState> {
        let mut states = self.sources.clone();
        for origin in self.origins.keys() {
            if let Some(state) = states.get_mut(origin.source()) {
                state.files += 1;
            }
        }
        states
    }
}

impl<'a> Merged<'a> {
    fn insert(&mut self, object: &'a Object, location: &'a Location) {
        match object {
            Object::Service(service) => {
                if insert_first(
                    &mut self.services,
                    &service.name,
                    (service, location),
                    &mut self.problems,
                    "Service",
                ) {
                    self.service_order.push(service.name.clone());
                }
            }
            Object::EndpointSlice(slice) => {
                let kind = "EndpointSlice";
                insert_first(&mut self.slices, &slice.name, (slice, location), &mut self.problems, kind);
            }
            Object::Pod(pod) => {
                insert_first(&mut self.pods, &pod.name, (pod, location), &mut self.problems, "Pod");
            }
            Object::Node(node) => {
                insert_first(&mut self.nodes, &node.name, (node, location), &mut self.problems, "Node");
            }
            // Saying twice that a namespace exists is no conflict.
            Object::Namespace(namespace) => {
                self.namespaces.entry(Arc::clone(&namespace.name)).or_insert((namespace, location));
            }
            Object::Attachment(attachment) => self.attachments.push(attachment),
        }
    }
}

/// Inserts unless the name is taken, which is reported at the later definition. Returns whether it went in.
fn insert_first<'a, K, V>(
    map: &mut BTreeMap<K, (&'a Arc<V>, &'a Location)>,
    name: &K,
    value: (&'a Arc<V>, &'a Location),
    problems: &mut Vec<Problem>,
    kind: &str,
) -> bool
where
    K: Ord + Clone + std::fmt::Display,
{
    if let Some((_, first)) = map.get(name) {
        problems.push(Problem {
            location: value.1.clone(),
            severity: Severity::Error,
            object: Some(format!("{kind} {name}")),
            message: format!("is already defined at {first}; this definition is ignored"),
        });
        return false;
    }
    map.insert(name.clone(), value);
    true
}

fn derived(
    service: &Service,
    pods: &HashMap<Arc<str>, Vec<Pod>>,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
) -> Vec<Arc<EndpointSlice>> {
    // Without a selector nobody is meant; with an empty one everybody would be.
    if service.selector.is_empty() {
        return Vec::new();
    }
    let pods = pods.get(&service.name.namespace).map_or(&[][..], Vec::as_slice);
    derive::slices(service, pods, nodes).into_iter().map(Arc::new).collect()
}

fn namespaces(merged: &Merged<'_>) -> HashSet<Arc<str>> {
    let named = merged.services.keys().chain(merged.slices.keys()).chain(merged.pods.keys());
    named.map(|name| &name.namespace).chain(merged.namespaces.keys()).map(Arc::clone).collect()
}

fn same_entries(
    a: &HashMap<NamespacedName, Arc<ServiceEntry>>,
    b: &HashMap<NamespacedName, Arc<ServiceEntry>>,
) -> bool {
    a.len() == b.len() && a.iter().all(|(name, x)| b.get(name).is_some_and(|y| Arc::ptr_eq(x, y)))
}

fn service_problem(
    name: &NamespacedName,
    location: &Location,
    severity: Severity,
    message: String,
) -> Problem {
    Problem { location: location.clone(), severity, object: Some(format!("Service {name}")), message }
}

fn join(cidrs: &[IpNetwork]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
