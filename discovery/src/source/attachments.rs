//! The records of the CNI plugin.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attachment::Attachment;

use crate::event::{ATTACHMENTS, Event, Object, Origin, SourceFailure, Sourced};
use crate::problem::{Location, Problem, Severity};
use crate::source::directory::{Changes, Directory, Reader};

/// The directory of records, with one subdirectory per network.
pub(super) struct Attachments(Directory);

impl Attachments {
    pub(super) fn new(path: PathBuf) -> Self {
        // Records are renamed into place, so a missing one was deleted.
        Self(Directory::new(path, true, &["json"], Duration::ZERO))
    }
}

impl Reader for Attachments {
    fn directory(&mut self) -> &mut Directory {
        &mut self.0
    }

    fn events(&mut self, changes: io::Result<Changes>) -> Vec<Event> {
        let changes = match changes {
            Ok(changes) => changes,
            // No pod was attached yet, or all were detached.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Changes { changed: Vec::new(), removed: self.0.forget() }
            }
            Err(error) => {
                let location = Location::File { file: self.0.path.clone(), line: None, document: None };
                let message = format!("cannot be read: {error}; the last known state stays applied");
                let problem = Problem { location, severity: Severity::Error, object: None, message };
                return vec![Event::Source {
                    name: ATTACHMENTS,
                    failure: Some(SourceFailure { problem, since: Instant::now() }),
                }];
            }
        };
        let removed = changes.removed.into_iter().map(|file| replace(file, Some(Vec::new()), Vec::new()));
        let changed = changes.changed.into_iter().map(|(file, contents)| {
            let location = Location::File { file: file.clone(), line: None, document: None };
            let parsed = contents
                .map_err(|e| e.to_string())
                .and_then(|contents| Attachment::parse(&file, &contents).map_err(|e| e.to_string()));
            match parsed {
                Ok(record) => {
                    let object = Object::Attachment(Arc::new(record));
                    replace(file, Some(vec![Sourced { object, location }]), Vec::new())
                }
                Err(message) => replace(
                    file,
                    None,
                    vec![Problem { location, severity: Severity::Error, object: None, message }],
                ),
            }
        });
        let mut events: Vec<Event> = removed.chain(changed).collect();
        events.push(Event::Source { name: ATTACHMENTS, failure: None });
        events.push(Event::Synced(ATTACHMENTS));
        events
    }
}

fn replace(file: PathBuf, objects: Option<Vec<Sourced>>, problems: Vec<Problem>) -> Event {
    Event::Replace { origin: Origin::Attachment(file), objects, problems }
}
