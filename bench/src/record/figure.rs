//! A figure beside its target.

use serde::{Deserialize, Serialize};

use crate::statistics::Estimate;
use crate::target::{Bound, Target};

/// One row of the table "asked, measured, met or not".
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
    /// What it was; nothing if it was not measured.
    pub measured: Option<Estimate>,
    /// How far what was measured twice is from itself, where that is known: A/A.
    #[serde(default)]
    pub noise: Option<f64>,
    /// Whether the measured value is on the good side of the target.
    pub met: Option<bool>,
    /// Why it was not measured, or what must be known beside it.
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

    /// A ratio to what was not answered is no number, and JSON has no other.
    pub(crate) fn measure(&mut self, estimate: Estimate) {
        if ![estimate.low, estimate.value, estimate.high].into_iter().all(f64::is_finite) {
            self.remark = Some("a path it is made of has answered nothing".to_owned());
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

    /// `met`, `missed`, with doubt if the interval reaches over the target, or `not measured`.
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
