//! A directory of files, and word of their changes.
//!
//! The kernel only says that something happened (inotify); what happened is found by looking: files whose inode, size
//! or times differ are read again. So no order of events, no overflow of their queue and no swap of a symlinked
//! directory (a mounted ConfigMap) can leave a stale file behind.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

use crate::event::Event;

/// A larger file is not a manifest; reading it would only cost memory.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A look without being told to, should a file system not tell (network mounts).
const SAFETY_SCAN: Duration = Duration::from_secs(30);

/// What is worth a look. A file being written is looked at once it is closed.
const MASK: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

/// The files of interest in a directory, as last seen.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// Whether the files are one folder further down.
    nested: bool,
    extensions: &'static [&'static str],
    seen: HashMap<PathBuf, Fingerprint>,
}

/// Changes when a file does: device, inode, size, modification and change time in nanoseconds.
type Fingerprint = (u64, u64, u64, i64, i64, i64, i64);

/// What is different since the last look.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New or changed files with their contents, in the order of their names.
    pub(crate) changed: Vec<(PathBuf, io::Result<Vec<u8>>)>,
    /// Files that are gone.
    pub(crate) removed: Vec<PathBuf>,
}

/// Reads a directory's changes and turns them into events. Kept on one blocking thread at a time.
pub(crate) trait Reader: Send + 'static {
    /// The directory and what was seen of it so far.
    fn directory(&mut self) -> &mut Directory;
    /// Events for what has changed, or for what is wrong with the directory.
    fn events(&mut self, changes: io::Result<Changes>) -> Vec<Event>;
}

impl Directory {
    pub(crate) fn new(path: PathBuf, nested: bool, extensions: &'static [&'static str]) -> Self {
        Self { path, nested, extensions, seen: HashMap::new() }
    }

    /// Looks, and reads what is new.
    ///
    /// # Errors
    /// When the directory itself cannot be listed; what was seen before stays.
    pub(crate) fn scan(&mut self) -> io::Result<Changes> {
        let mut files = Vec::new();
        for folder in self.folders()? {
            files.extend(list(&folder)?.into_iter().filter(|file| self.is_wanted(file)));
        }
        files.sort();
        let mut changes = Changes::default();
        let mut present = HashSet::new();
        for file in files {
            // A file that vanished since it was listed, a directory, a dangling link: not there.
            let Ok(metadata) = fs::metadata(&file) else { continue };
            if !metadata.is_file() {
                continue;
            }
            present.insert(file.clone());
            let now = fingerprint(&metadata);
            if self.seen.get(&file) != Some(&now) {
                changes.changed.push((file.clone(), read(&file, metadata.len())));
                self.seen.insert(file, now);
            }
        }
        changes.removed = self.seen.keys().filter(|file| !present.contains(*file)).cloned().collect();
        for file in &changes.removed {
            self.seen.remove(file);
        }
        Ok(changes)
    }

    /// Forgets what was seen and says which files that were.
    pub(crate) fn forget(&mut self) -> Vec<PathBuf> {
        self.seen.drain().map(|(file, _)| file).collect()
    }

    fn folders(&self) -> io::Result<Vec<PathBuf>> {
        if !self.nested {
            return Ok(vec![self.path.clone()]);
        }
        Ok(list(&self.path)?.into_iter().filter(|path| path.is_dir()).collect())
    }

    /// Editors' and writers' temporary files start with a dot or end differently.
    fn is_wanted(&self, file: &Path) -> bool {
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = file.extension().and_then(|extension| extension.to_str());
        !hidden && extension.is_some_and(|extension| self.extensions.contains(&extension))
    }
}

/// Word of changes in a directory and its folders.
pub(crate) struct Watch(EventStream<[u8; 4096]>);

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        Inotify::init()?.into_event_stream([0; 4096]).map(Self)
    }

    /// Watches everything that can be relevant now. Watching something twice is one watch.
    pub(crate) fn cover(&mut self, directory: &Directory) {
        // While it does not exist, its nearest ancestor says when that changes.
        let existing = directory.path.ancestors().find(|path| path.exists());
        let folders = directory.folders().unwrap_or_default();
        for path in existing.into_iter().chain(folders.iter().map(PathBuf::as_path)) {
            if let Err(error) = self.0.watches().add(path, MASK) {
                tracing::debug!(path = %path.display(), %error, "cannot watch");
            }
        }
    }

    /// Returns when something may have changed.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        match tokio::time::timeout(SAFETY_SCAN, self.0.next()).await {
            Err(_elapsed) => Ok(()),
            Ok(Some(Ok(_))) => Ok(()),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn read(file: &Path, length: u64) -> io::Result<Vec<u8>> {
    if length > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{length} bytes are more than the {MAX_FILE_BYTES} a file may have; split it"),
        ));
    }
    fs::read(file)
}

fn fingerprint(metadata: &fs::Metadata) -> Fingerprint {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &Changes) -> (Vec<String>, Vec<String>) {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        (
            changes.changed.iter().map(|(path, _)| name(path)).collect(),
            changes.removed.iter().map(name).collect(),
        )
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"]);
        for name in ["b.yaml", "a.yaml", ".hidden.yaml", "notes.txt", "a.yaml~"] {
            fs::write(path(name), "x").unwrap();
        }
        assert_eq!(names(&directory.scan().unwrap()), (strings(&["a.yaml", "b.yaml"]), vec![]));
        assert_eq!(names(&directory.scan().unwrap()), (vec![], vec![]));
        fs::write(path("new"), "y").unwrap();
        fs::rename(path("new"), path("b.yaml")).unwrap();
        fs::remove_file(path("a.yaml")).unwrap();
        assert_eq!(names(&directory.scan().unwrap()), (strings(&["b.yaml"]), strings(&["a.yaml"])));
        fs::remove_dir_all(root.path()).unwrap();
        assert_eq!(directory.scan().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_swapped_symlink_is_a_change_as_in_a_mounted_config_map() {
        let root = tempfile::tempdir().unwrap();
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(root.path().join(version)).unwrap();
            fs::write(root.path().join(version).join("a.yaml"), text).unwrap();
        }
        let link =
            |version: &str, name: &str| std::os::unix::fs::symlink(version, root.path().join(name)).unwrap();
        link("v1", "..data");
        link("..data/a.yaml", "a.yaml");
        let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"]);
        directory.scan().unwrap();
        link("v2", "..tmp");
        fs::rename(root.path().join("..tmp"), root.path().join("..data")).unwrap();
        let changes = directory.scan().unwrap();
        assert_eq!(changes.changed[0].1.as_ref().unwrap(), b"two");
    }
}
