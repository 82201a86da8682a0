//! Runs the sources and the index, and hands out snapshots.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::event::{ATTACHMENTS, Event, MANIFESTS};
use crate::index::Index;
use crate::problem::{Problem, Severity};
use crate::snapshot::Snapshot;
use crate::source;

/// Events waiting for the index. A source that is faster than the index waits, so the bound costs no memory.
const EVENT_QUEUE: usize = 1024;

/// Where to look, and what virtual IPs are assigned from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of Kubernetes YAML.
    pub manifests: PathBuf,
    /// Directory of attachment records; absent where pods are described by EndpointSlices alone.
    pub attachments: Option<PathBuf>,
    /// Ranges of virtual IPs, one a family. The proxy and the DNS server must be given the same.
    pub service_cidrs: Vec<IpNetwork>,
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
    let (events, queue) = mpsc::channel(EVENT_QUEUE);
    let mut index = Index::new(config.service_cidrs);
    let mut tasks = JoinSet::new();
    index.expect_source(MANIFESTS);
    tasks.spawn(source::run_manifests(config.manifests, events.clone()));
    if let Some(directory) = config.attachments {
        index.expect_source(ATTACHMENTS);
        tasks.spawn(source::run_attachments(directory, events));
    }
    let (publisher, snapshots) = watch::channel(index.snapshot());
    tasks.spawn(run_index(index, queue, publisher));
    Discovery { snapshots, tasks }
}

/// Reads every manifest once and says what is wrong: `--check-config`.
pub fn check(config: &Config) -> Vec<Problem> {
    let mut index = Index::new(config.service_cidrs.clone());
    index.expect_source(MANIFESTS);
    for event in source::read_manifests_once(&config.manifests) {
        index.apply(event);
    }
    index.publish();
    index.snapshot().problems.clone()
}

impl Discovery {
    /// Ends every task and waits for them to be gone.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn run_index(
    mut index: Index,
    mut queue: mpsc::Receiver<Event>,
    publisher: watch::Sender<Arc<Snapshot>>,
) {
    let mut known = HashSet::new();
    while let Some(event) = queue.recv().await {
        index.apply(event);
        // One snapshot for a burst: a directory of a thousand files is one change to the readers.
        while let Ok(event) = queue.try_recv() {
            index.apply(event);
        }
        if index.publish() {
            let snapshot = index.snapshot();
            known = log_news(known, &snapshot.problems);
            publisher.send_replace(snapshot);
        }
    }
}

/// Logs each problem when it appears and when it is gone, and returns the set now known.
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
