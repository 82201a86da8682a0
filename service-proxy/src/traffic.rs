//! The state that all frontends of one Service port share: session affinity, open connections, counters.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use daemon::log::RateLimit;

use crate::backend::affinity::Affinity;
use crate::metrics::services::{Counters, Services};
use crate::service_port::ServicePort;

/// The traffic of a port. It lives as long as the port is served or a connection is open.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) port: ServicePort,
    affinity: Affinity,
    open: AtomicUsize,
    services: Arc<Services>,
    /// Created when there is something to count.
    counters: OnceLock<Counters>,
    /// A Service whose endpoints do not accept must not flood the log.
    pub(crate) no_endpoint_warnings: RateLimit,
    /// Nor must one whose endpoint is a virtual IP.
    pub(crate) loop_warnings: RateLimit,
}

/// Counts as open while it exists.
#[derive(Debug)]
pub(crate) struct Open(Arc<Traffic>);

impl Traffic {
    pub(crate) fn new(port: ServicePort, services: Arc<Services>) -> Self {
        Self {
            port,
            affinity: Affinity::default(),
            open: AtomicUsize::new(0),
            services,
            counters: OnceLock::new(),
            no_endpoint_warnings: RateLimit::default(),
            loop_warnings: RateLimit::default(),
        }
    }

    /// The number of open connections and flows.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The counters, if anything was counted.
    pub(crate) fn counted(&self) -> Option<&Counters> {
        self.counters.get()
    }

    /// The counters of this port.
    pub(crate) fn counters(&self) -> &Counters {
        self.counters.get_or_init(|| self.services.counters(&self.port))
    }

    /// Counts a new connection, unless `limit` are open.
    pub(crate) fn enter(self: &Arc<Self>, limit: Option<usize>) -> Option<Open> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        if limit.is_some_and(|limit| before >= limit) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.counters().shed.inc();
            return None;
        }
        self.counters().opened.inc();
        Some(Open(Arc::clone(self)))
    }

    /// The endpoint that the client had within the last `timeout`.
    pub(crate) fn recall(&self, client: IpAddr, timeout: Duration) -> Option<SocketAddr> {
        self.affinity.recall(client, timeout)
    }

    /// Records the endpoint of the client.
    pub(crate) fn remember(&self, client: IpAddr, endpoint: SocketAddr, timeout: Duration) {
        self.affinity.remember(client, endpoint, timeout);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.counters().closed.inc();
    }
}
