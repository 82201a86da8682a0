//! What clap can say about the command line by itself: completion scripts and manual pages.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::Args;

/// Prints a completion script.
///
/// # Errors
/// Never; as its neighbours.
pub(crate) fn completion(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "portolan", &mut script);
    // A closed pipe is the reader's choice.
    drop(std::io::Write::write_all(&mut std::io::stdout(), &script));
    Ok(ExitCode::SUCCESS)
}

/// Writes `portolan.1` and a page for each of its commands.
///
/// # Errors
/// As writing files.
pub(crate) fn man(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let written = clap_mangen::generate_to(Args::command(), directory);
    written.with_context(|| format!("write manual pages into {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
