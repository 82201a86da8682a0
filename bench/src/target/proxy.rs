//! Targets of `portolan-proxy`. The better peer is the better of HAProxy and nginx.

use super::{Target, at_least, at_most};

pub(super) const TARGETS: &[Target] = &[
    at_most(0.5, "x", "rr-added", "RR: p50 added to direct, against the better peer's"),
    at_most(
        0.85,
        "x",
        "rr-added-no-poll",
        "RR without polling: p50 added to direct, against the better peer's",
    ),
    at_least(1.15, "x", "rr64-rate", "RR on 64 connections: requests/s, against the better peer"),
    at_most(0.9, "x", "rr64-cpu", "RR on 64 connections: CPU a request, against the better peer"),
    at_least(1.2, "x", "crr-rate", "CRR: connections/s, against the better peer, source address preserved"),
    at_least(1.5, "x", "stream-rate", "stream on one connection: MiB/s, against the better peer"),
    at_least(1.5, "x", "udp-rate", "UDP RR: requests/s, against nginx"),
    at_most(3.0, "s", "scale-ready", "10,000 Services x 10 endpoints: start to ready"),
    at_most(120.0, "MiB", "scale-memory", "10,000 Services x 10 endpoints: resident memory"),
    at_most(12.0, "MiB", "small-memory", "100 Services: resident memory"),
    at_most(10.0, "KiB", "idle-connection", "an idle connection: memory of the proxy"),
    at_most(4.0, "KiB", "idle-flow", "an idle flow of datagrams: memory of the proxy"),
    at_most(
        50.0,
        "ms",
        "change-visible",
        "10,000 Services: a changed endpoint takes the next connection, p99 from the file's rename",
    ),
    at_most(
        0.0,
        "µs",
        "change-bump",
        "10,000 Services: what changes add to the p99 of traffic, beyond the A/A width",
    ),
    at_most(10.0, "s", "sync-250k", "5,000 Services with 250,000 endpoints: full sync"),
];
