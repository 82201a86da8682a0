//! `portolan-bench`: what the data plane adds to a request, and a demonstration that it works.
//!
//! The pods are network namespaces wired by the real `portolan-cni`, the virtual IP is served by the real
//! `portolan-proxy`; nothing shows on the machine. The method is in docs/benchmarks.md.

mod clock;
mod cni;
mod comparison;
mod demo;
mod environment;
mod interleave;
mod interrupt;
mod latency;
mod load;
mod meter;
mod peers;
mod processor;
mod progress;
mod proxy;
mod raw;
mod record;
mod show;
mod statistics;
mod target;
mod topology;

pub use cni::cni;
pub use comparison::{Added, Comparison, PathResult, Percentile, Usage};
pub use demo::demo;
pub use environment::Environment;
pub use interrupt::watch as watch_signals;
pub use latency::latency;
pub use load::Shape;
pub use proxy::proxy;
pub use record::{Axis, Chart, Configuration, Distribution, Estimate, Figure, Line, Record, Table};
pub use show::print;
pub use target::{Bound, Target};
