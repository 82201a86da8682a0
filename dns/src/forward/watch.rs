//! What the forwarder does beside answering: asks again before answers expire, reads files again, looks for loops.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::asked::Asked;
use super::hosts::Hosts;
use super::loops;
use super::resolv_conf::{BEHIND_RESOLVED, ResolvConf};
use super::routes::Builder;
use super::server::{Exchange, Server};
use super::{Config, Inner, Work};
use crate::file::{LOOK, Watched};

/// Servers are probed so often. One that has come to ask us is found within that; until then queries end by their
/// deadlines, and like ones are asked once.
const PROBES: Duration = Duration::from_secs(30);

/// The files that are followed.
pub(super) struct Files {
    resolv_conf: [Watched; 2],
    hosts: Option<Watched>,
}

impl Files {
    /// As they are now: what happens to them from here on is noticed, so they are read afterwards.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            resolv_conf: [&config.resolv_conf, Path::new(BEHIND_RESOLVED)].map(Watched::new),
            hosts: config.hosts.as_deref().map(Watched::new),
        }
    }
}

/// Runs for ever.
pub(super) async fn run(inner: Arc<Inner>, work: Work) {
    let Work { builder, mut refreshes, files: Files { mut resolv_conf, mut hosts } } = work;
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
                // Each of them has to be looked at.
                let changed = resolv_conf.each_mut().map(Watched::has_changed);
                if changed.contains(&true) {
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::forward::Forwarder;

    #[tokio::test]
    async fn a_file_that_changes_between_its_first_reading_and_the_watch_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, "search first.test\n").unwrap();
        let arguments = ["portolan-dns", "--resolv-conf", file.to_str().unwrap()];
        let config = crate::Config::from(crate::Args::try_parse_from(arguments).unwrap());
        let forwarder = Forwarder::new(config.forward, &[], &prometheus::Registry::new()).unwrap();
        std::fs::write(&file, "search another.test\n").unwrap();
        let changed = async {
            while forwarder.search()[0].to_string() != "another.test." {
                tokio::time::sleep(super::LOOK / 10).await;
            }
        };
        tokio::select! {
            () = forwarder.run() => {}
            found = tokio::time::timeout(super::LOOK * 10, changed) => found.unwrap(),
        }
    }
}
