//! The forwarder: answers names outside the cluster from the cache, or queries upstream servers.
//!
//! ```text
//! query ──> Hosts ──> Cache ──hit──> answer, on the core that got the query
//!                       │ miss
//!                       └─> Pending (equal queries wait for one) ──> Routes ──> Group (NameServerPool)
//!                                 cache, failures <── Answer (only the answer to the question) <── Server ─┘
//! ```
//!
//! Of a client's query only the question and two bits are forwarded. Of a server's reply only the answer to
//! the question is kept.

mod address;
mod answer;
mod args;
mod cache;
mod clients;
mod entry;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod group;
mod hosts;
mod legacy_rdata;
mod loops;
mod metrics;
mod pending;
mod random;
mod resolv_conf;
mod routes;
mod runtime;
mod streams;
mod tls;
mod ttl;
mod upstream;
mod upstream_query;
mod watch;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

pub use address::{Stub, Upstream};
pub use args::Args;
pub use group::Policy;
pub use ttl::Limit;

use crate::message::{Ede, Name, NameBuf, Query, kind, rcode};
use cache::Cache;
use clients::Clients;
use entry::{Age, Entry};
use failure::{Cause, Failures};
use group::Group;
use hosts::Hosts;
use loops::Probes;
use metrics::Metrics;
use pending::{First, Outcome, Pending, Place, Waiting};
use routes::{Builder, Forbidden, Routes};
use ttl::Limits;
use upstream_query::{Key, UpstreamQuery, UpstreamRequest};
use watch::Files;

pub(crate) use failure::Failure;
pub(crate) use upstream::BUDGET;

/// How long a client waits for a fresh answer if the cache has an expired one (RFC 8767 §5).
const STALE_ANSWER_TIMEOUT: Duration = Duration::from_millis(1800);

/// How long expired answers are served without a query after a failure, in milliseconds (RFC 8767 §5).
const STALE_RETRY: u64 = 30_000;

/// Maximum number of queued prefetches.
const MAX_REFRESHES: usize = 256;

/// The configuration of the forwarder.
#[derive(Clone, Debug)]
pub struct Config {
    upstreams: Vec<Upstream>,
    stubs: Vec<Stub>,
    resolv_conf: PathBuf,
    ca: Option<PathBuf>,
    allow_loopback: bool,
    hosts: Option<PathBuf>,
    cache_bytes: usize,
    limits: Limits,
    serve_stale: u32,
    max_concurrent: usize,
    max_concurrent_per_client: usize,
    policy: Policy,
    random_case: bool,
    hosts_ttl: u32,
}

/// Answers names outside the cluster. Clones share their state.
#[derive(Clone)]
pub(crate) struct Forwarder(Arc<Inner>);

struct Inner {
    config: Config,
    forbidden: Forbidden,
    clock: Clock,
    cache: Cache,
    hosts: ArcSwap<Hosts>,
    routes: ArcSwap<Routes>,
    /// The search domains of the node.
    search: ArcSwap<Vec<NameBuf>>,
    failures: Failures,
    pending: Pending,
    probes: Probes,
    clients: Clients,
    tasks: TaskTracker,
    refreshes: mpsc::Sender<UpstreamRequest>,
    metrics: Arc<Metrics>,
    /// Taken by [`Forwarder::run`].
    work: Mutex<Option<Work>>,
}

/// What the background work needs.
struct Work {
    builder: Builder,
    refreshes: mpsc::Receiver<UpstreamRequest>,
    files: Files,
}

/// Milliseconds since the start.
#[derive(Debug)]
struct Clock(Instant);

impl Clock {
    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }
}

impl Forwarder {
    /// Reads the files and checks the servers, of which none may be one of `listen`.
    pub(crate) fn new(config: Config, listen: &[SocketAddr], registry: &Registry) -> anyhow::Result<Self> {
        let forbidden = Forbidden { listen: listen.to_vec(), allow_loopback: config.allow_loopback };
        for upstream in &config.upstreams {
            forbidden.check("--upstream", upstream)?;
        }
        for upstream in config.stubs.iter().flat_map(|stub| &stub.upstreams) {
            forbidden.check("--stub", upstream)?;
        }
        let mut files = Files::new(&config);
        let node = files.read_resolv_conf(&config, &forbidden);
        let upstreams = if config.upstreams.is_empty() { node.upstreams } else { config.upstreams.clone() };
        let hosts = match &config.hosts {
            None => Hosts::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.map_err(|e| anyhow::anyhow!("--hosts {}: {e}", file.display()))?;
                Hosts::parse(&text, config.hosts_ttl)
            }
        };
        let (metrics, tasks) = (Arc::new(Metrics::new(registry)), TaskTracker::new());
        let builder = Builder {
            ca: config.ca.clone(),
            policy: config.policy,
            random_case: config.random_case,
            limit: config.max_concurrent,
            runtime: runtime::Runtime::default(),
            tasks: tasks.clone(),
            metrics: Arc::clone(&metrics),
        };
        let routes = Routes::new(&builder, &upstreams, &config.stubs)?;
        tracing::info!(?upstreams, "forwarding");
        let (refreshes, queue) = mpsc::channel(MAX_REFRESHES);
        let work = Work { builder, refreshes: queue, files };
        Ok(Self(Arc::new(Inner {
            forbidden,
            clock: Clock(Instant::now()),
            cache: Cache::new(config.cache_bytes),
            hosts: ArcSwap::from_pointee(hosts),
            routes: ArcSwap::from_pointee(routes),
            search: ArcSwap::from_pointee(node.search),
            failures: Failures::default(),
            pending: Pending::default(),
            probes: Probes::default(),
            clients: Clients::default(),
            tasks,
            refreshes,
            metrics,
            work: Mutex::new(Some(work)),
            config,
        })))
    }

    /// The search domains of the node.
    pub(crate) fn search(&self) -> Arc<Vec<NameBuf>> {
        self.0.search.load_full()
    }

    /// Runs the background work. Call it once; it never ends.
    pub(crate) async fn run(&self) {
        let work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            watch::run(Arc::clone(&self.0), work).await;
        }
        std::future::pending().await
    }

    /// Whether a name, in lower case, is answered by the forwarder although it may be the cluster's: it is in
    /// the hosts file, or in a stub domain below the cluster's domain.
    pub(crate) fn overrides(&self, lower: Name<'_>, domain: Name<'_>) -> bool {
        let inner = &*self.0;
        let is_below = |stub: &Stub| {
            let stub = stub.domain.as_name();
            stub.wire().len() > domain.wire().len() && lower.is_within(stub)
        };
        let hosts = inner.hosts.load();
        !inner.config.stubs.is_empty() && inner.config.stubs.iter().any(is_below)
            || !hosts.is_empty() && hosts.has(lower)
    }

    /// Appends the reply to a query (without EDNS) if it is cached. Never waits, and allocates only in `out`.
    pub(crate) fn cached(&self, query: &Query<'_>, now: Instant, out: &mut Vec<u8>) -> bool {
        let inner = &*self.0;
        let upstream_query = UpstreamQuery::by(query);
        let hosts = inner.hosts.load();
        if !hosts.is_empty()
            && let Some(entry) = hosts.get(&upstream_query)
        {
            entry.write(query, 0, out);
            return true;
        }
        let now = inner.clock.at(now);
        let Some(found) = inner.cache.get(&upstream_query) else { return false };
        let Some(entry) = found.as_ref() else { return false };
        match entry.age(now) {
            // The other path can add the Extended DNS Error for stale answers.
            Age::Expired => return false,
            Age::Due => inner.request_refresh(&upstream_query, entry),
            Age::Fresh => {}
        }
        entry.touch();
        entry.write(query, now, out);
        inner.metrics.hit(entry.contents().is_positive);
        true
    }

    /// The reply to a query, without EDNS, with its Extended DNS Error. Queries upstream servers if
    /// necessary. Ends within 4 s.
    pub(crate) async fn resolve(&self, query: &Query<'_>, client: IpAddr) -> Result<Reply, Failure> {
        let inner = &self.0;
        let upstream_query = UpstreamQuery::by(query);
        if inner.probes.is_returned(upstream_query.name) {
            return Err(Cause::Loop.into());
        }
        let mut message = Vec::with_capacity(512);
        if self.cached(query, Instant::now(), &mut message) {
            return Ok(Reply { message, explanation: None });
        }
        if let Some(entry) = hosts::special(&upstream_query) {
            entry.write(query, 0, &mut message);
            return Ok(Reply { message, explanation: None });
        }
        inner.metrics.misses.inc();
        let Some(_waiting) = inner.clients.enter(client, inner.config.max_concurrent_per_client) else {
            inner.metrics.rejects.inc();
            inner.metrics.failed(Cause::ClientOverload);
            return Err(Cause::ClientOverload.into());
        };
        let (outcome, is_stale) = inner.outcome(&upstream_query).await;
        let entry = outcome.inspect_err(|failure| inner.metrics.failed(failure.cause))?;
        let now = inner.clock.now();
        entry.write(query, if is_stale { now } else { now.min(entry.fresh_until()) }, &mut message);
        let explanation = if is_stale {
            inner.metrics.stale.inc();
            let is_denial = entry.contents().code == rcode::NXDOMAIN;
            Some(if is_denial { Ede::StaleNxdomain } else { Ede::StaleAnswer } as u16)
        } else {
            entry.contents().reason
        };
        Ok(Reply { message, explanation })
    }
}

/// A reply without EDNS.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) message: Vec<u8>,
    /// The code of an Extended DNS Error.
    pub(crate) explanation: Option<u16>,
}

impl Inner {
    /// The answer, and whether it has expired.
    async fn outcome(self: &Arc<Self>, upstream_query: &UpstreamQuery<'_>) -> (Outcome, bool) {
        let now = self.clock.now();
        let expired = self.cache.get(upstream_query).and_then(|found| found.as_ref().map(Arc::clone));
        let expired = expired.filter(|entry| {
            entry.staleness(now) <= u64::from(self.config.serve_stale) * 1000 && self.config.serve_stale > 0
        });
        let Some(expired) = expired else {
            return (self.resolve_now(upstream_query).await, false);
        };
        if expired.is_refresh_suspended(now) {
            return (Ok(expired), true);
        }
        match timeout(STALE_ANSWER_TIMEOUT, self.resolve_now(upstream_query)).await {
            Ok(Ok(entry)) => (Ok(entry), false),
            // The upstream query continues; meanwhile the expired answer is better than none.
            failed => {
                if failed.is_ok() {
                    expired.suspend_refresh_until(self.clock.now() + STALE_RETRY);
                }
                (Ok(expired), true)
            }
        }
    }

    async fn resolve_now(self: &Arc<Self>, upstream_query: &UpstreamQuery<'_>) -> Outcome {
        match self.join(upstream_query) {
            Ok(waiting) => waiting.outcome().await.unwrap_or_else(|| Err(Cause::Timeout.into())),
            Err(failure) => Err(failure),
        }
    }

    /// Joins the queries for the same question, or starts to resolve it.
    fn join(self: &Arc<Self>, upstream_query: &UpstreamQuery<'_>) -> Result<Waiting, Failure> {
        let key = upstream_query.key();
        if let Some(failure) = self.failures.get(&key, self.clock.now()) {
            return Err(failure);
        }
        match self.pending.join(&key) {
            Place::Waiting(waiting) => {
                self.metrics.coalesced.inc();
                Ok(waiting)
            }
            Place::First(first) => {
                let waiting = first.wait();
                self.begin(upstream_query, key, first);
                Ok(waiting)
            }
        }
    }

    /// Resolves in a separate task: the first client may leave before the answer arrives.
    fn begin(self: &Arc<Self>, upstream_query: &UpstreamQuery<'_>, key: Key, first: First) {
        let group = self.routes.load().group(upstream_query.name).clone();
        let Ok(permit) = Arc::clone(group.limit()).try_acquire_owned() else {
            self.metrics.rejects.inc();
            self.pending.finish(&key, first, Err(Cause::Overload.into()));
            return;
        };
        let inner = Arc::clone(self);
        let wanted = upstream_query.to_owned_request();
        self.tasks.spawn(async move {
            let outcome = inner.ask(&wanted.upstream_query(), &group).await;
            match &outcome {
                Ok(_) => inner.failures.remove(&key),
                Err(failure) => inner.failures.put(key.clone(), *failure, inner.clock.now()),
            }
            inner.pending.finish(&key, first, outcome);
            drop(permit);
        });
    }

    async fn ask(&self, upstream_query: &UpstreamQuery<'_>, group: &Group) -> Outcome {
        let (response, attempts) = group.ask(upstream_query).await;
        self.metrics.hedges.inc_by(attempts.saturating_sub(1));
        let answered = response.and_then(|response| {
            answer::read(response, upstream_query, &self.config.limits).map_err(Cause::Invalid)
        });
        let refreshed = self.cache.get(upstream_query);
        let old = refreshed.as_ref().and_then(|found| found.as_ref());
        let mut entry = match answered {
            Ok(entry) => entry.stored_at(self.clock.now()),
            Err(cause) => {
                if let Some(old) = old {
                    old.suspend_refresh_until(self.clock.now() + STALE_RETRY);
                }
                return Err(cause.into());
            }
        };
        self.prefer_nodata_for_existing_names(upstream_query, &mut entry);
        let entry = Arc::new(entry);
        if entry.contents().ttl > 0 {
            self.cache.insert(upstream_query, Arc::clone(&entry));
        } else if old.is_some() {
            self.cache.remove(upstream_query);
        }
        Ok(entry)
    }

    /// A name exists for both address types or for none: if a server answers NXDOMAIN to AAAA because it has
    /// no AAAA records, clients would give up a name with an A record (RFC 4074 §4.2).
    fn prefer_nodata_for_existing_names(&self, upstream_query: &UpstreamQuery<'_>, entry: &mut Entry) {
        let other = match upstream_query.kind {
            kind::A => upstream_query.with_kind(kind::AAAA),
            kind::AAAA => upstream_query.with_kind(kind::A),
            _ => return,
        };
        let Some(found) = self.cache.get(&other) else { return };
        let Some(known) = found.as_ref().filter(|known| known.age(self.clock.now()) != Age::Expired) else {
            return;
        };
        if entry.contents().code == rcode::NXDOMAIN && known.contents().is_positive {
            entry.set_code(rcode::NOERROR);
        } else if entry.contents().is_positive && known.contents().code == rcode::NXDOMAIN {
            self.cache.remove(&other);
        }
    }

    fn request_refresh(&self, upstream_query: &UpstreamQuery<'_>, entry: &Entry) {
        if entry.claim_refresh() && self.refreshes.try_send(upstream_query.to_owned_request()).is_err() {
            entry.release_refresh();
        }
    }
}
