//! Renders a record as text tables.

mod comparison;

use crate::record::{Estimate, Figure, Record, Table};
use crate::target::Bound;

pub(crate) use comparison::{added_cell, comparison_table};

/// Prints the comparisons, the tables and the figures that have a target.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn print(record: &Record) {
    for comparison in &record.comparisons {
        print!("{}", table(&comparison_table(comparison)));
    }
    for content in &record.tables {
        print!("{}", table(content));
    }
    print!("{}", table(&figures(&record.figures, &record.confidence())));
    for (kind, notes) in [("warning", &record.warnings), ("not measured", &record.not_measured)] {
        for note in notes {
            println!("{kind}: {note}");
        }
    }
    println!(
        "{}, commit {}, {} build",
        record.environment.summary(),
        record.environment.commit,
        record.environment.build
    );
}

/// Returns the table of the figures that have a target. `confidence` is that of the intervals.
pub(crate) fn figures(figures: &[Figure], confidence: &str) -> Table {
    let measured = format!("measured ({confidence})");
    let mut table = Table::new("Targets", &["figure", "target", &measured, ""], "");
    for figure in figures {
        let remark = figure.remark.as_ref().map(|remark| format!(": {remark}")).unwrap_or_default();
        let measured =
            figure.measured.map_or_else(|| "-".to_owned(), |measured| with_unit(measured, &figure.unit));
        table.row([figure.figure.clone(), target(figure), measured, format!("{}{remark}", figure.verdict())]);
    }
    table
}

/// Formats a target: `at most 0.25 x`.
pub(crate) fn target(figure: &Figure) -> String {
    let (words, limit) = match figure.target {
        Bound::AtMost(limit) => ("at most", limit),
        Bound::AtLeast(limit) => ("at least", limit),
    };
    format!("{words} {limit} {}", figure.unit)
}

/// Formats an estimate: `0.22 (0.20 to 0.30) x`, without the interval if there is none.
pub(crate) fn with_unit(estimate: Estimate, unit: &str) -> String {
    let number = |value: f64| if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    let Estimate { value, low, high } = estimate;
    if low == high {
        return format!("{} {unit}", number(value));
    }
    format!("{} ({} to {}) {unit}", number(value), number(low), number(high))
}

fn signed(Estimate { value, low, high }: Estimate) -> String {
    format!("{value:+.1} ({low:+.1} to {high:+.1})")
}

fn one(value: f64) -> String {
    format!("{value:.1}")
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// Formats a table: the first column is left-aligned, the others are right-aligned.
pub(crate) fn table(table: &Table) -> String {
    let rows = || std::iter::once(&table.columns).chain(&table.rows);
    let width =
        |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..table.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = format!("{}\n", table.title);
    for row in rows() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &if column == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        text.push('\n');
    }
    if table.note.is_empty() { text + "\n" } else { format!("{text}  {}\n\n", table.note) }
}
