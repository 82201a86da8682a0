//! Compares two results of one section, before and after a change.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::comparison::{Comparison, Percentile};
use crate::record::{Estimate, Figure, Record, Table};
use crate::render;
use crate::target::Bound;

/// Paths without Portolan. Their change from one run to the other is noise.
const CONTROLS: [&str; 6] = ["loopback", "nftables", "HAProxy", "nginx", "reference bridge", "reference ptp"];

/// Prints the differences and whether each is beyond the noise.
///
/// # Errors
/// When a file cannot be read, or the two results have nothing in common.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn compare(before: &Path, after: &Path) -> Result<()> {
    let (before, after) = (Record::read(before)?, Record::read(after)?);
    ensure!(
        before.section == after.section,
        "{} and {} cannot be compared: give two results of one section",
        before.section,
        after.section
    );
    let tables = [added(&before, &after), targets_table(&before, &after)];
    ensure!(
        tables.iter().any(|table| !table.rows.is_empty()),
        "the two results have neither a load nor a figure in common: measure the same again"
    );
    for caveat in caveats(&before, &after) {
        println!("{caveat}\n");
    }
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        print!("{}", render::table(table));
    }
    Ok(())
}

/// Returns reasons why the results may differ besides the change.
fn caveats(before: &Record, after: &Record) -> Vec<String> {
    let mut found = Vec::new();
    if before.environment.summary() != after.environment.summary() {
        let (one, other) = (before.environment.summary(), after.environment.summary());
        found.push(format!("two machines: {one} and {other}"));
    }
    for (name, record) in [("before", before), ("after", after)] {
        if record.environment.build == "debug" {
            found.push(format!("{name}: measured with a debug build, which is not meaningful"));
        }
        found.extend(record.interrupted.iter().map(|why| format!("{name}: ended early, {why}")));
    }
    found
}

/// Compares what each path adds to the first path of its own run, so that a slower machine does not count.
fn added(before: &Record, after: &Record) -> Table {
    let note = "Added to the first path at the median, µs. Beyond: the change exceeds both intervals, the \
        A/A noise and the change of the control paths. Repeat the run before you trust it.";
    let title = format!("{}: {} to {}", before.section, before.environment.commit, after.environment.commit);
    let mut table = Table::new(&title, &["load", "path", "before", "after", "change", ""], note);
    for old in before.comparisons.iter().filter(|old| !old.saturated) {
        let Some(new) = after.comparison(&old.title) else { continue };
        let noise = noise(old, new);
        for path in old.paths.iter().filter(|path| !path.again) {
            let Some((was, is)) = both(old, new, &path.path) else { continue };
            let is_control = CONTROLS.contains(&path.path.as_str());
            let verdict =
                if is_control { "control" } else { judge_change(was, is, noise, Bound::AtMost(0.0)) };
            let one = |value: f64| format!("{value:+.1}");
            let cells = [one(was.value), one(is.value), one(is.value - was.value), verdict.to_owned()];
            table.row([old.title.clone(), path.path.clone()].into_iter().chain(cells));
        }
    }
    table
}

/// Compares the figures that have a target.
fn targets_table(before: &Record, after: &Record) -> Table {
    let note = "Without an interval there is one observation each, which gives no verdict.";
    let mut table = Table::new("Targets", &["figure", "before", "after", ""], note);
    for old in &before.figures {
        let found = after.figures.iter().find(|new| new.id == old.id);
        let Some((was, new)) = old.measured.zip(found) else { continue };
        let Some(is) = new.measured else { continue };
        let [shown_before, shown_after] = [was, is].map(|estimate| render::with_unit(estimate, &old.unit));
        table.row([
            old.figure.clone(),
            shown_before,
            shown_after,
            figure_verdict(old, was, new, is).to_owned(),
        ]);
    }
    table
}

fn figure_verdict(old: &Figure, was: Estimate, new: &Figure, is: Estimate) -> &'static str {
    let is_single = |estimate: Estimate| estimate.low == estimate.high;
    if is_single(was) || is_single(is) {
        return if was.value == is.value { "the same" } else { "-" };
    }
    let noise = old.noise.unwrap_or(0.0).max(new.noise.unwrap_or(0.0));
    judge_change(was, is, noise, old.target)
}

fn both(old: &Comparison, new: &Comparison, path: &str) -> Option<(Estimate, Estimate)> {
    let added = |comparison: &Comparison| Some(comparison.path(path)?.added?.p50);
    Some((added(old)?, added(new)?))
}

/// Returns the A/A noise of both runs or the largest change of a control path, whichever is larger.
fn noise(old: &Comparison, new: &Comparison) -> f64 {
    let again = [old, new].into_iter().filter_map(|comparison| comparison.noise(Percentile::P50));
    let moved = CONTROLS.iter().filter_map(|control| both(old, new, control));
    again.chain(moved.map(|(was, is)| (is.value - was.value).abs())).fold(0.0, f64::max)
}

fn judge_change(was: Estimate, is: Estimate, noise: f64, good: Bound) -> &'static str {
    let change = is.value - was.value;
    if change.abs() <= noise.max(was.half_width().hypot(is.half_width())) {
        "no difference"
    } else if (change < 0.0) == matches!(good, Bound::AtMost(_)) {
        "better, beyond"
    } else {
        "worse, beyond"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LESS: Bound = Bound::AtMost(0.0);

    #[test]
    fn change_counts_only_beyond_intervals_and_noise() {
        let was = Estimate::new(18.0, 20.0, 22.0);
        let (more, less) = (Estimate::new(28.0, 30.0, 32.0), Estimate::new(8.0, 10.0, 12.0));
        assert_eq!(judge_change(was, more, 3.0, LESS), "worse, beyond");
        assert_eq!(judge_change(was, more, 3.0, Bound::AtLeast(1.0)), "better, beyond");
        assert_eq!(judge_change(was, less, 3.0, LESS), "better, beyond");
        assert_eq!(judge_change(was, more, 11.0, LESS), "no difference");
        assert_eq!(judge_change(was, Estimate::new(19.0, 22.0, 25.0), 0.1, LESS), "no difference");
    }

    #[test]
    fn figures_are_compared_and_single_observations_get_no_verdict() {
        let (mut before, mut after) = (Record::new("cni"), Record::new("cni"));
        before.measured("add-bridge", Estimate::new(0.2, 0.22, 0.24));
        after.measured("add-bridge", Estimate::new(0.1, 0.12, 0.14));
        before.measured("add-memory", 3.0);
        after.measured("add-memory", 3.5);
        before.measured("del-kernel", 1.0);
        let rows = targets_table(&before, &after).rows;
        let verdicts: Vec<_> = rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(verdicts, ["better, beyond", "-"]);
        assert!(added(&before, &after).rows.is_empty());
    }
}
