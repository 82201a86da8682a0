//! What keeps Portolan from working on this node, and how to mend it.
//!
//! Each module looks at one thing and knows its remedy. What cannot be looked at is said, never taken for fine.

mod conflicts;
mod firewall;
mod kernel;
mod network;
mod ports;
mod runtime;
mod setting;
pub(crate) mod sources;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::table::Table;

/// Flags of `portolan doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the container runtime looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// Where the container runtime looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,

    /// Where portolan-dns answers.
    #[arg(long, value_name = "IP", default_value = "10.96.0.10")]
    dns: IpAddr,
}

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Something will be worse than it could be, or could not be looked at.
    Warning,
    /// Something will not work.
    Error,
}

/// What was looked at, what was seen, and what to do.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, seen: seen.into(), fix: None }
    }

    fn warning(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, seen: seen.into(), fix: Some(fix.into()) }
    }

    fn error(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Error, seen: seen.into(), fix: Some(fix.into()) }
    }
}

/// Looks at everything; the worst comes last, where a terminal shows it.
pub(crate) fn examine(args: &Args) -> Report {
    let mut findings = kernel::examine();
    findings.extend(setting::examine());
    findings.extend(network::examine(args));
    findings.extend(firewall::examine());
    findings.extend(conflicts::examine());
    findings.extend(ports::examine(args.dns));
    findings.extend(runtime::examine(args));
    findings.extend(sources::examine());
    findings.sort_by_key(|finding| finding.level);
    Report { findings }
}

impl Report {
    /// There is no error; warnings pass.
    pub(crate) fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.level < Level::Error)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["", "CHECK", "SEEN"]);
        for finding in &self.findings {
            table.row([finding.level.to_string(), finding.check.to_owned(), finding.seen.clone()]);
            if let Some(fix) = &finding.fix {
                table.row([String::new(), String::new(), format!("-> {fix}")]);
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        write!(f, "{table}\n{} errors, {} warnings\n", count(Level::Error), count(Level::Warning))
    }
}
