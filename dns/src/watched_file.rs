//! A file that is read again when it changes.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Interval of checks: a change takes effect within two seconds.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A file with its last fingerprint, and whether it was usable.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) path: PathBuf,
    seen: Option<Fingerprint>,
    /// Why it could not be read or used the last time.
    failure: Option<String>,
}

/// Modification time, size and inode, of the target of a symbolic link.
type Fingerprint = (SystemTime, u64, u64);

impl Watched {
    /// Creates it with the current fingerprint; the caller reads the file afterwards.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: fingerprint(path), failure: None }
    }

    /// Whether the file has to be read: it has changed, or was not usable. Changed permissions and free
    /// descriptors do not change the fingerprint.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = fingerprint(&self.path);
        let changed = now != self.seen;
        self.seen = now;
        changed || self.failure.is_some()
    }

    /// Records whether it was usable. Returns whether to log the failure: it differs from the last one.
    pub(crate) fn record(&mut self, failure: Option<String>) -> bool {
        let is_news = failure.is_some() && failure != self.failure;
        self.failure = failure;
        is_news
    }
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Reads a file; a missing one is empty.
///
/// # Errors
/// If it exists and cannot be read.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_file_is_retried_and_each_cause_is_logged_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = Watched::new(&directory.path().join("hosts"));
        assert!(!file.is_due());
        let failure = |text: &str| Some(text.to_owned());
        assert!(file.record(failure("Too many open files")) && file.is_due());
        assert!(!file.record(failure("Too many open files")) && file.is_due());
        assert!(file.record(failure("Permission denied")));
        assert!(!file.record(None) && !file.is_due());
        std::fs::write(&file.path, "192.0.2.7 db\n").unwrap();
        assert!(file.is_due() && !file.is_due());
    }
}
