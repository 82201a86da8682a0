//! Assembles the parts and runs until the drain has ended.

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
use crate::kernel::interception::Interception;
use crate::kernel::local_replies::Limit;
use crate::kernel::local_route::LocalRoutes;
use crate::kernel::policy_routing::PolicyRouting;
use crate::metrics::Metrics;
use crate::node_context::NodeConfig;
use crate::node_routes::{self, NodeRoutes};
use crate::pages::health_check::HealthChecks;
use crate::pages::{self, Pages, Status};
use crate::proxier::Proxier;
use crate::serving::Serving;
use crate::worker::idle_timeout::IdleTimeouts;
use crate::worker::{Context, Worker};

/// How long intercepted connections may take to be accepted after the last state.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The sources of Services.
    pub discovery: discovery::Config,
    /// The settings of the node.
    pub node_config: NodeConfig,
    /// How the pods of other nodes are reached.
    pub node_routes: NodeRoutes,
    /// The CNI configuration to maintain, if any.
    pub cni: Option<CniConfig>,
    /// Whether endpoints see the client's address.
    pub preserve_source_ip: bool,
    /// The number of workers, at least one.
    pub workers: usize,
    /// The maximum polling window of a worker.
    pub poll: Duration,
    /// The connect timeout of an endpoint.
    pub connect_timeout: Duration,
    /// The idle timeouts of TCP connections.
    pub idle_timeouts: IdleTimeouts,
    /// The idle timeout of UDP flows.
    pub udp_idle_timeout: Duration,
    /// Maximum number of UDP flows per frontend.
    pub udp_max_flows: usize,
    /// Maximum number of TCP connections; by default limited by descriptors.
    pub max_connections: Option<usize>,
    /// The settings of conntrack.
    pub conntrack: conntrack::Settings,
    /// How long open connections may continue after the start of the drain.
    pub drain_timeout: Duration,
    /// The flags, for `/configz`.
    pub settings: Settings,
    /// Address of `/metrics`.
    pub metrics_address: SocketAddr,
    /// Address of `/healthz`, `/livez` and `/readyz`.
    pub healthz_address: SocketAddr,
}

/// Runs until the drain has ended.
///
/// # Errors
/// If a socket of the admin pages, the route of a service range or a worker cannot be set up.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    let limits = daemon::file_limit::raise();
    info!(?config, %limits, "starting");
    // Before the pages: from now on the previous proxy is not ready, and its page cannot be taken for ours.
    let previous = previous().await;
    let (claim, started) = (Claim::default(), Arc::new(Notify::new()));
    let budget = Budget::new(limits.soft, config.workers);
    let metrics = Arc::new(Metrics::new(&budget));
    let conntrack = Conntrack::new(&config.conntrack);
    let policy_routing = set_up_policy_routing().await;
    let preserve_source_ip = config.preserve_source_ip && policy_routing.is_some();
    let context = Arc::new(context(&config, &budget, preserve_source_ip, &metrics));
    let (status, mut tasks) = (Status::default(), JoinSet::new());
    let recorder = recorder(&config, &mut tasks);
    let node_config = config.node_config.clone();
    let health_checks = HealthChecks::new(status.clone(), recorder.clone(), node_config.node_name.clone());
    let workers = (0..config.workers)
        .map(|number| Worker::start(number, config.poll, config.idle_timeouts.tick()))
        .collect::<Result<_, _>>()
        .context("start the workers")?;
    let service_cidrs = config.discovery.service_cidrs.clone();
    let proxier = Proxier::new(workers, Arc::clone(&context), config.node_config, service_cidrs.clone());
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
        proxy_name: node_config.proxy_name.clone(),
        metrics: Arc::clone(&metrics),
        snapshots: discovery.snapshots.clone(),
        status: status.clone(),
        claim: claim.clone(),
    };
    pages::serve(&mut tasks, shown);

    if let Some(cni) = config.cni {
        let name = node_config.node_name.clone();
        tasks.spawn(cni_config::run(cni, name, config.healthz_address, discovery.snapshots.clone()));
    }
    let snapshots = discovery.snapshots.clone();
    let nodes = node_routes::Keeper::start(config.node_routes, node_config, snapshots, metrics);
    let nodes = nodes.context("keep routes to other nodes")?;

    if previous.is_none() {
        // The service manager need not wait for the first state: /readyz reports that.
        daemon::service_manager::ready();
    }
    let next = hand_over(previous, &started, &claim);
    tokio::pin!(next);
    let routes = LocalRoutes::ensure(&service_cidrs).await?;
    let mut serving = Serving {
        proxier,
        routes,
        policy_routing,
        conntrack,
        health_checks,
        claim: claim.clone(),
        started: Arc::clone(&started),
        status,
        updated: None,
    };
    let mut replaced = tokio::select! {
        () = serving.run(discovery.snapshots.clone(), &drain) => false,
        () = &mut next => true,
    };

    // The routes themselves stay.
    drop(nodes);
    let finished = wait_for_connections(&context.tasks, config.drain_timeout);
    let proxier = finish(serving, &mut tasks, next, finished, &mut replaced).await;
    if replaced && is_in_pod {
        info!(
            "waiting to be stopped: the kubelet would restart this container, and it would replace the next process"
        );
        drain.started().await;
    }
    discovery.stop().await;
    // Joining the workers blocks, but this thread has nothing else to do.
    drop(proxier);
    info!("stopped");
    Ok(())
}

/// Lets open connections finish. Removes everything that does not belong to a next proxy, which may start
/// meanwhile.
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
    info!("the next proxy serves: open connections may finish");
    let Serving { mut proxier, health_checks, .. } = serving;
    // The pages of the next process must be reachable, not ours.
    drop(health_checks);
    tasks.shutdown().await;
    proxier.close_all();
    finished.await;
    proxier
}

/// Returns the running proxy, which serves until it is stopped.
async fn previous() -> Option<Previous> {
    let handover = handover::receive(crate::HANDOVER_NAME).await;
    let handover = handover.inspect_err(|error| warn!(%error, "the previous proxy does not hand over"));
    Some(handover.ok()??.previous)
}

/// Stops the previous proxy once this one serves. Returns when the next one serves.
async fn hand_over(previous: Option<Previous>, started: &Notify, claim: &Claim) {
    started.notified().await;
    if let Some(previous) = previous {
        // Before it exits, or the service manager would consider the service dead.
        daemon::service_manager::ready();
        previous.stop().await;
        info!("serving in place of the previous proxy");
    }
    handover::Current::take(crate::HANDOVER_NAME).await.await_next(&[], &[], claim).await;
}

/// Removes everything that a proxy has left on the node, however it ended.
///
/// # Errors
/// If a proxy is running, which would restore it, or if the routes to other nodes cannot be removed. The rest
/// is best effort.
pub async fn clean_up(config: Config) -> anyhow::Result<()> {
    let running = handover::is_held(crate::HANDOVER_NAME);
    anyhow::ensure!(!running, "a proxy runs on this node: stop it first (it has @{})", crate::HANDOVER_NAME);
    LocalRoutes::ensure(&config.discovery.service_cidrs).await?.remove().await;
    if let Ok(policy_routing) = PolicyRouting::ensure().await {
        policy_routing.remove().await;
    }
    Interception::clean_up().context("delete the nft table")?;
    if let Some(cni) = &config.cni {
        cni_config::remove(&cni.file).with_context(|| format!("remove {}", cni.file.display()))?;
    }
    node_routes::clean_up().await.context("delete the routes to other nodes")
}

/// The context of connections.
fn context(
    config: &Config,
    budget: &Arc<Budget>,
    preserve_source_ip: bool,
    metrics: &Arc<Metrics>,
) -> Context {
    Context {
        metrics: Arc::clone(metrics),
        connect_timeout: config.connect_timeout,
        idle_timeouts: config.idle_timeouts,
        udp_idle_timeout: config.udp_idle_timeout,
        udp_max_flows: config.udp_max_flows.div_ceil(config.workers),
        max_connections: config.max_connections,
        budget: Arc::clone(budget),
        accept_warnings: RateLimit::default(),
        known_addresses: ArcSwap::default(),
        preserve_source_ip,
        noted_tcp: Limit::tcp(),
        noted_udp: Limit::udp(config.udp_idle_timeout),
        tasks: TaskTracker::new(),
    }
}

async fn wait_for_connections(connections: &TaskTracker, at_most: Duration) {
    // A connection that waits to be accepted is accepted within this time.
    tokio::time::sleep(LAST_ACCEPTS.min(at_most)).await;
    connections.close();
    if tokio::time::timeout(at_most, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "the drain timeout has expired, closing open connections");
    }
}

/// Starts recording Events. The first one is about the Node, as with kube-proxy.
fn recorder(config: &Config, tasks: &mut JoinSet<()>) -> Recorder {
    let node_name = &config.node_config.node_name;
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

/// Adds policy routing. Without it, source addresses are not preserved and external IPs are not served.
async fn set_up_policy_routing() -> Option<PolicyRouting> {
    let policy_routing = PolicyRouting::ensure().await;
    policy_routing
        .inspect_err(|error| {
            warn!(
                %error,
                "no policy routing: endpoints will see the node's address, not the client's, and external \
                 IPs are not served"
            );
        })
        .ok()
}
