//! Idle timeouts of connections.
//!
//! A half-closed connection may wait for a response that never comes: without a timeout it leaks, with a
//! short one protocols break. Conntrack gives it an hour (`tcpCloseWaitTimeout` of kube-proxy), and so does
//! this, counted from the last byte. By default an open connection may be idle for ever.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::clock::Clock;

/// The timeouts; `None` means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleTimeouts {
    /// Of a half-closed connection.
    pub half_closed: Option<Duration>,
    /// Of an open connection.
    pub idle: Option<Duration>,
}

/// The progress of the relay. Both directions are polled by one task, so nothing is contended.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) carried: AtomicU64,
    pub(crate) half_closed: AtomicBool,
    /// Requests a check whether both sides are still there.
    pub(crate) check_due: AtomicBool,
}

impl IdleTimeouts {
    /// The granularity of the clock for these timeouts.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.half_closed.into_iter().chain(self.idle).min();
        let coarse = shortest.unwrap_or(Duration::MAX) / 8;
        coarse.clamp(Duration::from_millis(25), Duration::from_secs(60))
    }

    /// Returns when no data was relayed for the timeout, or up to twice that. It is polled with the relay, so
    /// it sees a half-close without a notification.
    pub(crate) async fn expired(&self, progress: &Progress, clock: &Clock) {
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
    /// Makes the relay, which is polled with it, check the connection at every tick. Never returns.
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

    /// How long the connection was kept, if it was not kept to the end. `step` is called at each poll with
    /// the age of the connection: on a busy machine polls are late, but none is skipped.
    async fn lasted(
        idle_timeouts: IdleTimeouts,
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
            () = idle_timeouts.expired(&progress, &clock) => Some(started.elapsed()),
        }
    }

    #[tokio::test]
    async fn half_closed_idle_connection_is_closed() {
        let idle_timeouts = IdleTimeouts { half_closed: Some(LIMIT), idle: None };
        let half_close = |age: Duration, progress: &Progress| {
            progress.half_closed.store(age >= LIMIT, Ordering::Relaxed);
        };
        let lasted_for = lasted(idle_timeouts, LONG, half_close).await.unwrap();
        assert!(lasted_for >= 2 * LIMIT, "{lasted_for:?}");
        let talking = |_, progress: &Progress| {
            progress.half_closed.store(true, Ordering::Relaxed);
            progress.carried.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(lasted(idle_timeouts, 5 * LIMIT, talking).await, None, "bytes still flow");
        assert_eq!(lasted(idle_timeouts, 5 * LIMIT, |_, _| {}).await, None, "open connections may be idle");
    }

    #[tokio::test]
    async fn open_connection_is_closed_only_with_an_idle_timeout() {
        let idle_timeouts = IdleTimeouts { half_closed: None, idle: Some(LIMIT) };
        assert!(lasted(idle_timeouts, LONG, |_, _| {}).await.is_some());
        assert_eq!(lasted(IdleTimeouts::default(), 5 * LIMIT, |_, _| {}).await, None);
    }

    #[test]
    fn clock_is_as_coarse_as_the_timeouts_allow() {
        let tick = |half_closed: u64, idle: Option<u64>| {
            let half_closed = Some(Duration::from_secs(half_closed));
            IdleTimeouts { half_closed, idle: idle.map(Duration::from_secs) }.tick()
        };
        assert_eq!(tick(3600, None), Duration::from_secs(60));
        assert_eq!(tick(3600, Some(8)), Duration::from_secs(1));
        assert_eq!(tick(0, None), Duration::from_millis(25));
        assert_eq!(IdleTimeouts::default().tick(), Duration::from_secs(60));
    }
}
