//! The file descriptors of traffic, and the share of each client.
//!
//! A connection takes two, a UDP flow one. The rest is reserved for the control plane: the readers of
//! manifests, the pages, netlink, the API server. Otherwise a client with many flows would prevent the proxy
//! from reading a changed manifest.
//!
//! A client may have as many as are free: a single client half of all, two clients a third each. So whatever
//! any number of greedy clients take, a new client finds some free (dynamic thresholds, as in shared-memory
//! switches: Choudhury and Hahne, 1998). A client at its limit loses only its own new connections.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Descriptors reserved for the control plane.
const RESERVE: usize = 1024;

/// Descriptors reserved for each worker: its event loop and its listening sockets.
const PER_WORKER: usize = 32;

/// If the limit is low, this fraction is reserved instead.
const RESERVE_SHARE: usize = 4;

/// Clients are spread over this many locks to avoid contention.
const SHARDS: usize = 64;

/// The descriptors of all traffic.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// Descriptors in use by client.
    clients: Vec<Mutex<HashMap<IpAddr, usize>>>,
    hasher: RandomState,
}

/// Descriptors in use. They are released when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    client: IpAddr,
    count: usize,
}

/// Why a permit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client has reached its share.
    ClientLimit,
    /// No descriptor is free.
    Exhausted,
}

impl Budget {
    /// Creates the budget from `files`, the limit on open files of the process, less the reserve of
    /// `workers`.
    pub(crate) fn new(files: u64, workers: usize) -> Arc<Self> {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let reserve = RESERVE + PER_WORKER * workers;
        Arc::new(Self {
            limit: files - reserve.min(files / RESERVE_SHARE),
            used: AtomicUsize::new(0),
            clients: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        })
    }

    /// The limit for traffic.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Descriptors in use by traffic.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Acquires `count` descriptors for a client.
    ///
    /// # Errors
    /// If the client has reached its share, or none are free.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr, count: usize) -> Result<Permit, Refusal> {
        let mut clients = self.shard(client);
        let has = clients.get(&client).copied().unwrap_or(0);
        let before = self.used.fetch_add(count, Ordering::Relaxed);
        let free = self.limit.saturating_sub(before);
        if count > free || has + count > free {
            self.used.fetch_sub(count, Ordering::Relaxed);
            return Err(if has > 0 { Refusal::ClientLimit } else { Refusal::Exhausted });
        }
        clients.insert(client, has + count);
        Ok(Permit { budget: Arc::clone(self), client, count })
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose a shard")]
        let shard = self.hasher.hash_one(client) as usize % SHARDS;
        self.clients[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Holds the permit until `work` completes.
    pub(crate) async fn cover<T>(self, work: impl Future<Output = T>) -> T {
        let result = work.await;
        drop(self);
        result
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut clients = self.budget.shard(self.client);
        if let Some(has) = clients.get_mut(&self.client) {
            *has -= self.count;
            if *has == 0 {
                clients.remove(&self.client);
            }
        }
        drop(clients);
        self.budget.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> IpAddr {
        [10, 22, 0, number].into()
    }

    fn take_all(budget: &Arc<Budget>, client: IpAddr) -> Vec<Permit> {
        std::iter::from_fn(|| budget.take(client, 1).ok()).collect()
    }

    #[test]
    fn some_are_free_whatever_any_number_of_clients_take() {
        // 300 of 400 are for traffic.
        let budget = Budget::new(400, 1);
        let first = take_all(&budget, client(1));
        assert_eq!(first.len(), 150);
        assert_eq!(budget.take(client(1), 1).unwrap_err(), Refusal::ClientLimit);
        let second = take_all(&budget, client(2));
        assert_eq!(second.len(), 75);
        let more: Vec<_> = (3..8).map(|number| take_all(&budget, client(number))).collect();
        assert!(more.iter().all(|permits| !permits.is_empty()), "{more:?}");
        drop((first, second, more));
        assert_eq!(budget.used(), 0);
        assert!(budget.clients.iter().all(|clients| clients.lock().unwrap().is_empty()));
    }

    #[test]
    fn limit_is_never_exceeded() {
        let budget = Budget::new(4, 1);
        assert_eq!(budget.take(client(1), 4).unwrap_err(), Refusal::Exhausted);
        let _two = budget.take(client(1), 2).unwrap();
        assert_eq!(budget.take(client(1), 1).unwrap_err(), Refusal::ClientLimit);
        let _one = budget.take(client(2), 1).unwrap();
    }

    #[test]
    fn reserve_is_a_quarter_or_a_thousand() {
        assert_eq!(Budget::new(256, 1).limit(), 192);
        assert_eq!(Budget::new(1_048_576, 64).limit(), 1_048_576 - 1024 - 64 * 32);
        assert_eq!(Budget::new(0, 1).limit(), 0);
    }
}
