//! Puts the parts together and runs until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use daemon::drain::Drain;
use daemon::handover::{self, Claim, Previous};
use daemon::log::RateLimit;
use daemon::program::Settings;
use discovery::{EventRecord, Recorder, Regarding, Staleness};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::budget::Budget;
use crate::cni_config::{self, CniConfig};
use crate::kernel::conntrack::{self, Conntrack};
use crate::kernel::divert::Divert;
use crate::kernel::interception::Interception;
use crate::kernel::local_replies::Limit;
use crate::kernel::local_route::LocalRoutes;
use crate::metrics::Metrics;
use crate::node_routes::{self, NodeRoutes};
use crate::pages::health_check::HealthChecks;
use crate::pages::{self, Pages, Status};
use crate::proxier::Proxier;
use crate::serving::Serving;
use crate::surroundings::Place;
use crate::worker::patience::Patience;
use crate::worker::{Context, Worker};

/// How long connections that were intercepted before the end may take to be accepted.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);

/// What the program needs to know, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the state of the world comes from.
    pub discovery: discovery::Config,
    /// The node.
    pub place: Place,
    /// How the pods of other nodes are reached.
    pub node_routes: NodeRoutes,
    /// The CNI configuration to keep, if any.
    pub cni: Option<CniConfig>,
    /// Whether endpoints see the client's address.
    pub borrow_addresses: bool,
    /// Event loops that carry traffic, at least one.
    pub workers: usize,
    /// How long a worker may poll for the next event.
    pub poll: Duration,
    /// How long one endpoint may take to accept.
    pub connect_timeout: Duration,
    /// How long a TCP connection may be quiet.
    pub patience: Patience,
    /// How long a silent UDP flow is kept.
    pub udp_idle_timeout: Duration,
    /// UDP flows a frontend may have.
    pub udp_max_flows: usize,
    /// TCP connections carried at a time; by default as many as descriptors allow.
    pub max_connections: Option<usize>,
    /// What the kernel's connection tracking is set to.
    pub conntrack: conntrack::Settings,
    /// How long open connections may go on after the drain has begun.
    pub drain_timeout: Duration,
    /// The flags, for `/configz`.
    pub settings: Settings,
    /// Where `/metrics` listens.
    pub metrics_address: SocketAddr,
    /// Where `/healthz`, `/livez` and `/readyz` listen.
    pub healthz_address: SocketAddr,
}

/// Runs until the drain has begun and ended.
///
/// # Errors
/// When a socket of the admin pages, the route of a service range or a worker cannot be set up.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    let limits = daemon::file_limit::raise();
    info!(?config, %limits, "starting");
    // Before the pages: from now on the previous proxy is not ready, and its page cannot be taken for ours.
    let previous = previous().await;
    let (claim, started) = (Claim::default(), Arc::new(Notify::new()));
    let budget = Budget::new(limits.soft, config.workers);
    let metrics = Arc::new(Metrics::new(&budget));
    let conntrack = Conntrack::new(&config.conntrack);
    let divert = divert().await;
    let borrow_addresses = config.borrow_addresses && divert.is_some();
    let context = Arc::new(context(&config, &budget, borrow_addresses, &metrics));
    let (status, mut tasks) = (Status::default(), JoinSet::new());
    let recorder = recorder(&config, &mut tasks);
    let health_checks = HealthChecks::new(status.clone(), recorder.clone(), config.place.node_name.clone());
    let place = config.place.clone();
    let workers = (0..config.workers)
        .map(|number| Worker::start(number, config.poll, config.patience.tick()))
        .collect::<Result<_, _>>()
        .context("start the workers")?;
    let service_cidrs = config.discovery.service_cidrs.clone();
    let proxier = Proxier::new(workers, Arc::clone(&context), config.place, service_cidrs.clone());
    let proxier = proxier
        .context("listen for connections to virtual IPs (CAP_NET_ADMIN and CAP_NET_RAW are needed)")?;
    let is_in_pod = config.discovery.is_in_pod();
    let discovery = discovery::start_with(config.discovery, &recorder);
    let staleness = Staleness::new("portolan_proxy", discovery.snapshots.clone())?;
    metrics.registry.register(Box::new(staleness))?;
    let shown = Pages {
        metrics_address: config.metrics_address,
        healthz_address: config.healthz_address,
        settings: config.settings,
        proxy_name: place.proxy_name.clone(),
        metrics: Arc::clone(&metrics),
        snapshots: discovery.snapshots.clone(),
        status: status.clone(),
        claim: claim.clone(),
    };
    pages::serve(&mut tasks, shown);

    if let Some(cni) = config.cni {
        let name = place.node_name.clone();
        tasks.spawn(cni_config::follow(cni, name, config.healthz_address, discovery.snapshots.clone()));
    }
    let snapshots = discovery.snapshots.clone();
    let nodes = node_routes::Keeper::start(config.node_routes, place, snapshots, metrics);
    let nodes = nodes.context("keep routes to other nodes")?;

    if previous.is_none() {
        // The service manager need not wait for the first state: /readyz shows that.
        daemon::service_manager::ready();
    }
    let next = hand_over(previous, &started, &claim);
    tokio::pin!(next);
    let routes = LocalRoutes::ensure(&service_cidrs).await?;
    let mut serving = Serving {
        proxier,
        routes,
        divert,
        conntrack,
        health_checks,
        claim: claim.clone(),
        started: Arc::clone(&started),
        status,
        updated: None,
    };
    let mut replaced = tokio::select! {
        () = serving.follow(discovery.snapshots.clone(), &drain) => false,
        () = &mut next => true,
    };

    // The routes themselves stay.
    drop(nodes);
    let finished = wait_for_connections(&context.tasks, config.drain_timeout);
    let proxier = finish(serving, &mut tasks, next, finished, &mut replaced).await;
    if replaced && is_in_pod {
        info!(
            "waiting to be told to end: the kubelet would start an ended container again, and that would take over in turn"
        );
        drain.started().await;
    }
    discovery.stop().await;
    // Joining the workers blocks, but there is nothing left to wait for on this thread.
    drop(proxier);
    info!("stopped");
    Ok(())
}

/// Lets open connections finish, and gives everything up but what is another proxy's: one that has taken
/// over, or does so meanwhile.
async fn finish(
    mut serving: Serving,
    tasks: &mut JoinSet<()>,
    next: impl Future<Output = ()>,
    finished: impl Future<Output = ()>,
    replaced: &mut bool,
) -> Proxier {
    tokio::pin!(finished);
    if !*replaced {
        info!("draining: no new connections are accepted");
        serving.stop_accepting();
        serving.proxier.close_all();
        *replaced = tokio::select! {
            () = &mut finished => false,
            () = next => true,
        };
    }
    if !*replaced {
        return serving.clean_up().await;
    }
    info!("another proxy has taken over: open connections may finish");
    let Serving { mut proxier, health_checks, .. } = serving;
    // Its pages have to be found, not ours.
    drop(health_checks);
    tasks.shutdown().await;
    proxier.close_all();
    finished.await;
    proxier
}

/// The running proxy, which serves until it is told to stop.
async fn previous() -> Option<Previous> {
    let handover = handover::receive(crate::HANDOVER_NAME).await;
    let handover = handover.inspect_err(|error| warn!(%error, "the previous proxy does not hand over"));
    Some(handover.ok()??.previous)
}

/// Tells the previous proxy to stop once this one serves, and returns when the next one does.
async fn hand_over(previous: Option<Previous>, started: &Notify, claim: &Claim) {
    started.notified().await;
    if let Some(previous) = previous {
        // Before it exits, or the service manager takes its exit for that of the service.
        daemon::service_manager::ready();
        previous.stop().await;
        info!("serving in place of the previous proxy");
    }
    handover::Current::take(crate::HANDOVER_NAME).await.await_next(&[], &[], claim).await;
}

/// Takes away all that a proxy has left on the node, however it ended.
///
/// # Errors
/// When a proxy runs here, which would put it back; what the kernel says to the routes to other nodes; the
/// rest is best effort.
pub async fn clean_up(config: Config) -> anyhow::Result<()> {
    let running = handover::is_held(crate::HANDOVER_NAME);
    anyhow::ensure!(!running, "a proxy runs on this node: stop it first (it has @{})", crate::HANDOVER_NAME);
    LocalRoutes::ensure(&config.discovery.service_cidrs).await?.remove().await;
    if let Ok(divert) = Divert::ensure().await {
        divert.remove().await;
    }
    Interception::clean_up().context("delete the nft table")?;
    if let Some(cni) = &config.cni {
        cni_config::remove(&cni.file).with_context(|| format!("remove {}", cni.file.display()))?;
    }
    node_routes::clean_up().await.context("delete the routes to other nodes")
}

/// What connections need to know.
fn context(config: &Config, budget: &Arc<Budget>, borrow_addresses: bool, metrics: &Arc<Metrics>) -> Context {
    Context {
        metrics: Arc::clone(metrics),
        connect_timeout: config.connect_timeout,
        patience: config.patience,
        udp_idle_timeout: config.udp_idle_timeout,
        udp_max_flows: config.udp_max_flows.div_ceil(config.workers),
        max_connections: config.max_connections,
        budget: Arc::clone(budget),
        accept_warnings: RateLimit::default(),
        locality: ArcSwap::default(),
        borrow_addresses,
        noted_tcp: Limit::tcp(),
        noted_udp: Limit::udp(config.udp_idle_timeout),
        tasks: TaskTracker::new(),
    }
}

async fn wait_for_connections(connections: &TaskTracker, at_most: Duration) {
    // One that waits to be accepted is accepted within this.
    tokio::time::sleep(LAST_ACCEPTS.min(at_most)).await;
    connections.close();
    if tokio::time::timeout(at_most, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "the drain timeout is over, closing what is still open");
    }
}

/// Records Events, the first of them about the Node, as kube-proxy does.
fn recorder(config: &Config, tasks: &mut JoinSet<()>) -> Recorder {
    let node_name = &config.place.node_name;
    let recorder = Recorder::start(&config.discovery.control_plane, "portolan-proxy", node_name, tasks);
    recorder.record(EventRecord {
        regarding: Regarding::node(node_name),
        is_warning: false,
        reason: "Starting",
        action: "StartPortolanProxy",
        note: format!("portolan-proxy {}", env!("CARGO_PKG_VERSION")),
    });
    recorder
}

/// Without policy routing replies to borrowed addresses cannot be brought back, and external IPs are not
/// routed to the node.
async fn divert() -> Option<Divert> {
    let diverted = Divert::ensure().await;
    diverted
        .inspect_err(|error| warn!(%error, "no policy routing: endpoints will see the node's address, not the client's, and external IPs are not served"))
        .ok()
}
