//! What one subcommand has measured, as `--json` writes it and `report` reads it.
//!
//! A subcommand makes a [`Record`], fills in figures by their id in `target`, adds tables, charts and
//! distributions of its own, and ends it with [`Record::finish`]. Everything is plain data: the report renders what it
//! finds and knows nothing of how it was measured.

mod figure;
mod shown;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::comparison::Comparison;
use crate::environment::Environment;
use crate::interrupt;
use crate::load;
use crate::raw::{self, RawPath};
use crate::statistics::confidence;
use crate::target;

pub use crate::statistics::Estimate;
pub use figure::Figure;
pub(crate) use shown::micros;
pub use shown::{Axis, Chart, Configuration, Distribution, Line, Table};

/// Version of the format. One that differs is not read.
const FORMAT: u32 = 1;

/// Everything one subcommand has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// `latency`, `proxy`, `dns`, `cni` or `scale`.
    pub section: String,
    /// The command line that measures the same again.
    pub command: String,
    /// When it began, UTC, RFC 3339.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// Why it ended early, if it did: what is here is what had been measured by then.
    pub interrupted: Option<String>,
    /// Rounds, block length, seed and the like.
    pub settings: BTreeMap<String, String>,
    /// The machine.
    pub environment: Environment,
    /// Every figure asked for in this section, measured or not.
    pub figures: Vec<Figure>,
    /// Paths or programs measured side by side.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// Anything else, in rows.
    pub tables: Vec<Table>,
    /// Anything that is seen better.
    pub charts: Vec<Chart>,
    /// Latency distributions, for percentile plots.
    pub distributions: Vec<Distribution>,
    /// What the peers ran with, word for word.
    pub configurations: Vec<Configuration>,
    /// What a reader must know before believing it: a noisy machine, errors.
    pub warnings: Vec<String>,
    /// What was not measured, and why.
    pub not_measured: Vec<String>,
    #[serde(skip)]
    pub(crate) raw: Vec<RawPath>,
    #[serde(skip)]
    clock: Option<Instant>,
}

impl Record {
    /// Begins a section: captures the machine and lists the figures asked for.
    pub fn new(section: &str) -> Self {
        Self {
            format: FORMAT,
            section: section.to_owned(),
            command: command_line(),
            started: clock::now_utc(),
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

    /// A section from its begin to its end. An error ends it early: what had been measured by then is kept, and marked.
    pub(crate) fn of(section: &str, measure: impl FnOnce(&mut Self) -> Result<()>) -> Self {
        let mut record = Self::new(section);
        if let Err(error) = measure(&mut record)
            // What fails then fails because things are taken down.
            && !interrupt::requested()
        {
            record.interrupted = Some(format!("{error:#}"));
        }
        record.finish();
        record
    }

    /// Notes how it was measured: `rounds`, `block`, `seed`.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// How sure its intervals are: few rounds have a range.
    pub(crate) fn confidence(&self) -> String {
        let rounds = self.settings.get("rounds").and_then(|rounds| rounds.parse().ok());
        confidence(rounds.unwrap_or(usize::MAX))
    }

    /// Fills in a figure.
    ///
    /// # Panics
    /// When the section has no figure of that id: add it to the targets.
    pub fn measured(&mut self, id: &str, estimate: impl Into<Estimate>) {
        self.figure(id).measure(estimate.into());
    }

    /// The same, of what differs from itself by `noise`: a verdict that this could turn is none.
    ///
    /// # Panics
    /// As [`Record::measured`].
    pub fn measured_in_noise(&mut self, id: &str, estimate: impl Into<Estimate>, noise: Option<f64>) {
        let figure = self.figure(id);
        figure.measure(estimate.into());
        figure.noise = noise;
    }

    /// Says why a figure could not be measured, or what must be known beside it.
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

    /// Adds the distribution of single times in milliseconds. A minute is the most that is plotted.
    pub(crate) fn milliseconds(&mut self, group: &str, name: &str, values: &[f64]) {
        let mut histogram = load::histogram();
        for value in values {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds")]
            histogram.saturating_record((value * 1e6) as u64);
        }
        self.distribution(group, name, &histogram);
    }

    /// The comparison of that title.
    pub fn comparison(&self, title: &str) -> Option<&Comparison> {
        self.comparisons.iter().find(|comparison| comparison.title == title)
    }

    /// Ends it.
    pub(crate) fn finish(&mut self) {
        self.seconds = self.clock.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.environment.finish();
        // Of a part that had not begun when it was interrupted.
        self.tables.retain(|table| !table.rows.is_empty());
        if interrupt::requested() && self.interrupted.is_none() {
            self.interrupted = Some("by a signal, between two loads".to_owned());
        }
    }

    /// Writes it as JSON.
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

    /// Reads what [`Record::write`] has written.
    ///
    /// # Errors
    /// When the file is not there, or not one of ours, or of another version.
    pub fn read(file: &Path) -> Result<Self> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("read {name}"))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
        let format = json["format"].as_u64();
        ensure!(
            format == Some(u64::from(FORMAT)),
            "{name}: format is {}, not {FORMAT}: not a result of portolan-bench, or of another version; measure again",
            json["format"]
        );
        serde_json::from_value(json).with_context(|| format!("{name} is not a result of portolan-bench"))
    }
}

/// As it was typed, without the path of the program.
fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("portolan-bench".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
