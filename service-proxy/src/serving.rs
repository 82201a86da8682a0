//! The control loop: what is known is put into force, looked after, and given up in the end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use daemon::drain::Drain;
use daemon::handover::{self, Claim};
use discovery::{Snapshot, Snapshots};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::kernel::conntrack::Conntrack;
use crate::kernel::divert::Divert;
use crate::kernel::local_route::LocalRoutes;
use crate::pages::health_check::HealthChecks;
use crate::pages::{Shown, Status};
use crate::proxier::Proxier;

/// How often a frontend that could not be opened is tried again, and the kernel's part is looked after.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What follows the snapshots.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) proxier: Proxier,
    pub(crate) routes: LocalRoutes,
    /// `None` where the kernel has no policy routing.
    pub(crate) divert: Option<Divert>,
    pub(crate) conntrack: Conntrack,
    pub(crate) health_checks: HealthChecks,
    /// Whether a next proxy has started.
    pub(crate) claim: Claim,
    /// Notified once the first state is applied.
    pub(crate) started: Arc<Notify>,
    pub(crate) status: Status,
    /// When the last state was put into force.
    pub(crate) updated: Option<SystemTime>,
}

impl Serving {
    /// Follows the snapshots until the drain begins. Cancel-safe in that the next state makes up for one half
    /// done.
    pub(crate) async fn follow(&mut self, mut snapshots: Snapshots, drain: &Drain) {
        let mut retry = tokio::time::interval(RETRY_INTERVAL);
        snapshots.mark_changed();
        loop {
            tokio::select! {
                () = drain.started() => return,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = retry.tick() => {
                    self.health_checks.listen().await;
                    self.conntrack.apply();
                    let has_moved = self.updated.is_some() && self.proxier.node_has_moved();
                    if has_moved {
                        info!("the node has other addresses now");
                    }
                    if !self.proxier.dns_has_moved() && !has_moved {
                        let snapshot = Arc::clone(&snapshots.borrow());
                        self.look_after(&snapshot).await;
                        continue;
                    }
                }
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            self.apply(&snapshot).await;
        }
    }

    async fn apply(&mut self, snapshot: &Arc<Snapshot>) {
        self.proxier.apply(snapshot);
        // Before the first state nothing is known, and what the proxy before has needs its routes.
        if snapshot.synced {
            self.routes.set_ranges(self.proxier.ranges()).await;
            self.routes.set_singles(self.proxier.outside()).await;
            let addresses = self.proxier.node_port_addresses();
            self.health_checks.set(self.proxier.health_checks(), addresses).await;
        }
        self.note(snapshot).await;
    }

    /// Tries again what has failed, and restores what was deleted.
    async fn look_after(&mut self, snapshot: &Snapshot) {
        if self.proxier.retry_failures() {
            self.note(snapshot).await;
        }
        if self.is_current() {
            self.repair().await;
        }
    }

    /// Whether new connections are for this proxy: it has applied a state.
    fn is_current(&self) -> bool {
        self.updated.is_some()
    }

    /// Notes what is applied. The first time, the previous proxy is told to stop.
    async fn note(&mut self, snapshot: &Snapshot) {
        if snapshot.synced && self.proxier.stuck_since().is_none() {
            let is_first = !self.is_current();
            self.updated = Some(SystemTime::now());
            if is_first {
                self.started.notify_one();
                self.repair().await;
            }
        }
        self.status.set(Shown {
            frontends: self.proxier.frontends(),
            failures: self.proxier.failures(),
            left_to_dns: self.proxier.left_to_dns(),
            updated: self.updated,
            stuck_since: self.proxier.stuck_since(),
            leaving: self.proxier.is_leaving(snapshot),
            draining: false,
        });
    }

    async fn repair(&mut self) {
        self.routes.repair().await;
        if !self.proxier.is_bridged() && self.routes.has_bridge().await {
            self.proxier.add_bridged();
        }
        if let Some(divert) = &self.divert
            && let Err(error) = divert.repair().await
        {
            warn!(%error, "replies to borrowed addresses may not come back, and external IPs may not be served");
        }
    }

    /// New connections are refused from now on, and load balancers are told.
    pub(crate) fn stop_accepting(&mut self) {
        self.status.drain();
        self.health_checks.drain();
        self.proxier.stop_intercepting();
    }

    /// Removes everything from the kernel, unless it belongs to another proxy: the previous one, which still
    /// serves, or a next one that has started.
    pub(crate) async fn clean_up(mut self) -> Proxier {
        let has_other =
            if self.is_current() { self.claim.is_claimed() } else { handover::is_held(crate::HANDOVER_NAME) };
        if !has_other && self.proxier.forget() {
            // The routes come last: without them, not even open connections work.
            self.routes.remove().await;
            if let Some(divert) = self.divert {
                divert.remove().await;
            }
        }
        self.proxier
    }
}
