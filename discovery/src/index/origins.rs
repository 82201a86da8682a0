//! The objects of each origin, and the state of the sources they belong to.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Origin, Outage};
use crate::model::NamespacedName;
use crate::problem::Problem;
use crate::snapshot::SourceState;

/// An object of an origin, by kind and name.
#[derive(Debug)]
pub(super) enum Named {
    Service(NamespacedName),
    EndpointSlice(NamespacedName),
    Pod(NamespacedName),
    Node(Arc<str>),
    Namespace(Arc<str>),
    ServiceCidr(Arc<str>),
    Attachment(NamespacedName),
}

/// Origins that say something, or that something is wrong with.
#[derive(Debug, Default)]
pub(super) struct Origins {
    names: BTreeMap<Arc<Origin>, Vec<Named>>,
    /// Of those that have any.
    problems: BTreeMap<Arc<Origin>, Vec<Problem>>,
    sources: BTreeMap<&'static str, SourceState>,
}

impl Origins {
    /// Removes an origin and returns its objects.
    pub(super) fn take(&mut self, origin: &Origin) -> Vec<Named> {
        let problems = self.problems.remove(origin).unwrap_or_default();
        let names = self.names.remove(origin);
        if let Some(source) = self.sources.get_mut(origin.source()).filter(|_| has_error(&problems)) {
            source.invalid -= 1;
        }
        if let Some(source) = self.sources.get_mut(origin.source()).filter(|_| names.is_some()) {
            source.size -= 1;
        }
        names.unwrap_or_default()
    }

    /// Notes what an origin says of which nothing is known. Its source is known.
    pub(super) fn put(&mut self, origin: Arc<Origin>, names: Vec<Named>, problems: Vec<Problem>) {
        if names.is_empty() && problems.is_empty() {
            return;
        }
        if let Some(source) = self.sources.get_mut(origin.source()) {
            source.size += 1;
            source.invalid += usize::from(has_error(&problems));
        }
        if !problems.is_empty() {
            self.problems.insert(Arc::clone(&origin), problems);
        }
        self.names.insert(origin, names);
    }

    /// The source of that name, from now on if there was none.
    pub(super) fn source(&mut self, name: &'static str) -> &mut SourceState {
        self.sources.entry(name).or_default()
    }

    /// Notes whether a source can be followed.
    pub(super) fn note_outage(&mut self, source: &'static str, outage: Option<Outage>) {
        let known = &mut self.source(source).outage;
        // An outage that goes on began when it began.
        let since = known.as_ref().map(|outage| outage.since);
        *known = outage.map(|new| Outage { since: since.unwrap_or(new.since), ..new });
    }

    /// How each source is doing.
    pub(super) fn sources(&self) -> &BTreeMap<&'static str, SourceState> {
        &self.sources
    }

    /// What is wrong with the objects.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// What is wrong with the sources.
    pub(super) fn outages(&self) -> impl Iterator<Item = &Problem> {
        self.sources.values().filter_map(|source| source.outage.as_ref()).map(|outage| &outage.problem)
    }
}

fn has_error(problems: &[Problem]) -> bool {
    problems.iter().any(Problem::is_error)
}
