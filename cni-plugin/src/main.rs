//! stdin and environment in, at most one JSON object and an exit code out; or a command of people's.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    // A runtime sets this and gives no arguments.
    let output = if arguments.is_empty() || std::env::var_os("CNI_COMMAND").is_some() {
        portolan_cni::run(&program, std::env::vars_os(), io::stdin().lock())
    } else {
        portolan_cni::run_by_hand(&arguments)
    };
    let is_printed = output.print(io::stdout().lock(), io::stderr().lock());
    if !is_printed {
        output.undo();
    }
    if is_printed && output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
