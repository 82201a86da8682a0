//! Kubernetes YAML and JSON files.

mod document;
#[cfg(test)]
mod fuzz;
mod kind;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::event::{Event, MANIFESTS, Origin, SourceFailure, Sourced};
use crate::problem::{Location, Problem, Severity};
use crate::source::directory::{Changes, Directory, Reader};
use document::{MAX_DEPTH, Parsed};
use kind::ObjectKey;

/// The directory of manifests.
pub(super) struct Manifests {
    directory: Directory,
    /// The last good content of each file, by object: an error in one object of a file must not remove the
    /// last good state of that object.
    last_good: HashMap<PathBuf, HashMap<ObjectKey, Sourced>>,
}

/// How long an editor may take between renaming a file away and writing it again.
const SETTLING: Duration = Duration::from_millis(100);

/// Bytes of files that are read before their content is applied, as memory holds both until then. The last
/// file may exceed the limit.
const BATCH: usize = 512 * 1024;

/// Files of this size are read by several threads: they take one thread some 25 ms.
const LARGE: usize = 256 * 1024;

/// A file that has changed, with its content.
type File = (PathBuf, io::Result<Vec<u8>>);

/// Why a file cannot be used: the line, if known, and the error.
type ParseError = (Option<usize>, String);

/// The content of one file.
#[derive(Default)]
struct Reading {
    objects: Vec<(ObjectKey, Sourced)>,
    /// Objects that exist but have errors.
    rejected: Vec<ObjectKey>,
    problems: Vec<Problem>,
    /// Whether a document of the file could not be parsed, so its content is unknown.
    is_partial: bool,
}

impl Manifests {
    pub(super) fn new(path: PathBuf) -> Self {
        let directory = Directory::new(path, false, &["yaml", "yml", "json"], SETTLING);
        Self { directory, last_good: HashMap::new() }
    }

    /// The current content of a file, with the last good content of what is in error.
    fn apply(&mut self, file: PathBuf, reading: Result<Reading, ParseError>) -> Event {
        let reading = match reading {
            Ok(reading) => reading,
            Err((line, message)) => {
                let location = Location::File { file: file.clone(), line, document: None };
                let kept =
                    if self.last_good.contains_key(&file) { "; its last good content stays" } else { "" };
                let message = format!("{message}{kept}");
                let problems = vec![Problem { location, severity: Severity::Error, object: None, message }];
                return Event::Replace { origin: Origin::Manifest(file), objects: None, problems };
            }
        };
        let Reading { objects, mut rejected, problems, is_partial } = reading;
        let mut good: HashMap<ObjectKey, Sourced> = HashMap::new();
        let mut in_force: Vec<Sourced> = objects.iter().map(|(_, sourced)| sourced.clone()).collect();
        if let Some(before) = self.last_good.get(&file) {
            if is_partial {
                let is_there = |key: &ObjectKey| objects.iter().any(|(known, _)| known == key);
                rejected.extend(before.keys().filter(|key| !is_there(key)).cloned());
                rejected.sort_unstable();
                rejected.dedup();
            }
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
                let hint = match error.kind() {
                    io::ErrorKind::NotFound => "; create it, or name another one with --manifests",
                    _ => "",
                };
                let message = format!("cannot be read: {error}{hint}");
                let problem = Problem { location, severity: Severity::Error, object: None, message };
                return vec![Event::Source {
                    name: MANIFESTS,
                    failure: Some(SourceFailure { problem, since: Instant::now() }),
                }];
            }
        };
        let mut events = Vec::new();
        for file in changes.removed {
            self.last_good.remove(&file);
            let origin = Origin::Manifest(file);
            events.push(Event::Replace { origin, objects: Some(Vec::new()), problems: Vec::new() });
        }
        let mut files = changes.changed.into_iter();
        loop {
            let (mut batch, mut size) = (Vec::new(), 0);
            while size < BATCH
                && let Some(file) = files.next()
            {
                size += file.1.as_ref().map_or(0, Vec::len);
                batch.push(file);
            }
            if batch.is_empty() {
                break;
            }
            events.extend(read_all(batch, size).map(|(file, reading)| self.apply(file, reading)));
        }
        events.push(Event::Source { name: MANIFESTS, failure: None });
        events.push(Event::Synced(MANIFESTS));
        events
    }
}

/// Parses files of that many bytes, on all cores if they are large: each thread takes the next file.
fn read_all(files: Vec<File>, size: usize) -> impl Iterator<Item = (PathBuf, Result<Reading, ParseError>)> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = if size < LARGE { 1 } else { cores.min(files.len()) };
    let next = AtomicUsize::new(0);
    let read_some = || {
        let places = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        places.map_while(|place| Some((place, read(files.get(place)?)))).collect::<Vec<_>>()
    };
    let mut readings = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(read_some)).collect();
        let mut readings = read_some();
        for other in others {
            readings.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        readings
    });
    readings.sort_unstable_by_key(|(place, _)| *place);
    files.into_iter().zip(readings).map(|((file, _), (_, reading))| (file, reading))
}

fn read((file, contents): &File) -> Result<Reading, ParseError> {
    let contents = contents.as_ref().map_err(|e| (None, format!("cannot be read: {e}")))?;
    let Parsed { documents, mistakes, too_deep } = document::parse(contents)?;
    let mut reading = Reading { is_partial: !mistakes.is_empty(), ..Reading::default() };
    let at = |line: Option<usize>| Location::File { file: file.to_owned(), line, document: None };
    for (line, message) in mistakes {
        let message = format!("{message}; the other documents count, and the last good content of this one");
        let location = at(line);
        reading.problems.push(Problem { location, severity: Severity::Error, object: None, message });
    }
    for line in too_deep {
        let message = format!("is nested more than {MAX_DEPTH} levels deep; what is deeper is left out");
        let location = at(Some(line));
        reading.problems.push(Problem { location, severity: Severity::Warning, object: None, message });
    }
    for (index, document) in documents.iter().enumerate() {
        let number = (documents.len() > 1).then_some(index + 1);
        let location = |path: &str| Location::File {
            file: file.to_owned(),
            line: Some(document.line_of(path)),
            document: number,
        };
        kind::read(&document.value(), "", &location, &mut reading);
    }
    Ok(reading)
}

#[cfg(test)]
mod tests;
