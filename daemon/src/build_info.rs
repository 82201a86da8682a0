//! Which build this is.

use prometheus::{GaugeVec, Opts, Registry};

/// Adds `portolan_build_info{version}`, always 1, to a registry that does not have it.
pub fn register(registry: &Registry) {
    let opts = Opts::new("portolan_build_info", "The build that is running; always 1.");
    let gauge = GaugeVec::new(opts, &["version"]).expect("the metric's name is a valid constant");
    gauge.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    // The only error is a second registration, and that says the same.
    let _ = registry.register(Box::new(gauge));
}
