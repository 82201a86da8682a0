//! The metrics of the server, with CoreDNS's names if they have the same meaning. Listed in docs/metrics.md.

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use daemon::metrics::register;
use discovery::ServiceEntry;
use discovery::model::ServiceKind;
use hickory_server::net::xfer;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::acl::Refusal;

/// Seconds: from an answer from memory to an upstream timeout.
const BUCKETS: [f64; 10] = [0.000_01, 0.000_05, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 4.0];

/// The client chooses the type, so only known types get their own series.
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

/// Names of the response codes, in order.
const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];

/// The transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
    Tls,
    Https,
    Quic,
}

/// All transports.
const PROTOCOLS: [Protocol; 5] =
    [Protocol::Udp, Protocol::Tcp, Protocol::Tls, Protocol::Https, Protocol::Quic];

impl From<Protocol> for xfer::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Udp => Self::Udp,
            Protocol::Tcp => Self::Tcp,
            Protocol::Tls => Self::Tls,
            Protocol::Https => Self::Https,
            Protocol::Quic => Self::Quic,
        }
    }
}

impl From<xfer::Protocol> for Protocol {
    fn from(protocol: xfer::Protocol) -> Self {
        match protocol {
            xfer::Protocol::Udp => Self::Udp,
            xfer::Protocol::Tls => Self::Tls,
            xfer::Protocol::Https => Self::Https,
            xfer::Protocol::Quic => Self::Quic,
            _ => Self::Tcp,
        }
    }
}

impl Protocol {
    /// Whether the transport is encrypted.
    pub(crate) fn is_encrypted(self) -> bool {
        !matches!(self, Self::Udp | Self::Tcp)
    }

    /// The label value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
            Self::Quic => "quic",
        }
    }
}

/// The name of a type, or `TYPE` and its number (RFC 3597 §5).
pub(crate) fn kind_name(kind: u16) -> Cow<'static, str> {
    let known = KINDS.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("TYPE{kind}").into(), |(_, name)| (*name).into())
}

/// The name of a response code, or `RCODE` and its number.
pub(crate) fn code_name(code: u16) -> Cow<'static, str> {
    let known = CODES.get(usize::from(code));
    known.map_or_else(|| format!("RCODE{code}").into(), |name| (*name).into())
}

/// All metrics of the program.
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    /// In the order of [`PROTOCOLS`].
    series: [Series; PROTOCOLS.len()],
    /// Queries that were refused because the limit of waiting queries was reached.
    pub(crate) shed: IntCounter,
    pub(crate) generation: IntGauge,
    pub(crate) problems: IntGauge,
    /// Changes of the certificate that could not be applied.
    pub(crate) certificate_failures: IntCounter,
    /// Lines of the query log that were not written.
    pub(crate) lost_lines: IntCounter,
    /// Queries that were not sent to the dnstap collector.
    pub(crate) lost_exchanges: IntCounter,
    /// By client, by rate.
    refused: [IntCounter; 2],
    programming: HistogramVec,
}

/// The series of one transport, looked up once.
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
        let series = PROTOCOLS.map(|protocol| series(protocol.name()));
        let shed =
            IntCounter::new("coredns_shed_dropped_total", "Queries refused because too many were waiting.");
        let shed = register(&registry, shed);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let generation = gauge("portolan_dns_snapshot_generation", "Generation of the applied state.");
        let problems =
            gauge("portolan_dns_discovery_problems", "Current errors and warnings about the input.");
        let certificate_failures = register(
            &registry,
            IntCounter::new(
                "portolan_dns_certificate_reload_failures_total",
                "Changes of the certificate that could not be applied.",
            ),
        );
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let lost_lines = counter("portolan_dns_query_log_lost_total", "Lines of the query log not written.");
        let lost_exchanges =
            counter("portolan_dns_dnstap_lost_total", "Queries that the dnstap collector did not accept.");
        let opts = Opts::new("portolan_dns_refused_total", "Queries refused by limits.");
        let refused = register(&registry, IntCounterVec::new(opts, &["reason"]));
        let refused = ["client", "rate"].map(|reason| refused.with_label_values(&[reason]));
        let opts = HistogramOpts::new(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "From a change of a Service's pods to its answers.",
        );
        let buckets = prometheus::exponential_buckets(0.001, 2.0, 20).unwrap_or_default();
        let programming = register(&registry, HistogramVec::new(opts.buckets(buckets), &["service_kind"]));
        Self {
            lost_lines,
            lost_exchanges,
            refused,
            programming,
            certificate_failures,
            series,
            shed,
            generation,
            problems,
            registry,
        }
    }

    /// Counts a query that a limit has refused.
    pub(crate) fn refused(&self, refusal: Refusal) {
        let [client, rate] = &self.refused;
        match refusal {
            Refusal::Client => client.inc(),
            Refusal::Rate => rate.inc(),
        }
    }

    /// Records the delay of a change of endpoints, which is now applied.
    pub(crate) fn programmed(&self, service: &ServiceEntry, triggered_at: SystemTime) {
        let kind = match service.service.kind {
            ServiceKind::Headless if service.service.selector.is_empty() => "headless_without_selector",
            ServiceKind::Headless => "headless_with_selector",
            _ => "cluster_ip",
        };
        // If the clock of the writer is ahead, the delay counts as zero.
        let took = triggered_at.elapsed().unwrap_or_default();
        self.programming.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// Counts a query received at `since`, and its reply.
    pub(crate) fn count(&self, protocol: Protocol, kind: u16, code: u16, since: Instant) {
        let [udp, tcp, tls, https, quic] = &self.series;
        let series = match protocol {
            Protocol::Udp => udp,
            Protocol::Tcp => tcp,
            Protocol::Tls => tls,
            Protocol::Https => https,
            Protocol::Quic => quic,
        };
        let kind = KINDS.iter().position(|(known, _)| *known == kind).unwrap_or(KINDS.len());
        let code = usize::from(code).min(CODES.len());
        for counter in [series.requests.get(kind), series.responses.get(code)].into_iter().flatten() {
            counter.inc();
        }
        series.duration.observe(since.elapsed().as_secs_f64());
    }
}
