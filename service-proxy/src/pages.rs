//! What the proxy shows over HTTP: health, readiness, metrics, what is served.

pub(crate) mod health_check;
mod status;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use daemon::admin::{self, Response, Server};
use daemon::readiness::{Condition, Readiness};
use discovery::Snapshots;
use hyper::StatusCode;
use tokio::task::JoinSet;

use crate::frontend::Frontend;
use crate::metrics::Metrics;

/// What the pages show of the proxier, which lives in another task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    applied: bool,
    frontends: Vec<Arc<Frontend>>,
    failures: Vec<String>,
}

impl Status {
    /// A state is in force.
    pub(crate) fn set(&self, applied: bool, frontends: Vec<Arc<Frontend>>, failures: Vec<String>) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Shown { applied: shown.applied || applied, frontends, failures };
    }

    fn with<T>(&self, read: impl FnOnce(&Shown) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the pages.
///
/// # Errors
/// When an address cannot be listened on.
pub(crate) async fn serve(
    tasks: &mut JoinSet<()>,
    (metrics_address, healthz_address): (SocketAddr, SocketAddr),
    metrics: &Metrics,
    snapshots: Snapshots,
    status: Status,
) -> anyhow::Result<()> {
    let readiness = readiness(snapshots.clone(), status.clone());
    daemon::build_info::register(&metrics.registry);
    let server = Server::bind(metrics_address).await.context("--metrics-bind-address")?;
    let server = server
        .route("/metrics", admin::metrics(metrics.registry.clone()))
        .route("/readyz", admin::readyz(readiness.clone()))
        .route("/healthz", admin::livez())
        // kube-proxy's page of that name, for whoever asks which kind of proxy runs here.
        .route("/proxyMode", |_| Response::text(StatusCode::OK, "userspace"))
        .route("/debug/services", move |query| services(query, &snapshots, &status));
    tasks.spawn(server.run());
    let server = Server::bind(healthz_address).await.context("--healthz-bind-address")?;
    let server = server
        .route("/healthz", admin::livez())
        .route("/livez", admin::livez())
        .route("/readyz", admin::readyz(readiness));
    tasks.spawn(server.run());
    Ok(())
}

/// Not ready before the first state is in force; a frontend that cannot be opened is told but harms no other.
fn readiness(snapshots: Snapshots, status: Status) -> Readiness {
    let readiness = Readiness::default();
    readiness.add("sources", move || {
        let (ready, detail) = snapshots.borrow().health();
        Condition { ready, detail }
    });
    readiness.add("frontends", move || {
        status.with(|shown| {
            let mut detail = format!("{} served", shown.frontends.len());
            for failure in &shown.failures {
                detail.push_str("; ");
                detail.push_str(failure);
            }
            Condition { ready: shown.applied, detail }
        })
    });
    readiness
}

fn services(query: &str, snapshots: &Snapshots, status: &Status) -> Response {
    let snapshot = Arc::clone(&snapshots.borrow());
    status.with(|Shown { frontends, failures, .. }| {
        if query == "format=json" {
            Response::json(
                StatusCode::OK,
                &format_args!("{:#}", status::json(&snapshot, frontends, failures)),
            )
        } else {
            Response::text(StatusCode::OK, status::table(&snapshot, frontends, failures))
        }
    })
}
