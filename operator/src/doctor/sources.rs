//! Whether the daemons follow what they serve, and can read all of it.

use daemon::page;

use super::Finding;
use crate::{exposition, pages};

const CHECK: &str = "sources";

/// Seconds without word from a source that are no passing trouble any more; docs/kubernetes.md says to alert on more.
pub(crate) const STALE: f64 = 60.0;

/// Programs, and where they have their metrics unless a flag says otherwise.
const PROGRAMS: [(&str, &str, u16); 2] =
    [("portolan-proxy", "portolan_proxy", 10249), ("portolan-dns", "portolan_dns", 10262)];

/// What runs; the check of the runtime says what does not.
pub(super) fn examine() -> Vec<Finding> {
    let finding = |(program, prefix, port): (&str, &str, u16)| {
        let address = pages::set(program, "metrics-bind-address", port);
        let metrics = page::get(address, "/metrics").ok()?.body;
        judge(program, prefix, &metrics)
    };
    PROGRAMS.into_iter().filter_map(finding).collect()
}

fn judge(program: &str, prefix: &str, metrics: &str) -> Option<Finding> {
    let stale = exposition::max(metrics, &format!("{prefix}_source_stale_seconds"))?;
    let invalid = exposition::sum(metrics, &format!("{prefix}_source_invalid_objects")).unwrap_or_default();
    let fix = "`portolan status` and the log say which and why";
    let seen =
        format!("{program} has had no word from a source for {stale:.0} s and serves what it knew last");
    Some(if stale > STALE {
        Finding::error(CHECK, seen, fix)
    } else if stale > 0.0 {
        Finding::warning(CHECK, seen, fix)
    } else if invalid > 0.0 {
        Finding::warning(CHECK, format!("{program} cannot use {invalid} files or objects"), fix)
    } else {
        Finding::ok(CHECK, format!("{program} follows all its sources"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn the_worst_source_decides() {
        let level = |stale: u32, invalid: u32| {
            let page = format!(
                "x_source_stale_seconds{{source=\"a\"}} 0\nx_source_stale_seconds{{source=\"b\"}} {stale}\nx_source_invalid_objects{{source=\"a\"}} {invalid}\n"
            );
            judge("portolan-proxy", "x", &page).map(|finding| finding.level)
        };
        assert_eq!(level(0, 0), Some(Level::Ok));
        assert_eq!(level(0, 1), Some(Level::Warning));
        assert_eq!(level(5, 0), Some(Level::Warning));
        assert_eq!(level(61, 1), Some(Level::Error));
        assert!(judge("portolan-proxy", "x", "").is_none());
    }
}
