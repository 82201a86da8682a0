//! The parts of a record besides figures: tables, charts, distributions, configurations.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Rows under a header. The first column names the row; numbers are already formatted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Its heading.
    pub title: String,
    /// The header.
    pub columns: Vec<String>,
    /// One cell a column.
    pub rows: Vec<Vec<String>>,
    /// What a reader must know to read it.
    pub note: String,
}

/// Lines over two axes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chart {
    /// Its heading.
    pub title: String,
    /// What it shows, in a sentence.
    pub note: String,
    /// Across.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// At most eight: the style sheet has eight distinguishable colours.
    pub lines: Vec<Line>,
}

/// One axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Axis {
    /// With its unit.
    pub label: String,
    /// Whether the axis is logarithmic. All values must then be above zero.
    pub logarithmic: bool,
}

/// One line of a chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// As in the legend.
    pub name: String,
    /// In drawing order.
    pub points: Vec<[f64; 2]>,
}

/// A latency distribution.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Distribution {
    /// Distributions of one group are plotted together.
    pub group: String,
    /// As in the legend.
    pub name: String,
    /// How many values.
    pub count: u64,
    /// Quantile (0 to 1) and value in microseconds, ascending.
    pub quantiles: Vec<[f64; 2]>,
}

/// The configuration of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Of the peer.
    pub name: String,
    /// Its version, as it prints it.
    pub version: String,
    /// Its configuration file, rules or flags.
    pub text: String,
}

impl Table {
    /// Returns an empty table.
    pub fn new(title: &str, columns: &[&str], note: &str) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new(), note: note.to_owned() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), logarithmic: false }
    }

    /// A logarithmic axis.
    pub fn logarithmic(label: &str) -> Self {
        Self { label: label.to_owned(), logarithmic: true }
    }
}

impl Distribution {
    /// From values in nanoseconds, with five points for each halving of the remaining tail.
    pub(crate) fn new(group: &str, name: &str, histogram: &Histogram<u64>) -> Self {
        let mut quantiles: Vec<[f64; 2]> = Vec::new();
        for step in histogram.iter_quantiles(5) {
            quantiles.push([step.quantile_iterated_to(), micros(step.value_iterated_to())]);
        }
        Self { group: group.to_owned(), name: name.to_owned(), count: histogram.len(), quantiles }
    }
}

/// Converts nanoseconds to microseconds.
#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}
