//! Where the knowledge comes from: directories of files, each file taken whole, or the Kubernetes API.

mod attachments;
mod directory;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod manifests;
mod watch;

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
    let mut watch = None;
    let mut look = Look::Everywhere;
    loop {
        if watch.is_none() {
            watch = match Watch::new() {
                Ok(watch) => Some(watch),
                Err(error) => {
                    tracing::error!(%error, "cannot watch for changes, reading the directory every second");
                    None
                }
            };
        }
        // Watch first, then read: what changes in between is read twice rather than missed.
        if let Some(watch) = watch.as_mut().filter(|_| look == Look::Everywhere) {
            watch.cover(reader.directory());
        }
        let scanning = tokio::task::spawn_blocking(move || {
            let changes = reader.directory().scan(&look);
            let events = reader.events(changes);
            (reader, events)
        });
        let Ok((returned, found)) = scanning.await else { return };
        reader = returned;
        if events.send(found).await.is_err() {
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
