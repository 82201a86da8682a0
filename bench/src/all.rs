//! Runs all sections in turn and writes their results into one directory.

use std::path::Path;

use anyhow::{Result, bail};

use crate::record::Record;
use crate::{interrupt, render};

/// The name of a section and the function that measures it.
pub type Section<'a> = (&'static str, &'a dyn Fn() -> Record);

/// Measures the sections and writes each record as soon as its section ends. A section that fails does not
/// stop the remaining ones: its record keeps what was measured and the reason for the failure.
///
/// # Errors
/// After all sections, when one failed or the run was interrupted; at once, when the directory cannot be
/// written.
pub fn all(directory: &Path, sections: &[Section<'_>]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, measure) in sections {
        if interrupt::requested() {
            break;
        }
        let record = measure();
        // Write before printing: the terminal may be closed.
        record.write_into(directory)?;
        render::print(&record);
        failed.extend(record.interrupted.map(|why| format!("{name}: {why}")));
    }
    if interrupt::requested() {
        bail!("interrupted: partial results are in {}", directory.display());
    }
    if !failed.is_empty() {
        bail!("some sections failed:\n{}", failed.join("\n"));
    }
    Ok(())
}
