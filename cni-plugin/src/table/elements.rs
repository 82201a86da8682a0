//! The elements of pods in sets and maps.

use std::io::{ErrorKind, Result};

use nftables::{Batch, Element, Family, Netfilter};

/// Elements by set, in the order in which the sets were named. The kernel acknowledges every message: one
/// message per element of a full node would overflow the socket's buffer with acknowledgements.
#[derive(Default)]
pub(super) struct Elements(Vec<(String, Vec<Element>)>);

impl Elements {
    pub(super) fn add(&mut self, set: &str, element: Element) {
        match self.0.iter_mut().find(|(name, _)| name == set) {
            Some((_, elements)) => elements.push(element),
            None => self.0.push((set.to_owned(), vec![element])),
        }
    }

    /// Removes the elements from the table, all at once. A missing element is fine.
    pub(super) fn delete(&self, netfilter: &Netfilter, table: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        match self.delete_all(netfilter, table) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        let mut there = Self::default();
        for (set, elements) in &self.0 {
            for element in elements {
                if netfilter.contains(Family::Inet, table, set, element)? {
                    there.add(set, element.clone());
                }
            }
        }
        if there.0.is_empty() { Ok(()) } else { there.delete_all(netfilter, table) }
    }

    fn delete_all(&self, netfilter: &Netfilter, table: &str) -> Result<()> {
        let mut batch = Batch::new(table);
        for (set, elements) in &self.0 {
            batch.delete_elements(set, elements);
        }
        batch.commit(netfilter)
    }

    pub(super) fn write(self, batch: &mut Batch<'_>) {
        for (set, elements) in self.0 {
            batch.add_elements(&set, &elements);
        }
    }
}
