//! Which connections the kernel hands over, kept at what is open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use discovery::SharedMap;
use discovery::model::Protocol;
use tracing::error;

use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::catcher::Catcher;
use crate::metrics::Metrics;
use crate::tcp::Registry;

type Frontends = SharedMap<FrontendKey, Frontend>;

/// What the kernel was told, and what the workers look connections up in.
#[derive(Debug)]
pub(super) struct Catching {
    catcher: Catcher,
    registry: Arc<Registry>,
    /// What was open when the kernel was told last.
    caught: Frontends,
    failure: Option<Failure>,
}

/// The kernel does not take the rules.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) since: Instant,
    pub(super) message: String,
}

impl Catching {
    /// Nothing is caught yet.
    pub(super) fn new(catcher: Catcher, registry: Arc<Registry>) -> Self {
        Self { catcher, registry, caught: SharedMap::default(), failure: None }
    }

    /// Where workers find whose a connection is.
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Why the kernel was not told, if it was not.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Makes the kernel hand over the connections to what is open now, and no others. An empty first state is told too:
    /// it takes over from the proxy before.
    pub(super) fn follow(&mut self, open: &Frontends, metrics: &Metrics) {
        let opened = open.changed_since(&self.caught).map(|(key, _)| key);
        let (opened, closed) = (tcp(opened), tcp(open.gone_since(&self.caught)));
        let is_told = self.catcher.is_installed() && self.failure.is_none();
        // A connection that is caught has to be known; one that is no longer caught may still wait to be accepted and
        // is reset, as it would be a moment later. What is closed lives as long as it is known here, UDP too.
        self.registry.store(Arc::new(open.clone()));
        if is_told && opened.is_empty() && closed.is_empty() {
            self.caught = open.clone();
            return;
        }
        let all = || tcp(open.values().map(|frontend| &frontend.key));
        match self.catcher.change(&opened, &closed, &all) {
            Ok(()) => {
                self.caught = open.clone();
                self.failure = None;
            }
            Err(error) => self.failed(&error, metrics),
        }
    }

    /// Writes the rules again if somebody has deleted them.
    pub(super) fn check(&mut self, metrics: &Metrics) {
        let all = || tcp(self.caught.values().map(|frontend| &frontend.key));
        if let Err(error) = self.catcher.check(&all) {
            self.failed(&error, metrics);
        }
    }

    fn failed(&mut self, error: &io::Error, metrics: &Metrics) {
        let since = self.failure.as_ref().map_or_else(Instant::now, |failure| failure.since);
        let message = format!("cannot catch connections (nft table inet portolan-proxy): {error}");
        error!("{message}");
        metrics.kube_proxy.nftables_failures.inc();
        self.failure = Some(Failure { since, message });
    }

    /// Catches nothing any more; the rule that open connections need stays. One that has caught nothing yet has nothing to stop.
    pub(super) fn stop(&mut self) {
        if !self.catcher.is_installed() {
            return;
        }
        let all = tcp(self.caught.values().map(|frontend| &frontend.key));
        if let Err(error) = self.catcher.change(&[], &all, &Vec::new) {
            error!(%error, "cannot empty nft table inet portolan-proxy");
        }
    }

    /// Takes the rules out of the kernel; false if they are another proxy's by now.
    pub(super) fn forget(&mut self) -> bool {
        self.catcher.remove().unwrap_or_else(|error| {
            error!(%error, "cannot delete nft table inet portolan-proxy");
            true
        })
    }
}

fn tcp<'k>(keys: impl Iterator<Item = &'k FrontendKey>) -> Vec<SocketAddr> {
    keys.filter(|key| key.protocol == Protocol::Tcp).map(|key| key.address).collect()
}
