//! The cache: lock-free reads, one writer at a time, bounded by bytes.
//!
//! Eight entries form a set, which the hash of a question selects. An entry can be read while it is replaced
//! (`ArcSwap`). The CLOCK algorithm chooses the entry to evict: a hand moves over the sets, decrements the
//! use count of each entry, and removes entries without uses. So a flood of names that are queried once
//! evicts itself.

use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use super::entry::Entry;
use super::upstream_query::UpstreamQuery;

/// Entries per set.
const WAYS: usize = 8;

/// The assumed size of an entry for choosing the number of sets. Most are larger, so the byte limit is
/// reached first.
const ENTRY_SIZE: usize = 256;

/// The maximum share of one entry.
const LARGEST_SHARE: usize = 16;

/// A set of entries.
#[derive(Debug, Default)]
struct Set {
    /// Bits of the hashes of the entries, so that a look-up opens the right one only.
    tags: [AtomicU64; WAYS],
    places: [ArcSwapOption<Entry>; WAYS],
}

/// All entries.
#[derive(Debug)]
pub(super) struct Cache {
    keys: RandomState,
    sets: Box<[Set]>,
    max_bytes: usize,
    bytes: AtomicUsize,
    entries: AtomicUsize,
    evictions: AtomicU64,
    /// The position of the clock's hand. The task that holds the lock may write.
    hand: Mutex<usize>,
}

/// An entry that stays valid while this guard lives, even if it is replaced.
pub(super) type Found = Guard<Option<Arc<Entry>>>;

impl Cache {
    /// Creates a cache with a limit in bytes; 0 disables it.
    pub(super) fn new(max_bytes: usize) -> Self {
        let sets = (max_bytes / ENTRY_SIZE / WAYS).next_power_of_two();
        Self {
            keys: RandomState::new(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            max_bytes,
            bytes: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            evictions: AtomicU64::new(0),
            hand: Mutex::new(0),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.load(Relaxed)
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }

    /// The answer to a question, of any age. `Some` always contains an entry.
    pub(super) fn get(&self, upstream_query: &UpstreamQuery<'_>) -> Option<Found> {
        let hash = upstream_query.hash(&self.keys);
        let set = self.set(hash);
        let tagged = set.tags.iter().zip(&set.places).filter(|(tag, _)| tag.load(Relaxed) == hash);
        tagged
            .map(|(_, place)| place.load())
            .find(|found| found.as_ref().is_some_and(|entry| entry.is_for(upstream_query)))
    }

    /// Inserts an answer, replacing an older one to its question or the least useful of its set.
    pub(super) fn insert(&self, upstream_query: &UpstreamQuery<'_>, entry: Arc<Entry>) {
        if entry.size() > self.max_bytes / LARGEST_SHARE {
            return;
        }
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = upstream_query.hash(&self.keys);
        let set = self.set(hash);
        let place = set.place_of(hash, upstream_query).unwrap_or_else(|| set.least_useful());
        if set.places[place].load().as_ref().is_some_and(|old| !old.is_for(upstream_query)) {
            self.evictions.fetch_add(1, Relaxed);
        }
        self.put(set, place, hash, Some(entry));
        while self.bytes() > self.max_bytes {
            self.sweep(&self.sets[*hand]);
            *hand = (*hand + 1) % self.sets.len();
        }
    }

    /// Removes the answer to a question.
    pub(super) fn remove(&self, upstream_query: &UpstreamQuery<'_>) {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = upstream_query.hash(&self.keys);
        let set = self.set(hash);
        if let Some(place) = set.place_of(hash, upstream_query) {
            self.put(set, place, 0, None);
        }
    }

    fn set(&self, hash: u64) -> &Set {
        // The number of sets is a power of two.
        let mask = self.sets.len() as u64 - 1;
        &self.sets[usize::try_from(hash & mask).unwrap_or_default()]
    }

    /// Moves the hand over a set.
    fn sweep(&self, set: &Set) {
        for place in 0..WAYS {
            let is_useless = set.places[place].load().as_ref().is_some_and(|entry| !entry.cool());
            if is_useless {
                self.put(set, place, 0, None);
                self.evictions.fetch_add(1, Relaxed);
            }
        }
    }

    fn put(&self, set: &Set, place: usize, hash: u64, entry: Option<Arc<Entry>>) {
        let (size, count) = entry.as_ref().map_or((0, 0), |entry| (entry.size(), 1));
        set.tags[place].store(hash, Relaxed);
        let old = set.places[place].swap(entry);
        let (old_size, old_count) = old.map_or((0, 0), |entry| (entry.size(), 1));
        // Only the holder of the hand writes, so nothing changes between the two steps.
        self.bytes.store(self.bytes() + size - old_size, Relaxed);
        self.entries.store(self.entries() + count - old_count, Relaxed);
    }
}

impl Set {
    fn place_of(&self, hash: u64, upstream_query: &UpstreamQuery<'_>) -> Option<usize> {
        (0..WAYS).find(|place| {
            self.tags[*place].load(Relaxed) == hash
                && self.places[*place].load().as_ref().is_some_and(|entry| entry.is_for(upstream_query))
        })
    }

    /// An empty slot, else one that was not used since the last sweep. If all were used, sweeps now.
    fn least_useful(&self) -> usize {
        let is_empty = |place: &usize| self.places[*place].load().is_none();
        let is_unused = |place: &usize| !self.places[*place].load().as_ref().is_some_and(|e| e.is_used());
        if let Some(place) = (0..WAYS).find(is_empty) {
            return place;
        }
        loop {
            if let Some(place) = (0..WAYS).find(is_unused) {
                return place;
            }
            for entry in self.places.iter().filter_map(ArcSwapOption::load_full) {
                entry.cool();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::entry::Contents;
    use crate::message::NameBuf;

    fn upstream_query(name: &NameBuf) -> UpstreamQuery<'_> {
        UpstreamQuery { name: name.as_name(), kind: 1, dnssec_ok: false, checking_disabled: false }
    }

    fn name(text: &str) -> NameBuf {
        NameBuf::from_text(text).unwrap()
    }

    fn entry(name: &NameBuf) -> Arc<Entry> {
        let contents = Contents { code: 0, is_authentic: false, is_positive: true, reason: None, ttl: 60 };
        Arc::new(Entry::new(&upstream_query(name), [].into_iter(), [].into_iter(), contents).unwrap())
    }

    #[test]
    fn answer_is_found_in_any_spelling_and_only_for_its_own_question() {
        let cache = Cache::new(1 << 20);
        let (www, shouted) = (name("www.example"), name("WWW.example"));
        cache.insert(&upstream_query(&www), entry(&www));
        cache.insert(&upstream_query(&shouted), entry(&shouted));
        assert_eq!(cache.entries(), 1, "one entry per question");
        assert!(cache.get(&upstream_query(&www)).is_some());
        for other in [
            UpstreamQuery { kind: 28, ..upstream_query(&www) },
            UpstreamQuery { dnssec_ok: true, ..upstream_query(&www) },
            UpstreamQuery { checking_disabled: true, ..upstream_query(&www) },
            upstream_query(&name("www.example.org")),
        ] {
            assert!(cache.get(&other).is_none(), "{other:?}");
        }
        cache.remove(&upstream_query(&www));
        assert!(cache.get(&upstream_query(&www)).is_none());
        assert_eq!((cache.entries(), cache.bytes()), (0, 0));
    }

    #[test]
    fn flood_of_names_stays_within_the_limit_and_does_not_evict_used_entries() {
        let max = 1 << 18;
        let cache = Cache::new(max);
        let popular: Vec<_> = (0..50).map(|n| name(&format!("popular{n}.example"))).collect();
        for name in &popular {
            cache.insert(&upstream_query(name), entry(name));
        }
        for n in 0..20_000 {
            let flood = name(&format!("{n}.flood.example"));
            cache.insert(&upstream_query(&flood), entry(&flood));
            assert!(cache.bytes() <= max);
            if n % 100 == 0 {
                for found in popular.iter().filter_map(|name| cache.get(&upstream_query(name))) {
                    found.as_ref().unwrap().touch();
                }
            }
        }
        let left = popular.iter().filter(|name| cache.get(&upstream_query(name)).is_some()).count();
        assert!(left >= 45, "{left} of 50 popular names are cached");
        assert!(cache.evictions() > 18_000);
    }
}
