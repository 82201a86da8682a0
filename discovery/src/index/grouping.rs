//! Which slices are a Service's.

use std::collections::{BTreeSet, HashMap};

use crate::model::NamespacedName;

/// The slices of each Service, and whose a slice was when that was last looked at.
#[derive(Debug, Default)]
pub(super) struct Grouping {
    slices: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    owners: HashMap<NamespacedName, NamespacedName>,
}

impl Grouping {
    /// The slices of a Service that has any.
    pub(super) fn slices_of(&self, service: &NamespacedName) -> Option<&BTreeSet<NamespacedName>> {
        self.slices.get(service)
    }

    /// Notes whose slice it is now, and returns that Service and the one it was of before.
    pub(super) fn note(
        &mut self,
        slice: NamespacedName,
        now: Option<NamespacedName>,
    ) -> impl Iterator<Item = NamespacedName> + use<> {
        let before = match &now {
            Some(service) => self.owners.insert(slice.clone(), service.clone()),
            None => self.owners.remove(&slice),
        };
        if let Some(service) = before.as_ref().filter(|_| before != now)
            && let Some(slices) = self.slices.get_mut(service)
        {
            slices.remove(&slice);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        if let Some(service) = &now {
            self.slices.entry(service.clone()).or_default().insert(slice);
        }
        before.into_iter().chain(now)
    }
}
