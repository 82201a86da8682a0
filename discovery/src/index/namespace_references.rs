//! Which namespaces exist: those with objects, and those with a Namespace object.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The number of objects in each namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceReferences {
    counts: HashMap<Arc<str>, usize>,
    names: Arc<HashSet<Arc<str>>>,
}

impl NamespaceReferences {
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
