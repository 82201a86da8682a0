//! The demonstration is `portolan-bench demo`: it needs nodes and pods made of namespaces, and so does the benchmark.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context as _;

const PROGRAM: &str = "portolan-bench";

/// Runs it; its exit code is ours.
///
/// # Errors
/// When the program is not there.
pub(crate) fn demo() -> anyhow::Result<ExitCode> {
    let status = Command::new(beside(PROGRAM)).arg("demo").status();
    let status = status.with_context(|| {
        format!("start {PROGRAM}: it is installed beside portolan, or `make build` makes it")
    })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A program in the directory of this one, else by `PATH`.
pub(crate) fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    let neighbour = own.and_then(|own| Some(own.parent()?.join(name))).filter(|path| path.is_file());
    neighbour.unwrap_or_else(|| name.into())
}
