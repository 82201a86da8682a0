//! A record on the terminal.

use crate::comparison::{Comparison, PathResult, Percentile};
use crate::record::{Estimate, Figure, Record, Table};
use crate::target::Bound;

/// Prints what a person wants to know at once: the comparisons, the tables, and what was asked for.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn print(record: &Record) {
    for comparison in &record.comparisons {
        print!("{}", table(&compared(comparison)));
    }
    for shown in &record.tables {
        print!("{}", table(shown));
    }
    print!("{}", table(&figures(&record.figures)));
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

/// A comparison as a table.
pub(crate) fn compared(comparison: &Comparison) -> Table {
    let is_stream = comparison.unit == "MiB";
    let columns: &[&str] = if is_stream {
        &["path", "MiB/s", "of direct", "CPU µs/MiB", "of it between", "errors"]
    } else {
        &[
            "path",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "p50 added (95%)",
            "p99 added (95%)",
            "req/s",
            "CPU µs",
            "of it between",
            "switches",
            "errors",
        ]
    };
    let title = format!("{}: {}", comparison.title, comparison.load);
    let note = format!(
        "Times in µs. {} blocks of {} ms each, in random order. * not distinguishable from no difference.",
        comparison.rounds, comparison.block_ms
    );
    let mut table = Table::new(&title, columns, &note);
    for path in &comparison.paths {
        let each = |amount: Option<f64>| amount.map_or_else(|| "-".to_owned(), one);
        let between = each(path.usage.between);
        let cells: Vec<String> = if is_stream {
            let relative = format!("{:.2}", path.relative_rate.value);
            vec![whole(path.rate.value), relative, each(path.usage.all), between, path.errors.to_string()]
        } else {
            let [p50, p90, p99, p999, max] = [path.p50, path.p90, path.p99, path.p999, path.max]
                .map(|time| each((path.requests > 0).then_some(time)));
            let added = |percentile| added(comparison, path, percentile);
            vec![
                p50,
                p90,
                p99,
                p999,
                max,
                added(Percentile::P50),
                added(Percentile::P99),
                whole(path.rate.value),
                each(path.usage.all),
                between,
                each(path.usage.switches),
                path.errors.to_string(),
            ]
        };
        table.row(std::iter::once(path.path.clone()).chain(cells));
    }
    table
}

/// What a path adds: with its interval, and a star where that is no difference.
pub(crate) fn added(comparison: &Comparison, path: &PathResult, percentile: Percentile) -> String {
    let Some(added) = path.added else { return "-".to_owned() };
    let star = if path.again || comparison.is_difference(path, percentile) { "" } else { " *" };
    signed(added.at(percentile)) + star
}

/// What was asked for, as a table.
pub(crate) fn figures(figures: &[Figure]) -> Table {
    let mut table = Table::new("Asked for", &["figure", "target", "measured (95%)", ""], "");
    for figure in figures {
        let remark = figure.remark.as_ref().map(|remark| format!(": {remark}")).unwrap_or_default();
        let measured =
            figure.measured.map_or_else(|| "-".to_owned(), |measured| with_unit(measured, &figure.unit));
        table.row([figure.figure.clone(), target(figure), measured, format!("{}{remark}", figure.verdict())]);
    }
    table
}

/// `at most 0.25 x`.
pub(crate) fn target(figure: &Figure) -> String {
    let (words, limit) = match figure.target {
        Bound::AtMost(limit) => ("at most", limit),
        Bound::AtLeast(limit) => ("at least", limit),
    };
    format!("{words} {limit} {}", figure.unit)
}

/// `0.22 (0.20 to 0.30) x`; without the interval where there is none.
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

/// The first column to the left, the others to the right, as wide as needed.
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
