//! The metrics of the proxy. Their names are listed in docs/metrics.md.

mod descriptors;
mod kube_proxy;
pub(crate) mod services;

use std::sync::Arc;

use daemon::metrics::register;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

use self::descriptors::Descriptors;
use self::kube_proxy::KubeProxy;
use self::services::Services;
use crate::budget::Budget;

/// Bounds in seconds: from an endpoint on the same node to one that timed out.
const CONNECT_BUCKETS: [f64; 10] = [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

const CLIENT_LIMITS: &str = "Connections reset, and UDP flows closed or not opened, because their client \
                             had as many descriptors as were free.";

/// One struct for the whole program: the data path pays one atomic addition per count.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) kube_proxy: KubeProxy,
    pub(crate) services: Arc<Services>,
    pub(crate) connections_opened: IntCounter,
    pub(crate) connections_closed: IntCounter,
    pub(crate) accept_errors: IntCounter,
    pub(crate) connect_retries: IntCounter,
    pub(crate) connect_failures: IntCounter,
    pub(crate) connections_shed: IntCounter,
    pub(crate) client_limits: IntCounter,
    pub(crate) clients_refused: IntCounter,
    pub(crate) idle_timeouts: IntCounter,
    pub(crate) source_fallbacks: IntCounter,
    pub(crate) loops_refused: IntCounter,
    pub(crate) connect_seconds: Histogram,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) udp_flows: IntGauge,
    pub(crate) udp_to_upstream: IntCounter,
    pub(crate) udp_to_client: IntCounter,
    pub(crate) udp_dropped: IntCounter,
    pub(crate) udp_evicted: IntCounter,
    pub(crate) udp_queue_drops: IntCounter,
    pub(crate) frontends: IntGauge,
    pub(crate) frontend_failures: IntGauge,
    pub(crate) node_routes: IntGauge,
    pub(crate) node_route_problems: IntGauge,
    pub(crate) snapshot_generation: IntGauge,
    pub(crate) discovery_problems: IntGauge,
}

impl Metrics {
    /// Creates the metrics, with the descriptors of `budget` as gauges.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        let registry = Registry::new();
        let descriptors = Box::new(Descriptors::new(Arc::clone(budget)));
        registry.register(descriptors).expect("each metric is registered once");
        let counter = |name: &str, help: &str| {
            register(&registry, IntCounter::new(format!("portolan_proxy_{name}"), help))
        };
        let gauge = |name: &str, help: &str| {
            register(&registry, IntGauge::new(format!("portolan_proxy_{name}"), help))
        };
        let connect = HistogramOpts::new(
            "portolan_proxy_connect_duration_seconds",
            "Time from accepting a client to being connected to an endpoint, retries included.",
        );
        Self {
            connections_opened: counter("connections_opened_total", "TCP connections accepted."),
            connections_closed: counter("connections_closed_total", "TCP connections closed for any reason."),
            accept_errors: counter("accept_errors_total", "Failed accepts."),
            connect_retries: counter(
                "connect_retries_total",
                "Attempts after the first to reach an endpoint.",
            ),
            connect_failures: counter(
                "connect_failures_total",
                "Connections for which no endpoint could be reached.",
            ),
            connections_shed: counter(
                "connections_shed_total",
                "Connections reset because --max-connections were open, as many as their Service may have, \
                 or no descriptor was left.",
            ),
            client_limits: counter("client_limits_total", CLIENT_LIMITS),
            clients_refused: counter(
                "clients_refused_total",
                "Connections from outside loadBalancerSourceRanges.",
            ),
            idle_timeouts: counter(
                "quiet_connections_ended_total",
                "Connections reset by an idle timeout: of half-closed connections, or of open ones if it is set.",
            ),
            source_fallbacks: counter(
                "source_fallbacks_total",
                "Connections whose client's address could not be preserved, because every port was taken.",
            ),
            loops_refused: counter(
                "loops_refused_total",
                "Attempts to connect to an endpoint that leads back to a proxy: its own virtual IP, or in circles.",
            ),
            connect_seconds: register(
                &registry,
                Histogram::with_opts(connect.buckets(CONNECT_BUCKETS.into())),
            ),
            sent_bytes: counter("sent_bytes_total", "Bytes relayed from TCP clients to endpoints."),
            received_bytes: counter("received_bytes_total", "Bytes relayed from endpoints to TCP clients."),
            udp_flows: gauge("udp_flows", "UDP flows open now."),
            udp_to_upstream: counter("udp_sent_datagrams_total", "Datagrams relayed to endpoints."),
            udp_to_client: counter("udp_received_datagrams_total", "Datagrams relayed to clients."),
            udp_dropped: counter(
                "udp_dropped_datagrams_total",
                "Datagrams of clients that could not be relayed.",
            ),
            udp_evicted: counter("udp_evicted_flows_total", "UDP flows that were evicted for newer ones."),
            udp_queue_drops: counter(
                "udp_queue_drops_total",
                "Datagrams of clients and endpoints that found the queue of the proxy's socket full.",
            ),
            frontends: gauge("frontends", "Virtual IPs and ports being served."),
            frontend_failures: gauge("frontend_failures", "Virtual IPs and ports that cannot be opened now."),
            node_routes: gauge("node_routes", "Pod ranges of other nodes that need a route."),
            node_route_problems: gauge(
                "node_route_problems",
                "Ranges of other nodes' pods that cannot be reached.",
            ),
            snapshot_generation: gauge("snapshot_generation", "Generation of the applied state."),
            discovery_problems: gauge("discovery_problems", "Current errors and warnings about the input."),
            kube_proxy: KubeProxy::new(&registry),
            services: Services::new(&registry),
            registry,
        }
    }
}
