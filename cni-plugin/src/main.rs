//! stdin and environment in, at most one JSON object and an exit code out.

use std::io::{self, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let output = portolan_cni::run(&program, std::env::vars_os(), io::stdin().lock());
    // A result nobody can read is a failure: the runtime would not know what it got.
    let written = io::stdout().lock().write_all(output.stdout.as_bytes());
    let said = io::stderr().lock().write_all(output.stderr.as_bytes());
    if output.success && written.and(said).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
