//! Go programs that the tests run. `make setup` builds them outside the tree.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Returns the path of `crictl`, `cnitool`, `control-plane` or another Go program.
///
/// # Errors
/// When it is not built.
pub fn go_tool(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("PORTOLAN_TOOLS") {
        Some(directory) => PathBuf::from(directory),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/portolan-tools")
        }
    };
    let path = directory.join(name);
    ensure!(path.is_file(), "{} is not built: run `make setup`", path.display());
    Ok(path)
}
