//! What is asked of both daemons on an API server.

use super::{Target, at_most};

pub(super) const TARGETS: &[Target] = &[at_most(
    100.0,
    "ms",
    "known",
    "a Service and its EndpointSlice created: first answer by name through the virtual IP, p99 from the API server's answer",
)];
