//! EndpointSlices by Service.

use std::collections::{BTreeSet, HashMap};

use crate::model::NamespacedName;

/// The slices of each Service, and the Service of each slice.
#[derive(Debug, Default)]
pub(super) struct SlicesByService {
    slices: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    owners: HashMap<NamespacedName, NamespacedName>,
}

impl SlicesByService {
    /// The slices of a Service, if it has any.
    pub(super) fn slices_of(&self, service: &NamespacedName) -> Option<&BTreeSet<NamespacedName>> {
        self.slices.get(service)
    }

    /// Updates the Service of a slice. Returns the current and the former Service.
    pub(super) fn update(
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
