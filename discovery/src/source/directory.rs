//! A directory of files, and its changes since the last scan.
//!
//! The kernel reports only where something happened ([`super::watch`]). The scan finds what happened: it
//! reads files again whose inode, size or times differ. If an event is not about a single file, everything is
//! scanned. So no order of events, no overflow of their queue and no swap of a symlinked directory (a mounted
//! ConfigMap) can leave a stale file, and one changed file among ten thousand costs one check.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::event;

/// A larger file is not a manifest; reading it would cost memory.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The relevant files of a directory, as last seen.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// Whether the files are in subdirectories.
    pub(super) nested: bool,
    extensions: &'static [&'static str],
    /// A file counts as missing or empty only after this time, because editors rename the old file away
    /// before they write the new one. Zero if files are only renamed into place.
    settling: Duration,
    seen: HashMap<PathBuf, Fingerprint>,
    /// Files that could not be read, with the error. They look unchanged when the cause is resolved (free
    /// descriptors, permissions), so each scan retries them.
    unread: BTreeMap<PathBuf, String>,
    /// Whether the last attempt to list all files failed.
    is_unlisted: bool,
}

/// Changes when the file does. The default is that of a file that cannot be examined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    /// In seconds and nanoseconds, like the next one.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The changes since the last scan.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New or changed files with their contents.
    pub(crate) changed: Vec<(PathBuf, io::Result<Vec<u8>>)>,
    /// Files that were deleted.
    pub(crate) removed: Vec<PathBuf>,
}

/// What to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScanScope {
    /// Every file.
    All,
    /// These files only.
    Files(BTreeSet<PathBuf>),
}

/// Reads the changes of a directory and converts them to events. Runs on one blocking thread at a time.
pub(crate) trait Reader: Send + 'static {
    /// The directory with what was seen so far.
    fn directory(&mut self) -> &mut Directory;
    /// Events for the changes, or for a failure of the directory.
    fn events(&mut self, changes: io::Result<Changes>) -> Vec<event::Event>;
}

impl Directory {
    pub(crate) fn new(
        path: PathBuf,
        nested: bool,
        extensions: &'static [&'static str],
        settling: Duration,
    ) -> Self {
        Self {
            path,
            nested,
            extensions,
            settling,
            seen: HashMap::new(),
            unread: BTreeMap::new(),
            is_unlisted: false,
        }
    }

    /// Scans for changes and reads new content. Waits if a file may be missing or empty for a moment only.
    ///
    /// # Errors
    /// If the directory itself cannot be listed. The earlier state stays.
    pub(crate) fn scan(&mut self, scope: &ScanScope) -> io::Result<Changes> {
        let files = match scope {
            ScanScope::Files(files) if !self.is_unlisted => {
                files.iter().chain(self.unread.keys()).cloned().collect()
            }
            _ => self.everything()?,
        };
        let mut changes = Changes::default();
        let is_final = self.settling.is_zero();
        let doubtful: Vec<PathBuf> =
            files.into_iter().filter(|file| !self.check_file(file, is_final, &mut changes)).collect();
        if !doubtful.is_empty() {
            thread::sleep(self.settling);
        }
        for file in doubtful {
            self.check_file(&file, true, &mut changes);
        }
        Ok(changes)
    }

    /// Whether something could not be read or listed, so that another scan is necessary without an event.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_unlisted || !self.unread.is_empty()
    }

    /// Whether the last attempt to list all files succeeded.
    pub(super) fn is_listed(&self) -> bool {
        !self.is_unlisted
    }

    /// The existing files, and those seen earlier, which may be deleted.
    fn everything(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let listed = self.files();
        // A directory that does not exist may be created later, which the watch detects.
        self.is_unlisted = listed.as_ref().is_err_and(|error| error.kind() != ErrorKind::NotFound);
        Ok(listed?.into_iter().chain(self.seen.keys().cloned()).collect())
    }

    /// Reads the file if it has changed or could not be read before. Returns false without reading if a
    /// second check has to decide.
    fn check_file(&mut self, file: &Path, is_final: bool, changes: &mut Changes) -> bool {
        let found = find(file);
        let before = self.seen.get(file).copied();
        let is_empty = !matches!(&found, Err(_) | Ok(Some(Fingerprint { size: 1.., .. })));
        if !is_final && is_empty && before.is_some_and(|before| before.size > 0) {
            return false;
        }
        let failed_before = self.unread.remove(file);
        let (now, contents) = match found {
            Ok(Some(now)) if Some(now) == before && failed_before.is_none() => return true,
            Ok(Some(now)) => (now, read(file, now.size)),
            Ok(None) => {
                if self.seen.remove(file).is_some() {
                    changes.removed.push(file.to_owned());
                }
                return true;
            }
            Err(error) => (Fingerprint::default(), Err(error)),
        };
        self.seen.insert(file.to_owned(), now);
        if let Err(error) = &contents {
            let error = error.to_string();
            let is_known = failed_before.as_ref() == Some(&error);
            self.unread.insert(file.to_owned(), error);
            if is_known {
                return true;
            }
        }
        changes.changed.push((file.to_owned(), contents));
        true
    }

    /// Clears the state and returns the files that were in it.
    pub(crate) fn forget(&mut self) -> Vec<PathBuf> {
        self.unread.clear();
        self.seen.drain().map(|(file, _)| file).collect()
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in self.folders()? {
            match list(&folder) {
                Ok(found) => files.extend(found.into_iter().filter(|file| self.is_wanted(file))),
                // It was deleted since its parent was listed.
                Err(error) if self.nested && error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    pub(super) fn folders(&self) -> io::Result<Vec<PathBuf>> {
        if !self.nested {
            return Ok(vec![self.path.clone()]);
        }
        Ok(list(&self.path)?.into_iter().filter(|path| path.is_dir()).collect())
    }

    /// Temporary files of editors and writers start with a dot or have another extension.
    pub(super) fn is_wanted(&self, file: &Path) -> bool {
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = file.extension().and_then(|extension| extension.to_str());
        !hidden && extension.is_some_and(|extension| self.extensions.contains(&extension))
    }
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

/// The fingerprint of the file. `None` for a file that vanished, a directory, or a dangling link.
fn find(file: &Path) -> io::Result<Option<Fingerprint>> {
    match fs::metadata(file) {
        Ok(metadata) => Ok(metadata.is_file().then(|| fingerprint(&metadata))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(file: &Path, length: u64) -> io::Result<Vec<u8>> {
    if length > MAX_FILE_BYTES {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("{length} bytes are more than the {MAX_FILE_BYTES} a file may have; split it"),
        ));
    }
    fs::read(file)
}

fn fingerprint(metadata: &fs::Metadata) -> Fingerprint {
    Fingerprint {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests;
