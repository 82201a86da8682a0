//! The report: one HTML file with everything in it, from the records of a run.

mod markup;
mod plot;
mod scale;
mod sections;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::comparison::Percentile;
use crate::record::{Estimate, Record};

/// In the order of the report.
pub(crate) const SECTIONS: [&str; 5] = ["latency", "proxy", "dns", "cni", "scale"];

/// Reads the records of a run; those of sections that were not measured are missing.
///
/// # Errors
/// When there is none, or one cannot be read.
pub(crate) fn read(directory: &Path) -> Result<Vec<Record>> {
    let files = SECTIONS.map(|section| directory.join(format!("{section}.json")));
    let found: Vec<_> = files.iter().filter(|file| file.is_file()).collect();
    ensure!(
        !found.is_empty(),
        "{}: no results there; `portolan-bench all --quick --out {0}` makes them",
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

/// The answer in one sentence.
pub(crate) fn answer(records: &[Record]) -> String {
    let added = |title: &str| {
        let comparison = records.iter().find(|record| record.section == "latency")?.comparison(title)?;
        let path = comparison.path("virtual IP")?;
        Some((path.added?.p50, comparison.is_difference(path, Percentile::P50)))
    };
    let Some((open, differs)) = added("RR") else {
        return "This run has not measured what a Service adds to a request.".to_owned();
    };
    let verdict = if open.high < 1000.0 { "No" } else { "Not shown" };
    let effect = if differs {
        let word = if open.value < 0.0 { "saves" } else { "adds" };
        format!("{word} {} µs at the median ({})", micros(open.value.abs()), interval(open))
    } else {
        format!("makes no difference that this machine can tell ({} µs at the median)", interval(open))
    };
    let mut text = format!("{verdict}: a Service {effect} to a request on an open connection");
    if let Some((new, _)) = added("CRR") {
        text += &format!(
            ", and adds {} µs ({}) to one with a connection of its own",
            micros(new.value),
            interval(new)
        );
    }
    text + "."
}

fn micros(value: f64) -> String {
    format!("{value:.1}")
}

fn interval(estimate: Estimate) -> String {
    format!("95%: {:+.1} to {:+.1}", estimate.low, estimate.high)
}
