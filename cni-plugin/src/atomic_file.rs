//! Files that are there whole or not at all.

use std::fs;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Extension of files that are not whole yet.
pub(crate) const TEMPORARY: &str = "tmp";

/// Replaces a file in one step, so that a killed writer leaves the old one and at most a temporary one beside
/// it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(TEMPORARY);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // A full disk has no room for halves.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file and what a killed writer left beside it. One that is missing is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    for path in [path.with_extension(TEMPORARY), path.to_owned()] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
