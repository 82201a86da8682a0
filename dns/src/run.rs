//! Assembles the parts and runs until the drain has ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use daemon::admin;
use daemon::drain::Drain;
use daemon::handover::{self, Claim, Handover, Previous};
use daemon::readiness::{Condition, Readiness};
use discovery::{Snapshots, Staleness};
use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::acl::{Acl, Limits};
use crate::autopath::Autopath;
use crate::dnstap::Dnstap;
use crate::forward::{self, Forwarder};
use crate::listeners::Listeners;
use crate::message::NameBuf;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::query_log::QueryLog;
use crate::responder::{Options, Responder, Secret};
use crate::socket::Inherited;
use crate::tls::{self, Certificate};
use crate::zone::{Settings, Zone};

/// How long a process still serves after SIGTERM while the next one reads its first state, as in a rolling
/// update.
const CLAIMED_DRAIN_DELAY: Duration = Duration::from_secs(10);

/// The domain of the cluster's names, in lower case. Never the root.
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

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The sources of Services.
    pub discovery: discovery::Config,
    /// Addresses for UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The settings of TLS, HTTPS and QUIC.
    pub tls: Option<tls::Config>,
    /// The zone of the cluster.
    pub cluster_domain: Domain,
    /// The number of UDP threads; by default one per core.
    pub workers: Option<usize>,
    /// Seconds.
    pub ttl: u32,
    /// The names that are served.
    pub names: Names,
    /// Access control and rate limits.
    pub limits: Limits,
    /// One of this many queries is logged; `None` disables the log.
    pub log_queries: Option<u32>,
    /// The socket of the dnstap collector.
    pub dnstap: Option<PathBuf>,
    /// How long `/health` fails before the drain.
    pub lameduck: Duration,
    /// The name for NSID, at most 128 bytes; empty for none.
    pub nsid: String,
    /// Whether the search lists of pods are completed.
    pub autopath: bool,
    /// The settings of the forwarder.
    pub forward: forward::Config,
    /// Address of `/metrics`.
    pub metrics_address: SocketAddr,
    /// Address of `/health`.
    pub health_address: SocketAddr,
    /// Address of `/ready`.
    pub ready_address: SocketAddr,
}

/// Runs until the drain has ended, or the next process serves.
///
/// # Errors
/// If a socket cannot be opened, or an upstream server is this server itself.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    info!(?config, "starting");
    let metrics = Arc::new(Metrics::new());
    let forwarder = Forwarder::new(config.forward.clone(), &config.listen, &metrics.registry)?;
    let mut certificate =
        config.tls.clone().map(Certificate::open).transpose().context("--tls-cert, --tls-key")?;
    let tls = certificate.as_ref().map(Certificate::current).zip(config.tls.as_ref());
    let name = handover_name(&config.listen);
    let (secret, inherited, previous) = receive_handover(name.as_deref()).await?;
    let responder = Arc::new(responder(&config, &metrics, &forwarder, secret)?);

    let is_in_pod = config.discovery.is_in_pod();
    let discovery = discovery::start(config.discovery.clone());
    let staleness = Staleness::new("portolan_dns", discovery.snapshots.clone())?;
    metrics.registry.register(Box::new(staleness))?;
    let claim = Claim::default();
    let readiness = readiness(discovery.snapshots.clone(), claim.clone());
    let pages = serve_pages(&config, &metrics, &readiness, &drain);

    let synced = Notify::new();
    let (snapshots, of_pods) = (discovery.snapshots.clone(), discovery.snapshots.clone());
    let upkeep = async {
        tokio::select! {
            () = forwarder.run() => {}
            () = watch_certificate(certificate.as_mut(), &metrics) => {}
            () = update_autopath(of_pods, responder.autopath.as_deref()) => {}
            () = update_zone(snapshots, &responder.zone, &metrics, &synced) => {}
        }
    }
    .fuse();
    tokio::pin!(upkeep);
    if let Some(previous) = &previous {
        info!("taking over from the previous process once the first state is applied");
        tokio::select! {
            () = synced.notified() => {}
            () = previous.exited() => warn!("the previous process has exited"),
            () = drain.started() => return Ok(()),
            () = &mut upkeep => anyhow::bail!("the sources have ended"),
        }
    }
    let threads =
        config.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let listeners = Listeners::open(&config.listen, tls, threads, inherited, &responder)?;
    if let Some(previous) = previous {
        previous.stop().await;
        info!("serving in place of the previous process");
    }
    daemon::service_manager::ready();
    let has_next = {
        let next = listeners.await_next(name.as_deref(), &secret.0, &claim);
        let ends = async {
            drain.started().await;
            // Unhealthy from now on, so that load balancers use other servers.
            let claimed = if claim.is_claimed() { CLAIMED_DRAIN_DELAY } else { Duration::ZERO };
            tokio::time::sleep(config.lameduck.max(claimed)).await;
        };
        tokio::select! {
            () = ends => false,
            () = &mut upkeep => false,
            () = hold_names(&config) => false,
            () = next => true,
        }
    };
    info!(has_next, "draining");
    if has_next {
        // The pages of the next process must be reachable, not ours.
        drop(pages);
    }
    finish(listeners, has_next, &mut upkeep).await;
    if has_next && is_in_pod {
        info!(
            "waiting to be stopped: the kubelet would restart this container, and it would replace the next process"
        );
        drain.started().await;
    }
    discovery.stop().await;
    info!("stopped");
    Ok(())
}

/// Pending queries are still answered, and open connections get the applied state.
async fn finish(listeners: Listeners, has_next: bool, upkeep: impl Future<Output = ()>) {
    let mut drained = std::pin::pin!(listeners.drain(has_next));
    tokio::select! {
        () = &mut drained => {}
        () = upkeep => drained.await,
    }
}

fn responder(
    config: &Config,
    metrics: &Arc<Metrics>,
    forwarder: &Forwarder,
    secret: Secret,
) -> anyhow::Result<Responder> {
    let autopath = config.autopath.then(|| Autopath::new(config.cluster_domain.0.as_name()).map(Arc::new));
    let log = config.log_queries.map(|every| QueryLog::start(every, metrics.lost_lines.clone()));
    let dnstap = config
        .dnstap
        .clone()
        .map(|socket| Dnstap::start(socket, identity(&config.nsid), metrics.lost_exchanges.clone()));
    let settings = Settings {
        domain: config.cluster_domain.0.clone(),
        ttl: config.ttl,
        names: config.names.clone(),
        service_cidrs: config.discovery.service_cidrs.clone(),
        listen: config.listen.clone(),
    };
    Ok(Responder {
        zone: ArcSwap::from_pointee(Zone::empty(Arc::new(settings))),
        forwarder: forwarder.clone(),
        metrics: Arc::clone(metrics),
        autopath: autopath.transpose().context("--autopath with this --cluster-domain")?,
        acl: Acl::new(config.limits.clone()).context("random bytes")?,
        log: log.transpose().context("start the query log")?,
        dnstap: dnstap.transpose().context("start the thread of --dnstap")?,
        options: Options { nsid: config.nsid.as_bytes().into(), secret },
    })
}

/// The name of this server: NSID, or the host name.
fn identity(nsid: &str) -> String {
    let host = || nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    if nsid.is_empty() { host() } else { nsid.to_owned() }
}

/// The name under which a process with the same addresses finds this one; `None` if the kernel chooses the
/// port.
fn handover_name(listen: &[SocketAddr]) -> Option<String> {
    listen.first().filter(|address| address.port() != 0).map(|address| format!("portolan-dns/{address}"))
}

/// Holds the names by which portolan-proxy detects where this server listens: there it does not intercept
/// queries. The first address has its name by [`handover_name`].
async fn hold_names(config: &Config) {
    let tls = config.tls.iter().flat_map(|tls| &tls.listen);
    let others = config.listen.iter().skip(1).chain(tls).filter(|address| address.port() != 0);
    let names: Vec<String> = others.map(|address| format!("portolan-dns/{address}")).collect();
    let holding: Vec<_> = names.iter().map(|name| handover::hold(name)).collect();
    futures_util::future::join_all(holding).await;
    std::future::pending().await
}

/// The state of the previous process: the secret of its cookies, and its sockets.
async fn receive_handover(name: Option<&str>) -> anyhow::Result<(Secret, Inherited, Option<Previous>)> {
    let handover = match name {
        Some(name) => handover::receive(name).await.unwrap_or_else(|error| {
            warn!(%error, "the previous process does not hand over");
            None
        }),
        None => None,
    };
    let Some(Handover { note, sockets, previous }) = handover else {
        return Ok((Secret::new().context("random bytes")?, Inherited::default(), None));
    };
    let secret = match note.try_into() {
        Ok(secret) => Secret(secret),
        // The note is from another version.
        Err(_) => Secret::new().context("random bytes")?,
    };
    Ok((secret, Inherited::new(sockets), Some(previous)))
}

/// Ready once every source was read, unless a next process is about to serve.
fn readiness(snapshots: Snapshots, claim: Claim) -> Readiness {
    let readiness = Readiness::default();
    readiness.add("sources", move || {
        let (ready, detail) = snapshots.borrow().health();
        Condition { ready, detail }
    });
    readiness.add("handover", move || claim.readiness());
    readiness
}

/// Serves one page at each of these addresses. An address that is in use affects its own page only.
fn serve_pages(config: &Config, metrics: &Metrics, readiness: &Readiness, drain: &Drain) -> JoinSet<()> {
    daemon::build_info::register(&metrics.registry);
    daemon::log::register(&metrics.registry, "portolan_dns");
    let mut serving = JoinSet::new();
    for (address, flag, path) in [
        (config.metrics_address, "--metrics-bind-address", "/metrics"),
        (config.health_address, "--health-bind-address", "/health"),
        (config.ready_address, "--ready-bind-address", "/ready"),
    ] {
        let (registry, drain, readiness) = (metrics.registry.clone(), drain.clone(), readiness.clone());
        serving.spawn(admin::Server::serve(address, flag, move |page| match path {
            "/metrics" => page.route(path, admin::metrics(registry)),
            "/health" => page.route(path, health(drain)),
            _ => page.route(path, admin::readyz(readiness)),
        }));
    }
    serving
}

/// Fails after SIGTERM, so that load balancers use other servers while this one still serves.
fn health(drain: Drain) -> impl Fn(&str) -> admin::Response + Send + Sync + 'static {
    move |_| {
        if drain.is_started() {
            admin::Response::text(admin::StatusCode::SERVICE_UNAVAILABLE, "ending\n")
        } else {
            admin::Response::text(admin::StatusCode::OK, "OK\n")
        }
    }
}

/// Keeps the namespaces of pods up to date. Ends with the snapshots.
async fn update_autopath(mut snapshots: Snapshots, autopath: Option<&Autopath>) {
    let Some(autopath) = autopath else { return std::future::pending().await };
    while snapshots.changed().await.is_ok() {
        autopath.update(&snapshots.borrow_and_update().pod_namespaces);
    }
}

/// Keeps the certificate up to date, if there is one.
async fn watch_certificate(certificate: Option<&mut Certificate>, metrics: &Metrics) {
    match certificate {
        Some(certificate) => certificate.watch(&metrics.certificate_failures).await,
        None => std::future::pending().await,
    }
}

/// Computes the zone of every snapshot. Notifies `synced` once it is synced.
async fn update_zone(mut snapshots: Snapshots, zone: &ArcSwap<Zone>, metrics: &Metrics, synced: &Notify) {
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let mut news = Vec::new();
        let next = zone.load().next(&snapshot, &mut |service, triggered_at| {
            news.push((Arc::clone(service), triggered_at));
        });
        let is_synced = next.synced;
        zone.store(Arc::new(next));
        for (service, triggered_at) in news {
            metrics.programmed(&service, triggered_at);
        }
        if is_synced {
            synced.notify_one();
        }
        metrics.generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        metrics.problems.set(i64::try_from(snapshot.problems.len()).unwrap_or(i64::MAX));
    }
}
