//! The build version as a metric.

use prometheus::{GaugeVec, Opts, Registry};

/// Adds `portolan_build_info{version}`, always 1, unless the registry has it.
pub fn register(registry: &Registry) {
    let opts = Opts::new("portolan_build_info", "The build that is running; always 1.");
    let gauge = GaugeVec::new(opts, &["version"]).expect("the metric's name is a valid constant");
    gauge.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    // The only possible error is a second registration of the same metric.
    let _ = registry.register(Box::new(gauge));
}
