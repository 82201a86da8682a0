//! Puts the parts together and runs until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use daemon::admin;
use daemon::drain::Drain;
use daemon::readiness::{Condition, Readiness};
use discovery::{Snapshot, Snapshots};
use hickory_server::Server;
use hickory_server::proto::rr::Name;
use tokio::task::JoinSet;
use tracing::info;

use crate::autopath::Autopath;
use crate::forward::{self, Forwarder};
use crate::handler::Handler;
use crate::message::NameBuf;
use crate::metrics::Metrics;
use crate::socket;
use crate::zone::{Settings, Zone};

/// A TCP client that says nothing for so long is let go (RFC 7766 §6.2.3 asks for seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Replies one TCP connection may have waiting to be sent.
const TCP_REPLIES: usize = 128;

/// What queries under way are given to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// What the program needs to know, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the state of the world comes from.
    pub discovery: discovery::Config,
    /// Where to answer.
    pub listen: Vec<SocketAddr>,
    /// The zone of the cluster.
    pub cluster_domain: Name,
    /// Seconds.
    pub ttl: u32,
    /// Whether the search lists of pods are completed.
    pub autopath: bool,
    /// How other names are answered.
    pub forward: forward::Config,
    /// Where `/metrics` listens.
    pub metrics_address: SocketAddr,
    /// Where `/health` listens.
    pub health_address: SocketAddr,
    /// Where `/ready` listens.
    pub ready_address: SocketAddr,
}

/// Runs until the drain has begun and ended.
///
/// # Errors
/// When a socket cannot be opened, or an upstream server is this server itself.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    info!(?config, "starting");
    let metrics = Arc::new(Metrics::new());
    let forwarder = Forwarder::new(config.forward, &config.listen, &metrics.registry)?;
    let autopath = config.autopath.then(|| {
        let domain =
            NameBuf::from_text(&config.cluster_domain.to_ascii()).and_then(|d| Autopath::new(d.as_name()));
        domain.map(Arc::new)
    });
    let autopath = autopath.transpose().context("--autopath with this --cluster-domain")?;
    let settings = Arc::new(Settings {
        domain: config.cluster_domain,
        ttl: config.ttl,
        service_cidrs: config.discovery.service_cidrs.clone(),
        listen: config.listen.clone(),
    });
    let zone = Arc::new(ArcSwap::from_pointee(Zone::new(&Snapshot::empty(), Arc::clone(&settings))));
    let handler = Handler {
        zone: Arc::clone(&zone),
        forwarder: forwarder.clone(),
        metrics: Arc::clone(&metrics),
        autopath: autopath.clone(),
    };
    let mut server = Server::new(handler);
    for address in config.listen {
        let (udp, tcp) = socket::open(address).context("--listen")?;
        info!(address = %udp.local_addr()?, "answering");
        server.register_socket(tokio::net::UdpSocket::from_std(udp)?);
        server.register_listener(tokio::net::TcpListener::from_std(tcp)?, TCP_IDLE, TCP_REPLIES);
    }

    let discovery = discovery::start(config.discovery);
    let readiness = Readiness::default();
    let snapshots = discovery.snapshots.clone();
    readiness.add("sources", move || {
        let (ready, detail) = snapshots.borrow().health();
        Condition { ready, detail }
    });
    let mut pages = JoinSet::new();
    daemon::build_info::register(&metrics.registry);
    for (address, flag, path) in [
        (config.metrics_address, "--metrics-bind-address", "/metrics"),
        (config.health_address, "--health-bind-address", "/health"),
        (config.ready_address, "--ready-bind-address", "/ready"),
    ] {
        let page = admin::Server::bind(address).await.context(flag)?;
        let page = match path {
            "/metrics" => page.route(path, admin::metrics(metrics.registry.clone())),
            "/health" => page.route(path, admin::livez()),
            _ => page.route(path, admin::readyz(readiness.clone())),
        };
        pages.spawn(page.run());
    }

    tokio::select! {
        () = drain.started() => {}
        () = forwarder.run() => {}
        () = follow_pods(discovery.snapshots.clone(), autopath.as_deref()) => {}
        () = follow(discovery.snapshots.clone(), &zone, &settings, &metrics) => {}
        result = server.block_until_done() => return result.context("a socket has failed"),
    }
    info!("draining");
    // Sockets close now; queries under way still get their answers.
    drop(tokio::time::timeout(DRAIN, server.shutdown_gracefully()).await);
    discovery.stop().await;
    info!("stopped");
    Ok(())
}

/// Keeps track of which namespace each pod is in. Never ends before the snapshots do.
async fn follow_pods(mut snapshots: Snapshots, autopath: Option<&Autopath>) {
    let Some(autopath) = autopath else { return std::future::pending().await };
    while snapshots.changed().await.is_ok() {
        autopath.follow(&snapshots.borrow_and_update().pod_namespaces);
    }
}

/// Builds a new zone for every snapshot.
async fn follow(mut snapshots: Snapshots, zone: &ArcSwap<Zone>, settings: &Arc<Settings>, metrics: &Metrics) {
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        zone.store(Arc::new(Zone::new(&snapshot, Arc::clone(settings))));
        metrics.generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        metrics.problems.set(i64::try_from(snapshot.problems.len()).unwrap_or(i64::MAX));
    }
}
