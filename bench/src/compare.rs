//! Two results of one section, before and after a change.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::comparison::{Comparison, Percentile};
use crate::record::{Estimate, Figure, Record, Table};
use crate::show;
use crate::target::Bound;

/// Paths with nothing of ours on them: what they changed by is what two runs differ by.
const CONTROLS: [&str; 6] = ["loopback", "nftables", "HAProxy", "nginx", "reference bridge", "reference ptp"];

/// Prints what has changed, and whether it is real.
///
/// # Errors
/// When a file cannot be read, and when the two have nothing in common.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn compare(before: &Path, after: &Path) -> Result<()> {
    let (before, after) = (Record::read(before)?, Record::read(after)?);
    ensure!(
        before.section == after.section,
        "{} and {} cannot be compared: give two results of one section",
        before.section,
        after.section
    );
    let tables = [added(&before, &after), asked_for(&before, &after)];
    ensure!(
        tables.iter().any(|table| !table.rows.is_empty()),
        "the two results have neither a load nor a figure in common: measure the same again"
    );
    for caveat in caveats(&before, &after) {
        println!("{caveat}\n");
    }
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        print!("{}", show::table(table));
    }
    Ok(())
}

/// Why the two may differ by more than the change.
fn caveats(before: &Record, after: &Record) -> Vec<String> {
    let mut found = Vec::new();
    if before.environment.summary() != after.environment.summary() {
        let (one, other) = (before.environment.summary(), after.environment.summary());
        found.push(format!("two machines: {one} and {other}"));
    }
    for (name, record) in [("before", before), ("after", after)] {
        if record.environment.build == "debug" {
            found.push(format!("{name}: measured with a debug build, which says nothing"));
        }
        found.extend(record.interrupted.iter().map(|why| format!("{name}: ended early, {why}")));
    }
    found
}

/// What each path adds to the first one in the same run: that way, a machine that was slower on that day does not count.
fn added(before: &Record, after: &Record) -> Table {
    let note = "What a path adds to the first one at the median, µs. Beyond: more than both intervals, what the first path twice \
                differs by, and what paths without anything of ours have changed by. Repeat the run before you believe it.";
    let title = format!("{}: {} to {}", before.section, before.environment.commit, after.environment.commit);
    let mut table = Table::new(&title, &["load", "path", "before", "after", "change", ""], note);
    for old in before.comparisons.iter().filter(|old| !old.saturated) {
        let Some(new) = after.comparison(&old.title) else { continue };
        let noise = noise(old, new);
        for path in old.paths.iter().filter(|path| !path.again) {
            let Some((was, is)) = both(old, new, &path.path) else { continue };
            let is_control = CONTROLS.contains(&path.path.as_str());
            let said = if is_control { "control" } else { verdict(was, is, noise, Bound::AtMost(0.0)) };
            let one = |value: f64| format!("{value:+.1}");
            let cells = [one(was.value), one(is.value), one(is.value - was.value), said.to_owned()];
            table.row([old.title.clone(), path.path.clone()].into_iter().chain(cells));
        }
    }
    table
}

/// Figures are ratios to a peer of the same run, or hold on any machine of the kind.
fn asked_for(before: &Record, after: &Record) -> Table {
    let note = "Without an interval, one observation each: nothing can be told from two.";
    let mut table = Table::new("Asked for", &["figure", "before", "after", ""], note);
    for old in &before.figures {
        let found = after.figures.iter().find(|new| new.id == old.id);
        let Some((was, new)) = old.measured.zip(found) else { continue };
        let Some(is) = new.measured else { continue };
        let [shown_before, shown_after] = [was, is].map(|estimate| show::with_unit(estimate, &old.unit));
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
    verdict(was, is, noise, old.target)
}

fn both(old: &Comparison, new: &Comparison, path: &str) -> Option<(Estimate, Estimate)> {
    let added = |comparison: &Comparison| Some(comparison.path(path)?.added?.p50);
    Some((added(old)?, added(new)?))
}

/// A/A of both runs, and the most that a control has changed.
fn noise(old: &Comparison, new: &Comparison) -> f64 {
    let again = [old, new].into_iter().filter_map(|comparison| comparison.noise(Percentile::P50));
    let moved = CONTROLS.iter().filter_map(|control| both(old, new, control));
    again.chain(moved.map(|(was, is)| (is.value - was.value).abs())).fold(0.0, f64::max)
}

fn verdict(was: Estimate, is: Estimate, noise: f64, good: Bound) -> &'static str {
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
    fn a_change_is_real_beyond_intervals_and_noise_alone() {
        let was = Estimate::new(18.0, 20.0, 22.0);
        let (more, less) = (Estimate::new(28.0, 30.0, 32.0), Estimate::new(8.0, 10.0, 12.0));
        assert_eq!(verdict(was, more, 3.0, LESS), "worse, beyond");
        assert_eq!(verdict(was, more, 3.0, Bound::AtLeast(1.0)), "better, beyond");
        assert_eq!(verdict(was, less, 3.0, LESS), "better, beyond");
        assert_eq!(verdict(was, more, 11.0, LESS), "no difference");
        assert_eq!(verdict(was, Estimate::new(19.0, 22.0, 25.0), 0.1, LESS), "no difference");
    }

    #[test]
    fn figures_are_compared_and_single_observations_are_not_judged() {
        let (mut before, mut after) = (Record::new("cni"), Record::new("cni"));
        before.measured("add-bridge", Estimate::new(0.2, 0.22, 0.24));
        after.measured("add-bridge", Estimate::new(0.1, 0.12, 0.14));
        before.measured("add-memory", 3.0);
        after.measured("add-memory", 3.5);
        before.measured("del-kernel", 1.0);
        let rows = asked_for(&before, &after).rows;
        let verdicts: Vec<_> = rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(verdicts, ["better, beyond", "-"]);
        assert!(added(&before, &after).rows.is_empty());
    }
}
