//! Targets of `portolan-dns`: 10,000 Services, server on one core, generator on another.

use super::{Target, at_least, at_most};

pub(super) const TARGETS: &[Target] = &[
    at_least(1.0, "x", "udp-knotd", "cluster names over UDP: queries/s, against knotd"),
    at_least(3.0, "x", "udp-hickory", "cluster names over UDP: queries/s, against plain hickory-server"),
    at_least(3.0, "x", "udp-coredns", "cluster names over UDP: queries/s, against CoreDNS"),
    at_most(1.0, "x", "cpu-knotd", "cluster names over UDP: server CPU a query, against knotd"),
    at_most(1.0, "x", "nxdomain", "NXDOMAIN: server CPU a query, against a hit"),
    at_least(1.0, "x", "cached-unbound", "cached external names: queries/s, against unbound"),
    at_least(1.0, "x", "tcp-unbound", "TCP pipelined: queries/s, against unbound"),
    at_most(0.1, "x", "dnsperf", "the generator: queries/s of one server, how far from what dnsperf finds"),
    at_most(1.0, "ms", "half-load", "p99 at half load"),
    at_most(
        120.0,
        "MiB",
        "scale-memory",
        "10,000 Services and 150,000 endpoints: resident memory, full relist included",
    ),
    at_most(10.0, "ms", "event-visible", "event to visible under 5,000 queries/s, p99"),
    at_most(0.0, "queries", "restart-lost", "5,000 queries/s over 100 restarts: lost"),
    at_most(0.0, "queries", "reload-lost", "5,000 queries/s over 100 reloads: lost"),
    at_least(0.9, "x", "overload-rate", "10x overload: answers/s, against capacity"),
];
