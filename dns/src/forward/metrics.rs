//! The metrics of the forwarder, with CoreDNS's names if they have the same meaning. Listed in
//! docs/metrics.md.

use daemon::metrics::register;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::failure::Cause;

/// Seconds: from a nearby server to one that hardly responds.
const BUCKETS: [f64; 10] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 4.0];

/// Every counter of the forwarder.
pub(crate) struct Metrics {
    pub(super) hits_success: IntCounter,
    pub(super) hits_denial: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) prefetches: IntCounter,
    pub(super) stale: IntCounter,
    pub(super) entries: IntGauge,
    pub(super) bytes: IntGauge,
    pub(super) evictions: IntGauge,
    pub(super) rejects: IntCounter,
    pub(super) coalesced: IntCounter,
    pub(super) hedges: IntCounter,
    pub(super) failures: IntCounterVec,
    pub(super) loops: IntGauge,
    durations: HistogramVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let vec = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let hits = vec("coredns_cache_hits_total", "Answers from the cache.", &["type"]);
        let opts =
            HistogramOpts::new("coredns_proxy_request_duration_seconds", "Time upstream servers took.");
        Self {
            hits_success: hits.with_label_values(&["success"]),
            hits_denial: hits.with_label_values(&["denial"]),
            misses: counter("coredns_cache_misses_total", "Queries without an answer in the cache."),
            prefetches: counter("coredns_cache_prefetch_total", "Answers refreshed before they expired."),
            stale: counter("coredns_cache_served_stale_total", "Answers served after they had expired."),
            entries: gauge("coredns_cache_entries", "Answers in the cache."),
            bytes: gauge("portolan_dns_cache_bytes", "Bytes of the cache."),
            evictions: gauge("coredns_cache_evictions_total", "Answers evicted for newer ones."),
            rejects: counter(
                "coredns_forward_max_concurrent_rejects_total",
                "Queries refused because too many were waiting.",
            ),
            coalesced: counter("portolan_dns_coalesced_total", "Queries that waited for an equal one."),
            hedges: counter("portolan_dns_hedges_total", "Attempts after the first to answer one query."),
            failures: vec("portolan_dns_forward_failures_total", "Queries without an answer.", &["cause"]),
            loops: gauge("portolan_dns_looping_upstreams", "Upstream servers that forward to this one."),
            durations: register(registry, HistogramVec::new(opts.buckets(BUCKETS.into()), &["to"])),
        }
    }

    pub(super) fn hit(&self, is_positive: bool) {
        if is_positive { self.hits_success.inc() } else { self.hits_denial.inc() }
    }

    pub(super) fn failed(&self, cause: Cause) {
        let cause = match cause {
            Cause::NoUpstream => "no_upstream",
            Cause::Loop => "loop",
            Cause::Overload => "overload",
            Cause::ClientOverload => "client_overload",
            Cause::Timeout => "timeout",
            Cause::Network => "network",
            Cause::Invalid(_) => "answer",
        };
        self.failures.with_label_values(&[cause]).inc();
    }

    /// The histogram of one server.
    pub(super) fn upstream(&self, to: &str) -> Histogram {
        self.durations.with_label_values(&[to])
    }
}
