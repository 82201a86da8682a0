//! A file that may be changed under us.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files are looked at so often: a change of the node's network is felt within two seconds.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// A file and how it looked last.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) path: PathBuf,
    seen: Option<Look>,
}

/// Time of the last change, size, inode: of what a symbolic link leads to.
type Look = (SystemTime, u64, u64);

impl Watched {
    /// As it is now; the caller is about to read it.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: look(path) }
    }

    /// Whether it looks different from the last time.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = look(&self.path);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

fn look(path: &Path) -> Option<Look> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
