//! The results of one subcommand, as `--json` writes them and `report` reads them.
//!
//! A subcommand creates a [`Record`], fills in figures by their id in `target`, adds tables, charts and
//! distributions, and ends with [`Record::finish`]. The record is plain data: the report renders it without
//! knowing how it was measured.

mod content;
mod figure;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::comparison::Comparison;
use crate::environment::Environment;
use crate::interrupt;
use crate::load;
use crate::raw::{self, RawPath};
use crate::statistics::confidence;
use crate::target;

pub use crate::statistics::Estimate;
pub(crate) use content::micros;
pub use content::{Axis, Chart, Configuration, Distribution, Line, Table};
pub use figure::Figure;

/// Version of the format. Records of other versions are rejected.
const FORMAT: u32 = 1;

/// All results of one subcommand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// `latency`, `proxy`, `dns`, `cni` or `scale`.
    pub section: String,
    /// The command line that repeats the measurement.
    pub command: String,
    /// Start time, UTC, RFC 3339.
    pub started: String,
    /// Duration in seconds.
    pub seconds: f64,
    /// Why the run ended early, if it did. The record then has what was measured until that moment.
    pub interrupted: Option<String>,
    /// Rounds, block length, seed and the like.
    pub settings: BTreeMap<String, String>,
    /// The machine.
    pub environment: Environment,
    /// All figures of this section that have a target, measured or not.
    pub figures: Vec<Figure>,
    /// Paths or programs measured side by side.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// Further results in rows.
    pub tables: Vec<Table>,
    /// Results as charts.
    pub charts: Vec<Chart>,
    /// Latency distributions, for percentile plots.
    pub distributions: Vec<Distribution>,
    /// The peers' configurations, verbatim.
    pub configurations: Vec<Configuration>,
    /// What limits the validity of the results: a noisy machine, errors.
    pub warnings: Vec<String>,
    /// What was not measured, and why.
    pub not_measured: Vec<String>,
    #[serde(skip)]
    pub(crate) raw: Vec<RawPath>,
    #[serde(skip)]
    clock: Option<Instant>,
}

impl Record {
    /// Starts a section: captures the machine and lists the figures that have a target.
    pub fn new(section: &str) -> Self {
        Self {
            format: FORMAT,
            section: section.to_owned(),
            command: command_line(),
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            seconds: 0.0,
            interrupted: None,
            settings: BTreeMap::new(),
            environment: Environment::capture(),
            figures: target::of(section).iter().map(Figure::new).collect(),
            comparisons: Vec::new(),
            tables: Vec::new(),
            charts: Vec::new(),
            distributions: Vec::new(),
            configurations: Vec::new(),
            warnings: Vec::new(),
            not_measured: Vec::new(),
            raw: Vec::new(),
            clock: Some(Instant::now()),
        }
    }

    /// Measures a section and returns its finished record. After an error the record keeps what was measured,
    /// and the reason.
    pub(crate) fn of(section: &str, measure: impl FnOnce(&mut Self) -> Result<()>) -> Self {
        let mut record = Self::new(section);
        if let Err(error) = measure(&mut record)
            // After a signal, errors are consequences of the shutdown.
            && !interrupt::requested()
        {
            record.interrupted = Some(format!("{error:#}"));
        }
        record.finish();
        record
    }

    /// Records a setting of the measurement: `rounds`, `block`, `seed`.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Returns the confidence of the intervals: `95%`, or a range if there are few rounds.
    pub(crate) fn confidence(&self) -> String {
        let rounds = self.settings.get("rounds").and_then(|rounds| rounds.parse().ok());
        confidence(rounds.unwrap_or(usize::MAX))
    }

    /// Fills in a figure.
    ///
    /// # Panics
    /// When the targets of the section have no figure of that id.
    pub fn measured(&mut self, id: &str, estimate: impl Into<Estimate>) {
        self.figure(id).measure(estimate.into());
    }

    /// As [`Record::measured`], with the A/A noise of the measurement: a difference within the noise gives no
    /// verdict.
    ///
    /// # Panics
    /// As [`Record::measured`].
    pub fn measured_in_noise(&mut self, id: &str, estimate: impl Into<Estimate>, noise: Option<f64>) {
        let figure = self.figure(id);
        figure.measure(estimate.into());
        figure.noise = noise;
    }

    /// Records why a figure could not be measured, or what a reader must know with it.
    ///
    /// # Panics
    /// As [`Record::measured`].
    pub fn remark(&mut self, id: &str, remark: impl Into<String>) {
        self.figure(id).remark = Some(remark.into());
    }

    fn figure(&mut self, id: &str) -> &mut Figure {
        let section = &self.section;
        let figure = self.figures.iter_mut().find(|figure| figure.id == id);
        figure.unwrap_or_else(|| panic!("no figure {id} in section {section}"))
    }

    /// Adds a latency distribution, in nanoseconds; those of one group are plotted together.
    pub fn distribution(&mut self, group: &str, name: &str, histogram: &Histogram<u64>) {
        self.distributions.push(Distribution::new(group, name, histogram));
    }

    /// Adds a distribution of times in milliseconds. Values are capped at a minute.
    pub(crate) fn milliseconds(&mut self, group: &str, name: &str, values: &[f64]) {
        let mut histogram = load::histogram();
        for value in values {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds")]
            histogram.saturating_record((value * 1e6) as u64);
        }
        self.distribution(group, name, &histogram);
    }

    /// Returns the comparison of that title.
    pub fn comparison(&self, title: &str) -> Option<&Comparison> {
        self.comparisons.iter().find(|comparison| comparison.title == title)
    }

    /// Ends the section.
    pub(crate) fn finish(&mut self) {
        self.seconds = self.clock.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.environment.finish();
        // An interrupted run leaves the tables of later parts empty.
        self.tables.retain(|table| !table.rows.is_empty());
        if interrupt::requested() && self.interrupted.is_none() {
            self.interrupted = Some("by a signal, between two loads".to_owned());
        }
    }

    /// Writes the record as JSON.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write(&self, file: &Path) -> Result<()> {
        let json = serde_json::to_string(self)?;
        let unfinished = file.with_extension("unfinished");
        std::fs::write(&unfinished, json + "\n")
            .with_context(|| format!("write {}", unfinished.display()))?;
        std::fs::rename(&unfinished, file).with_context(|| format!("write {}", file.display()))
    }

    /// Writes `<section>.json` into the directory, and the raw data beside it.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_into(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        self.write(&directory.join(format!("{}.json", self.section)))?;
        if self.raw.is_empty() { Ok(()) } else { raw::write(directory, &self.section, &self.raw) }
    }

    /// Reads a record that [`Record::write`] wrote.
    ///
    /// # Errors
    /// When the file is missing, is no record, or has another version.
    pub fn read(file: &Path) -> Result<Self> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("read {name}"))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
        let format = json["format"].as_u64();
        ensure!(
            format == Some(u64::from(FORMAT)),
            "{name}: format is {}, not {FORMAT}: not a result of portolan-bench, or of another version; \
             measure again",
            json["format"]
        );
        serde_json::from_value(json).with_context(|| format!("{name} is not a result of portolan-bench"))
    }
}

/// Returns the command line as typed, without the path of the program.
fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("portolan-bench".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
