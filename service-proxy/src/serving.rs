//! The control loop: applies snapshots, repairs, and cleans up at the end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use daemon::drain::Drain;
use daemon::handover::{self, Claim};
use discovery::{Snapshot, Snapshots};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::kernel::conntrack::Conntrack;
use crate::kernel::local_route::LocalRoutes;
use crate::kernel::policy_routing::PolicyRouting;
use crate::pages::health_check::HealthChecks;
use crate::pages::{Shown, Status};
use crate::proxier::Proxier;

/// Interval of retries and of checks of the kernel's state.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The parts that snapshots are applied to.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) proxier: Proxier,
    pub(crate) routes: LocalRoutes,
    /// `None` if the kernel has no policy routing.
    pub(crate) policy_routing: Option<PolicyRouting>,
    pub(crate) conntrack: Conntrack,
    pub(crate) health_checks: HealthChecks,
    /// Whether a next proxy has started.
    pub(crate) claim: Claim,
    /// Notified once the first state is applied.
    pub(crate) started: Arc<Notify>,
    pub(crate) status: Status,
    /// When the last state was applied.
    pub(crate) updated: Option<SystemTime>,
}

impl Serving {
    /// Applies snapshots until the drain begins. Cancel-safe: the next state completes one that was half
    /// applied.
    pub(crate) async fn run(&mut self, mut snapshots: Snapshots, drain: &Drain) {
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
                    let has_moved = self.updated.is_some() && self.proxier.node_addresses_changed();
                    if has_moved {
                        info!("the node has other addresses now");
                    }
                    if !self.proxier.dns_listeners_changed() && !has_moved {
                        let snapshot = Arc::clone(&snapshots.borrow());
                        self.repair_failures(&snapshot).await;
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
        // Before the first state nothing is known, and the previous proxy needs its routes.
        if snapshot.synced {
            self.routes.set_ranges(self.proxier.ranges()).await;
            self.routes.set_singles(self.proxier.outside()).await;
            let addresses = self.proxier.node_port_addresses();
            self.health_checks.set(self.proxier.health_checks(), addresses).await;
        }
        self.record_sync(snapshot).await;
    }

    /// Retries failures, and restores what was deleted.
    async fn repair_failures(&mut self, snapshot: &Snapshot) {
        if self.proxier.retry_failures() {
            self.record_sync(snapshot).await;
        }
        if self.is_current() {
            self.repair().await;
        }
    }

    /// Whether this proxy gets new connections: it has applied a state.
    fn is_current(&self) -> bool {
        self.updated.is_some()
    }

    /// Records the applied state. The first time, the previous proxy is stopped.
    async fn record_sync(&mut self, snapshot: &Snapshot) {
        if snapshot.synced && self.proxier.rejected_since().is_none() {
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
            served_by_dns: self.proxier.served_by_dns(),
            updated: self.updated,
            rejected_since: self.proxier.rejected_since(),
            leaving: self.proxier.is_node_leaving(snapshot),
            draining: false,
        });
    }

    async fn repair(&mut self) {
        self.routes.repair().await;
        if !self.proxier.is_bridged() && self.routes.has_bridge().await {
            self.proxier.add_bridged();
        }
        if let Some(policy_routing) = &self.policy_routing
            && let Err(error) = policy_routing.repair().await
        {
            warn!(%error, "replies to preserved source addresses may not come back, and external IPs may not be served");
        }
    }

    /// Refuses new connections, and reports the drain to load balancers.
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
        if !has_other && self.proxier.remove_rules() {
            // The routes come last: without them, not even open connections work.
            self.routes.remove().await;
            if let Some(policy_routing) = self.policy_routing {
                policy_routing.remove().await;
            }
        }
        self.proxier
    }
}
