//! Deadlines that are almost never met.
//!
//! A timer of the runtime costs a wake-up of its event loop when it is set. Connecting takes microseconds and its deadline a second, so
//! one coarse tick for all that wait is cheaper than a timer for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How late it may be noticed that an endpoint does not accept.
pub(crate) const CONNECT_TICK: Duration = Duration::from_millis(25);

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

    /// Returns once `deadline` has passed, or a tick later. Cancel-safe.
    pub(crate) async fn passed(&self, deadline: Instant) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.started.notify_one();
        }
        let _leaving = Leaving(&self.waiting);
        while Instant::now() < deadline {
            self.tick.notified().await;
        }
    }
}

/// Counts a waiter out, also when it is cancelled.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
