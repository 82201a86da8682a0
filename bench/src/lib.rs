//! `portolan-bench`: what the data plane adds to a request, and a demonstration that it works.
//!
//! The pods are network namespaces wired by the real `portolan-cni`, the virtual IP is served by the real
//! `portolan-proxy`; nothing shows on the machine. The method is in docs/benchmarks.md.

mod demo;
mod environment;
mod interleave;
mod latency;
mod load;
mod peers;
mod processor;
mod proxy;
mod report;
mod topology;

pub use demo::demo;
pub use environment::Environment;
pub use interleave::PathResult;
pub use latency::latency;
pub use load::Shape;
pub use proxy::proxy;
pub use report::{Results, print_json, print_table};
