//! The age of the state as metrics, computed at each scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use crate::discovery::Snapshots;

/// `<program>_source_objects{source}`, `<program>_source_invalid_objects{source}` and
/// `<program>_source_stale_seconds{source}`.
pub struct Staleness {
    snapshots: Snapshots,
    objects: GaugeVec,
    invalid: GaugeVec,
    stale: GaugeVec,
}

impl Staleness {
    /// Metrics with the name prefix `prefix`.
    ///
    /// # Errors
    /// If the prefix is not valid in a metric name.
    pub fn new(prefix: &str, snapshots: Snapshots) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            GaugeVec::new(Opts::new(format!("{prefix}_source_{name}"), help), &["source"])
        };
        Ok(Self {
            snapshots,
            objects: gauge("objects", "Files or API objects a source has.")?,
            invalid: gauge(
                "invalid_objects",
                "Files or API objects with an error; their last good state stays.",
            )?,
            stale: gauge("stale_seconds", "How long a source could not be watched; 0 while it can.")?,
        })
    }
}

impl Collector for Staleness {
    fn desc(&self) -> Vec<&Desc> {
        [self.objects.desc(), self.invalid.desc(), self.stale.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (name, source) in &self.snapshots.borrow().sources {
            let number = |size: usize| f64::from(u32::try_from(size).unwrap_or(u32::MAX));
            self.objects.with_label_values(&[name]).set(number(source.size));
            self.invalid.with_label_values(&[name]).set(number(source.invalid));
            self.stale.with_label_values(&[name]).set(source.staleness().as_secs_f64());
        }
        [self.objects.collect(), self.invalid.collect(), self.stale.collect()].concat()
    }
}
