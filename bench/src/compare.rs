//! Two results of one section, before and after a change.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::comparison::{Comparison, Percentile};
use crate::record::{Estimate, Record, Table};
use crate::show;

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
    if before.environment.summary() != after.environment.summary() {
        println!("two machines: {} and {}\n", before.environment.summary(), after.environment.summary());
    }
    print!("{}", show::table(&changes(&before, &after)));
    Ok(())
}

/// What each path adds to the direct one in the same run: that way, a machine that was slower on that day does not count.
fn changes(before: &Record, after: &Record) -> Table {
    let note = "What a path adds to the direct one at the median, µs. Real: the two intervals, and the noise of both runs, are \
                smaller than the change.";
    let title = format!("{}: {} to {}", before.section, before.environment.commit, after.environment.commit);
    let mut table = Table::new(&title, &["load", "path", "before", "after", "change", ""], note);
    for old in &before.comparisons {
        let Some(new) = after.comparison(&old.title) else { continue };
        for path in &old.paths {
            let added = |comparison: &Comparison| Some(comparison.path(&path.path)?.added?.p50);
            let (Some(was), Some(is)) = (added(old), added(new)) else { continue };
            let noise = [old, new].into_iter().filter_map(|c| c.noise(Percentile::P50)).fold(0.0, f64::max);
            let verdict = verdict(was, is, noise);
            let one = |value: f64| format!("{value:+.1}");
            let cells = [
                old.title.clone(),
                path.path.clone(),
                one(was.value),
                one(is.value),
                one(is.value - was.value),
            ];
            table.row(cells.into_iter().chain([verdict.to_owned()]));
        }
    }
    table
}

fn verdict(was: Estimate, is: Estimate, noise: f64) -> &'static str {
    let change = is.value - was.value;
    if change.abs() <= noise.max(was.half_width().hypot(is.half_width())) {
        "no difference"
    } else if change < 0.0 {
        "real: faster"
    } else {
        "real: slower"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_real_beyond_intervals_and_noise_alone() {
        let was = Estimate::new(18.0, 20.0, 22.0);
        assert_eq!(verdict(was, Estimate::new(28.0, 30.0, 32.0), 3.0), "real: slower");
        assert_eq!(verdict(was, Estimate::new(8.0, 10.0, 12.0), 3.0), "real: faster");
        assert_eq!(verdict(was, Estimate::new(28.0, 30.0, 32.0), 11.0), "no difference");
        assert_eq!(verdict(was, Estimate::new(19.0, 22.0, 25.0), 0.1), "no difference");
    }
}
