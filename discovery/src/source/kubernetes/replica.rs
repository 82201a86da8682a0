//! What is known of one resource, and how it differs from what was known before.

use std::collections::HashMap;
use std::marker::PhantomData;

use super::interner::Interner;
use super::kind::Kind;
use crate::convert::{Finding, Findings};
use crate::event::{Event, Object, Origin, Sourced};
use crate::model::NamespacedName;
use crate::problem::{Location, Problem};

/// The objects of a resource. They are shared with the index: here, they cost a name and a pointer each.
#[derive(Debug)]
pub(super) struct Replica<K> {
    known: Objects,
    interner: Interner,
    kind: PhantomData<fn() -> K>,
}

/// A list under way: nothing of it shows before it is complete.
#[derive(Debug, Default)]
pub(super) struct Listing {
    objects: Objects,
    changes: Vec<Event>,
}

type Objects = HashMap<NamespacedName, Known>;

/// An object as it was understood last.
#[derive(Debug)]
struct Known {
    /// `None` if it was never right.
    object: Option<Object>,
    /// Whether there is something to be said about it.
    has_findings: bool,
}

impl<K: Kind> Replica<K> {
    pub(super) fn new() -> Self {
        Self { known: HashMap::new(), interner: Interner::default(), kind: PhantomData }
    }

    /// Keeps the names of endpoints' pods as well, or not.
    pub(super) fn keep_pods(&mut self, keeps: bool) {
        self.interner.keeps_pods = keeps;
    }

    /// Takes an object into a list. What has not changed is not kept twice.
    pub(super) fn collect(&mut self, listing: &mut Listing, object: K) {
        let name = name(&object);
        let (known, event) = understand(&name, object, self.known.get(&name), &mut self.interner);
        listing.objects.insert(name, known);
        listing.changes.extend(event);
    }

    /// Makes a complete list the state in force; what is not in it is gone.
    pub(super) fn replace(&mut self, listing: Listing) -> Vec<Event> {
        let mut before = std::mem::replace(&mut self.known, listing.objects);
        before.retain(|name, _| !self.known.contains_key(name));
        let gone = before.into_keys().map(gone::<K>);
        gone.chain(listing.changes).collect()
    }

    /// An object was added or has changed. `None` if nothing of it matters.
    pub(super) fn update(&mut self, object: K) -> Option<Event> {
        let name = name(&object);
        let (known, event) = understand(&name, object, self.known.get(&name), &mut self.interner);
        self.known.insert(name, known);
        event
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, object: &K) -> Option<Event> {
        let name = name(object);
        self.known.remove(&name).map(|_| gone::<K>(name))
    }
}

/// What an object says, and the event if that is something else than before.
fn understand<K: Kind>(
    name: &NamespacedName,
    object: K,
    before: Option<&Known>,
    interner: &mut Interner,
) -> (Known, Option<Event>) {
    let mut findings = Findings::default();
    let now = object.object(&mut findings, interner).filter(|_| !findings.has_errors());
    let has_findings = !findings.0.is_empty();
    let same = before.filter(|known| !known.has_findings && !has_findings && known.object == now);
    // The one that the index has too, and not another one like it.
    let before = before.and_then(|known| known.object.clone());
    if same.is_some() && now.is_some() {
        return (Known { object: before, has_findings }, None);
    }
    let problems = findings.0.into_iter().map(|finding| problem::<K>(name, finding)).collect();
    let objects = now.clone().map(|object| vec![Sourced { object, location: Location::Api }]);
    let origin = Origin::Api(K::RESOURCE, name.clone());
    // An object with a mistake keeps its last good self.
    (Known { object: now.or(before), has_findings }, Some(Event::Replace { origin, objects, problems }))
}

fn gone<K: Kind>(name: NamespacedName) -> Event {
    let origin = Origin::Api(K::RESOURCE, name);
    Event::Replace { origin, objects: Some(Vec::new()), problems: Vec::new() }
}

fn name<K: Kind>(object: &K) -> NamespacedName {
    let metadata = object.meta();
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    NamespacedName { namespace: text(&metadata.namespace), name: text(&metadata.name) }
}

fn problem<K: Kind>(name: &NamespacedName, finding: Finding) -> Problem {
    let Finding { severity, field, message } = finding;
    let message = if field.is_empty() { message } else { format!("{field}: {message}") };
    let name = if name.namespace.is_empty() { name.name.to_string() } else { name.to_string() };
    Problem { location: Location::Api, severity, object: Some(format!("{} {name}", K::kind(&()))), message }
}

#[cfg(test)]
mod tests;
