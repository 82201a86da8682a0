//! `portolan`: one small command for the person who operates a node.
//!
//! ```text
//! status ──HTTP──> pages of portolan-proxy and portolan-dns
//! doctor ──> /proc, nft, ip, files; a network namespace of its own to try the kernel in
//! trace  ──> DNS from the pod's namespace, route, the proxy's page, connections to endpoints and virtual IP
//! install, uninstall ──> files of the container runtime, and a receipt of what was written
//! ```
//! It only looks, but for `install` and `uninstall`. Each command makes a report that is text for people and JSON for
//! programs.

mod args;
mod attached;
mod conflist;
mod doctor;
mod exposition;
mod install;
mod manual;
mod pages;
mod process;
mod status;
mod table;
mod tool;
mod trace;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

pub use args::Args;
use args::Command;
use serde::Serialize;

/// Carries out what the command line asks for.
pub fn run(args: Args) -> ExitCode {
    let json = args.json;
    let result = match args.command {
        Command::Status(args) => Ok(show(&status::status(&args), json, |status| status.healthy)),
        Command::Doctor(args) => Ok(show(&doctor::examine(&args), json, doctor::Report::is_well)),
        Command::Trace(args) => trace::trace(&args).map(|trace| show(&trace, json, |trace| trace.reached)),
        Command::Install(args) => install::install(&args).map(|done| show(&done, json, |_| true)),
        Command::Uninstall(args) => install::uninstall(&args).map(|done| show(&done, json, |_| true)),
        Command::Completion { shell } => manual::completion(shell),
        Command::Stay => loop {
            std::thread::park();
        },
        Command::Man { directory } => manual::man(&directory),
    };
    result.unwrap_or_else(|error| {
        // Standard error may be closed: the exit code still tells.
        drop(writeln!(std::io::stderr(), "portolan: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Prints a report; the exit code says whether all is well.
fn show<R: Serialize + Display>(report: &R, json: bool, is_well: impl FnOnce(&R) -> bool) -> ExitCode {
    let mut out = std::io::stdout().lock();
    // A closed pipe is the reader's choice.
    drop(if json {
        let text = serde_json::to_string_pretty(report).expect("a report has string keys only");
        writeln!(out, "{text}")
    } else {
        write!(out, "{report}")
    });
    if is_well(report) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
