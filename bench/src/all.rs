//! Every section, one after the other, into one directory.

use std::path::Path;

use anyhow::{Result, bail};

use crate::record::Record;
use crate::{interrupt, show};

/// A section and what measures it.
pub type Section<'a> = (&'static str, &'a dyn Fn() -> Record);

/// Measures the sections and writes each as soon as it is there. One that fails does not keep the others from running: its
/// record has what had been measured, and says why it ends there.
///
/// # Errors
/// At the end, when a section has failed or the run was interrupted; and when the directory cannot be written.
pub fn all(directory: &Path, sections: &[Section<'_>]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, measure) in sections {
        if interrupt::requested() {
            break;
        }
        let record = measure();
        // Written first: the terminal may have gone.
        record.write_into(directory)?;
        show::print(&record);
        failed.extend(record.interrupted.map(|why| format!("{name}: {why}")));
    }
    if interrupt::requested() {
        bail!("interrupted: what had been measured is in {}, marked as partial", directory.display());
    }
    if !failed.is_empty() {
        bail!("not all could be measured:\n{}", failed.join("\n"));
    }
    Ok(())
}
