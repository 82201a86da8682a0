//! What the server counts, under CoreDNS's names where they mean the same. Listed in docs/metrics.md.

use std::time::Instant;

use daemon::metrics::register;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Seconds: from an answer out of memory to an upstream that gave up.
const BUCKETS: [f64; 10] = [0.000_01, 0.000_05, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 4.0];

/// Types are the client's to choose, so only those there is a use for get a series of their own.
const KINDS: [(u16, &str); 10] = [
    (1, "A"),
    (28, "AAAA"),
    (5, "CNAME"),
    (65, "HTTPS"),
    (15, "MX"),
    (2, "NS"),
    (12, "PTR"),
    (6, "SOA"),
    (33, "SRV"),
    (16, "TXT"),
];

/// Names of the response codes, in their order.
const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
    Tls,
}

/// Every counter of the program.
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    udp: Series,
    tcp: Series,
    tls: Series,
    /// Queries that found no room to wait for an upstream server.
    pub(crate) shed: IntCounter,
    pub(crate) generation: IntGauge,
    pub(crate) problems: IntGauge,
    /// Changes of the certificate that could not be used.
    pub(crate) certificate_failures: IntCounter,
}

/// The counters of one protocol, looked up once.
struct Series {
    requests: Vec<IntCounter>,
    responses: Vec<IntCounter>,
    duration: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let opts = Opts::new("coredns_dns_requests_total", "Queries received.");
        let requests = register(&registry, IntCounterVec::new(opts, &["proto", "type"]));
        let opts = Opts::new("coredns_dns_responses_total", "Replies by their code.");
        let responses = register(&registry, IntCounterVec::new(opts, &["proto", "rcode"]));
        let opts = HistogramOpts::new("coredns_dns_request_duration_seconds", "Time from query to reply.");
        let durations = register(&registry, HistogramVec::new(opts.buckets(BUCKETS.into()), &["proto"]));
        let series = |proto: &str| Series {
            duration: durations.with_label_values(&[proto]),
            requests: KINDS
                .iter()
                .map(|(_, name)| *name)
                .chain(["other"])
                .map(|kind| requests.with_label_values(&[proto, kind]))
                .collect(),
            responses: CODES
                .into_iter()
                .chain(["other"])
                .map(|code| responses.with_label_values(&[proto, code]))
                .collect(),
        };
        let [udp, tcp, tls] = ["udp", "tcp", "tls"].map(series);
        let shed = IntCounter::new("coredns_shed_dropped_total", "Queries that found no room to wait.");
        let shed = register(&registry, shed);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let generation = gauge("portolan_dns_snapshot_generation", "Generation of the state in force.");
        let problems =
            gauge("portolan_dns_discovery_problems", "Errors and warnings about the input right now.");
        let certificate_failures = register(
            &registry,
            IntCounter::new(
                "portolan_dns_certificate_reload_failures_total",
                "Changes of the certificate that could not be used.",
            ),
        );
        Self { certificate_failures, udp, tcp, tls, shed, generation, problems, registry }
    }

    /// Counts a query and its reply; it came at `since`.
    pub(crate) fn count(&self, protocol: Protocol, kind: u16, code: u16, since: Instant) {
        let series = match protocol {
            Protocol::Udp => &self.udp,
            Protocol::Tcp => &self.tcp,
            Protocol::Tls => &self.tls,
        };
        let kind = KINDS.iter().position(|(known, _)| *known == kind).unwrap_or(KINDS.len());
        let code = usize::from(code).min(CODES.len());
        for counter in [series.requests.get(kind), series.responses.get(code)].into_iter().flatten() {
            counter.inc();
        }
        series.duration.observe(since.elapsed().as_secs_f64());
    }
}
