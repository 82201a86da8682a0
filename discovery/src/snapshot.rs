//! The immutable state that both daemons read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attachment::PortRange;
use ipnetwork::IpNetwork;

use crate::event::{Origin, SourceFailure};
use crate::model::{
    Conditions, Endpoint, EndpointSlice, IpFamily, NamespacedName, Node, Service, ServicePort,
};
use crate::problem::Problem;
use crate::shared_map::SharedMap;

/// The complete state at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The number of published snapshots; 0 is the empty one before the first sync.
    pub generation: u64,
    /// Whether every source was read once. Before that the state is partial: an absent object may exist, and
    /// nothing may be programmed.
    pub synced: bool,
    /// When the content last changed.
    pub changed_at: SystemTime,
    /// Every namespace that exists or has an object.
    pub namespaces: Arc<HashSet<Arc<str>>>,
    /// Nodes by name.
    pub nodes: Arc<BTreeMap<Arc<str>, Arc<Node>>>,
    /// Ranges of virtual IPs: first those of the flags, then those of ServiceCIDR objects.
    pub service_cidrs: Arc<Vec<IpNetwork>>,
    /// Addresses of the pods that the CNI plugin has attached to this node, with the reserved ports of each
    /// pod.
    pub local_pods: Arc<HashMap<IpAddr, Option<PortRange>>>,
    /// The namespace of each of these addresses, if the runtime has named the pod.
    pub pod_namespaces: Arc<HashMap<IpAddr, Arc<str>>>,
    /// The namespaces of the pods at an address, on any node. Several pods may share the address of their
    /// node. Empty unless [`crate::Interest::pods`] requests it.
    pub pods: Arc<HashMap<IpAddr, Vec<Arc<str>>>>,
    /// The current problems of the input.
    pub problems: Vec<Problem>,
    /// The state of each source, by name.
    pub sources: BTreeMap<&'static str, SourceState>,
    pub(crate) services: SharedMap<NamespacedName, ServiceEntry>,
}

/// The state of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Whether it was read once.
    pub synced: bool,
    /// The number of its files, or of its objects for the Kubernetes API.
    pub size: usize,
    /// The number of these with an error. Their last good state stays.
    pub invalid: usize,
    /// The current failure, if any. The last state stays applied.
    pub failure: Option<SourceFailure>,
}

/// A Service with its derived state. Snapshots share entries: an unchanged one keeps its `Arc`.
#[derive(Debug, PartialEq)]
pub struct ServiceEntry {
    /// The Service itself.
    pub service: Arc<Service>,
    /// Its virtual IPs: the requested ones, else assigned ones. Empty if it has none or lost a conflict.
    pub cluster_ips: Vec<IpAddr>,
    /// Its EndpointSlices: the existing ones, else derived from its selector.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The precedence over Services that claim the same address or port.
    pub precedence: Precedence,
}

/// Orders Services as the index does if two define the same: by file name and position in the file, or by
/// namespace and name on a cluster. It depends on the objects only.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence(pub(crate) Option<(Arc<Origin>, usize)>);

impl Snapshot {
    /// The state before any source was read.
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

    /// Whether the state is reliable, and a line about the sources for `/readyz?verbose`.
    pub fn health(&self) -> (bool, String) {
        let mut lines: Vec<String> =
            self.sources.iter().map(|(name, source)| source.describe(name)).collect();
        lines.extend(self.problems.iter().map(|problem| format!("{}: {problem}", problem.severity)));
        (self.synced, lines.join("; "))
    }

    /// Whether a source has failed, so that the state may be out of date.
    pub fn is_stale(&self) -> bool {
        self.sources.values().any(|source| source.failure.is_some())
    }

    /// The Service with that name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(name)
    }

    /// Every Service, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Services that are new or differ from an earlier snapshot. The cost depends on the number of changes
    /// only.
    pub fn changed_since<'s>(&'s self, before: &'s Self) -> impl Iterator<Item = &'s Arc<ServiceEntry>> {
        self.services.changed_since(&before.services).map(|(_, entry)| entry)
    }

    /// Services of an earlier snapshot that were deleted.
    pub fn removed_since<'s>(&'s self, before: &'s Self) -> impl Iterator<Item = &'s NamespacedName> {
        self.services.removed_since(&before.services)
    }
}

impl SourceState {
    /// How long the source has failed; zero without a failure.
    pub fn staleness(&self) -> Duration {
        self.failure.as_ref().map_or(Duration::ZERO, |failure| failure.since.elapsed())
    }

    /// A line for people. `name` is the name of the source.
    pub fn describe(&self, name: &str) -> String {
        let unit = if name.starts_with("kubernetes/") { "objects" } else { "files" };
        let size = match self.invalid {
            0 => format!("{} {unit}", self.size),
            invalid => format!("{} {unit}, {invalid} invalid", self.size),
        };
        match &self.failure {
            Some(failure) if self.synced => {
                let seconds = self.staleness().as_secs();
                format!("{name}: {size}, {seconds} s old: {}", failure.problem)
            }
            Some(failure) => format!("{name}: {}", failure.problem),
            None if self.synced => format!("{name}: {size}"),
            None => format!("{name}: not read yet"),
        }
    }
}

impl ServiceEntry {
    /// The slices that are new or differ from the earlier state `before` of the Service.
    pub fn slices_since<'e>(
        &'e self,
        before: Option<&'e Arc<Self>>,
    ) -> impl Iterator<Item = &'e Arc<EndpointSlice>> {
        let known = before.map(|before| &before.slices[..]).unwrap_or_default();
        self.slices.iter().filter(move |slice| !known.iter().any(|old| Arc::ptr_eq(old, slice)))
    }

    /// The endpoints of `port` of this Service in a family: every distinct address and port, in any
    /// condition, of the slices for `proxy` (`None`: the default proxy).
    ///
    /// An address may occur twice, in one slice or in two, while an endpoint moves between slices or a new
    /// pod has the address of one that is being deleted. Precedence: ready, then serving, then `preferred`,
    /// then the first (kubernetes#135266).
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
        for slice in self.slices.iter().filter(|s| s.family == family && s.proxy_class.matches(proxy)) {
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
