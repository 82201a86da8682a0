//! An endpoint, with the observations of this proxy.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Consecutive connect failures after which an endpoint is ejected.
const FAILURES: u32 = 3;

/// Duration of the first ejection. It doubles each time.
const FIRST_EJECTION: Duration = Duration::from_secs(10);

/// The longest ejection.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// How long a new endpoint gets less than its share (slow start), so that its caches warm up.
const SLOW_START: Duration = Duration::from_secs(10);

/// Shared by several endpoint sets, so that its state survives a change of other endpoints.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    since: Instant,
    connections: AtomicU32,
    failures: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds after `since`; 0 means never.
    ejected_until: AtomicU64,
}

/// Counts as a connection of the endpoint while it exists.
#[derive(Debug)]
pub(crate) struct InUse(std::sync::Arc<Endpoint>);

impl Endpoint {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            since: Instant::now(),
            connections: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether it is ejected.
    pub(crate) fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until > 0 && self.age() < Duration::from_millis(until)
    }

    /// The slow-start share of a new endpoint, from 0 to 1.
    pub(crate) fn warmth(&self) -> f64 {
        (self.age().as_secs_f64() / SLOW_START.as_secs_f64()).min(1.0)
    }

    /// Records a successful connection.
    pub(crate) fn succeeded(self: &std::sync::Arc<Self>) -> InUse {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        InUse(std::sync::Arc::clone(self))
    }

    /// Records a failed attempt. Returns whether the endpoint is to be ejected.
    pub(crate) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES && !self.is_ejected()
    }

    /// Ejects it for a while.
    pub(crate) fn eject(&self) {
        let times = self.ejections.fetch_add(1, Ordering::Relaxed);
        let length = FIRST_EJECTION.saturating_mul(1 << times.min(8)).min(LONGEST_EJECTION);
        let until = u64::try_from((self.age() + length).as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(until, Ordering::Relaxed);
    }

    fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
