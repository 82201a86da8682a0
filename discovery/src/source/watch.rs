//! Word of changes in a directory, from the kernel (inotify).

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

use super::directory::{Directory, Look};

/// A look without being told to, should a file system not tell (network mounts).
const SAFETY_SCAN: Duration = Duration::from_secs(30);

/// The same where something could not be read: permissions and free descriptors come without an event.
const RETRY_SCAN: Duration = Duration::from_secs(1);

/// What is worth a look. A file being written is looked at once it is closed.
const MASK: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

/// Word of changes in a directory and its folders.
pub(crate) struct Watch {
    events: EventStream<[u8; 4096]>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Folders that cannot be watched, which was logged.
    unwatched: HashSet<PathBuf>,
    /// When everything is to be looked at again, whatever happens until then.
    due: Instant,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream([0; 4096])?;
        let due = Instant::now() + SAFETY_SCAN;
        Ok(Self { events, folders: HashMap::new(), unwatched: HashSet::new(), due })
    }

    /// Watches everything that can be relevant now, before all of it is looked at. Watching something twice
    /// is one watch.
    ///
    /// A folder that comes into being between the look and the watch on its parent causes no event, so the
    /// look is repeated until it finds nothing new.
    pub(crate) fn cover(&mut self, directory: &Directory) {
        self.due = Instant::now() + SAFETY_SCAN;
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
                        self.unwatched.remove(path);
                    }
                    // Deleted since it was found; its parent tells when it is back.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Logged once, not at every attempt.
                    Err(error) if self.unwatched.insert(path.clone()) => tracing::warn!(
                        path = %path.display(), %error,
                        "cannot watch: a change shows within half a minute; fs.inotify.max_user_watches may be too low"
                    ),
                    Err(_) => {}
                }
            }
            covered.extend(found);
        }
    }

    /// Returns where to look when something may have changed.
    pub(crate) async fn changed(&mut self, directory: &Directory) -> io::Result<Look> {
        let retry = directory.is_incomplete().then(|| Instant::now() + RETRY_SCAN);
        let due = retry.map_or(self.due, |retry| retry.min(self.due));
        // Not only where there is no event for so long: in a busy directory there always is one.
        let event = match timeout_at(due, self.events.next()).await {
            Ok(event) if Instant::now() < due => event,
            // Every scan tries again what could not be read.
            _ if due < self.due && directory.is_listed() => return Ok(Look::At(BTreeSet::new())),
            _ => return Ok(Look::Everywhere),
        };
        let mut look = self.look(event, directory)?;
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
            let is_being_written = event.mask.contains(EventMask::CREATE) && is_new_file(&file);
            return Ok(Look::At(if is_being_written { BTreeSet::new() } else { [file].into() }));
        }
        // A writer's temporary file is ignored; a link or a directory may be what others are reached by.
        let is_temporary = is_inside
            && !event.mask.contains(EventMask::ISDIR)
            && !name.as_encoded_bytes().starts_with(b"..")
            && fs::symlink_metadata(&file).map_or(true, |metadata| metadata.is_file());
        Ok(if is_temporary { Look::At(BTreeSet::new()) } else { Look::Everywhere })
    }
}

/// Whether its writer is going to close it. A link, of either kind, is whole as soon as it is there.
fn is_new_file(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_counts_when_it_is_closed_and_a_link_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        fs::write(path("outside"), "x").unwrap();
        let mut watch = Watch::new().unwrap();
        watch.cover(&directory);
        let at = |names: &[&str]| Look::At(names.iter().map(|name| path(name)).collect());
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
    async fn everything_is_looked_at_in_time_however_much_happens() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        let mut watch = Watch::new().unwrap();
        watch.cover(&directory);
        watch.due = Instant::now();
        fs::write(root.path().join("a.yaml"), "x").unwrap();
        assert_eq!(watch.changed(&directory).await.unwrap(), Look::Everywhere);
        watch.cover(&directory);
        fs::write(root.path().join("a.yaml"), "y").unwrap();
        assert_ne!(watch.changed(&directory).await.unwrap(), Look::Everywhere);
    }

    #[tokio::test]
    async fn a_folder_that_comes_while_its_parent_is_not_watched_yet_is_watched_too() {
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
                let told = tokio::time::timeout(Duration::from_secs(5), watch.changed(&directory)).await;
                if told.expect("the folder is never watched").unwrap() == Look::Everywhere {
                    watch.cover(&directory);
                }
            }
            making.join().unwrap();
        }
    }
}
