//! The endpoints of a Service: which ones are eligible, and which one a client gets.

pub(crate) mod affinity;
pub(crate) mod endpoint;
pub(crate) mod endpoints;
pub(crate) mod pool;
pub(crate) mod topology;
