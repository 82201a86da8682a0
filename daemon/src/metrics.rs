//! Registering what a daemon counts.

use prometheus::Registry;
use prometheus::core::Collector;

/// Adds a metric to the registry and hands it out for counting.
///
/// # Panics
/// When the name is not valid or is taken, which the first start of the program shows.
pub fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("metric names are valid constants");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}
