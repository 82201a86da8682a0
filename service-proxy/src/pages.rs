//! The HTTP pages of the proxy: health, readiness, metrics, status.

mod health;
pub(crate) mod health_check;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use daemon::admin::{self, Response, Server};
use daemon::handover::Claim;
use daemon::program::Settings;
use daemon::readiness::{Condition, Readiness};
use discovery::model::NamespacedName;
use discovery::{SharedMap, Snapshots};
use hyper::StatusCode;
use tokio::task::JoinSet;

use crate::frontend::{Frontend, FrontendKey};
use crate::metrics::Metrics;

/// The proxier's state for the pages, as the proxier runs in another task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<Mutex<Shown>>);

/// One state.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) frontends: SharedMap<FrontendKey, Frontend>,
    pub(crate) failures: Vec<String>,
    /// Frontends that portolan-dns serves in place of their Services.
    pub(crate) served_by_dns: BTreeMap<NamespacedName, BTreeSet<FrontendKey>>,
    /// When the last state was applied; `None` before the first.
    pub(crate) updated: Option<SystemTime>,
    /// Since when the kernel has rejected the rules, if it does.
    pub(crate) rejected_since: Option<Instant>,
    /// The node is about to be removed.
    pub(crate) leaving: bool,
    /// The proxy is draining.
    pub(crate) draining: bool,
}

/// The addresses of the pages, and what they show beside the proxier's state.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) metrics_address: SocketAddr,
    pub(crate) healthz_address: SocketAddr,
    pub(crate) settings: Settings,
    pub(crate) proxy_name: Option<String>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) snapshots: Snapshots,
    pub(crate) status: Status,
    /// Whether a next proxy has started.
    pub(crate) claim: Claim,
}

impl Status {
    pub(crate) fn set(&self, shown: Shown) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// The proxy is about to go.
    pub(crate) fn drain(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).draining = true;
    }

    fn with<T>(&self, read: impl FnOnce(&Shown) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the received state is applied, or will be shortly.
    fn is_healthy(&self) -> bool {
        self.with(health::is_healthy)
    }
}

/// Starts the pages. An address that is in use affects its own pages only.
pub(crate) fn serve(tasks: &mut JoinSet<()>, pages: Pages) {
    let Pages { metrics_address, healthz_address, settings, proxy_name, metrics, snapshots, status, claim } =
        pages;
    let readiness = readiness(snapshots.clone(), status.clone());
    readiness.add("handover", move || claim.readiness());
    daemon::build_info::register(&metrics.registry);
    daemon::log::register(&metrics.registry, "portolan_proxy");
    let shown = (status.clone(), Arc::clone(&metrics), readiness.clone());
    let of_metrics = move |server: Server| {
        let (status, metrics, readiness) = shown;
        server
            .route("/metrics", admin::metrics(metrics.registry.clone()))
            .route("/readyz", admin::readyz(readiness))
            .route("/healthz", health::healthz(status.clone(), Arc::clone(&metrics)))
            // kube-proxy's pages of these names, for tools that query the mode and the configuration.
            .route("/proxyMode", |_| Response::text(StatusCode::OK, "userspace"))
            .route("/configz", move |_| Response::json(StatusCode::OK, &settings.json("portolan-proxy")))
            .local_route("/debug/services", move |query| {
                services(query, proxy_name.as_deref(), &snapshots, &status)
            })
    };
    tasks.spawn(Server::serve(metrics_address, "--metrics-bind-address", of_metrics));
    let of_health = move |server: Server| {
        server
            .route("/healthz", health::healthz(status.clone(), Arc::clone(&metrics)))
            .route("/livez", health::livez(status, metrics))
            .route("/readyz", admin::readyz(readiness))
    };
    tasks.spawn(Server::serve(healthz_address, "--healthz-bind-address", of_health));
}

/// Not ready before the first state is applied, and while draining. A frontend that cannot be opened is
/// reported but does not affect others.
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
            for (service, keys) in &shown.served_by_dns {
                for key in keys {
                    detail.push_str(&format!(
                        "; {key} of Service {service} is left to portolan-dns on this node"
                    ));
                }
            }
            if shown.draining {
                detail.push_str("; draining");
            }
            Condition { ready: shown.updated.is_some() && !shown.draining, detail }
        })
    });
    readiness
}

/// `?format=json` for programs; `?service=NAMESPACE/NAME` for one Service.
fn services(query: &str, proxy_name: Option<&str>, snapshots: &Snapshots, status: &Status) -> Response {
    let snapshot = Arc::clone(&snapshots.borrow());
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let service = value("service");
    status.with(|shown| {
        let all = shown.frontends.values();
        let wanted = all.filter(|f| service.is_none_or(|service| f.service().to_string() == service));
        let mut frontends: Vec<_> = wanted.collect();
        frontends.sort_by_key(|frontend| frontend.key);
        let view = status::View { snapshot: &snapshot, frontends, shown, service, proxy_name };
        if value("format") == Some("json") {
            Response::json(StatusCode::OK, &format_args!("{:#}", view.json()))
        } else {
            Response::text(StatusCode::OK, view.table())
        }
    })
}
