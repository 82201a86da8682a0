//! What pods add to sets and maps.

use nftables::{Batch, Element};

/// Elements by their set, in the order in which the sets were named. The kernel acknowledges every message, and a message
/// for each element of a full node would be more acknowledgements than a socket holds.
#[derive(Default)]
pub(super) struct Elements(Vec<(String, Vec<Element>)>);

impl Elements {
    pub(super) fn add(&mut self, set: &str, element: Element) {
        match self.0.iter_mut().find(|(name, _)| name == set) {
            Some((_, elements)) => elements.push(element),
            None => self.0.push((set.to_owned(), vec![element])),
        }
    }

    pub(super) fn write(self, batch: &mut Batch<'_>) {
        for (set, elements) in self.0 {
            batch.add_elements(&set, &elements);
        }
    }
}
