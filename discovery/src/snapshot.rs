//! The immutable picture both daemons read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attachment::PortRange;
use ipnetwork::IpNetwork;

use crate::event::{Origin, Outage};
use crate::model::{
    Conditions, Endpoint, EndpointSlice, IpFamily, NamespacedName, Node, Service, ServicePort,
};
use crate::problem::Problem;
use crate::shared_map::SharedMap;

/// Everything known at one instant.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots published; 0 is the empty one before the first sync.
    pub generation: u64,
    /// Whether every source has been read once. Before that the rest is partial: nothing may be concluded
    /// from an absence, and nothing may be programmed.
    pub synced: bool,
    /// When the content last changed.
    pub changed_at: SystemTime,
    /// Every namespace that exists or has an object in it.
    pub namespaces: Arc<HashSet<Arc<str>>>,
    /// Nodes by name.
    pub nodes: Arc<BTreeMap<Arc<str>, Arc<Node>>>,
    /// Ranges of virtual IPs: those that the flags name, then those of ServiceCIDR objects.
    pub service_cidrs: Arc<Vec<IpNetwork>>,
    /// Addresses of the pods the CNI plugin has attached to this node, with the ports it has reserved in
    /// each.
    pub local_pods: Arc<HashMap<IpAddr, Option<PortRange>>>,
    /// The namespace of each of them that the runtime has named.
    pub pod_namespaces: Arc<HashMap<IpAddr, Arc<str>>>,
    /// The namespaces of the pods that have an address, of any node; several pods may have that of their
    /// node. Empty unless [`crate::Interest::pods`] asks for it.
    pub pods: Arc<HashMap<IpAddr, Vec<Arc<str>>>>,
    /// What is wrong with the input right now.
    pub problems: Vec<Problem>,
    /// How each source is doing, by name.
    pub sources: BTreeMap<&'static str, SourceState>,
    pub(crate) services: SharedMap<NamespacedName, ServiceEntry>,
}

/// How a source is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Whether it has been read once.
    pub synced: bool,
    /// How many files it has now, or objects if it is the Kubernetes API.
    pub size: usize,
    /// How many of them have an error; their last good state stays.
    pub invalid: usize,
    /// Why it cannot be followed, if so. Its last state stays applied.
    pub outage: Option<Outage>,
}

/// A Service with all that was found out about it. Entries are shared between snapshots: one that did not
/// change keeps its `Arc`.
#[derive(Debug, PartialEq)]
pub struct ServiceEntry {
    /// The Service itself.
    pub service: Arc<Service>,
    /// Its virtual IPs: the ones it asks for, else assigned ones. Empty when it has none or lost a conflict.
    pub cluster_ips: Vec<IpAddr>,
    /// Its EndpointSlices: those that name it, else derived from its selector.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Which of two Services comes first where both claim something.
    pub precedence: Precedence,
}

/// Orders Services as the index does where two define the same: by the name of the file and the place in it,
/// or by namespace and name on a cluster. It follows from the objects alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence(pub(crate) Option<(Arc<Origin>, usize)>);

impl Snapshot {
    /// The state before anything was read.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            synced: false,
            changed_at: SystemTime::UNIX_EPOCH,
            namespaces: Arc::default(),
            nodes: Arc::default(),
            service_cidrs: Arc::default(),
            local_pods: Arc::default(),
            pod_namespaces: Arc::default(),
            pods: Arc::default(),
            problems: Vec::new(),
            sources: BTreeMap::new(),
            services: SharedMap::default(),
        }
    }

    /// Whether the state may be relied on, and a line about the sources for `/readyz?verbose`.
    pub fn health(&self) -> (bool, String) {
        let mut lines: Vec<String> =
            self.sources.iter().map(|(name, source)| source.describe(name)).collect();
        lines.extend(self.problems.iter().map(|problem| format!("{}: {problem}", problem.severity)));
        (self.synced, lines.join("; "))
    }

    /// Whether a source cannot be followed, so that all this may be out of date.
    pub fn is_stale(&self) -> bool {
        self.sources.values().any(|source| source.outage.is_some())
    }

    /// The Service of that name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(name)
    }

    /// Every Service, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Services that are not as they were in an earlier snapshot, or were not there. Costs what has changed,
    /// not what there is.
    pub fn changed_since<'s>(&'s self, before: &'s Self) -> impl Iterator<Item = &'s Arc<ServiceEntry>> {
        self.services.changed_since(&before.services).map(|(_, entry)| entry)
    }

    /// Services of an earlier snapshot that are no more.
    pub fn removed_since<'s>(&'s self, before: &'s Self) -> impl Iterator<Item = &'s NamespacedName> {
        self.services.removed_since(&before.services)
    }
}

impl SourceState {
    /// For how long it could not be followed; zero while it can.
    pub fn staleness(&self) -> Duration {
        self.outage.as_ref().map_or(Duration::ZERO, |outage| outage.since.elapsed())
    }

    /// A line for people; `name` is that of the source.
    pub fn describe(&self, name: &str) -> String {
        let unit = if name.starts_with("kubernetes/") { "objects" } else { "files" };
        let size = match self.invalid {
            0 => format!("{} {unit}", self.size),
            invalid => format!("{} {unit}, {invalid} invalid", self.size),
        };
        match &self.outage {
            Some(outage) if self.synced => {
                let seconds = self.staleness().as_secs();
                format!("{name}: {size}, {seconds} s old: {}", outage.problem)
            }
            Some(outage) => format!("{name}: {}", outage.problem),
            None if self.synced => format!("{name}: {size}"),
            None => format!("{name}: not read yet"),
        }
    }
}

impl ServiceEntry {
    /// Its slices that the Service had not, or not like this, when it was `before`.
    pub fn slices_since<'e>(
        &'e self,
        before: Option<&'e Arc<Self>>,
    ) -> impl Iterator<Item = &'e Arc<EndpointSlice>> {
        let known = before.map(|before| &before.slices[..]).unwrap_or_default();
        self.slices.iter().filter(move |slice| !known.iter().any(|old| Arc::ptr_eq(old, slice)))
    }

    /// Where `port` of this Service leads for a family: every distinct address and port, whatever its
    /// conditions, of the slices that are meant for `proxy` (`None`: the usual one).
    ///
    /// An address may be there twice, in one slice or in two, while an endpoint moves between slices or a new
    /// pod has the address of one that is being deleted. The entry that is ready wins over one that is not,
    /// then the one that serves, then the preferred one, then the first, wherever they stand
    /// (kubernetes#135266).
    pub fn endpoints(
        &self,
        port: &ServicePort,
        family: IpFamily,
        proxy: Option<&str>,
        prefer: impl Fn(&Endpoint) -> bool,
    ) -> Vec<(SocketAddr, &Endpoint)> {
        let rank = |endpoint: &Endpoint| {
            let Conditions { ready, serving, terminating } = endpoint.conditions;
            (ready, serving, !terminating, prefer(endpoint))
        };
        let mut places = HashMap::new();
        let mut found: Vec<(SocketAddr, &Endpoint)> = Vec::new();
        for slice in self.slices.iter().filter(|s| s.family == family && s.carrier.is(proxy)) {
            for target in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
                for endpoint in &slice.endpoints {
                    let address = SocketAddr::new(endpoint.address, target.port);
                    match places.entry(address) {
                        Entry::Vacant(place) => {
                            place.insert(found.len());
                            found.push((address, endpoint));
                        }
                        Entry::Occupied(place) => {
                            let known = &mut found[*place.get()].1;
                            if rank(endpoint) > rank(known) {
                                *known = endpoint;
                            }
                        }
                    }
                }
            }
        }
        found
    }
}
