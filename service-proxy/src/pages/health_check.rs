//! `healthCheckNodePort`: reports to an external load balancer whether this node has endpoints of a Service.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use daemon::admin::{Response, Server};
use discovery::model::NamespacedName;
use discovery::{EventRecord, Recorder, Regarding};
use hyper::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;
use tracing::warn;

use super::Status;

/// kube-proxy's header with the number of endpoints, by which a load balancer may weight the node.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// The health check of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheckSpec {
    pub(crate) port: u16,
    pub(crate) service: NamespacedName,
    /// Ready endpoints on this node, without terminating ones.
    pub(crate) local: usize,
}

/// The servers, by port.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    status: Status,
    recorder: Recorder,
    node_name: String,
    checks: BTreeMap<u16, HealthCheck>,
}

#[derive(Debug)]
struct HealthCheck {
    service: NamespacedName,
    local: Arc<AtomicUsize>,
    port: u16,
    /// Addresses on which it does not listen yet.
    missing: BTreeSet<IpAddr>,
    addresses: Vec<IpAddr>,
    /// One server per address. They end when this is dropped.
    servers: JoinSet<()>,
}

impl HealthChecks {
    pub(crate) fn new(status: Status, recorder: Recorder, node_name: String) -> Self {
        Self { status, recorder, node_name, checks: BTreeMap::new() }
    }

    /// Updates the servers to the desired ones.
    pub(crate) async fn set(&mut self, wanted: Vec<HealthCheckSpec>, addresses: &[IpAddr]) {
        let is_wanted = |port: &u16, check: &HealthCheck| {
            check.addresses == addresses
                && wanted.iter().any(|w| w.port == *port && w.service == check.service)
        };
        self.checks.retain(|port, check| is_wanted(port, check));
        for wanted in wanted {
            let check =
                self.checks.entry(wanted.port).or_insert_with(|| HealthCheck::new(&wanted, addresses));
            check.local.store(wanted.local, Ordering::Relaxed);
        }
        self.listen().await;
    }

    /// From now on no node port is served: load balancers should use other nodes.
    pub(crate) fn drain(&self) {
        self.checks.values().for_each(|check| check.local.store(0, Ordering::Relaxed));
    }

    /// Also retries what could not be opened before.
    pub(crate) async fn listen(&mut self) {
        for check in self.checks.values_mut().filter(|check| !check.missing.is_empty()) {
            // Logged once, not at every attempt.
            let is_first = check.missing.len() == check.addresses.len() && check.servers.is_empty();
            let failure = check.listen(&self.status).await.err();
            if let Some(error) = failure.filter(|_| is_first) {
                let (service, port) = (&check.service, check.port);
                warn!(%service, %error, "no health check for the load balancer, trying again");
                self.recorder.record(EventRecord {
                    regarding: Regarding::service(service.clone()),
                    is_warning: true,
                    reason: "FailedToStartServiceHealthcheck",
                    action: "Listen",
                    note: format!(
                        "node {} failed to start healthcheck \"{service}\" on port {port}: {error}",
                        self.node_name
                    ),
                });
            }
        }
    }
}

impl HealthCheck {
    fn new(wanted: &HealthCheckSpec, addresses: &[IpAddr]) -> Self {
        Self {
            service: wanted.service.clone(),
            local: Arc::default(),
            port: wanted.port,
            missing: addresses.iter().copied().collect(),
            addresses: addresses.to_vec(),
            servers: JoinSet::new(),
        }
    }

    /// Opens missing listeners. Returns the last error if some are still missing.
    async fn listen(&mut self, status: &Status) -> io::Result<()> {
        let mut outcome = Ok(());
        for address in std::mem::take(&mut self.missing) {
            match Server::bind(SocketAddr::new(address, self.port)).await {
                Ok(server) => {
                    let (service, local, status) =
                        (self.service.clone(), Arc::clone(&self.local), status.clone());
                    let page =
                        move |_: &str| answer(&service, local.load(Ordering::Relaxed), status.is_healthy());
                    self.servers.spawn(server.any(page).run());
                }
                Err(error) => {
                    self.missing.insert(address);
                    outcome = Err(error);
                }
            }
        }
        outcome
    }
}

/// The body has kube-proxy's format.
fn answer(service: &NamespacedName, local: usize, is_healthy: bool) -> Response {
    let is_well = local > 0 && is_healthy;
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": &*service.namespace, "name": &*service.name },
        "localEndpoints": local,
        "serviceProxyHealthy": is_healthy,
    });
    Response::json(status, &body).with_header(WEIGHT, local)
}
