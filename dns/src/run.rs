//! Puts the parts together and runs until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use daemon::admin;
use daemon::drain::Drain;
use daemon::readiness::{Condition, Readiness};
use discovery::{Snapshots, Staleness};
use tokio::task::JoinSet;
use tracing::info;

use crate::autopath::Autopath;
use crate::forward::{self, Forwarder};
use crate::message::NameBuf;
use crate::metrics::Metrics;
use crate::responder::{Options, Responder, Secret};
use crate::tls::{self, Certificate};
use crate::zone::{Settings, Zone};
use crate::{socket, tcp, udp};

/// What queries under way are given to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// The domain below which Services have their names, in lower case. Never the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(NameBuf);

impl std::str::FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = NameBuf::from_text(&text.to_ascii_lowercase());
        let name = name.map_err(|_malformed| "not a domain name".to_owned())?;
        if name.as_name().wire().len() == 1 {
            return Err("the root cannot be the cluster's domain".to_owned());
        }
        Ok(Self(name))
    }
}

/// What the program needs to know, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the state of the world comes from.
    pub discovery: discovery::Config,
    /// Where to answer.
    pub listen: Vec<SocketAddr>,
    /// How to answer over TLS.
    pub tls: Option<tls::Config>,
    /// The zone of the cluster.
    pub cluster_domain: Domain,
    /// Threads that answer over UDP; as many as cores where nothing is said.
    pub workers: Option<usize>,
    /// Seconds.
    pub ttl: u32,
    /// The name the server tells those who ask for it (NSID); at most 128 bytes, empty for none.
    pub nsid: String,
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
    let autopath = config.autopath.then(|| Autopath::new(config.cluster_domain.0.as_name()).map(Arc::new));
    let autopath = autopath.transpose().context("--autopath with this --cluster-domain")?;
    let settings = Arc::new(Settings {
        domain: config.cluster_domain.0.clone(),
        ttl: config.ttl,
        service_cidrs: config.discovery.service_cidrs.clone(),
        listen: config.listen.clone(),
    });
    let zone = Arc::new(ArcSwap::from_pointee(Zone::empty(Arc::clone(&settings))));
    let responder = Arc::new(Responder {
        zone: Arc::clone(&zone),
        forwarder: forwarder.clone(),
        metrics: Arc::clone(&metrics),
        autopath: autopath.clone(),
        options: Options {
            nsid: config.nsid.into_bytes().into(),
            secret: Secret::new().context("random bytes")?,
        },
    });
    let pages = [
        (config.metrics_address, "--metrics-bind-address", "/metrics"),
        (config.health_address, "--health-bind-address", "/health"),
        (config.ready_address, "--ready-bind-address", "/ready"),
    ];
    let threads =
        config.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (mut datagrams, mut servers) = (Vec::new(), JoinSet::new());
    for address in config.listen {
        let (udp, tcp) = socket::open(address, threads).context("--listen")?;
        info!(address = %tcp.local_addr()?, "answering");
        datagrams.extend(udp);
        let listener = tokio::net::TcpListener::from_std(tcp)?;
        servers.spawn(tcp::serve(listener, None, Arc::clone(&responder), drain.clone()));
    }
    let mut certificate = config.tls.clone().map(Certificate::open).transpose().context("--tls-listen")?;
    if let Some((certificate, tls)) = certificate.as_ref().zip(config.tls) {
        for address in tls.listen {
            let tcp = socket::open_stream(address).context("--tls-listen")?;
            info!(address = %tcp.local_addr()?, "answering over TLS");
            let listener = tokio::net::TcpListener::from_std(tcp)?;
            let tls = Some(certificate.acceptor());
            servers.spawn(tcp::serve(listener, tls, Arc::clone(&responder), drain.clone()));
        }
    }
    let (workers, waiting) = udp::Workers::start(datagrams, &responder).context("start the workers")?;
    servers.spawn(udp::answer_waiting(responder, waiting));

    let discovery = discovery::start(config.discovery);
    let staleness = Staleness::new("portolan_dns", discovery.snapshots.clone())?;
    metrics.registry.register(Box::new(staleness))?;
    let readiness = Readiness::default();
    let snapshots = discovery.snapshots.clone();
    readiness.add("sources", move || {
        let (ready, detail) = snapshots.borrow().health();
        Condition { ready, detail }
    });
    let _pages = serve_pages(pages, &metrics, &readiness).await?;

    daemon::service_manager::ready();
    tokio::select! {
        () = drain.started() => {}
        () = forwarder.run() => {}
        () = follow_certificate(certificate.as_mut(), &metrics) => {}
        () = follow_pods(discovery.snapshots.clone(), autopath.as_deref()) => {}
        () = follow(discovery.snapshots.clone(), &zone, &metrics) => {}
    }
    info!("draining");
    // Sockets close now; queries under way still get their answers.
    drop(workers);
    drop(tokio::time::timeout(DRAIN, servers.join_all()).await);
    discovery.stop().await;
    info!("stopped");
    Ok(())
}

/// Serves a page each at these addresses.
async fn serve_pages(
    pages: [(SocketAddr, &'static str, &'static str); 3],
    metrics: &Metrics,
    readiness: &Readiness,
) -> anyhow::Result<JoinSet<()>> {
    daemon::build_info::register(&metrics.registry);
    let mut serving = JoinSet::new();
    for (address, flag, path) in pages {
        let page = admin::Server::bind(address).await.context(flag)?;
        let page = match path {
            "/metrics" => page.route(path, admin::metrics(metrics.registry.clone())),
            "/health" => page.route(path, admin::livez()),
            _ => page.route(path, admin::readyz(readiness.clone())),
        };
        serving.spawn(page.run());
    }
    Ok(serving)
}

/// Keeps track of which namespace each pod is in. Never ends before the snapshots do.
async fn follow_pods(mut snapshots: Snapshots, autopath: Option<&Autopath>) {
    let Some(autopath) = autopath else { return std::future::pending().await };
    while snapshots.changed().await.is_ok() {
        autopath.follow(&snapshots.borrow_and_update().pod_namespaces);
    }
}

/// Keeps the certificate up to date, if there is one.
async fn follow_certificate(certificate: Option<&mut Certificate>, metrics: &Metrics) {
    match certificate {
        Some(certificate) => certificate.follow(&metrics.certificate_failures).await,
        None => std::future::pending().await,
    }
}

/// Makes the next zone for every snapshot.
async fn follow(mut snapshots: Snapshots, zone: &ArcSwap<Zone>, metrics: &Metrics) {
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let next = zone.load().next(&snapshot);
        metrics.stale.set(i64::from(next.is_stale));
        zone.store(Arc::new(next));
        metrics.generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        metrics.problems.set(i64::try_from(snapshot.problems.len()).unwrap_or(i64::MAX));
    }
}
