//! Runs the sources and the index, and hands out snapshots.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::event::{ATTACHMENTS, Event, MANIFESTS};
use crate::index::Index;
use crate::notice::Recorder;
use crate::problem::{Problem, Severity};
use crate::snapshot::Snapshot;
use crate::source;

/// Batches of events waiting for the index; each shows as a whole or not at all. A source that is faster than
/// the index waits, so the bound costs no memory.
const EVENT_QUEUE: usize = 1024;

/// Who says which Services and endpoints there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// A directory of Kubernetes YAML.
    Manifests(PathBuf),
    /// The API server of a cluster.
    #[cfg(feature = "kubernetes")]
    Kubernetes(source::Access),
}

/// What a program needs to know of a cluster, beside Services and EndpointSlices. A directory is small, and
/// read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Which Services and EndpointSlices.
    pub services: ServiceInterest,
    /// Whether Nodes matter.
    pub nodes: bool,
    /// Whether it matters that a namespace exists that nothing is in.
    pub namespaces: bool,
    /// Whether every pod's address matters, of whichever node.
    pub pods: bool,
    /// Whether it matters which pod an endpoint is.
    pub pod_names: bool,
}

/// Which Services and EndpointSlices matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceInterest {
    /// All.
    All,
    /// Those that a proxy of this name carries, as their labels say; `None` is the cluster's usual one.
    CarriedBy(Option<String>),
}

/// Where to look, and what virtual IPs are assigned from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where Services come from.
    pub control_plane: ControlPlane,
    /// What is asked of it.
    pub interest: Interest,
    /// Directory of attachment records; absent where pods are described by EndpointSlices alone.
    pub attachments: Option<PathBuf>,
    /// Ranges of virtual IPs, one a family. The proxy and the DNS server must be given the same.
    pub service_cidrs: Vec<IpNetwork>,
}

impl Config {
    /// Whether this process is a container of the cluster it follows: one that ends is started again.
    pub fn is_in_pod(&self) -> bool {
        match &self.control_plane {
            ControlPlane::Manifests(_) => false,
            #[cfg(feature = "kubernetes")]
            ControlPlane::Kubernetes(access) => *access == source::Access::InCluster,
        }
    }
}

/// The latest snapshot, and word of the next one.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// A running discovery. Dropping it stops the sources; snapshots already handed out stay valid.
#[derive(Debug)]
pub struct Discovery {
    /// The latest snapshot. Partial, and marked unsynced, until every source has been read once.
    pub snapshots: Snapshots,
    tasks: JoinSet<()>,
}

/// Starts the sources and the index on the current runtime.
pub fn start(config: Config) -> Discovery {
    start_with(config, &Recorder::default())
}

/// As [`start`]; says as Events which objects of a cluster cannot be used.
#[cfg_attr(not(feature = "kubernetes"), expect(unused_variables, reason = "Events need the API server"))]
pub fn start_with(config: Config, recorder: &Recorder) -> Discovery {
    let (events, queue) = mpsc::channel(EVENT_QUEUE);
    let mut index = Index::new(config.service_cidrs);
    let mut tasks = JoinSet::new();
    match config.control_plane {
        ControlPlane::Manifests(directory) => {
            index.expect_source(MANIFESTS);
            tasks.spawn(source::run_manifests(directory, events.clone()));
        }
        #[cfg(feature = "kubernetes")]
        ControlPlane::Kubernetes(access) => {
            index.leave_slices_to_others();
            for resource in source::resources(&config.interest) {
                index.expect_source(resource.source());
            }
            source::run_kubernetes(&access, &config.interest, recorder, &events, &mut tasks);
        }
    }
    if let Some(directory) = config.attachments {
        index.expect_source(ATTACHMENTS);
        tasks.spawn(source::run_attachments(directory, events));
    }
    if config.interest.pods {
        index.keep_pod_addresses();
    }
    let (publisher, snapshots) = watch::channel(index.snapshot());
    tasks.spawn(run_index(index, queue, publisher));
    Discovery { snapshots, tasks }
}

/// Reads every manifest once, or asks the API server for leave to watch, and says what is wrong:
/// `--check-config`.
pub fn check(config: &Config) -> Vec<Problem> {
    match &config.control_plane {
        ControlPlane::Manifests(directory) => check_manifests(directory, config.service_cidrs.clone()),
        #[cfg(feature = "kubernetes")]
        ControlPlane::Kubernetes(access) => source::check_kubernetes(access, &config.interest),
    }
}

fn check_manifests(directory: &Path, service_cidrs: Vec<IpNetwork>) -> Vec<Problem> {
    let mut index = Index::new(service_cidrs);
    index.expect_source(MANIFESTS);
    for event in source::read_manifests_once(directory) {
        index.apply(event);
    }
    index.publish();
    index.snapshot().problems.clone()
}

impl Discovery {
    /// Ends every task and waits until all have ended.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn run_index(
    mut index: Index,
    mut queue: mpsc::Receiver<Vec<Event>>,
    publisher: watch::Sender<Arc<Snapshot>>,
) {
    let mut known = HashSet::new();
    while let Some(batch) = queue.recv().await {
        batch.into_iter().for_each(|event| index.apply(event));
        // One snapshot for a burst: a thousand changes are one to the readers.
        while let Ok(batch) = queue.try_recv() {
            batch.into_iter().for_each(|event| index.apply(event));
        }
        if index.publish() {
            let snapshot = index.snapshot();
            known = log_news(known, &snapshot.problems);
            publisher.send_replace(snapshot);
        }
    }
}

/// Logs each problem when it appears and when it is resolved, and returns the set now known.
fn log_news(known: HashSet<Problem>, problems: &[Problem]) -> HashSet<Problem> {
    let current: HashSet<Problem> = problems.iter().cloned().collect();
    for problem in problems.iter().filter(|p| !known.contains(p)) {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    for problem in known.iter().filter(|p| !current.contains(p)) {
        tracing::info!("resolved: {problem}");
    }
    current
}
