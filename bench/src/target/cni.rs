//! Targets of `portolan-cni`, compared with the reference plugins of containernetworking-plugins.

use super::{Target, at_least, at_most};

pub(super) const TARGETS: &[Target] = &[
    at_most(0.25, "x", "add-bridge", "ADD p50, against bridge + host-local with ipMasq"),
    at_most(0.6, "x", "add-ptp", "ADD p50, against ptp + host-local without masquerade"),
    at_most(1.15, "x", "add-5000", "ADD p50 with 5,000 addresses in use, against one"),
    at_most(0.4, "x", "del-bridge", "DEL p50, against bridge + host-local with ipMasq"),
    at_most(1.3, "x", "del-kernel", "DEL p50, against what the kernel needs to delete a veth"),
    at_most(1.2, "x", "add-tracked", "ADD p50 with a port, beside 100,000 tracked connections, against none"),
    at_most(1.2, "x", "del-tracked", "DEL p50 with a port, beside 100,000 tracked connections, against none"),
    at_most(2.0, "x", "add-ports", "ADD p50 with 3,000 ports, against one"),
    at_most(2.0, "x", "del-ports", "DEL p50 with 3,000 ports, against one"),
    at_most(0.0, "ADDs", "burst-failures", "300 ADDs at once: duplicates and failures"),
    at_least(3.0, "x", "burst-rate", "300 ADDs at once: pods/s, against bridge + host-local with ipMasq"),
    at_most(6.0, "MiB", "add-memory", "peak memory of one ADD"),
];
