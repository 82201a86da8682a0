//! What the server counts, under CoreDNS's names where they mean the same. Listed in docs/metrics.md.

use std::time::Duration;

use daemon::metrics::register;
use hickory_server::proto::op::ResponseCode;
use hickory_server::server::Request;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// Seconds: from an answer out of memory to an upstream that gave up.
const BUCKETS: [f64; 10] = [0.000_01, 0.000_05, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 4.0];

/// Every counter of the program.
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    requests: IntCounterVec,
    responses: IntCounterVec,
    durations: HistogramVec,
    pub(crate) generation: IntGauge,
    pub(crate) problems: IntGauge,
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
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let generation = gauge("portolan_dns_snapshot_generation", "Generation of the state in force.");
        let problems =
            gauge("portolan_dns_discovery_problems", "Errors and warnings about the input right now.");
        Self { requests, responses, durations, generation, problems, registry }
    }

    /// Counts a query and its reply.
    pub(crate) fn count(&self, request: &Request, code: ResponseCode, took: Duration) {
        let proto = if request.protocol().is_stream() { "tcp" } else { "udp" };
        // Types are the client's to choose, so only those there is a use for get a series of their own.
        let kind = request.queries.queries().first().map(|query| query.query_type().to_string());
        let known = ["A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];
        let kind = kind.as_deref().filter(|kind| known.contains(kind)).unwrap_or("other");
        self.requests.with_label_values(&[proto, kind]).inc();
        let rcode = match code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::Refused => "REFUSED",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::NotImp => "NOTIMP",
            _ => "other",
        };
        self.responses.with_label_values(&[proto, rcode]).inc();
        self.durations.with_label_values(&[proto]).observe(took.as_secs_f64());
    }
}
