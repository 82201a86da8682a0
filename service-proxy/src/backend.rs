//! Where a Service's traffic goes: which endpoints count, and which of them a client gets.

pub(crate) mod affinity;
pub(crate) mod endpoint;
pub(crate) mod endpoints;
pub(crate) mod pool;
pub(crate) mod topology;
