//! The remembered answers: found without a lock, written by one task at a time, bounded by bytes.
//!
//! Eight entries make a set, and a question's hash says which set it belongs in. Each place can be read while
//! it is replaced (`ArcSwap`). A clock decides which entry is removed: a hand passes over the sets, takes a
//! use away from what was used, and removes what was not. So a flood of names that are queried once replaces
//! itself.

use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use super::asked::Asked;
use super::entry::Entry;

/// Entries of a set.
const WAYS: usize = 8;

/// What an entry is taken to need when the number of sets is chosen. Most need more, so bytes run out first.
const ENTRY_SIZE: usize = 256;

/// The share of all bytes that one entry may have at most.
const LARGEST_SHARE: usize = 16;

/// Places that belong together.
#[derive(Debug, Default)]
struct Set {
    /// Bits of the hashes of what is in the places, so that one look tells which place to open.
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
    /// Where the clock's hand is. The task that holds the lock may write.
    hand: Mutex<usize>,
}

/// An entry that stays while this does, whatever becomes of its place.
pub(super) type Found = Guard<Option<Arc<Entry>>>;

impl Cache {
    /// A cache of at most so many bytes; 0 keeps nothing.
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

    /// The answer to a question, whatever its age. `Some` holds an entry always.
    pub(super) fn get(&self, asked: &Asked<'_>) -> Option<Found> {
        let hash = asked.hash(&self.keys);
        let set = self.set(hash);
        let tagged = set.tags.iter().zip(&set.places).filter(|(tag, _)| tag.load(Relaxed) == hash);
        tagged
            .map(|(_, place)| place.load())
            .find(|found| found.as_ref().is_some_and(|entry| entry.is_for(asked)))
    }

    /// Puts an answer in the place of an older one to its question, or of the least useful of its set.
    pub(super) fn insert(&self, asked: &Asked<'_>, entry: Arc<Entry>) {
        if entry.size() > self.max_bytes / LARGEST_SHARE {
            return;
        }
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = asked.hash(&self.keys);
        let set = self.set(hash);
        let place = set.place_of(hash, asked).unwrap_or_else(|| set.least_useful());
        if set.places[place].load().as_ref().is_some_and(|old| !old.is_for(asked)) {
            self.evictions.fetch_add(1, Relaxed);
        }
        self.put(set, place, hash, Some(entry));
        while self.bytes() > self.max_bytes {
            self.sweep(&self.sets[*hand]);
            *hand = (*hand + 1) % self.sets.len();
        }
    }

    /// Forgets the answer to a question.
    pub(super) fn remove(&self, asked: &Asked<'_>) {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = asked.hash(&self.keys);
        let set = self.set(hash);
        if let Some(place) = set.place_of(hash, asked) {
            self.put(set, place, 0, None);
        }
    }

    fn set(&self, hash: u64) -> &Set {
        // The number of sets is a power of two.
        let mask = self.sets.len() as u64 - 1;
        &self.sets[usize::try_from(hash & mask).unwrap_or_default()]
    }

    /// The hand passes over a set.
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
        // Only the holder of the hand writes, so no decision is made between the two steps.
        self.bytes.store(self.bytes() + size - old_size, Relaxed);
        self.entries.store(self.entries() + count - old_count, Relaxed);
    }
}

impl Set {
    fn place_of(&self, hash: u64, asked: &Asked<'_>) -> Option<usize> {
        (0..WAYS).find(|place| {
            self.tags[*place].load(Relaxed) == hash
                && self.places[*place].load().as_ref().is_some_and(|entry| entry.is_for(asked))
        })
    }

    /// An empty place, else one that was not used since the hand passed. If all were, the hand passes now.
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

    fn asked(name: &NameBuf) -> Asked<'_> {
        Asked { name: name.as_name(), kind: 1, dnssec_ok: false, checking_disabled: false }
    }

    fn name(text: &str) -> NameBuf {
        NameBuf::from_text(text).unwrap()
    }

    fn entry(name: &NameBuf) -> Arc<Entry> {
        let contents = Contents { code: 0, is_authentic: false, is_positive: true, reason: None, ttl: 60 };
        Arc::new(Entry::new(&asked(name), [].into_iter(), [].into_iter(), contents).unwrap())
    }

    #[test]
    fn an_answer_is_found_in_any_spelling_and_only_for_its_own_question() {
        let cache = Cache::new(1 << 20);
        let (www, shouted) = (name("www.example"), name("WWW.example"));
        cache.insert(&asked(&www), entry(&www));
        cache.insert(&asked(&shouted), entry(&shouted));
        assert_eq!(cache.entries(), 1, "one question, one answer");
        assert!(cache.get(&asked(&www)).is_some());
        for other in [
            Asked { kind: 28, ..asked(&www) },
            Asked { dnssec_ok: true, ..asked(&www) },
            Asked { checking_disabled: true, ..asked(&www) },
            asked(&name("www.example.org")),
        ] {
            assert!(cache.get(&other).is_none(), "{other:?}");
        }
        cache.remove(&asked(&www));
        assert!(cache.get(&asked(&www)).is_none());
        assert_eq!((cache.entries(), cache.bytes()), (0, 0));
    }

    #[test]
    fn a_flood_of_names_stays_within_the_bytes_and_does_not_displace_what_is_used() {
        let max = 1 << 18;
        let cache = Cache::new(max);
        let popular: Vec<_> = (0..50).map(|n| name(&format!("popular{n}.example"))).collect();
        for name in &popular {
            cache.insert(&asked(name), entry(name));
        }
        for n in 0..20_000 {
            let flood = name(&format!("{n}.flood.example"));
            cache.insert(&asked(&flood), entry(&flood));
            assert!(cache.bytes() <= max);
            if n % 100 == 0 {
                for found in popular.iter().filter_map(|name| cache.get(&asked(name))) {
                    found.as_ref().unwrap().touch();
                }
            }
        }
        let left = popular.iter().filter(|name| cache.get(&asked(name)).is_some()).count();
        assert!(left >= 45, "{left} of 50 popular names are left");
        assert!(cache.evictions() > 18_000);
    }
}
