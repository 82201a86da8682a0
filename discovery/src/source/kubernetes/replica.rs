//! What is known of one resource, and how it differs from what was known before.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::decoded::Decoded;
use super::interner::Interner;
use super::kind::Kind;
use crate::convert::{Finding, Findings};
use crate::event::{Event, Object, Origin, Sourced};
use crate::model::NamespacedName;
use crate::notice::{Notice, Recorder, Regarding};
use crate::problem::{Location, Problem};

/// An Event about an object that cannot be used is written no more often, however often the object changes.
const NOTICE_INTERVAL: Duration = Duration::from_secs(300);

/// The objects of a resource. They are shared with the index: here, they cost a name and a pointer each.
#[derive(Debug)]
pub(super) struct Replica<K> {
    known: Objects,
    interner: Interner,
    recorder: Recorder,
    kind: PhantomData<fn() -> K>,
}

/// A list under way: nothing of it shows before it is complete.
#[derive(Debug, Default)]
pub(super) struct Listing {
    objects: Objects,
    changes: Vec<Event>,
    /// Why a line of it could not be read at all, if one could not: what is not in the list may be there.
    pub(super) unreadable: Option<String>,
    /// An error of it was reported.
    pub(super) has_failed: bool,
}

type Objects = HashMap<NamespacedName, Known>;

/// An object as it was understood last.
#[derive(Debug)]
struct Known {
    /// `None` if it was never right.
    object: Option<Object>,
    problems: Vec<Problem>,
    /// When an Event was written about it.
    noticed: Option<Instant>,
}

impl<K: Kind> Replica<K> {
    /// Keeps the names of endpoints' pods as well, or not.
    pub(super) fn new(recorder: Recorder, keeps_pods: bool) -> Self {
        let interner = Interner::new(keeps_pods);
        Self { known: HashMap::new(), interner, recorder, kind: PhantomData }
    }

    /// Takes an object into a list. What has not changed is not kept twice.
    pub(super) fn collect(&mut self, listing: &mut Listing, object: Decoded<K>) {
        let (name, known, event) = self.read(object);
        listing.objects.insert(name, known);
        listing.changes.extend(event);
    }

    /// Makes a complete list the present state; what is not in it was deleted.
    pub(super) fn replace(&mut self, listing: Listing) -> Vec<Event> {
        let mut before = std::mem::replace(&mut self.known, listing.objects);
        before.retain(|name, _| !self.known.contains_key(name));
        if listing.unreadable.is_some() {
            self.known.extend(before.drain());
        }
        before.into_keys().map(deletion::<K>).chain(listing.changes).collect()
    }

    /// An object was added or has changed. `None` if nothing of it matters.
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

    /// What an object says, and the event if that is something else than before. An object that cannot be
    /// used keeps its last good state.
    fn read(&mut self, object: Decoded<K>) -> (NamespacedName, Known, Option<Event>) {
        let (name, uid) = (name(&object), object.metadata.uid);
        let mut findings = Findings::default();
        let read = object.object.map_err(|finding| findings.0.push(finding)).ok();
        let now = read.and_then(|object| object.object(&mut findings, &mut self.interner));
        let now = now.filter(|_| !findings.has_errors());
        let is_error = findings.has_errors();
        let problems: Vec<_> = findings.0.into_iter().map(|finding| problem::<K>(&name, finding)).collect();
        let (before, reported, mut noticed) = match self.known.get(&name) {
            Some(known) => (known.object.clone(), Some(&known.problems), known.noticed),
            None => (None, None, None),
        };
        let is_news = reported != Some(&problems);
        if !is_news && (now.is_none() || now == before) {
            // The one that the index has too, and not another one like it.
            return (name, Known { object: before, problems, noticed }, None);
        }
        if is_error && is_news && noticed.is_none_or(|at| at.elapsed() > NOTICE_INTERVAL) {
            noticed = Some(Instant::now());
            self.recorder.record(notice::<K>(&name, uid, &problems));
        }
        let objects = now.clone().map(|object| vec![Sourced { object, location: Location::Api }]);
        let origin = Origin::Api(K::RESOURCE, name.clone());
        let event = Event::Replace { origin, objects, problems: problems.clone() };
        (name, Known { object: now.or(before), problems, noticed }, Some(event))
    }
}

fn notice<K: Kind>(name: &NamespacedName, uid: Option<String>, problems: &[Problem]) -> Notice {
    let error = problems.iter().find(|problem| problem.is_error());
    let error = error.map_or("", |problem| &problem.message);
    Notice {
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
