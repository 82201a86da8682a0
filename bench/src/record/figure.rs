//! A figure beside its target.

use serde::{Deserialize, Serialize};

use crate::statistics::Estimate;
use crate::target::{Bound, Target};

/// One row of the table of targets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Its name within the section.
    pub id: String,
    /// What is measured, in words.
    pub figure: String,
    /// Unit of target and measurement; `x` for a ratio.
    pub unit: String,
    /// What it should be.
    pub target: Bound,
    /// The measured value; `None` if it was not measured.
    pub measured: Option<Estimate>,
    /// The A/A noise of the measurement, where it is known.
    #[serde(default)]
    pub noise: Option<f64>,
    /// Whether the measured value is on the good side of the target.
    pub met: Option<bool>,
    /// Why it was not measured, or what a reader must know with it.
    pub remark: Option<String>,
}

impl Figure {
    pub(crate) fn new(target: &Target) -> Self {
        Self {
            id: target.id.to_owned(),
            figure: target.figure.to_owned(),
            unit: target.unit.to_owned(),
            target: target.bound,
            measured: None,
            noise: None,
            met: None,
            remark: None,
        }
    }

    /// Sets the measured value. A ratio to zero answers is not finite, and JSON cannot represent it: it
    /// becomes a remark.
    pub(crate) fn measure(&mut self, estimate: Estimate) {
        if ![estimate.low, estimate.value, estimate.high].into_iter().all(f64::is_finite) {
            self.remark = Some("one of its paths has no answer".to_owned());
            return;
        }
        self.measured = Some(estimate);
        self.met = Some(self.target.is_met_by(estimate.value));
    }

    /// Whether the whole interval is on the same side of the target as the value, and the noise around it.
    pub fn is_certain(&self) -> bool {
        self.measured.is_some_and(|Estimate { value, low, high }| {
            let noise = self.noise.unwrap_or(0.0);
            self.target.is_met_by(low.min(value - noise)) == self.target.is_met_by(high.max(value + noise))
        })
    }

    /// Returns `met`, `missed`, either with `within the noise` if the interval includes the target, or `not
    /// measured`.
    pub fn verdict(&self) -> &'static str {
        match (self.met, self.is_certain()) {
            (None, _) => "not measured",
            (Some(true), true) => "met",
            (Some(true), false) => "met, within the noise",
            (Some(false), true) => "missed",
            (Some(false), false) => "missed, within the noise",
        }
    }
}
