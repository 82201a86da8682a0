//! `portolan-bench`: what the data plane adds to a request, and a demonstration that it works.
//!
//! The pods are network namespaces wired by the real `portolan-cni`, the virtual IP is served by the real
//! `portolan-proxy`; nothing shows on the machine. The method is in docs/benchmarks.md.

mod demo;
mod environment;
mod latency;
mod load;
mod report;

pub use demo::demo;
pub use environment::Environment;
pub use latency::{Options, PathResult, Results, measure};
pub use report::{print_json, print_table};
