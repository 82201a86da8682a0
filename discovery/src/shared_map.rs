//! A map whose copies share their common entries.
//!
//! With ten thousand entries a copy costs 256 reference counts, and a change copies one shard. Differences
//! between two copies are found by comparing pointers. A look-up hashes once, as in any other hash map.

use std::borrow::Borrow;
use std::hash::{BuildHasher as _, Hash};
use std::sync::{Arc, LazyLock};

use hashbrown::{DefaultHashBuilder, HashTable};

/// The number of shards: with ten thousand entries a change copies forty.
const SHARDS: usize = 256;

/// One hasher for all maps, so that a key is in the same shard of each. foldhash with a random seed: the keys
/// are names of objects, which clients of the data path do not choose.
static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

type Shard<K, V> = HashTable<(K, Arc<V>)>;

/// A map from keys to shared values.
#[derive(Debug)]
pub struct SharedMap<K, V> {
    shards: Vec<Arc<Shard<K, V>>>,
    length: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { shards: vec![Arc::default(); SHARDS], length: 0 }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), length: self.length }
    }
}

impl<K, V> SharedMap<K, V> {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Every value, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(_, value)| value)
    }
}

impl<K: Clone + Eq + Hash, V> SharedMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        let hash = HASHER.hash_one(key);
        self.shards[shard_of(hash)].find(hash, |(own, _)| own.borrow() == key).map(|(_, value)| value)
    }

    /// Sets the value of a key. Returns the former one.
    pub fn insert(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>> {
        let hash = HASHER.hash_one(&key);
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        if let Some((_, old)) = shard.find_mut(hash, |(own, _)| *own == key) {
            return Some(std::mem::replace(old, value));
        }
        shard.insert_unique(hash, (key, value), |(key, _)| HASHER.hash_one(key));
        self.length += 1;
        None
    }

    /// Removes a key. Returns its value.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        // A missing key copies no shard.
        self.get(key)?;
        let hash = HASHER.hash_one(key);
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        let ((_, value), _) = shard.find_entry(hash, |(own, _)| own.borrow() == key).ok()?.remove();
        self.length -= 1;
        Some(value)
    }

    /// The entries that are missing in `before` or have another value there. Skips shared shards.
    pub fn changed_since<'m>(&'m self, before: &'m Self) -> impl Iterator<Item = (&'m K, &'m Arc<V>)> {
        let shards = self.shards.iter().zip(&before.shards);
        let entries = shards.filter(|(now, then)| !Arc::ptr_eq(now, then)).flat_map(|(now, _)| now.iter());
        let is_new = |key: &K, value| before.get(key).is_none_or(|old| !Arc::ptr_eq(old, value));
        entries.filter(move |(key, value)| is_new(key, value)).map(|(key, value)| (key, value))
    }

    /// The keys of `before` that are missing here.
    pub fn removed_since<'m>(&'m self, before: &'m Self) -> impl Iterator<Item = &'m K> {
        before.changed_since(self).map(|(key, _)| key).filter(|key| self.get(*key).is_none())
    }
}

/// The middle bits: a table uses the lowest bits for the slot and the highest for the tag.
fn shard_of(hash: u64) -> usize {
    usize::from(hash.to_le_bytes()[5])
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn differences_of_two_copies_are_those_of_ordinary_maps() {
        for seed in 0..50 {
            fastrand::seed(seed);
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let (mut before, mut model_before) = (map.clone(), model.clone());
            for _ in 0..40 {
                for _ in 0..fastrand::usize(..20) {
                    let (key, value) = (fastrand::u16(..1000), Arc::new(()));
                    if fastrand::bool() {
                        assert_eq!(map.remove(&key).is_some(), model.remove(&key).is_some());
                    } else {
                        let old = map.insert(key, Arc::clone(&value));
                        assert_eq!(old.is_some(), model.insert(key, value).is_some());
                    }
                }
                let is_same = |a: &Arc<()>, b: Option<&Arc<()>>| b.is_some_and(|b| Arc::ptr_eq(a, b));
                let changed: BTreeSet<u16> = map.changed_since(&before).map(|(key, _)| *key).collect();
                let news = model.iter().filter(|(key, value)| !is_same(value, model_before.get(key)));
                assert_eq!(changed, news.map(|(key, _)| *key).collect());
                let removed: BTreeSet<u16> = map.removed_since(&before).copied().collect();
                let missing = model_before.keys().filter(|key| !model.contains_key(key));
                assert_eq!(removed, missing.copied().collect());
                assert_eq!((map.len(), map.values().count()), (model.len(), model.len()));
                assert!(model.iter().all(|(key, value)| is_same(value, map.get(key))));
                if fastrand::bool() {
                    (before, model_before) = (map.clone(), model.clone());
                }
            }
        }
    }

    #[test]
    fn unchanged_shards_are_shared() {
        let mut map = SharedMap::default();
        for key in 0..10_000_u32 {
            map.insert(key, Arc::new(()));
        }
        let before = map.clone();
        map.insert(7, Arc::new(()));
        assert!(map.remove(&10_000).is_none());
        let copied = map.shards.iter().zip(&before.shards).filter(|(now, then)| !Arc::ptr_eq(now, then));
        assert_eq!(copied.count(), 1);
    }
}
