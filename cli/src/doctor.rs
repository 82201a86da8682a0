//! Checks what prevents Portolan from working on this node, and suggests fixes.
//!
//! Each module checks one area and knows its fixes. What cannot be checked is reported as a warning, never as
//! ok.

mod conflicts;
mod firewall;
mod kernel;
mod network;
mod ports;
mod runtime;
pub(crate) mod sources;
mod sysctl;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::table::{Table, plural};

/// Flags of `portolan doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The container runtime's directory of plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// The container runtime's directory of network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,

    /// Address of portolan-dns.
    #[arg(long, value_name = "IP", default_value = "10.96.0.10")]
    dns: IpAddr,
}

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Something works worse than it could, or could not be checked.
    Warning,
    /// Something does not work.
    Error,
}

/// The result of a check: what was seen, and the fix.
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

/// Runs all checks. Sorts by severity, the worst last, where a terminal shows it.
pub(crate) fn check(args: &Args) -> Report {
    let mut findings = kernel::check();
    findings.extend(sysctl::check());
    findings.extend(network::check(args));
    findings.extend(firewall::check());
    findings.extend(conflicts::check());
    findings.extend(ports::check(args.dns));
    findings.extend(runtime::check(args));
    findings.extend(sources::check());
    findings.sort_by_key(|finding| finding.level);
    Report { findings }
}

impl Report {
    /// Returns whether there is no error. Warnings are accepted.
    pub(crate) fn is_healthy(&self) -> bool {
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
        let (errors, warnings) = (count(Level::Error), count(Level::Warning));
        writeln!(f, "{table}\n{}, {}", plural(errors, "error"), plural(warnings, "warning"))
    }
}
