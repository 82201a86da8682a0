//! Puts the parts together and runs until told to stop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use daemon::admin;
use daemon::drain::Drain;
use daemon::readiness::{Condition, Readiness};
use discovery::Snapshots;
use ipnetwork::IpNetwork;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::divert::Divert;
use crate::local_route::LocalRoutes;
use crate::metrics::Metrics;
use crate::proxier::Proxier;
use crate::worker::{Context, Worker};

/// How often a frontend that could not be opened is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the program needs to know, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the state of the world comes from.
    pub discovery: discovery::Config,
    /// Ranges of this node's pods.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Whether endpoints see the client's address.
    pub borrow_addresses: bool,
    /// Event loops that carry traffic, at least one.
    pub workers: usize,
    /// How long a worker may poll for the next event.
    pub poll: Duration,
    /// How long one endpoint may take to accept.
    pub connect_timeout: Duration,
    /// How long a silent UDP flow is kept.
    pub udp_idle_timeout: Duration,
    /// UDP flows a frontend may have.
    pub udp_max_flows: usize,
    /// How long open connections may go on after the drain has begun.
    pub drain_timeout: Duration,
    /// Where `/metrics` listens.
    pub metrics_address: SocketAddr,
    /// Where `/healthz`, `/livez` and `/readyz` listen.
    pub healthz_address: SocketAddr,
}

/// What the readiness page shows of the proxier, which lives in another task.
#[derive(Debug, Default)]
struct Status {
    applied: bool,
    frontends: usize,
    failures: Vec<String>,
}

/// Runs until the drain has begun and ended.
///
/// # Errors
/// When a socket of the admin pages, the route of a service range or a worker cannot be set up.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    let limits = daemon::file_limit::raise();
    info!(?config, %limits, "starting");
    let metrics = Arc::new(Metrics::new());
    let divert = if config.borrow_addresses { divert().await } else { None };
    let context = Arc::new(Context {
        metrics: Arc::clone(&metrics),
        connect_timeout: config.connect_timeout,
        udp_idle_timeout: config.udp_idle_timeout,
        udp_max_flows: config.udp_max_flows,
        locality: divert.as_ref().map(|_| ArcSwap::default()),
        tasks: TaskTracker::new(),
    });
    let workers = (0..config.workers)
        .map(|number| Worker::start(number, config.poll))
        .collect::<Result<_, _>>()
        .context("start the workers")?;
    let mut proxier = Proxier::new(workers, Arc::clone(&context), config.pod_cidrs);
    let status = Arc::new(Mutex::new(Status::default()));

    let readiness = Readiness::default();
    let service_cidrs = config.discovery.service_cidrs.clone();
    let discovery = discovery::start(config.discovery);
    let snapshots = discovery.snapshots.clone();
    readiness.add("sources", move || {
        let (ready, detail) = snapshots.borrow().health();
        Condition { ready, detail }
    });
    add_frontends(&readiness, &status);
    let mut pages = JoinSet::new();
    serve_pages(&mut pages, config.metrics_address, config.healthz_address, &readiness, &metrics).await?;

    let routes = LocalRoutes::ensure(&service_cidrs).await?;
    serve(&mut proxier, discovery.snapshots.clone(), &status, &drain).await;

    info!("draining: no new connections are accepted");
    proxier.close_all();
    context.tasks.close();
    if tokio::time::timeout(config.drain_timeout, context.tasks.wait()).await.is_err() {
        warn!(connections = context.tasks.len(), "the drain timeout is over, closing what is still open");
    }
    // The route comes last: without it, not even open connections work.
    routes.remove().await;
    if let Some(divert) = divert {
        divert.remove().await;
    }
    discovery.stop().await;
    // Joining the workers blocks, but there is nothing left to wait for on this thread.
    drop(proxier);
    info!("stopped");
    Ok(())
}

/// Where replies to borrowed addresses cannot be brought back, endpoints see the node's address.
async fn divert() -> Option<Divert> {
    let diverted = Divert::ensure().await;
    diverted
        .inspect_err(|error| warn!(%error, "endpoints will see the node's address, not the client's; --source-address node says so on purpose"))
        .ok()
}

/// Follows the snapshots until the drain begins.
async fn serve(proxier: &mut Proxier, mut snapshots: Snapshots, status: &Mutex<Status>, drain: &Drain) {
    let mut retry = tokio::time::interval(RETRY_INTERVAL);
    snapshots.mark_changed();
    loop {
        tokio::select! {
            () = drain.started() => return,
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                proxier.apply(&snapshot);
                status.lock().unwrap_or_else(PoisonError::into_inner).applied |= snapshot.synced;
            }
            _ = retry.tick() => proxier.retry_failures(),
        }
        let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.frontends, status.failures) = (proxier.open_count(), proxier.failures());
    }
}

/// Not ready before the first state is in force; a frontend that cannot be opened is told but harms no other.
fn add_frontends(readiness: &Readiness, status: &Arc<Mutex<Status>>) {
    let status = Arc::clone(status);
    readiness.add("frontends", move || {
        let status = status.lock().unwrap_or_else(PoisonError::into_inner);
        let mut detail = format!("{} served", status.frontends);
        for failure in &status.failures {
            detail.push_str("; ");
            detail.push_str(failure);
        }
        Condition { ready: status.applied, detail }
    });
}

async fn serve_pages(
    pages: &mut JoinSet<()>,
    metrics_address: SocketAddr,
    healthz_address: SocketAddr,
    readiness: &Readiness,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    daemon::build_info::register(&metrics.registry);
    let server = admin::Server::bind(metrics_address).await.context("--metrics-bind-address")?;
    let server = server
        .route("/metrics", admin::metrics(metrics.registry.clone()))
        .route("/readyz", admin::readyz(readiness.clone()));
    pages.spawn(server.run());
    let server = admin::Server::bind(healthz_address).await.context("--healthz-bind-address")?;
    let server = server
        .route("/healthz", admin::livez())
        .route("/livez", admin::livez())
        .route("/readyz", admin::readyz(readiness.clone()));
    pages.spawn(server.run());
    Ok(())
}
