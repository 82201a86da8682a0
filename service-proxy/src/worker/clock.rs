//! Deadlines that are almost never met.
//!
//! A timer of the runtime costs a wake-up of its event loop when it is set. Connecting takes microseconds and
//! its deadline a second, so one coarse tick for all that wait is cheaper than a timer for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How late it may be noticed that an endpoint does not accept.
pub(crate) const CONNECT_TICK: Duration = Duration::from_millis(25);

/// How often it is looked whether the peers of idle connections are still there.
pub(crate) const CHECK_TICK: Duration = Duration::from_secs(2);

/// One worker's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    /// How late a deadline may be noticed.
    interval: Duration,
    waiting: AtomicUsize,
    started: Notify,
    tick: Notify,
}

impl Clock {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, waiting: AtomicUsize::new(0), started: Notify::new(), tick: Notify::new() }
    }

    /// Runs beside the worker's other tasks, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            while self.waiting.load(Ordering::Relaxed) == 0 {
                self.started.notified().await;
            }
            tokio::time::sleep(self.interval).await;
            self.tick.notify_waiters();
        }
    }

    /// Returns at the next tick. Cancel-safe.
    pub(crate) async fn next_tick(&self) {
        let _leaving = self.enter();
        self.tick.notified().await;
    }

    /// Returns once `deadline` has passed, or a tick later. Cancel-safe.
    pub(crate) async fn passed(&self, deadline: Instant) {
        let _leaving = self.enter();
        while Instant::now() < deadline {
            self.tick.notified().await;
        }
    }

    fn enter(&self) -> Leaving<'_> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.started.notify_one();
        }
        Leaving(&self.waiting)
    }
}

/// Counts a waiter out, also when it is cancelled.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
