//! The background work of the forwarder: prefetching, reading changed files, loop detection.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::address::Transport;
use super::group;
use super::hosts::Hosts;
use super::loops;
use super::resolv_conf::{BEHIND_RESOLVED, ResolvConf};
use super::routes::{Builder, Forbidden};
use super::upstream::{BUDGET, Server};
use super::upstream_query::UpstreamQuery;
use super::{Config, Inner, Work};
use crate::watched_file::{CHECK_INTERVAL, Watched};

/// Interval of loop probes. A server that has started to forward to this one is found within this time; until
/// then queries time out, and equal ones are coalesced.
const PROBES: Duration = Duration::from_secs(30);

/// The watched files.
pub(super) struct Files {
    resolv_conf: [Watched; 2],
    hosts: Option<Watched>,
}

impl Files {
    /// Records their fingerprints. Read the files afterwards, so that no change is missed.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            resolv_conf: [&config.resolv_conf, Path::new(BEHIND_RESOLVED)].map(Watched::new),
            hosts: config.hosts.as_deref().map(Watched::new),
        }
    }

    /// The content of resolv.conf; empty if it cannot be read yet, which is retried.
    pub(super) fn read_resolv_conf(&mut self, config: &Config, forbidden: &Forbidden) -> ResolvConf {
        let read = ResolvConf::read(&config.resolv_conf, forbidden);
        log_resolv_conf(&mut self.resolv_conf[0], read).unwrap_or_default()
    }
}

/// Runs for ever.
pub(super) async fn run(inner: Arc<Inner>, work: Work) {
    let Work { builder, mut refreshes, files: Files { mut resolv_conf, mut hosts } } = work;
    let (mut files, mut probes) = (interval(CHECK_INTERVAL), interval(PROBES));
    files.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(wanted) = refreshes.recv() => {
                inner.metrics.prefetches.inc();
                // The task of the query inserts the answer into the cache.
                _ = inner.join(&wanted.upstream_query());
            }
            _ = files.tick() => {
                // Both files must be checked.
                let due = resolv_conf.each_mut().map(Watched::is_due);
                if due.contains(&true) && reload_upstreams(&inner, &builder, &mut resolv_conf[0]) {
                    probes.reset_immediately();
                }
                if let Some(file) = &mut hosts
                    && file.is_due()
                {
                    reload_hosts(&inner, file).await;
                }
                inner.metrics.entries.set(count(inner.cache.entries()));
                inner.metrics.bytes.set(count(inner.cache.bytes()));
                inner.metrics.evictions.set(i64::try_from(inner.cache.evictions()).unwrap_or(i64::MAX));
            }
            _ = probes.tick() => {
                for server in inner.routes.load().all() {
                    let (inner, server) = (Arc::clone(&inner), Arc::clone(server));
                    builder.tasks.spawn(async move { probe(&inner, &server).await });
                }
            }
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The content; a failure is logged if it differs from the last one.
fn log_resolv_conf(file: &mut Watched, read: io::Result<ResolvConf>) -> Option<ResolvConf> {
    let is_new = file.record(read.as_ref().err().map(ToString::to_string));
    if let (Err(error), true) = (&read, is_new) {
        let file = file.path.display();
        tracing::warn!(%file, %error, "resolv.conf cannot be read, trying again; its last content stays");
    }
    read.ok()
}

/// Returns false if the file cannot be read.
fn reload_upstreams(inner: &Inner, builder: &Builder, file: &mut Watched) -> bool {
    let read = ResolvConf::read(&inner.config.resolv_conf, &inner.forbidden);
    let Some(conf) = log_resolv_conf(file, read) else { return false };
    inner.search.store(Arc::new(conf.search));
    if !inner.config.upstreams.is_empty() {
        return true;
    }
    let names: Vec<String> = conf.upstreams.iter().map(ToString::to_string).collect();
    match builder.group(&conf.upstreams) {
        // The file may be half written, or the network down: the last servers may work again.
        Ok(group) if group.servers().is_empty() => {
            let file = inner.config.resolv_conf.display();
            tracing::warn!(%file, "names no upstream server; the last ones stay");
        }
        Ok(group) => {
            inner.routes.store(Arc::new(inner.routes.load().with_default(group)));
            tracing::info!(upstreams = ?names, "resolv.conf has changed");
        }
        Err(error) => tracing::error!(%error, "resolv.conf has changed, and its servers cannot be used"),
    }
    true
}

/// Reads the file and drops the old list on a separate thread: a long list takes a second, for which queries
/// would wait.
async fn reload_hosts(inner: &Arc<Inner>, file: &mut Watched) {
    let (path, inner) = (file.path.clone(), Arc::clone(inner));
    let read = move || {
        let text = std::fs::read_to_string(path)?;
        inner.hosts.store(Arc::new(Hosts::parse(&text, inner.config.hosts_ttl)));
        Ok::<_, io::Error>(())
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other).flatten();
    let is_new = file.record(read.as_ref().err().map(ToString::to_string));
    match read {
        Ok(()) => tracing::info!(file = %file.path.display(), "hosts have changed"),
        Err(error) if is_new => {
            let file = file.path.display();
            tracing::warn!(%file, %error, "hosts cannot be read, trying again; the last ones stay");
        }
        Err(_) => {}
    }
}

/// Queries a server for a random name. If that name comes back, `Inner` excludes the server.
async fn probe(inner: &Inner, server: &Arc<Server>) {
    let name = inner.probes.begin(server);
    let upstream_query =
        UpstreamQuery { name: name.as_name(), kind: loops::KIND, dnssec_ok: false, checking_disabled: false };
    let was_looping = server.is_looping();
    // Any answer is fine: what counts is whether the query comes back.
    if let Some(request) = group::request(&upstream_query, false) {
        let by_udp = server.upstream.transport == Transport::Plain;
        _ = tokio::time::timeout(BUDGET, server.ask(request, by_udp)).await;
    }
    server.is_looping.store(inner.probes.end(&name), Relaxed);
    match (was_looping, server.is_looping()) {
        (false, true) => tracing::error!(
            upstream = %server.upstream,
            "forwards to this server, a forwarding loop: not used until that ends; make it forward elsewhere, or \
             name other servers with --upstream"
        ),
        (true, false) => tracing::info!(upstream = %server.upstream, "the forwarding loop has ended"),
        _ => {}
    }
    let looping = inner.routes.load().all().filter(|server| server.is_looping()).count();
    inner.metrics.loops.set(count(looping));
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::forward::Forwarder;

    #[tokio::test]
    async fn file_that_changes_between_reading_and_watching_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, "search first.test\n").unwrap();
        let arguments = ["portolan-dns", "--resolv-conf", file.to_str().unwrap()];
        let config = crate::Config::from(crate::Args::try_parse_from(arguments).unwrap());
        let forwarder = Forwarder::new(config.forward, &[], &prometheus::Registry::new()).unwrap();
        std::fs::write(&file, "search another.test\n").unwrap();
        let changed = async {
            while forwarder.search()[0].to_string() != "another.test." {
                tokio::time::sleep(super::CHECK_INTERVAL / 10).await;
            }
        };
        tokio::select! {
            () = forwarder.run() => {}
            found = tokio::time::timeout(super::CHECK_INTERVAL * 10, changed) => found.unwrap(),
        }
    }
}
