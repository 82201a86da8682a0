//! `portolan-bench`: what the data plane adds to a request, and a demonstration that it works.
//!
//! The pods are network namespaces wired by the real `portolan-cni`, the virtual IP is served by the real
//! `portolan-proxy`; nothing shows on the machine. The method is in docs/benchmarks.md.

mod all;
mod clock;
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
mod report;
mod scale;
mod services;
mod show;
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
pub use interrupt::{leave_to_second_signal, watch as watch_signals};
pub use latency::latency;
pub use load::Shape;
pub use privilege::check as check_privileges;
pub use proxy::proxy;
pub use record::{Axis, Chart, Configuration, Distribution, Estimate, Figure, Line, Record, Table};
pub use report::report;
pub use scale::{Size, scale};
pub use show::print;
pub use target::{Bound, Target};
