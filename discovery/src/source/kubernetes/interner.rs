//! Shares strings that many endpoints have in common: node names, zones, hints.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{EndpointSlice, Hints};

/// Smaller pools are not cleaned up.
const SMALL: usize = 1024;

/// The shared strings.
#[derive(Debug, Default)]
pub(super) struct Interner {
    /// Whether the names of pods are kept.
    keeps_pods: bool,
    texts: Shared<str>,
    hints: Shared<Hints>,
}

#[derive(Debug)]
struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// At this size strings without other users are removed.
    limit: usize,
}

impl Interner {
    /// Creates an interner that keeps the names of pods or not.
    pub(super) fn new(keeps_pods: bool) -> Self {
        Self { keeps_pods, ..Self::default() }
    }

    /// Replaces the slice's strings by shared copies.
    pub(super) fn share(&mut self, slice: &mut EndpointSlice) {
        let texts = &mut self.texts;
        texts.share(&mut slice.name.namespace);
        slice.service.namespace = Arc::clone(&slice.name.namespace);
        texts.share(&mut slice.service.name);
        slice.ports.iter_mut().for_each(|port| texts.share(&mut port.name));
        for endpoint in &mut slice.endpoints {
            endpoint.pod = endpoint.pod.take().filter(|_| self.keeps_pods);
            endpoint.node_name.iter_mut().chain(&mut endpoint.zone).for_each(|text| texts.share(text));
            if let Some(hints) = &mut endpoint.hints {
                let own = Arc::make_mut(hints);
                own.nodes.iter_mut().chain(&mut own.zones).for_each(|text| texts.share(text));
                self.hints.share(hints);
            }
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**value) {
            *value = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = SMALL.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(value));
    }
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: SMALL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_are_removed() {
        let mut texts = Shared::<str>::default();
        let (mut first, mut second): (Arc<str>, Arc<str>) = ("node-1".into(), "node-1".into());
        texts.share(&mut first);
        texts.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10 * SMALL {
            texts.share(&mut Arc::from(number.to_string()));
        }
        assert!(texts.known.len() <= SMALL, "{}", texts.known.len());
        assert!(texts.known.contains("node-1"));
    }

    #[test]
    fn endpoint_takes_at_most_a_hundred_bytes_beside_its_address() {
        assert!(size_of::<crate::model::Endpoint>() <= 100 + size_of::<std::net::IpAddr>());
    }
}
