//! Renders a comparison as a table.

use super::{one, signed, whole};
use crate::comparison::{Comparison, PathResult, Percentile};
use crate::record::Table;
use crate::statistics::confidence;

/// Minimum number of requests for a p99.9: a hundred are then above it.
const MIN_REQUESTS_FOR_P999: u64 = 100_000;

/// A column: its head, and the function for a path's cell.
type Column<'c> = (String, Box<dyn Fn(&PathResult) -> String + 'c>);

/// Returns a table with a row for each path.
pub(crate) fn comparison_table(comparison: &Comparison) -> Table {
    let columns = if comparison.unit == "MiB" { of_stream(comparison) } else { of_requests(comparison) };
    let heads: Vec<&str> =
        std::iter::once("path").chain(columns.iter().map(|(head, _)| head.as_str())).collect();
    let title = format!("{}: {}", comparison.title, comparison.load);
    let mut table = Table::new(&title, &heads, &note(comparison));
    for path in &comparison.paths {
        table.row(std::iter::once(path.path.clone()).chain(columns.iter().map(|(_, cell)| cell(path))));
    }
    table
}

/// Formats the latency that a path adds, with its interval; a star marks a value that is not significant.
pub(crate) fn added_cell(comparison: &Comparison, path: &PathResult, percentile: Percentile) -> String {
    let Some(added) = path.added else { return "-".to_owned() };
    let star = if path.again || comparison.is_difference(path, percentile) { "" } else { " *" };
    signed(added.at(percentile)) + star
}

fn note(comparison: &Comparison) -> String {
    let Comparison { rounds, block_ms, .. } = comparison;
    let mut note = format!("Times in µs. {rounds} blocks of {block_ms} ms each, in random order.");
    if comparison.saturated {
        note += " At capacity: the latency is the number of requests in flight divided by the rate.";
    } else if comparison.unit != "MiB" {
        note += " * not distinguishable from no difference.";
    }
    note
}

fn of_stream(comparison: &Comparison) -> Vec<Column<'_>> {
    vec![
        column("MiB/s", |path| whole(path.rate.value)),
        column(&format!("of {}", first(comparison)), |path| format!("{:.2}", path.relative_rate.value)),
        column("CPU µs/MiB", |path| each(path.usage.all)),
        column("of it between", |path| each(path.usage.between)),
        column("errors", |path| path.errors.to_string()),
    ]
}

fn of_requests(comparison: &Comparison) -> Vec<Column<'_>> {
    let sure = confidence(comparison.rounds);
    let mut columns = vec![
        column("p50", time(|path| path.p50)),
        column("p90", time(|path| path.p90)),
        column("p99", time(|path| path.p99)),
        column("p99.9", |path| if has_enough(path) { one(path.p999) } else { "-".to_owned() }),
        column("max", time(|path| path.max)),
    ];
    if comparison.saturated {
        columns.push(column(&format!("of {}'s req/s ({sure})", first(comparison)), |path| {
            let of = path.relative_rate;
            format!("{:.2} ({:.2} to {:.2})", of.value, of.low, of.high)
        }));
    } else {
        let adds = |name: &str, percentile| {
            column(&format!("{name} added ({sure})"), move |path| added_cell(comparison, path, percentile))
        };
        columns.extend([adds("p50", Percentile::P50), adds("p99", Percentile::P99)]);
        if comparison.paths.iter().skip(1).any(has_enough) {
            let (head, cell) = adds("p99.9", Percentile::P999);
            columns
                .push(column(&head, move |path| if has_enough(path) { cell(path) } else { "-".to_owned() }));
        }
    }
    columns.extend([
        column("req/s", |path| whole(path.rate.value)),
        column("CPU µs", |path| each(path.usage.all)),
        column("of it between", |path| each(path.usage.between)),
        column("switches", |path| each(path.usage.switches)),
    ]);
    if comparison.paths.iter().any(|path| path.lag.is_some()) {
        let late = |index: usize| move |path: &PathResult| each(path.lag.map(|lag| lag[index]));
        columns.extend([
            column("sent late, p99", late(1)),
            column("max", late(2)),
            column("stolen, ms", |path| whole(path.usage.steal_ms)),
        ]);
    }
    columns.push(column("errors", |path| path.errors.to_string()));
    columns
}

fn column<'c>(head: &str, cell: impl Fn(&PathResult) -> String + 'c) -> Column<'c> {
    (head.to_owned(), Box::new(cell))
}

fn first(comparison: &Comparison) -> &str {
    comparison.paths.first().map_or("the first", |path| &path.path)
}

fn has_enough(path: &PathResult) -> bool {
    path.requests >= MIN_REQUESTS_FOR_P999
}

/// Returns the cell of a time; `-` for a path without answers.
fn time(of: fn(&PathResult) -> f64) -> impl Fn(&PathResult) -> String {
    move |path| each((path.requests > 0).then(|| of(path)))
}

fn each(amount: Option<f64>) -> String {
    amount.map_or_else(|| "-".to_owned(), one)
}
