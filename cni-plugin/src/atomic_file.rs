//! Files that are written atomically.

use std::fs;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Extension of temporary files.
pub(crate) const TEMPORARY: &str = "tmp";

/// Replaces a file atomically. If the writer is killed, the old content stays, and at most a temporary file
/// beside it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(TEMPORARY);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk, do not keep a truncated file.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file and the temporary file of a killed writer. A missing file is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    for path in [path.with_extension(TEMPORARY), path.to_owned()] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
