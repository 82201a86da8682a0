//! What the forwarder does beside answering: asks again before answers expire, reads files again, looks for loops.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::Inner;
use super::asked::{Asked, Wanted};
use super::hosts::Hosts;
use super::loops;
use super::resolv_conf::ResolvConf;
use super::routes::Builder;
use super::server::{Exchange, Server};
use crate::file::{LOOK, Watched};

/// Servers are probed so often. One that has come to ask us is found within that; until then queries end by their
/// deadlines, and like ones are asked once.
const PROBES: Duration = Duration::from_secs(30);

/// Runs for ever.
pub(super) async fn run(inner: Arc<Inner>, builder: Builder, mut refreshes: mpsc::Receiver<Wanted>) {
    let config = inner.config.clone();
    let mut resolv_conf = Watched::new(&config.resolv_conf);
    let mut hosts = config.hosts.as_deref().map(Watched::new);
    let (mut files, mut probes) = (interval(LOOK), interval(PROBES));
    files.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(wanted) = refreshes.recv() => {
                inner.metrics.prefetches.inc();
                drop(inner.join(&wanted.asked()));
            }
            _ = files.tick() => {
                if resolv_conf.has_changed() {
                    reload_upstreams(&inner, &builder);
                    probes.reset_immediately();
                }
                if let Some(file) = &mut hosts
                    && file.has_changed()
                {
                    reload_hosts(&inner, &file.path);
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

fn reload_upstreams(inner: &Inner, builder: &Builder) {
    let conf = ResolvConf::read(&inner.config.resolv_conf, &inner.forbidden);
    inner.search.store(Arc::new(conf.search));
    if !inner.config.upstreams.is_empty() {
        return;
    }
    let names: Vec<String> = conf.upstreams.iter().map(ToString::to_string).collect();
    match builder.group(&conf.upstreams) {
        // A file that is just being written anew, or a network that is away: what worked may work again.
        Ok(group) if group.is_empty() => {
            tracing::warn!(file = %inner.config.resolv_conf.display(), "names no upstream server; the last ones stay");
        }
        Ok(group) => {
            inner.routes.store(Arc::new(inner.routes.load().with_default(group)));
            tracing::info!(upstreams = ?names, "resolv.conf has changed");
        }
        Err(error) => tracing::error!(%error, "resolv.conf has changed, and its servers cannot be used"),
    }
}

fn reload_hosts(inner: &Inner, path: &Path) {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            inner.hosts.store(Arc::new(Hosts::parse(&text, inner.config.hosts_ttl)));
            tracing::info!(file = %path.display(), "hosts have changed");
        }
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "hosts cannot be read; the last ones stay");
        }
    }
}

/// Asks a server for a name that only it and we know of. If that comes back to us, `Inner` marks the server.
async fn probe(inner: &Inner, server: &Arc<Server>) {
    let name = inner.probes.begin(server);
    let asked = Asked { name: name.as_name(), kind: loops::KIND, dnssec_ok: false, checking_disabled: false };
    let was_looping = server.is_looping();
    let exchange = Exchange { asked, limits: &inner.config.limits, random_case: false };
    // Whatever it answers is fine, as long as it does not have it from us.
    drop(tokio::time::timeout(super::race::BUDGET, server.ask(exchange)).await);
    server.is_looping.store(inner.probes.end(&name), Relaxed);
    match (was_looping, server.is_looping()) {
        (false, true) => tracing::error!(
            upstream = %server.upstream,
            "asks this server in turn, a forwarding loop: not used until that ends; make it forward elsewhere, or name other servers with --upstream"
        ),
        (true, false) => tracing::info!(upstream = %server.upstream, "the forwarding loop has ended"),
        _ => {}
    }
    let looping = inner.routes.load().all().filter(|server| server.is_looping()).count();
    inner.metrics.loops.set(count(looping));
}
