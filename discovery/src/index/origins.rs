//! The objects of each origin, and the state of the sources.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Origin, SourceFailure};
use crate::model::NamespacedName;
use crate::problem::Problem;
use crate::snapshot::SourceState;

/// The kind and name of an object of an origin.
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

/// Origins with objects or problems.
#[derive(Debug, Default)]
pub(super) struct Origins {
    names: BTreeMap<Arc<Origin>, Vec<Named>>,
    /// Origins with problems.
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

    /// Adds an origin that is not present. Its source is known.
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

    /// The state of a source, added if it is new.
    pub(super) fn source(&mut self, name: &'static str) -> &mut SourceState {
        self.sources.entry(name).or_default()
    }

    /// Sets or clears the failure of a source.
    pub(super) fn set_failure(&mut self, source: &'static str, failure: Option<SourceFailure>) {
        let known = &mut self.source(source).failure;
        // A continuing failure keeps its start.
        let since = known.as_ref().map(|failure| failure.since);
        *known = failure.map(|new| SourceFailure { since: since.unwrap_or(new.since), ..new });
    }

    /// The state of each source.
    pub(super) fn sources(&self) -> &BTreeMap<&'static str, SourceState> {
        &self.sources
    }

    /// The problems of the objects.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// The problems of the sources.
    pub(super) fn failures(&self) -> impl Iterator<Item = &Problem> {
        self.sources.values().filter_map(|source| source.failure.as_ref()).map(|failure| &failure.problem)
    }
}

fn has_error(problems: &[Problem]) -> bool {
    problems.iter().any(Problem::is_error)
}
