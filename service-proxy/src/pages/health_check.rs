//! `healthCheckNodePort`: tells a load balancer in front whether this node has endpoints of a Service.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use daemon::admin::{Response, Server};
use discovery::model::NamespacedName;
use hyper::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;
use tracing::warn;

/// What a Service wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) port: u16,
    pub(crate) service: NamespacedName,
    /// Ready endpoints on this node; terminating ones do not count.
    pub(crate) local: usize,
}

/// The servers, by port.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks(BTreeMap<u16, HealthCheck>);

#[derive(Debug)]
struct HealthCheck {
    service: NamespacedName,
    addresses: Vec<IpAddr>,
    local: Arc<AtomicUsize>,
    /// One server an address; they end when this is dropped.
    _servers: JoinSet<()>,
}

impl HealthChecks {
    /// Makes the servers match what is wanted.
    pub(crate) async fn set(&mut self, wanted: Vec<Wanted>, addresses: &[IpAddr]) {
        let is_wanted = |port: &u16, check: &HealthCheck| {
            check.addresses == addresses
                && wanted.iter().any(|w| w.port == *port && w.service == check.service)
        };
        self.0.retain(|port, check| is_wanted(port, check));
        for wanted in wanted {
            match self.0.get(&wanted.port) {
                Some(check) => check.local.store(wanted.local, Ordering::Relaxed),
                None => {
                    let check = HealthCheck::start(&wanted, addresses).await;
                    self.0.insert(wanted.port, check);
                }
            }
        }
    }
}

impl HealthCheck {
    async fn start(wanted: &Wanted, addresses: &[IpAddr]) -> Self {
        let local = Arc::new(AtomicUsize::new(wanted.local));
        let mut servers = JoinSet::new();
        for address in addresses {
            match Server::bind(SocketAddr::new(*address, wanted.port)).await {
                Ok(server) => {
                    let (service, local) = (wanted.service.clone(), Arc::clone(&local));
                    servers.spawn(server.any(move |_| answer(&service, local.load(Ordering::Relaxed))).run());
                }
                Err(error) => {
                    warn!(service = %wanted.service, %error, "no health check for the load balancer")
                }
            }
        }
        Self { service: wanted.service.clone(), addresses: addresses.to_vec(), local, _servers: servers }
    }
}

/// The body is kube-proxy's.
fn answer(service: &NamespacedName, local: usize) -> Response {
    let status = if local > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": &*service.namespace, "name": &*service.name },
        "localEndpoints": local,
        "serviceProxyHealthy": true,
    });
    Response::json(status, &body)
}
