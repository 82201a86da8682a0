//! The command line, and the exit code: 0 all is well, 1 something is not, 2 the command line is wrong.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    operator::run(operator::Args::parse())
}
