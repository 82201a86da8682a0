//! A coarse clock for deadlines that are almost never reached.
//!
//! A timer of the runtime costs a wake-up of its event loop when it is set. Connecting takes microseconds and
//! its timeout is a second, so one coarse tick for all waiting tasks is cheaper than a timer for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The maximum delay in detecting a connect timeout.
pub(crate) const CONNECT_TICK: Duration = Duration::from_millis(25);

/// Interval of checks for peers of idle connections.
pub(crate) const CHECK_TICK: Duration = Duration::from_secs(2);

/// The clock of one worker.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The maximum delay of a deadline.
    interval: Duration,
    waiting: AtomicUsize,
    started: Notify,
    tick: Notify,
}

impl Clock {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, waiting: AtomicUsize::new(0), started: Notify::new(), tick: Notify::new() }
    }

    /// Runs for ever beside the worker's other tasks.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            while self.waiting.load(Ordering::Relaxed) == 0 {
                self.started.notified().await;
            }
            tokio::time::sleep(self.interval).await;
            self.tick.notify_waiters();
        }
    }

    /// Waits for the next tick. Cancel-safe.
    pub(crate) async fn next_tick(&self) {
        let _leaving = self.enter();
        self.tick.notified().await;
    }

    /// Returns once `deadline` has passed, up to a tick later. Cancel-safe.
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

/// Unregisters a waiter, even if it is cancelled.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
