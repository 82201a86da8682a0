//! Targets of the request latency: a Service adds less than a millisecond.

use super::{Target, at_most};

pub(super) const TARGETS: &[Target] = &[
    at_most(1000.0, "µs", "rr-p50", "what a Service adds to a request on an open connection, p50"),
    at_most(1000.0, "µs", "rr-p99", "what a Service adds to a request on an open connection, p99"),
    at_most(1000.0, "µs", "crr-p50", "what a Service adds to a request with a connection of its own, p50"),
    at_most(1000.0, "µs", "crr-p99", "what a Service adds to a request with a connection of its own, p99"),
    at_most(1000.0, "µs", "cold-p50", "what a Service adds to resolve + connect + request, p50"),
    at_most(1000.0, "µs", "cold-p99", "what a Service adds to resolve + connect + request, p99"),
    at_most(
        1000.0,
        "µs",
        "many-p99",
        "what a Service among 10,000 adds to a request with a connection of its own, p99",
    ),
    at_most(1000.0, "µs", "open-p99", "what a Service adds at a fixed 1,000 requests/s, p99, open loop"),
    at_most(0.0, "µs", "sockperf", "direct path, p50: how far from sockperf's, beyond the A/A width"),
];
