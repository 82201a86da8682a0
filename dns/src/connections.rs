//! How many connections there may be, and whose has to go when there are as many.
//!
//! A client may have as many as it likes while there is room. Without room, the client with the most connections loses its oldest
//! one: so no client can keep the others out, however slowly it writes (RFC 7766 §10).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections over TCP and TLS at a time; the next ones wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;

/// Connections over HTTPS and QUIC at a time. Each may have up to 32 queries of 4 KiB under way: 64 MiB
/// in all.
const MAX_MULTIPLEXED: usize = 512;

/// Bytes of queries that have not come whole, over all connections, beyond what each has anyway.
const MAX_UNREAD: usize = 16 << 20;

/// Everything that is open.
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    unread: AtomicUsize,
    open: Mutex<HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>>,
    next: AtomicU64,
}

/// One connection, until it is dropped.
pub(crate) struct Place {
    connections: Arc<Connections>,
    client: IpAddr,
    number: u64,
    unread: usize,
    /// Another connection needs the place.
    pub(crate) evicted: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// For half of the files that may be open, the other half is for upstream servers.
    pub(crate) fn new(open_files: u64) -> Arc<Self> {
        let half = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
        Self::with_limit(half.clamp(1, MAX_CONNECTIONS))
    }

    /// For connections that have many queries under way.
    pub(crate) fn multiplexed() -> Arc<Self> {
        Self::with_limit(MAX_MULTIPLEXED)
    }

    fn with_limit(limit: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limit));
        let (unread, open, next) = (AtomicUsize::new(0), Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { permits, unread, open, next })
    }

    /// Waits for room, for which another connection has to go if there is none.
    pub(crate) async fn permit(&self) -> OwnedSemaphorePermit {
        if self.permits.available_permits() == 0 {
            self.evict();
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Notes a connection.
    pub(crate) fn enter(self: &Arc<Self>, client: IpAddr, permit: OwnedSemaphorePermit) -> Place {
        let number = self.next.fetch_add(1, Relaxed);
        let evicted = CancellationToken::new();
        self.lock().entry(client).or_default().push_back((number, evicted.clone()));
        Place { connections: Arc::clone(self), client, number, unread: 0, evicted, _permit: permit }
    }

    fn evict(&self) {
        let mut open = self.lock();
        let most = open.values_mut().max_by_key(|of_client| of_client.len());
        // The next one that needs room takes another one's.
        if let Some((_, oldest)) = most.and_then(VecDeque::pop_front) {
            oldest.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether so many bytes of a query may wait for the rest of it.
    pub(crate) fn may_keep(&mut self, bytes: usize) -> bool {
        let unread = &self.connections.unread;
        unread.fetch_sub(self.unread, Relaxed);
        self.unread = bytes;
        unread.fetch_add(bytes, Relaxed) + bytes <= MAX_UNREAD || bytes == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.unread.fetch_sub(self.unread, Relaxed);
        let mut open = self.connections.lock();
        if let Some(of_client) = open.get_mut(&self.client) {
            of_client.retain(|(number, _)| *number != self.number);
            if of_client.is_empty() {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn each_listener_that_waits_evicts_another_connection() {
        let open = Connections::with_limit(3);
        let mut places = Vec::new();
        for client in [1, 2, 2].map(|host| IpAddr::from(Ipv4Addr::new(10, 0, 0, host))) {
            let permit = open.permit().await;
            places.push(open.enter(client, permit));
        }
        let waiting = [open.permit(), open.permit()].map(|permit| Box::pin(permit).now_or_never().is_none());
        assert_eq!(waiting, [true, true]);
        assert_eq!(places.iter().filter(|place| place.evicted.is_cancelled()).count(), 2);
        drop(places);
        assert!(open.lock().is_empty());
    }
}
