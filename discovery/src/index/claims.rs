//! All definitions of each object. If several origins define an object, the first origin wins, whenever it
//! was read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::event::Origin;
use crate::problem::{Location, Problem, Severity};

/// The precedence of definitions: origins by name, then the position within the origin.
pub(super) type Rank = (Arc<Origin>, usize);

/// One definition of an object.
#[derive(Debug)]
pub(super) struct Claim<V> {
    pub(super) rank: Rank,
    pub(super) value: Arc<V>,
    pub(super) location: Location,
}

/// All definitions of all objects of a kind.
#[derive(Debug)]
pub(super) struct Claims<K, V> {
    kind: &'static str,
    by_name: BTreeMap<K, Vec<Claim<V>>>,
    /// Names with more than one definition.
    contested: BTreeSet<K>,
}

impl<K: Ord + Clone + Display, V> Claims<K, V> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, by_name: BTreeMap::new(), contested: BTreeSet::new() }
    }

    pub(super) fn insert(&mut self, name: K, claim: Claim<V>) {
        let claims = self.by_name.entry(name.clone()).or_insert_with(|| Vec::with_capacity(1));
        let place = claims.partition_point(|other| other.rank < claim.rank);
        claims.insert(place, claim);
        if claims.len() > 1 {
            self.contested.insert(name);
        }
    }

    /// Removes one definition.
    pub(super) fn remove(&mut self, name: &K, rank: &Rank) {
        let Some(claims) = self.by_name.get_mut(name) else { return };
        claims.retain(|claim| claim.rank != *rank);
        if claims.len() < 2 {
            self.contested.remove(name);
        }
        if claims.is_empty() {
            self.by_name.remove(name);
        }
    }

    /// The effective definition.
    pub(super) fn get(&self, name: &K) -> Option<&Claim<V>> {
        self.by_name.get(name)?.first()
    }

    /// The effective definitions, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Claim<V>)> {
        self.range(..)
    }

    /// The effective definitions of a range of names.
    pub(super) fn range(&self, names: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &Claim<V>)> {
        self.by_name.range(names).filter_map(|(name, claims)| Some((name, claims.first()?)))
    }

    /// A problem for every definition that is not effective.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = Problem> {
        let contested = self.contested.iter().filter_map(|name| Some((name, self.by_name.get(name)?)));
        contested.flat_map(move |(name, claims)| {
            claims.iter().skip(1).map(move |claim| Problem {
                location: claim.location.clone(),
                severity: Severity::Error,
                object: Some(format!("{} {name}", self.kind)),
                message: format!("is already defined at {}; this definition is ignored", claims[0].location),
            })
        })
    }
}
