//! The report: one self-contained HTML file from the records of a run.

mod markup;
mod plot;
mod scale;
mod sections;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::comparison::Percentile;
use crate::record::{Estimate, Record};
use crate::statistics::confidence;

/// Sections in the order of the report.
pub(crate) const SECTIONS: [&str; 5] = ["latency", "proxy", "dns", "cni", "scale"];

/// Reads the records of a run. Sections that were not measured have none.
///
/// # Errors
/// When there is no record, or one cannot be read.
pub(crate) fn read(directory: &Path) -> Result<Vec<Record>> {
    let files = SECTIONS.map(|section| directory.join(format!("{section}.json")));
    let found: Vec<_> = files.iter().filter(|file| file.is_file()).collect();
    ensure!(
        !found.is_empty(),
        "{}: no results; `portolan-bench all --quick --out {0}` creates them",
        directory.display()
    );
    found.into_iter().map(|file| Record::read(file)).collect()
}

/// Renders the records in `from` as one HTML file.
///
/// # Errors
/// As reading and writing files.
pub fn report(from: &Path, to: &Path) -> Result<()> {
    let records = read(from)?;
    let mut raw: Vec<String> = std::fs::read_dir(from)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| [".json", ".csv", ".hlog"].iter().any(|end| name.ends_with(end)))
        .collect();
    raw.sort();
    std::fs::write(to, sections::page(&records, &raw)).with_context(|| format!("write {}", to.display()))
}

/// The latency that a Service is often assumed to add, µs.
const FOLKLORE: f64 = 1000.0;

/// Minimum number of rounds for an answer: fewer have no 95% interval.
const ROUNDS: usize = 6;

/// Returns the answer in one sentence. It is "Not shown" where the noise or the number of rounds could
/// reverse it.
pub(crate) fn answer(records: &[Record]) -> String {
    let latency = records.iter().find(|record| record.section == "latency");
    let effects: Vec<Effect> =
        [("RR", "a request on an open connection"), ("CRR", "one with a connection of its own")]
            .into_iter()
            .filter_map(|(title, words)| Effect::of(latency?, title, words))
            .collect();
    if effects.is_empty() {
        return "This run has not measured what a Service adds to a request.".to_owned();
    }
    let verdict = if effects.iter().any(Effect::is_more) {
        "Yes"
    } else if effects.iter().all(Effect::is_less) {
        "No"
    } else {
        let words: Vec<String> = effects.iter().map(Effect::words).collect();
        let noise = effects.iter().filter_map(|effect| effect.noise).fold(0.0, f64::max);
        let rounds = effects.iter().map(|effect| effect.rounds).min().unwrap_or_default();
        return format!(
            "Not shown: a Service {}; the direct path differs from itself by up to {noise:.1} µs, in \
             {rounds} rounds.",
            words.join(", and ")
        );
    };
    let words: Vec<String> = effects.iter().map(Effect::words).collect();
    format!("{verdict}: a Service {}.", words.join(", and "))
}

/// The effect of a Service on a kind of request, at the median.
struct Effect {
    added: Estimate,
    /// A/A noise of the direct path, µs; `None` if it was not measured twice.
    noise: Option<f64>,
    differs: bool,
    rounds: usize,
    request: &'static str,
}

impl Effect {
    fn of(latency: &Record, title: &str, request: &'static str) -> Option<Self> {
        let comparison = latency.comparison(title)?;
        let path = comparison.path("virtual IP")?;
        let differs = comparison.is_difference(path, Percentile::P50);
        let (added, noise) = (path.added?.p50, comparison.noise(Percentile::P50));
        Some(Self { added, noise, differs, rounds: comparison.rounds, request })
    }

    fn is_more(&self) -> bool {
        self.is_certain(|noise| self.added.low - noise >= FOLKLORE)
    }

    fn is_less(&self) -> bool {
        self.is_certain(|noise| self.added.high + noise < FOLKLORE)
    }

    fn is_certain(&self, beyond: impl Fn(f64) -> bool) -> bool {
        self.rounds >= ROUNDS && self.noise.is_some_and(beyond)
    }

    fn words(&self) -> String {
        let Self { added: Estimate { value, low, high }, request, .. } = self;
        let interval = format!("{}: {low:+.1} to {high:+.1}", confidence(self.rounds));
        if !self.differs {
            return format!(
                "makes no difference to {request} that this machine can tell ({interval} µs at the median)"
            );
        }
        let word = if *value < 0.0 { "saves" } else { "adds" };
        format!("{word} {:.1} µs at the median ({interval}) to {request}", value.abs())
    }
}

#[cfg(test)]
mod tests;
