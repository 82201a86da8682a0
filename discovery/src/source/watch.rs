//! Notifications about changes in a directory, from the kernel (inotify).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, timeout_at};

use super::directory::{Directory, ScanScope};

/// Interval of scans without an event, for file systems without notifications (network mounts).
const SAFETY_SCAN: Duration = Duration::from_secs(30);

/// Interval of scans while something could not be read: changed permissions and free descriptors cause no
/// event.
const RETRY_SCAN: Duration = Duration::from_secs(1);

/// The relevant events. A file that is being written is scanned when it is closed.
const MASK: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

/// Watches a directory and its subdirectories.
pub(crate) struct Watch {
    events: EventStream<[u8; 4096]>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Directories that cannot be watched, which was logged.
    unwatched: HashSet<PathBuf>,
    /// When to scan everything, independent of events.
    due: Instant,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream([0; 4096])?;
        let due = Instant::now() + SAFETY_SCAN;
        Ok(Self { events, folders: HashMap::new(), unwatched: HashSet::new(), due })
    }

    /// Watches everything that may be relevant, before it is scanned. Watching a directory twice has no
    /// effect.
    ///
    /// A directory that is created between the listing and the watch on its parent causes no event, so the
    /// listing is repeated until it finds nothing new.
    pub(crate) fn cover(&mut self, directory: &Directory) {
        self.due = Instant::now() + SAFETY_SCAN;
        let mut covered = HashSet::new();
        loop {
            // While it does not exist, watch its nearest existing ancestor.
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
                        self.unwatched.remove(path);
                    }
                    // Deleted since it was listed. The watch of its parent reports when it is back.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Logged once, not at every attempt.
                    Err(error) if self.unwatched.insert(path.clone()) => tracing::warn!(
                        path = %path.display(), %error,
                        "cannot watch: a change takes effect within half a minute; \
                         fs.inotify.max_user_watches may be too low"
                    ),
                    Err(_) => {}
                }
            }
            covered.extend(found);
        }
    }

    /// Returns what to scan when something may have changed.
    pub(crate) async fn changed(&mut self, directory: &Directory) -> io::Result<ScanScope> {
        let retry = directory.is_incomplete().then(|| Instant::now() + RETRY_SCAN);
        let due = retry.map_or(self.due, |retry| retry.min(self.due));
        // Not only after silence: a busy directory always has events.
        let event = match timeout_at(due, self.events.next()).await {
            Ok(event) if Instant::now() < due => event,
            // Every scan retries what could not be read.
            _ if due < self.due && directory.is_listed() => return Ok(ScanScope::Files(BTreeSet::new())),
            _ => return Ok(ScanScope::All),
        };
        let mut scope = self.scope(event, directory)?;
        // One scan per burst.
        while let Some(event) = self.events.next().now_or_never() {
            scope = match (scope, self.scope(event, directory)?) {
                (ScanScope::Files(some), ScanScope::Files(more)) => {
                    ScanScope::Files(some.into_iter().chain(more).collect())
                }
                _ => ScanScope::All,
            };
        }
        Ok(scope)
    }

    fn scope(
        &self,
        event: Option<io::Result<Event<OsString>>>,
        directory: &Directory,
    ) -> io::Result<ScanScope> {
        let event = event.ok_or(io::ErrorKind::UnexpectedEof)??;
        let Some(name) = event.name else { return Ok(ScanScope::All) };
        let Some(folder) = self.folders.get(&event.wd) else { return Ok(ScanScope::All) };
        let file = folder.join(&name);
        let is_inside = directory.nested || *folder == directory.path;
        if is_inside && !event.mask.contains(EventMask::ISDIR) && directory.is_wanted(&file) {
            let is_being_written = event.mask.contains(EventMask::CREATE) && is_new_file(&file);
            return Ok(ScanScope::Files(if is_being_written { BTreeSet::new() } else { [file].into() }));
        }
        // Temporary files of a writer are ignored. A link or a directory may lead to other files.
        let is_temporary = is_inside
            && !event.mask.contains(EventMask::ISDIR)
            && !name.as_encoded_bytes().starts_with(b"..")
            && fs::symlink_metadata(&file).map_or(true, |metadata| metadata.is_file());
        Ok(if is_temporary { ScanScope::Files(BTreeSet::new()) } else { ScanScope::All })
    }
}

/// Whether its writer is going to close it. A link, hard or symbolic, is complete at once.
fn is_new_file(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn file_is_scanned_when_it_is_closed_and_a_link_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        fs::write(path("outside"), "x").unwrap();
        let mut watch = Watch::new().unwrap();
        watch.cover(&directory);
        let at = |names: &[&str]| ScanScope::Files(names.iter().map(|name| path(name)).collect());
        let file = fs::File::create(path("a.yaml")).unwrap();
        assert_eq!(watch.changed(&directory).await.unwrap(), at(&[]));
        drop(file);
        assert_eq!(watch.changed(&directory).await.unwrap(), at(&["a.yaml"]));
        fs::hard_link(path("outside"), path("b.yaml")).unwrap();
        assert_eq!(watch.changed(&directory).await.unwrap(), at(&["b.yaml"]));
        std::os::unix::fs::symlink("outside", path("c.yaml")).unwrap();
        assert_eq!(watch.changed(&directory).await.unwrap(), at(&["c.yaml"]));
    }

    #[tokio::test]
    async fn everything_is_scanned_in_time_even_with_constant_events() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        let mut watch = Watch::new().unwrap();
        watch.cover(&directory);
        watch.due = Instant::now();
        fs::write(root.path().join("a.yaml"), "x").unwrap();
        assert_eq!(watch.changed(&directory).await.unwrap(), ScanScope::All);
        watch.cover(&directory);
        fs::write(root.path().join("a.yaml"), "y").unwrap();
        assert_ne!(watch.changed(&directory).await.unwrap(), ScanScope::All);
    }

    #[tokio::test]
    async fn folder_created_before_its_parent_is_watched_is_watched_too() {
        for round in 0..1000 {
            let root = tempfile::tempdir().unwrap();
            let directory = Directory::new(root.path().join("attachments"), true, &["json"], Duration::ZERO);
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
                let changed = tokio::time::timeout(Duration::from_secs(5), watch.changed(&directory)).await;
                if changed.expect("the folder is never watched").unwrap() == ScanScope::All {
                    watch.cover(&directory);
                }
            }
            making.join().unwrap();
        }
    }
}
