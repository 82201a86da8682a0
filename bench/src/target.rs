//! Every figure Portolan is held to, whether a run has measured it or not.

use serde::{Deserialize, Serialize};

mod cni;
mod dns;
mod latency;
mod proxy;
mod scale;

/// Which side of a number is good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

/// A figure with the value it should have.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name within the section, as `Record::measured` has it.
    pub(crate) id: &'static str,
    /// What is measured, in words.
    pub(crate) figure: &'static str,
    /// Unit of the bound and of the measurement; `x` for a ratio.
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
}

impl Bound {
    /// Whether `value` is on the good side.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// The figures of a section.
pub(crate) fn of(section: &str) -> &'static [Target] {
    match section {
        "latency" => latency::TARGETS,
        "proxy" => proxy::TARGETS,
        "dns" => dns::TARGETS,
        "cni" => cni::TARGETS,
        "scale" => scale::TARGETS,
        _ => &[],
    }
}

const fn at_most(limit: f64, unit: &'static str, id: &'static str, figure: &'static str) -> Target {
    Target { id, figure, unit, bound: Bound::AtMost(limit) }
}

const fn at_least(limit: f64, unit: &'static str, id: &'static str, figure: &'static str) -> Target {
    Target { id, figure, unit, bound: Bound::AtLeast(limit) }
}
