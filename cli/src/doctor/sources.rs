//! Whether the daemons are connected to their sources and can read all objects.

use daemon::page;

use super::Finding;
use crate::{admin_address, metrics};

const CHECK: &str = "sources";

/// A source that is stale for longer, in seconds, is an error; docs/kubernetes.md recommends an alert.
pub(crate) const STALE: f64 = 60.0;

/// Programs, their metric prefixes, and the default ports of their metrics.
const PROGRAMS: [(&str, &str, u16); 2] =
    [("portolan-proxy", "portolan_proxy", 10249), ("portolan-dns", "portolan_dns", 10262)];

/// Checks the running daemons; `runtime` reports the stopped ones.
pub(super) fn check() -> Vec<Finding> {
    let finding = |(program, prefix, port): (&str, &str, u16)| {
        let address = admin_address::configured(program, "metrics-bind-address", port);
        let metrics = page::get(address, "/metrics").ok()?.body;
        evaluate(program, prefix, &metrics)
    };
    PROGRAMS.into_iter().filter_map(finding).collect()
}

fn evaluate(program: &str, prefix: &str, metrics: &str) -> Option<Finding> {
    let stale = metrics::max(metrics, &format!("{prefix}_source_stale_seconds"))?;
    let invalid = metrics::sum(metrics, &format!("{prefix}_source_invalid_objects")).unwrap_or_default();
    let fix = "`portolan status` and the log name the source and the reason";
    let seen =
        format!("{program} has had no contact with a source for {stale:.0} s and serves its last state");
    Some(if stale > STALE {
        Finding::error(CHECK, seen, fix)
    } else if stale > 0.0 {
        Finding::warning(CHECK, seen, fix)
    } else if invalid > 0.0 {
        Finding::warning(CHECK, format!("{program} cannot use {invalid} files or objects"), fix)
    } else {
        Finding::ok(CHECK, format!("{program} is in sync with all its sources"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn worst_source_determines_the_level() {
        let level = |stale: u32, invalid: u32| {
            let page = format!(
                "x_source_stale_seconds{{source=\"a\"}} 0\nx_source_stale_seconds{{source=\"b\"}} {stale}\n\
                 x_source_invalid_objects{{source=\"a\"}} {invalid}\n"
            );
            evaluate("portolan-proxy", "x", &page).map(|finding| finding.level)
        };
        assert_eq!(level(0, 0), Some(Level::Ok));
        assert_eq!(level(0, 1), Some(Level::Warning));
        assert_eq!(level(5, 0), Some(Level::Warning));
        assert_eq!(level(61, 1), Some(Level::Error));
        assert!(evaluate("portolan-proxy", "x", "").is_none());
    }
}
