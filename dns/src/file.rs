//! A file that may be changed under us.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files are looked at so often: a change of the node's network is felt within two seconds.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// A file, how it looked last, and whether it could be used then.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) path: PathBuf,
    seen: Option<Look>,
    /// Why it could not be read or used the last time.
    failure: Option<String>,
}

/// Time of the last change, size, inode: of what a symbolic link leads to.
type Look = (SystemTime, u64, u64);

impl Watched {
    /// As it is now; the caller is about to read it.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: look(path), failure: None }
    }

    /// Whether it is to be read: it looks different from the last time, or could not be used then.
    /// Permissions and free descriptors come without a change that shows.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = look(&self.path);
        let changed = now != self.seen;
        self.seen = now;
        changed || self.failure.is_some()
    }

    /// Notes whether it could be used. Returns whether that is a failure to be logged: it is not the one of
    /// the last time.
    pub(crate) fn note(&mut self, failure: Option<String>) -> bool {
        let is_news = failure.is_some() && failure != self.failure;
        self.failure = failure;
        is_news
    }
}

fn look(path: &Path) -> Option<Look> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// The content of a file; a missing one is empty.
///
/// # Errors
/// When it is there and cannot be read.
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
    fn what_could_not_be_used_is_tried_again_and_told_once_a_cause() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = Watched::new(&directory.path().join("hosts"));
        assert!(!file.is_due());
        let failure = |text: &str| Some(text.to_owned());
        assert!(file.note(failure("Too many open files")) && file.is_due());
        assert!(!file.note(failure("Too many open files")) && file.is_due());
        assert!(file.note(failure("Permission denied")));
        assert!(!file.note(None) && !file.is_due());
        std::fs::write(&file.path, "192.0.2.7 db\n").unwrap();
        assert!(file.is_due() && !file.is_due());
    }
}
