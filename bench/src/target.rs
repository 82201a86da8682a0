//! All figures that have a target, measured or not.

use serde::{Deserialize, Serialize};

mod cni;
mod dns;
mod latency;
mod proxy;
mod scale;

/// On which side of its limit a figure meets its target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The limit or less.
    AtMost(f64),
    /// The limit or more.
    AtLeast(f64),
}

/// A figure with its target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its id within the section, for `Record::measured`.
    pub(crate) id: &'static str,
    /// What is measured, in words.
    pub(crate) figure: &'static str,
    /// Unit of the bound and of the measurement; `x` for a ratio.
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
}

impl Bound {
    /// Returns whether `value` meets the target.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// Returns the targets of a section.
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
