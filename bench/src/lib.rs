//! `portolan-bench` measures what the data plane adds to a request, and demonstrates that it works.
//!
//! Pods are network namespaces attached by the real `portolan-cni`; the real `portolan-proxy` serves the
//! virtual IP. The machine's own network is not changed. docs/benchmarks.md describes the method.

mod all;
mod cni;
mod compare;
mod comparison;
mod cores;
mod demo;
mod dns;
mod docs;
mod environment;
mod interleave;
mod interrupt;
mod latency;
mod load;
mod meter;
mod peers;
mod privilege;
mod processor;
mod progress;
mod proxy;
mod raw;
mod record;
mod render;
mod report;
mod scale;
mod services;
mod sockperf;
mod statistics;
mod target;
mod topology;

pub use all::{Section, all};
pub use cni::cni;
pub use compare::compare;
pub use comparison::{Added, Comparison, PathResult, Percentile, Usage};
pub use demo::demo;
pub use dns::{DNS_PARTS, DnsPart, dns, serve_with_hickory};
pub use docs::write_docs;
pub use environment::Environment;
pub use interrupt::{wait_if_killed, watch as watch_signals};
pub use latency::latency;
pub use load::Shape;
pub use privilege::check as check_privileges;
pub use proxy::proxy;
pub use record::{Axis, Chart, Configuration, Distribution, Estimate, Figure, Line, Record, Table};
pub use render::print;
pub use report::report;
pub use scale::{Size, scale};
pub use target::{Bound, Target};
