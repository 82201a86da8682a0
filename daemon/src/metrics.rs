//! Registration of metrics.

use prometheus::Registry;
use prometheus::core::Collector;

/// Registers a metric and returns it.
///
/// # Panics
/// If the name is invalid or taken, which the first start of the program shows.
pub fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("metric names are valid constants");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}
