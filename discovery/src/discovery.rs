//! Runs the sources and the index, and publishes snapshots.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::event::{ATTACHMENTS, Event, MANIFESTS};
use crate::event_record::Recorder;
use crate::index::Index;
use crate::problem::{Problem, Severity};
use crate::snapshot::Snapshot;
use crate::source;

/// Batches of events that wait for the index. Each becomes visible as a whole. A source that is faster than
/// the index waits, so the bound costs no memory.
const EVENT_QUEUE: usize = 1024;

/// The source of Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// A directory of Kubernetes YAML.
    Manifests(PathBuf),
    /// The API server of a cluster.
    #[cfg(feature = "kubernetes")]
    Kubernetes(source::Access),
}

/// The parts of a cluster's state that a program needs beside Services and EndpointSlices. From a directory
/// everything is read, as it is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The Services and EndpointSlices.
    pub services: ServiceInterest,
    /// Whether the program needs Nodes.
    pub nodes: bool,
    /// Whether the program needs namespaces without objects.
    pub namespaces: bool,
    /// Whether the program needs the address of every pod of all nodes.
    pub pods: bool,
    /// Whether the program needs the pod names of endpoints.
    pub pod_names: bool,
}

/// Which Services and EndpointSlices a program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceInterest {
    /// All.
    All,
    /// Those for the proxy with this name, by their labels. `None` is the default proxy.
    CarriedBy(Option<String>),
}

/// The configuration of the sources and of virtual IPs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The source of Services.
    pub control_plane: ControlPlane,
    /// What the program needs.
    pub interest: Interest,
    /// Directory of attachment records. Absent if all endpoints are in EndpointSlices.
    pub attachments: Option<PathBuf>,
    /// Ranges of virtual IPs, one per family. The proxy and the DNS server must have the same.
    pub service_cidrs: Vec<IpNetwork>,
}

impl Config {
    /// Whether this process runs in a pod of the cluster that it watches, and is restarted if it exits.
    pub fn is_in_pod(&self) -> bool {
        match &self.control_plane {
            ControlPlane::Manifests(_) => false,
            #[cfg(feature = "kubernetes")]
            ControlPlane::Kubernetes(access) => *access == source::Access::InCluster,
        }
    }
}

/// The latest snapshot, with notification of the next one.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// A running discovery. Dropping it stops the sources; published snapshots stay valid.
#[derive(Debug)]
pub struct Discovery {
    /// The latest snapshot. Partial and not `synced` until every source was read once.
    pub snapshots: Snapshots,
    tasks: JoinSet<()>,
}

/// Starts the sources and the index on the current runtime.
pub fn start(config: Config) -> Discovery {
    start_with(config, &Recorder::default())
}

/// Like [`start`]. Records Events for objects of a cluster that cannot be used.
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
            index.disable_derived_slices();
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

/// `--check-config`: reads every manifest once, or checks that the API server allows to list. Returns the
/// problems.
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
    /// Stops every task and waits for all of them.
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
        // One snapshot per burst: a thousand changes are one change for the readers.
        while let Ok(batch) = queue.try_recv() {
            batch.into_iter().for_each(|event| index.apply(event));
        }
        if index.publish() {
            let snapshot = index.snapshot();
            known = log_changes(known, &snapshot.problems);
            publisher.send_replace(snapshot);
        }
    }
}

/// Logs each problem when it appears and when it is resolved. Returns the current problems.
fn log_changes(known: HashSet<Problem>, problems: &[Problem]) -> HashSet<Problem> {
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
