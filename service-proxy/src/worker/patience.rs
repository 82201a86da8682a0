//! How long a connection may be quiet.
//!
//! One that is half closed may wait for an answer that never comes: a proxy that waits for ever leaks it, one
//! that does not wait at all breaks protocols. The kernel's own connection tracking gives it an hour
//! (`tcpCloseWaitTimeout` of kube-proxy), and so does this, counted from the last byte. An open one may be
//! silent for ever unless told otherwise.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::clock::Clock;

/// The limits; `None` means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// One side has closed, the other has not.
    pub half_closed: Option<Duration>,
    /// Neither has.
    pub idle: Option<Duration>,
}

/// What the relay has done so far. Both sides of it are polled by one task: nothing is contended.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) carried: AtomicU64,
    pub(crate) half_closed: AtomicBool,
    /// It is time to look whether both sides are still there.
    pub(crate) check_due: AtomicBool,
}

impl Patience {
    /// How coarse the clock for these may be.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.half_closed.into_iter().chain(self.idle).min();
        let coarse = shortest.unwrap_or(Duration::MAX) / 8;
        coarse.clamp(Duration::from_millis(25), Duration::from_secs(60))
    }

    /// Returns when nothing has moved for as long as the connection may be quiet, or up to twice that. It is
    /// polled with the relay, and so learns of a half-close without being told.
    pub(crate) async fn exhausted(&self, progress: &Progress, clock: &Clock) {
        loop {
            let limit = poll_fn(|_| self.limit(progress).map_or(Poll::Pending, Poll::Ready)).await;
            let before = progress.now();
            clock.passed(Instant::now() + limit).await;
            if progress.now() == before {
                return;
            }
        }
    }

    fn limit(&self, progress: &Progress) -> Option<Duration> {
        if progress.half_closed.load(Ordering::Relaxed) { self.half_closed } else { self.idle }
    }
}

impl Progress {
    /// Has the relay, which is polled with it, look after the connection at every tick. Never returns.
    pub(crate) async fn request_checks(&self, clock: &Clock) {
        loop {
            clock.next_tick().await;
            self.check_due.store(true, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    }

    fn now(&self) -> (u64, bool) {
        (self.carried.load(Ordering::Relaxed), self.half_closed.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(80);
    const LONG: Duration = Duration::from_secs(60);

    /// For how long a connection was kept, if not for as long as it went on. `step` is called at each poll
    /// with its age: on a busy machine polls are late, but none is without it.
    async fn lasted(
        patience: Patience,
        length: Duration,
        step: impl Fn(Duration, &Progress),
    ) -> Option<Duration> {
        let clock = Arc::new(Clock::new(Duration::from_millis(5)));
        let (progress, started) = (Progress::default(), Instant::now());
        let life = async {
            while started.elapsed() < length {
                step(started.elapsed(), &progress);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = Arc::clone(&clock).run() => unreachable!(),
            () = life => None,
            () = patience.exhausted(&progress, &clock) => Some(started.elapsed()),
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_half_closed_and_quiet_ends() {
        let patience = Patience { half_closed: Some(LIMIT), idle: None };
        let half_close = |age: Duration, progress: &Progress| {
            progress.half_closed.store(age >= LIMIT, Ordering::Relaxed);
        };
        let lasted_for = lasted(patience, LONG, half_close).await.unwrap();
        assert!(lasted_for >= 2 * LIMIT, "{lasted_for:?}");
        let talking = |_, progress: &Progress| {
            progress.half_closed.store(true, Ordering::Relaxed);
            progress.carried.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(lasted(patience, 5 * LIMIT, talking).await, None, "bytes still flow");
        assert_eq!(lasted(patience, 5 * LIMIT, |_, _| {}).await, None, "open connections may be idle");
    }

    #[tokio::test]
    async fn an_open_connection_ends_only_where_idle_ones_are_limited() {
        let patience = Patience { half_closed: None, idle: Some(LIMIT) };
        assert!(lasted(patience, LONG, |_, _| {}).await.is_some());
        assert_eq!(lasted(Patience::default(), 5 * LIMIT, |_, _| {}).await, None);
    }

    #[test]
    fn the_clock_is_as_coarse_as_the_limits_allow() {
        let tick = |half_closed: u64, idle: Option<u64>| {
            let half_closed = Some(Duration::from_secs(half_closed));
            Patience { half_closed, idle: idle.map(Duration::from_secs) }.tick()
        };
        assert_eq!(tick(3600, None), Duration::from_secs(60));
        assert_eq!(tick(3600, Some(8)), Duration::from_secs(1));
        assert_eq!(tick(0, None), Duration::from_millis(25));
        assert_eq!(Patience::default().tick(), Duration::from_secs(60));
    }
}
