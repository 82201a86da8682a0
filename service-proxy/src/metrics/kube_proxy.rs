//! Metrics with kube-proxy's names, so that its dashboards and alerts continue to work.
//!
//! A sync here covers both families, so these have no label `ip_family`, unlike kube-proxy with one proxier
//! per family.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::metrics::register;
use discovery::model::IpFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

/// One struct for all of them.
#[derive(Debug)]
pub(crate) struct KubeProxy {
    sync: Histogram,
    programming: Histogram,
    last_sync: Gauge,
    last_queued: Gauge,
    pub(crate) service_changes: IntCounter,
    pub(crate) endpoint_changes: IntCounter,
    pub(crate) without_local: IntGaugeVec,
    pub(crate) nftables_failures: IntCounter,
    pub(crate) healthz: IntCounterVec,
    pub(crate) livez: IntCounterVec,
}

impl KubeProxy {
    pub(super) fn new(registry: &Registry) -> Self {
        let rules = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        let counter = |name: String, help: &str| register(registry, IntCounter::new(name, help));
        let gauge = |name: String, help: &str| register(registry, Gauge::new(name, help));
        let coded = |name: &str, help: &str| {
            register(
                registry,
                IntCounterVec::new(Opts::new(format!("kubeproxy_proxy_{name}"), help), &["code"]),
            )
        };
        let histogram = |name: String, help: &str, buckets: Vec<f64>| {
            register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
        };
        let without_local = Opts::new(
            rules("no_local_endpoints_total"),
            "Ports of Services with a Local policy and without an endpoint on this node, although there are others.",
        );
        let without_local =
            register(registry, IntGaugeVec::new(without_local, &["ip_family", "traffic_policy"]));
        for family in [IpFamily::V4, IpFamily::V6] {
            for policy in ["internal", "external"] {
                // Exposed as 0 while there are none.
                without_local.with_label_values(&[&family.to_string(), policy]);
            }
        }
        Self {
            sync: histogram(
                rules("duration_seconds"),
                "Time to apply a new state.",
                exponential_buckets(0.001, 2.0, 15).unwrap_or_default(),
            ),
            programming: histogram(
                "kubeproxy_network_programming_duration_seconds".to_owned(),
                "Time from a change of a pod or Service until it is applied here.",
                programming_buckets(),
            ),
            last_sync: gauge(rules("last_timestamp_seconds"), "When a state was last applied."),
            last_queued: gauge(rules("last_queued_timestamp_seconds"), "When a state was last received."),
            service_changes: counter(rules("service_changes_total"), "Services that changed."),
            endpoint_changes: counter(
                rules("endpoint_changes_total"),
                "EndpointSlices that changed or appeared.",
            ),
            without_local,
            nftables_failures: counter(
                rules("nftables_sync_failures_total"),
                "Failures to change the nftables rules.",
            ),
            healthz: coded("healthz_total", "Answers of /healthz."),
            livez: coded("livez_total", "Answers of /livez."),
        }
    }

    /// Records that a state was received.
    pub(crate) fn queued(&self) {
        self.last_queued.set(since_epoch(SystemTime::now()));
    }

    /// Records that it was applied, and the duration.
    pub(crate) fn synced(&self, took: Duration) {
        self.sync.observe(took.as_secs_f64());
        self.last_sync.set(since_epoch(SystemTime::now()));
    }

    /// Records that a change of that time is applied.
    pub(crate) fn programmed(&self, happened: SystemTime) {
        // The clock of the writer may be ahead.
        self.programming.observe(happened.elapsed().unwrap_or_default().as_secs_f64());
    }
}

/// The buckets of kube-proxy: 0.25 s, 0.5 s, then seconds, then coarser up to five minutes.
fn programming_buckets() -> Vec<f64> {
    let steps = |from: u32, to: u32, by: usize| (from..=to).step_by(by).map(f64::from);
    [0.25, 0.5]
        .into_iter()
        .chain(steps(1, 59, 1))
        .chain(steps(60, 115, 5))
        .chain(steps(120, 300, 30))
        .collect()
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
