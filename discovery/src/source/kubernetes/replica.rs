//! The known objects of one resource, and their changes.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::decoded::Decoded;
use super::interner::Interner;
use super::kind::Kind;
use crate::convert::{Finding, Findings};
use crate::event::{Event, Object, Origin, Sourced};
use crate::event_record::{EventRecord, Recorder, Regarding};
use crate::model::NamespacedName;
use crate::problem::{Location, Problem};

/// Minimum interval between Events about one object that cannot be used, however often it changes.
const EVENT_INTERVAL: Duration = Duration::from_secs(300);

/// The objects of a resource. The index shares them: here, each costs a name and a pointer.
#[derive(Debug)]
pub(super) struct Replica<K> {
    known: Objects,
    interner: Interner,
    recorder: Recorder,
    kind: PhantomData<fn() -> K>,
}

/// A list in progress. It becomes visible when it is complete.
#[derive(Debug, Default)]
pub(super) struct Listing {
    objects: Objects,
    changes: Vec<Event>,
    /// The error of a line that could not be decoded. The objects that are missing in the list may then
    /// exist.
    pub(super) unreadable: Option<String>,
    /// Whether an error of it was reported.
    pub(super) has_failed: bool,
}

type Objects = HashMap<NamespacedName, Known>;

/// The last good state of an object.
#[derive(Debug)]
struct Known {
    /// `None` if it was never valid.
    object: Option<Object>,
    problems: Vec<Problem>,
    /// When an Event was written about it.
    recorded_at: Option<Instant>,
}

impl<K: Kind> Replica<K> {
    /// Creates an empty replica that keeps the names of endpoints' pods or not.
    pub(super) fn new(recorder: Recorder, keeps_pods: bool) -> Self {
        let interner = Interner::new(keeps_pods);
        Self { known: HashMap::new(), interner, recorder, kind: PhantomData }
    }

    /// Adds an object to a list. An unchanged object is not stored twice.
    pub(super) fn collect(&mut self, listing: &mut Listing, object: Decoded<K>) {
        let (name, known, event) = self.read(object);
        listing.objects.insert(name, known);
        listing.changes.extend(event);
    }

    /// Replaces the objects by a complete list. Missing ones were deleted.
    pub(super) fn replace(&mut self, listing: Listing) -> Vec<Event> {
        let mut before = std::mem::replace(&mut self.known, listing.objects);
        before.retain(|name, _| !self.known.contains_key(name));
        if listing.unreadable.is_some() {
            self.known.extend(before.drain());
        }
        before.into_keys().map(deletion::<K>).chain(listing.changes).collect()
    }

    /// An object was added or has changed. `None` if nothing relevant has changed.
    pub(super) fn update(&mut self, object: Decoded<K>) -> Option<Event> {
        let (name, known, event) = self.read(object);
        self.known.insert(name, known);
        event
    }

    /// An object was deleted.
    pub(super) fn remove(&mut self, object: &Decoded<K>) -> Option<Event> {
        let name = name(object);
        self.known.remove(&name).map(|_| deletion::<K>(name))
    }

    /// Converts an object, with the event if it has changed. An object that cannot be used keeps its last
    /// good state.
    fn read(&mut self, object: Decoded<K>) -> (NamespacedName, Known, Option<Event>) {
        let (name, uid) = (name(&object), object.metadata.uid);
        let mut findings = Findings::default();
        let read = object.object.map_err(|finding| findings.0.push(finding)).ok();
        let now = read.and_then(|object| object.object(&mut findings, &mut self.interner));
        let now = now.filter(|_| !findings.has_errors());
        let is_error = findings.has_errors();
        let problems: Vec<_> = findings.0.into_iter().map(|finding| problem::<K>(&name, finding)).collect();
        let (before, reported, mut recorded_at) = match self.known.get(&name) {
            Some(known) => (known.object.clone(), Some(&known.problems), known.recorded_at),
            None => (None, None, None),
        };
        let is_news = reported != Some(&problems);
        if !is_news && (now.is_none() || now == before) {
            // Keep the pointer that the index has, not an equal object.
            return (name, Known { object: before, problems, recorded_at }, None);
        }
        if is_error && is_news && recorded_at.is_none_or(|at| at.elapsed() > EVENT_INTERVAL) {
            recorded_at = Some(Instant::now());
            self.recorder.record(event_record::<K>(&name, uid, &problems));
        }
        let objects = now.clone().map(|object| vec![Sourced { object, location: Location::Api }]);
        let origin = Origin::Api(K::RESOURCE, name.clone());
        let event = Event::Replace { origin, objects, problems: problems.clone() };
        (name, Known { object: now.or(before), problems, recorded_at }, Some(event))
    }
}

fn event_record<K: Kind>(name: &NamespacedName, uid: Option<String>, problems: &[Problem]) -> EventRecord {
    let error = problems.iter().find(|problem| problem.is_error());
    let error = error.map_or("", |problem| &problem.message);
    EventRecord {
        regarding: Regarding { resource: K::RESOURCE, name: name.clone(), uid },
        is_warning: true,
        reason: "InvalidObject",
        action: "ReadObject",
        note: format!("cannot be used, its last good state is kept: {error}"),
    }
}

fn deletion<K: Kind>(name: NamespacedName) -> Event {
    let origin = Origin::Api(K::RESOURCE, name);
    Event::Replace { origin, objects: Some(Vec::new()), problems: Vec::new() }
}

fn name<K>(object: &Decoded<K>) -> NamespacedName {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    NamespacedName { namespace: text(&object.metadata.namespace), name: text(&object.metadata.name) }
}

fn problem<K: Kind>(name: &NamespacedName, finding: Finding) -> Problem {
    let Finding { severity, field, message } = finding;
    let message = if field.is_empty() { message } else { format!("{field}: {message}") };
    let name = if name.namespace.is_empty() { name.name.to_string() } else { name.to_string() };
    Problem {
        location: Location::Api,
        severity,
        object: Some(format!("{} {name}", K::RESOURCE.kind())),
        message,
    }
}

#[cfg(test)]
mod tests;
