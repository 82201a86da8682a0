//! Gauges for the descriptors of traffic, read at each scrape.

use std::sync::Arc;

use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::budget::Budget;

/// `portolan_proxy_descriptors` and `portolan_proxy_descriptors_limit`.
pub(super) struct Descriptors {
    budget: Arc<Budget>,
    used: IntGauge,
    limit: IntGauge,
}

impl Descriptors {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        let gauge = |name: &str, help: &str| {
            IntGauge::new(format!("portolan_proxy_{name}"), help).expect("metric names are valid constants")
        };
        Self {
            budget,
            used: gauge("descriptors", "File descriptors of connections and UDP flows."),
            limit: gauge("descriptors_limit", "Maximum of these file descriptors."),
        }
    }
}

impl Collector for Descriptors {
    fn desc(&self) -> Vec<&Desc> {
        [self.used.desc(), self.limit.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.used.set(number(self.budget.used()));
        self.limit.set(number(self.budget.limit()));
        [self.used.collect(), self.limit.collect()].concat()
    }
}
