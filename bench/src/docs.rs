//! Writes the figures of a run into the documents.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::comparison::{Comparison, Percentile};
use crate::record::{Record, Table};
use crate::{render, report};

/// The text between these lines is generated.
const BEGIN: &str = "<!-- figures: written by `portolan-bench docs` -->";
const END: &str = "<!-- end of figures -->";

/// Writes the figures of a run into README.md and docs/benchmarks.md.
///
/// # Errors
/// When there are no results, or a document lacks the marker lines.
pub fn write_docs(from: &Path, repository: &Path) -> Result<()> {
    for (file, text) in documents(from, repository)? {
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Returns the documents with the figures of a run.
fn documents(from: &Path, repository: &Path) -> Result<Vec<(std::path::PathBuf, String)>> {
    let records = report::read(from)?;
    let documents = [("README.md", summary(&records)), ("docs/benchmarks.md", everything(&records))];
    let updated = documents.into_iter().map(|(name, figures)| {
        let file = repository.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let (before, after) = parts.with_context(|| format!("{name} has no lines {BEGIN:?} and {END:?}"))?;
        Ok((file, format!("{before}{BEGIN}\n\n{}\n{END}{after}", figures.trim_end())))
    });
    updated.collect()
}

/// Returns the summary for README.md.
fn summary(records: &[Record]) -> String {
    let Some(latency) = records.iter().find(|record| record.section == "latency") else {
        return "Not measured.\n".to_owned();
    };
    let table = latencies(latency);
    let noise =
        |title: &str| latency.comparison(title).and_then(|comparison| comparison.noise(Percentile::P50));
    let noise: Vec<String> =
        ["RR", "CRR"].iter().filter_map(|title| Some(format!("{:.1} µs ({title})", noise(title)?))).collect();
    format!(
        "{}\n\n{}\n{}\n\nThe direct path measured twice differs by up to {}; \\* is within that.\n",
        report::answer(records),
        origin(latency),
        markdown(&table),
        noise.join(" and ")
    )
}

/// Returns the table of request kinds, directly and through a virtual IP.
pub(crate) fn latencies(latency: &Record) -> Table {
    let mut table =
        Table::new("", &["µs", "direct, p50 / p99", "through a virtual IP", "added at the median (95%)"], "");
    for (title, words) in [
        ("RR", "on an open connection"),
        ("CRR", "a connection for each request"),
        ("cold", "name, connection, request"),
        ("UDP RR", "datagram"),
    ] {
        let Some(comparison) = latency.comparison(title) else { continue };
        let (Some(direct), Some(path)) = (comparison.path("direct"), comparison.path("virtual IP")) else {
            continue;
        };
        let both = |p50: f64, p99: f64| format!("{p50:.1} / {p99:.1}");
        let added = render::added_cell(comparison, path, Percentile::P50);
        table.row([words.to_owned(), both(direct.p50, direct.p99), both(path.p50, path.p99), added]);
    }
    table
}

/// Returns all figures, for docs/benchmarks.md.
fn everything(records: &[Record]) -> String {
    let mut text = format!("{}\n", report::answer(records));
    for record in records {
        text += &format!("\n### {}: `{}`\n\n{}\n", record.section, record.command, origin(record));
        for note in record.interrupted.iter().chain(&record.warnings).chain(&record.not_measured) {
            text += &format!("- {note}\n");
        }
        text += &record.comparisons.iter().map(comparison_section).collect::<String>();
        for table in &record.tables {
            text += &format!("\n**{}**\n\n{}\n{}\n", table.title, markdown(table), table.note);
        }
        text += &format!(
            "\n**Targets**\n\n{}",
            markdown(&render::figures(&record.figures, &record.confidence()))
        );
    }
    text
}

fn comparison_section(comparison: &Comparison) -> String {
    let table = render::comparison_table(comparison);
    // The common part of the notes is in the document, above all tables.
    let note = if comparison.saturated { format!("\n{}\n", table.note) } else { String::new() };
    format!("\n**{}** ({} rounds)\n\n{}{note}", table.title, comparison.rounds, markdown(&table))
}

fn origin(record: &Record) -> String {
    let rounds =
        record.settings.get("rounds").map_or_else(String::new, |rounds| format!("{rounds} rounds, "));
    let day = record.started.split('T').next().unwrap_or_default();
    format!("{rounds}{day}, {}, commit {}.\n", record.environment.summary(), record.environment.commit)
}

fn markdown(table: &Table) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('*', "\\*"));
    let rule = format!("|{}\n", "---|".repeat(table.columns.len()));
    line(&table.columns) + &rule + &table.rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed run is the source of the figures in the documents.
    #[test]
    fn documents_match_the_committed_run() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (file, text) in documents(&repository.join("bench/results/current"), &repository).unwrap() {
            let current = std::fs::read_to_string(&file).unwrap();
            assert!(
                current == text,
                "{} is out of date: `portolan-bench docs --in bench/results/current` writes it",
                file.display()
            );
        }
    }
}
