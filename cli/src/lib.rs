//! `portolan`: the command for the operator of a node.
//!
//! ```text
//! status ──HTTP──> status and metrics of portolan-proxy and portolan-dns
//! doctor ──> /proc, nft, ip, files; a temporary network namespace for the kernel probes
//! trace  ──> DNS from the pod's namespace, route, the proxy's status, connections to endpoints and virtual IP
//! install, uninstall ──> files of the container runtime, and a receipt of what was written
//! ```
//! All commands except `install` and `uninstall` are read-only. Each command returns a report, printed as
//! text or JSON.

mod admin_address;
mod args;
mod attached_pods;
mod command;
mod conflist;
mod doctor;
mod install;
mod manual;
mod metrics;
mod process;
mod status;
mod table;
mod trace;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

pub use args::Args;
use args::Command;
use serde::Serialize;

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let json = args.json;
    let result = match args.command {
        Command::Status(args) => Ok(print(&status::status(&args), json, |status| status.healthy)),
        Command::Doctor(args) => Ok(print(&doctor::check(&args), json, doctor::Report::is_healthy)),
        Command::Trace(args) => trace::trace(&args).map(|trace| print(&trace, json, |trace| trace.reached)),
        Command::Install(args) => install::install(&args).map(|done| print(&done, json, |_| true)),
        Command::Uninstall(args) => install::uninstall(&args).map(|done| print(&done, json, |_| true)),
        Command::Completion { shell } => manual::completion(shell),
        Command::Stay => loop {
            std::thread::park();
        },
        Command::Man { directory } => manual::man(&directory),
    };
    result.unwrap_or_else(|error| {
        // Standard error may be closed; the exit code reports the error.
        let _ = writeln!(std::io::stderr(), "portolan: {error:#}");
        ExitCode::FAILURE
    })
}

/// Prints a report. Returns success if it is healthy.
fn print<R: Serialize + Display>(report: &R, json: bool, is_healthy: impl FnOnce(&R) -> bool) -> ExitCode {
    let mut out = std::io::stdout().lock();
    // The reader may close the pipe.
    let _ = if json {
        let text = serde_json::to_string_pretty(report).expect("a report has string keys only");
        writeln!(out, "{text}")
    } else {
        write!(out, "{report}")
    };
    if is_healthy(report) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
