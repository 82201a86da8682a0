//! Which namespaces exist: those that something is in, or that an object says there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How many objects are in each namespace.
#[derive(Debug, Default)]
pub(super) struct Population {
    counts: HashMap<Arc<str>, usize>,
    names: Arc<HashSet<Arc<str>>>,
}

impl Population {
    pub(super) fn namespaces(&self) -> Arc<HashSet<Arc<str>>> {
        Arc::clone(&self.names)
    }

    pub(super) fn add(&mut self, namespace: &Arc<str>) {
        if let Some(count) = self.counts.get_mut(namespace) {
            *count += 1;
            return;
        }
        self.counts.insert(Arc::clone(namespace), 1);
        Arc::make_mut(&mut self.names).insert(Arc::clone(namespace));
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>) {
        if let Some(count) = self.counts.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(namespace);
                Arc::make_mut(&mut self.names).remove(namespace);
            }
        }
    }
}
