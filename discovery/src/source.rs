//! The sources: directories of files, each file read as a whole, or the Kubernetes API.

mod attachments;
mod directory;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod manifests;
mod watch;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::event::Event;
use directory::{Reader, ScanScope};
#[cfg(feature = "kubernetes")]
pub use kubernetes::Access;
#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::{EventWriter, check as check_kubernetes, resources, run as run_kubernetes};
use watch::Watch;

/// Pause before a new watch after the watch itself has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Reads and watches the manifest directory.
pub(crate) async fn run_manifests(path: PathBuf, events: mpsc::Sender<Vec<Event>>) {
    watch_directory(manifests::Manifests::new(path), events).await;
}

/// Reads and watches the attachment directory.
pub(crate) async fn run_attachments(path: PathBuf, events: mpsc::Sender<Vec<Event>>) {
    watch_directory(attachments::Attachments::new(path), events).await;
}

/// Reads the manifest directory once.
pub(crate) fn read_manifests_once(path: &Path) -> Vec<Event> {
    let mut reader = manifests::Manifests::new(path.to_owned());
    let changes = reader.directory().scan(&ScanScope::All);
    reader.events(changes)
}

async fn watch_directory(mut reader: impl Reader, events: mpsc::Sender<Vec<Event>>) {
    let (mut watch, mut logged) = (None, None);
    let mut scope = ScanScope::All;
    loop {
        if watch.is_none() {
            watch = match Watch::new() {
                Ok(watch) => {
                    logged = None;
                    Some(watch)
                }
                Err(error) => {
                    // Logged once, not at every attempt.
                    let message = error.to_string();
                    if logged.as_ref() != Some(&message) {
                        tracing::error!(%error, "cannot watch for changes, reading the directory every second");
                        logged = Some(message);
                    }
                    None
                }
            };
        }
        // Watch first, then read: a change in between is read twice rather than missed.
        if let Some(watch) = watch.as_mut().filter(|_| scope == ScanScope::All) {
            watch.cover(reader.directory());
        }
        let scanning = tokio::task::spawn_blocking(move || {
            let found = read(&mut reader, &scope);
            (reader, found)
        });
        let Ok((returned, found)) = scanning.await else { return };
        reader = returned;
        let (found, is_over) = match found {
            Ok(found) => (found, false),
            // The state of the reader may be wrong: stop, and report the failure.
            Err(error) => (reader.events(Err(error)), true),
        };
        if events.send(found).await.is_err() || is_over {
            return;
        }
        scope = match &mut watch {
            Some(w) => w.changed(reader.directory()).await.unwrap_or_else(|_failed| {
                watch = None;
                ScanScope::All
            }),
            None => {
                tokio::time::sleep(RETRY).await;
                ScanScope::All
            }
        };
    }
}

/// # Errors
/// If the reader panics.
fn read(reader: &mut impl Reader, scope: &ScanScope) -> io::Result<Vec<Event>> {
    let reading = AssertUnwindSafe(|| {
        let changes = reader.directory().scan(scope);
        reader.events(changes)
    });
    catch_unwind(reading).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        io::Error::other(format!(
            "a bug stopped the reader of this source ({message}); restart the program to resume"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::directory::{Changes, Directory};
    use super::*;

    struct Fragile(Directory);

    impl Reader for Fragile {
        fn directory(&mut self) -> &mut Directory {
            &mut self.0
        }

        fn events(&mut self, changes: io::Result<Changes>) -> Vec<Event> {
            let error = changes.expect_err("the directory is there");
            let mut manifests = manifests::Manifests::new("/nowhere".into());
            manifests.events(Err(error))
        }
    }

    #[tokio::test]
    async fn reader_that_panics_ends_with_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        let (events, mut queue) = mpsc::channel(8);
        watch_directory(Fragile(directory), events).await;
        let received = queue.recv().await.unwrap();
        let [Event::Source { failure: Some(failure), .. }] = &received[..] else { panic!("{received:?}") };
        assert!(failure.problem.message.contains("the directory is there"), "{failure:?}");
        assert!(queue.recv().await.is_none());
    }
}
