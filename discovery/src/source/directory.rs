//! A directory of files, and word of their changes.
//!
//! The kernel only says where something happened (inotify); what happened is found by looking: files whose inode, size
//! or times differ are read again. Where it is not plain that a single file is meant, everything is looked at. So no order
//! of events, no overflow of their queue and no swap of a symlinked directory (a mounted ConfigMap) can leave a stale
//! file behind, and one changed file among ten thousand costs one look.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

use crate::event;

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

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// At every file.
    Everywhere,
    /// At these alone.
    At(BTreeSet<PathBuf>),
}

/// Reads a directory's changes and turns them into events. Kept on one blocking thread at a time.
pub(crate) trait Reader: Send + 'static {
    /// The directory and what was seen of it so far.
    fn directory(&mut self) -> &mut Directory;
    /// Events for what has changed, or for what is wrong with the directory.
    fn events(&mut self, changes: io::Result<Changes>) -> Vec<event::Event>;
}

impl Directory {
    pub(crate) fn new(path: PathBuf, nested: bool, extensions: &'static [&'static str]) -> Self {
        Self { path, nested, extensions, seen: HashMap::new() }
    }

    /// Looks, and reads what is new.
    ///
    /// # Errors
    /// When the directory itself cannot be listed; what was seen before stays.
    pub(crate) fn scan(&mut self, look: &Look) -> io::Result<Changes> {
        match look {
            Look::Everywhere => self.scan_all(),
            Look::At(files) => {
                let mut changes = Changes::default();
                for file in files {
                    if !self.look_at(file, &mut changes) && self.seen.remove(file).is_some() {
                        changes.removed.push(file.clone());
                    }
                }
                Ok(changes)
            }
        }
    }

    fn scan_all(&mut self) -> io::Result<Changes> {
        let mut files = Vec::new();
        for folder in self.folders()? {
            files.extend(list(&folder)?.into_iter().filter(|file| self.is_wanted(file)));
        }
        files.sort();
        let mut changes = Changes::default();
        let mut present = HashSet::new();
        for file in files {
            if self.look_at(&file, &mut changes) {
                present.insert(file);
            }
        }
        changes.removed = self.seen.keys().filter(|file| !present.contains(*file)).cloned().collect();
        for file in &changes.removed {
            self.seen.remove(file);
        }
        Ok(changes)
    }

    /// Reads the file if it is not as it was. False if it is not there: vanished, a directory, a dangling link.
    fn look_at(&mut self, file: &Path, changes: &mut Changes) -> bool {
        let Some(metadata) = fs::metadata(file).ok().filter(fs::Metadata::is_file) else { return false };
        let now = fingerprint(&metadata);
        if self.seen.get(file) != Some(&now) {
            changes.changed.push((file.to_owned(), read(file, metadata.len())));
            self.seen.insert(file.to_owned(), now);
        }
        true
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
pub(crate) struct Watch {
    events: EventStream<[u8; 4096]>,
    folders: HashMap<WatchDescriptor, PathBuf>,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { events: Inotify::init()?.into_event_stream([0; 4096])?, folders: HashMap::new() })
    }

    /// Watches everything that can be relevant now. Watching something twice is one watch.
    ///
    /// A folder that comes into being between the look and the watch on its parent is told by nobody, so the look is
    /// repeated until it finds nothing new.
    pub(crate) fn cover(&mut self, directory: &Directory) {
        let mut covered = HashSet::new();
        loop {
            // While it does not exist, its nearest ancestor says when that changes.
            let existing = directory.path.ancestors().find(|path| path.exists()).map(Path::to_owned);
            let found: HashSet<PathBuf> =
                existing.into_iter().chain(directory.folders().unwrap_or_default()).collect();
            if found.is_subset(&covered) {
                return;
            }
            for path in found.difference(&covered) {
                match self.events.watches().add(path, MASK) {
                    Ok(watch) => {
                        self.folders.insert(watch, path.clone());
                    }
                    Err(error) => tracing::debug!(path = %path.display(), %error, "cannot watch"),
                }
            }
            covered.extend(found);
        }
    }

    /// Returns where to look when something may have changed.
    pub(crate) async fn changed(&mut self, directory: &Directory) -> io::Result<Look> {
        let mut look = match tokio::time::timeout(SAFETY_SCAN, self.events.next()).await {
            Err(_elapsed) => return Ok(Look::Everywhere),
            Ok(event) => self.look(event, directory)?,
        };
        // One look for a burst.
        while let Some(event) = self.events.next().now_or_never() {
            look = match (look, self.look(event, directory)?) {
                (Look::At(some), Look::At(more)) => Look::At(some.into_iter().chain(more).collect()),
                _ => Look::Everywhere,
            };
        }
        Ok(look)
    }

    fn look(&self, event: Option<io::Result<Event<OsString>>>, directory: &Directory) -> io::Result<Look> {
        let event = event.ok_or(io::ErrorKind::UnexpectedEof)??;
        let Some(name) = event.name else { return Ok(Look::Everywhere) };
        let Some(folder) = self.folders.get(&event.wd) else { return Ok(Look::Everywhere) };
        let file = folder.join(&name);
        let is_inside = directory.nested || *folder == directory.path;
        if is_inside && !event.mask.contains(EventMask::ISDIR) && directory.is_wanted(&file) {
            return Ok(Look::At([file].into()));
        }
        // A writer's temporary file is nobody's business; a link or a directory may be what others are reached by.
        let is_temporary = is_inside
            && !event.mask.contains(EventMask::ISDIR)
            && !name.as_encoded_bytes().starts_with(b"..")
            && fs::symlink_metadata(&file).map_or(true, |metadata| metadata.is_file());
        Ok(if is_temporary { Look::At(BTreeSet::new()) } else { Look::Everywhere })
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
        assert_eq!(
            names(&directory.scan(&Look::Everywhere).unwrap()),
            (strings(&["a.yaml", "b.yaml"]), vec![])
        );
        assert_eq!(names(&directory.scan(&Look::Everywhere).unwrap()), (vec![], vec![]));
        fs::write(path("new"), "y").unwrap();
        fs::rename(path("new"), path("b.yaml")).unwrap();
        fs::remove_file(path("a.yaml")).unwrap();
        assert_eq!(
            names(&directory.scan(&Look::Everywhere).unwrap()),
            (strings(&["b.yaml"]), strings(&["a.yaml"]))
        );
        fs::remove_dir_all(root.path()).unwrap();
        assert_eq!(directory.scan(&Look::Everywhere).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_look_at_one_file_finds_what_happened_to_it_and_leaves_the_others() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"]);
        fs::write(path("a.yaml"), "x").unwrap();
        directory.scan(&Look::Everywhere).unwrap();
        fs::write(path("b.yaml"), "x").unwrap();
        fs::write(path("a.yaml"), "longer").unwrap();
        let at = |name: &str| Look::At([path(name)].into());
        assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (strings(&["a.yaml"]), vec![]));
        fs::remove_file(path("a.yaml")).unwrap();
        assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (vec![], strings(&["a.yaml"])));
        assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (vec![], vec![]));
        assert_eq!(names(&directory.scan(&Look::Everywhere).unwrap()), (strings(&["b.yaml"]), vec![]));
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
        directory.scan(&Look::Everywhere).unwrap();
        link("v2", "..tmp");
        fs::rename(root.path().join("..tmp"), root.path().join("..data")).unwrap();
        let changes = directory.scan(&Look::Everywhere).unwrap();
        assert_eq!(changes.changed[0].1.as_ref().unwrap(), b"two");
    }

    #[tokio::test]
    async fn a_folder_that_comes_while_its_parent_is_not_watched_yet_is_watched_too() {
        for round in 0..1000 {
            let root = tempfile::tempdir().unwrap();
            let directory = Directory::new(root.path().join("attachments"), true, &["json"]);
            let folder = directory.path.join("pods");
            let mut watch = Watch::new().unwrap();
            watch.cover(&directory);
            let making = folder.clone();
            let making = std::thread::spawn(move || {
                fs::create_dir(making.parent().unwrap()).unwrap();
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_micros(round % 200) {}
                fs::create_dir(making).unwrap();
            });
            while !watch.folders.values().any(|watched| *watched == folder) {
                let told = tokio::time::timeout(Duration::from_secs(5), watch.changed(&directory)).await;
                if told.expect("the folder is never watched").unwrap() == Look::Everywhere {
                    watch.cover(&directory);
                }
            }
            making.join().unwrap();
        }
    }
}
