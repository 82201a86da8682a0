//! Targets of the daemons with an API server that has 10,000 Services and 150,000 endpoints.

use super::{Target, at_most};

pub(super) const TARGETS: &[Target] = &[
    at_most(
        100.0,
        "ms",
        "known",
        "a Service and its EndpointSlice created: first answer by name through the virtual IP, \
         p99 from the API server's answer",
    ),
    at_most(
        1.0,
        "x",
        "start-kube-proxy",
        "portolan-proxy: start to the first connection, against kube-proxy (nftables)",
    ),
    at_most(
        1.0,
        "x",
        "memory-kube-proxy",
        "portolan-proxy: peak of resident memory until then, against kube-proxy",
    ),
    at_most(
        162.0,
        "MiB",
        "dns-relist",
        "portolan-dns: peak of resident memory while everything is listed again",
    ),
];
