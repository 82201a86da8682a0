//! Kubernetes YAML and JSON files.

mod document;
mod kind;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::event::{Event, MANIFESTS, Origin, Outage, Sourced};
use crate::problem::{Location, Problem, Severity};
use crate::source::directory::{Changes, Directory, Reader};
use document::Document;
use kind::ObjectKey;

/// The directory of manifests.
pub(super) struct Manifests {
    directory: Directory,
    /// What each file said when it was last right, object by object: a mistake in one object of a file must not take
    /// down what that object was before.
    last_good: HashMap<PathBuf, HashMap<ObjectKey, Sourced>>,
}

/// What one file says.
#[derive(Default)]
struct Reading {
    objects: Vec<(ObjectKey, Sourced)>,
    /// Objects that are there but wrong.
    rejected: Vec<ObjectKey>,
    problems: Vec<Problem>,
}

impl Manifests {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { directory: Directory::new(path, false, &["yaml", "yml", "json"]), last_good: HashMap::new() }
    }

    fn read(&mut self, file: PathBuf, contents: io::Result<Vec<u8>>) -> Event {
        let contents = contents.map_err(|e| (None, format!("cannot be read: {e}")));
        let documents = contents.as_deref().map_err(Clone::clone).and_then(document::parse);
        let reading = match documents {
            Ok(documents) => read_documents(&file, &documents),
            Err((line, message)) => {
                let location = Location::File { file: file.clone(), line, document: None };
                let kept =
                    if self.last_good.contains_key(&file) { "; its last good content stays" } else { "" };
                let message = format!("{message}{kept}");
                let problems = vec![Problem { location, severity: Severity::Error, object: None, message }];
                return Event::Replace { origin: Origin::Manifest(file), objects: None, problems };
            }
        };
        let Reading { objects, rejected, problems } = reading;
        let mut good: HashMap<ObjectKey, Sourced> = HashMap::new();
        let mut in_force: Vec<Sourced> = objects.iter().map(|(_, sourced)| sourced.clone()).collect();
        if let Some(before) = self.last_good.get(&file) {
            for (key, old) in
                rejected.into_iter().filter_map(|key| Some((key.clone(), before.get(&key)?.clone())))
            {
                in_force.push(old.clone());
                good.insert(key, old);
            }
        }
        good.extend(objects);
        self.last_good.insert(file.clone(), good);
        Event::Replace { origin: Origin::Manifest(file), objects: Some(in_force), problems }
    }
}

impl Reader for Manifests {
    fn directory(&mut self) -> &mut Directory {
        &mut self.directory
    }

    fn events(&mut self, changes: io::Result<Changes>) -> Vec<Event> {
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => {
                let location =
                    Location::File { file: self.directory.path.clone(), line: None, document: None };
                let message =
                    format!("cannot be read: {error}; create it, or name another one with --manifests");
                let problem = Problem { location, severity: Severity::Error, object: None, message };
                return vec![Event::Source {
                    name: MANIFESTS,
                    outage: Some(Outage { problem, since: Instant::now() }),
                }];
            }
        };
        let mut events = Vec::new();
        for file in changes.removed {
            self.last_good.remove(&file);
            let origin = Origin::Manifest(file);
            events.push(Event::Replace { origin, objects: Some(Vec::new()), problems: Vec::new() });
        }
        for (file, contents) in changes.changed {
            events.push(self.read(file, contents));
        }
        events.push(Event::Source { name: MANIFESTS, outage: None });
        events.push(Event::Synced(MANIFESTS));
        events
    }
}

fn read_documents(file: &Path, documents: &[Document<'_>]) -> Reading {
    let mut reading = Reading::default();
    for (index, document) in documents.iter().enumerate() {
        let number = (documents.len() > 1).then_some(index + 1);
        let location = |path: &str| Location::File {
            file: file.to_owned(),
            line: Some(document.line_of(path)),
            document: number,
        };
        kind::read(&document.value(), "", &location, &mut reading);
    }
    reading
}

#[cfg(test)]
mod tests;
