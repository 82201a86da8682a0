//! Reads the environment and stdin, prints at most one JSON object, and exits; or runs a user's command.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    // A runtime sets this variable and passes no arguments.
    let output = if arguments.is_empty() || std::env::var_os("CNI_COMMAND").is_some() {
        portolan_cni::run(&program, std::env::vars_os(), io::stdin().lock())
    } else {
        portolan_cni::run_cli(&arguments)
    };
    let is_printed = output.print(io::stdout().lock(), io::stderr().lock());
    if !is_printed {
        output.undo();
    }
    if is_printed && output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
