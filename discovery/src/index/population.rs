//! Which namespaces exist: those that something is in, or that an object says there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How many objects are in each namespace.
#[derive(Debug, Default)]
pub(super) struct Population(HashMap<Arc<str>, usize>);

impl Population {
    pub(super) fn namespaces(&self) -> HashSet<Arc<str>> {
        self.0.keys().map(Arc::clone).collect()
    }

    pub(super) fn add(&mut self, namespace: &Arc<str>) {
        *self.0.entry(Arc::clone(namespace)).or_default() += 1;
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>) {
        if let Some(count) = self.0.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(namespace);
            }
        }
    }
}
