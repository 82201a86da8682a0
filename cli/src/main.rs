//! Command line and exit code: 0 success, 1 a problem was found, 2 the command line is invalid.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::run(cli::Args::parse())
}
