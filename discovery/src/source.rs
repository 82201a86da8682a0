//! Where the knowledge comes from: directories of files, each file taken whole, or the Kubernetes API.

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
use directory::{Look, Reader};
#[cfg(feature = "kubernetes")]
pub use kubernetes::Access;
#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::{EventWriter, check as check_kubernetes, resources, run as run_kubernetes};
use watch::Watch;

/// A pause before watching again after the watch itself has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the manifest directory for ever.
pub(crate) async fn run_manifests(path: PathBuf, events: mpsc::Sender<Vec<Event>>) {
    follow(manifests::Manifests::new(path), events).await;
}

/// Follows the attachment directory for ever.
pub(crate) async fn run_attachments(path: PathBuf, events: mpsc::Sender<Vec<Event>>) {
    follow(attachments::Attachments::new(path), events).await;
}

/// Reads the manifest directory once.
pub(crate) fn read_manifests_once(path: &Path) -> Vec<Event> {
    let mut reader = manifests::Manifests::new(path.to_owned());
    let changes = reader.directory().scan(&Look::Everywhere);
    reader.events(changes)
}

async fn follow(mut reader: impl Reader, events: mpsc::Sender<Vec<Event>>) {
    let (mut watch, mut told) = (None, None);
    let mut look = Look::Everywhere;
    loop {
        if watch.is_none() {
            watch = match Watch::new() {
                Ok(watch) => {
                    told = None;
                    Some(watch)
                }
                Err(error) => {
                    // Logged once, not at every attempt.
                    let message = error.to_string();
                    if told.as_ref() != Some(&message) {
                        tracing::error!(%error, "cannot watch for changes, reading the directory every second");
                        told = Some(message);
                    }
                    None
                }
            };
        }
        // Watch first, then read: what changes in between is read twice rather than missed.
        if let Some(watch) = watch.as_mut().filter(|_| look == Look::Everywhere) {
            watch.cover(reader.directory());
        }
        let scanning = tokio::task::spawn_blocking(move || {
            let found = read(&mut reader, &look);
            (reader, found)
        });
        let Ok((returned, found)) = scanning.await else { return };
        reader = returned;
        let (found, is_over) = match found {
            Ok(found) => (found, false),
            // Its state may be wrong: it ends, and the outage is reported.
            Err(error) => (reader.events(Err(error)), true),
        };
        if events.send(found).await.is_err() || is_over {
            return;
        }
        look = match &mut watch {
            Some(w) => w.changed(reader.directory()).await.unwrap_or_else(|_failed| {
                watch = None;
                Look::Everywhere
            }),
            None => {
                tokio::time::sleep(RETRY).await;
                Look::Everywhere
            }
        };
    }
}

/// # Errors
/// When a reader panics.
fn read(reader: &mut impl Reader, look: &Look) -> io::Result<Vec<Event>> {
    let reading = AssertUnwindSafe(|| {
        let changes = reader.directory().scan(look);
        reader.events(changes)
    });
    catch_unwind(reading).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        io::Error::other(format!("a bug ended its reader ({message}), restart the program to go on"))
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
    async fn a_reader_that_panics_ends_with_an_outage() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
        let (events, mut queue) = mpsc::channel(8);
        follow(Fragile(directory), events).await;
        let told = queue.recv().await.unwrap();
        let [Event::Source { outage: Some(outage), .. }] = &told[..] else { panic!("{told:?}") };
        assert!(outage.problem.message.contains("the directory is there"), "{outage:?}");
        assert!(queue.recv().await.is_none());
    }
}
