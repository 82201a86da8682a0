//! How old the state is, as metrics: worked out when somebody asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use crate::discovery::Snapshots;

/// `<program>_source_objects{source}` and `<program>_source_stale_seconds{source}`.
pub struct Staleness {
    snapshots: Snapshots,
    objects: GaugeVec,
    stale: GaugeVec,
}

impl Staleness {
    /// For a program whose metrics begin with `prefix`.
    ///
    /// # Errors
    /// When the prefix makes no name of a metric.
    pub fn new(prefix: &str, snapshots: Snapshots) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            GaugeVec::new(Opts::new(format!("{prefix}_source_{name}"), help), &["source"])
        };
        Ok(Self {
            snapshots,
            objects: gauge("objects", "Files or API objects a source has.")?,
            stale: gauge("stale_seconds", "For how long a source could not be followed; 0 while it can.")?,
        })
    }
}

impl Collector for Staleness {
    fn desc(&self) -> Vec<&Desc> {
        [self.objects.desc(), self.stale.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (name, source) in &self.snapshots.borrow().sources {
            self.objects
                .with_label_values(&[name])
                .set(f64::from(u32::try_from(source.size).unwrap_or(u32::MAX)));
            self.stale.with_label_values(&[name]).set(source.staleness().as_secs_f64());
        }
        [self.objects.collect(), self.stale.collect()].concat()
    }
}
