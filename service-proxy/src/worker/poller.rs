//! Looking for the next event instead of sleeping, for as long as that pays.
//!
//! Putting a thread to sleep and waking it costs more than all copying of a small message. After activity the
//! poller therefore keeps the worker's event loop turning (`epoll_wait` without a timeout) for a short
//! window. How long the window is, it learns as KVM's halt polling does: an event that comes soon after the
//! window makes it grow, one that comes much later closes it. A worker that loses its core while polling
//! delayed another process, and one that finds several messages at a time has no need to: it then sleeps
//! between events for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The first window after none.
const FIRST_WINDOW: Duration = Duration::from_micros(10);

/// A turn of the loop takes microseconds. One that took this long was spent off the core, which the scheduler
/// had given to another process.
const LOST_CORE: Duration = Duration::from_millis(1);

/// Messages in one turn of the loop that are no crowd yet.
const COMPANY: u64 = 2;

/// So many above that, over some turns, are one. A sleep then costs one wake-up for all of them; and a thread
/// that never sleeps is put off its core by whoever it wakes, message by message, where one that has slept
/// gets through all of them first.
const CROWD: u64 = 8;

/// Polling for so long without losing the core means that there is one to spare.
const CALM: Duration = Duration::from_millis(100);

/// How long a worker does not poll after it was in the way; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One worker's poller. Used on that worker's thread only, so the atomics cost nothing.
#[derive(Debug)]
pub(crate) struct Poller {
    longest: Duration,
    started: Instant,
    /// Nanoseconds after `started`.
    last_activity: AtomicU64,
    /// Nanoseconds.
    window: AtomicU64,
    /// Messages in this turn of the loop.
    carried: AtomicU64,
    asleep: AtomicBool,
    wake: Notify,
}

impl Poller {
    /// Polls for at most `longest` after the last activity; zero means never.
    pub(crate) fn new(longest: Duration) -> Arc<Self> {
        Arc::new(Self {
            longest,
            started: Instant::now(),
            last_activity: AtomicU64::new(0),
            window: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            asleep: AtomicBool::new(true),
            wake: Notify::new(),
        })
    }

    /// Something small was carried: more may follow soon.
    pub(crate) fn active(&self) {
        if self.longest.is_zero() {
            return;
        }
        self.carried.fetch_add(1, Ordering::Relaxed);
        let now = self.now();
        let gap = now.saturating_sub(self.last_activity.swap(now, Ordering::Relaxed));
        let window = next_window(self.window(), Duration::from_nanos(gap), self.longest);
        self.window.store(nanos(window), Ordering::Relaxed);
        if !window.is_zero() && self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// Runs beside the worker's other tasks, for ever.
    pub(crate) async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        let mut undisturbed = Duration::ZERO;
        loop {
            self.wake.notified().await;
            let started = Instant::now();
            if self.poll().await {
                undisturbed += started.elapsed();
                if undisturbed > CALM {
                    pause = FIRST_PAUSE;
                }
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                undisturbed = Duration::ZERO;
            }
            self.asleep.store(true, Ordering::Relaxed);
        }
    }

    /// Polls until there is nothing to wait for. False if another process needed the core meanwhile, or there
    /// was a crowd.
    async fn poll(&self) -> bool {
        let mut turn = Instant::now();
        let mut crowd = 0;
        self.carried.store(0, Ordering::Relaxed);
        while self.idle() < self.window() {
            // The runtime looks at the sockets before it comes back here.
            tokio::task::yield_now().await;
            let before = std::mem::replace(&mut turn, Instant::now());
            crowd = next_crowd(crowd, self.carried.swap(0, Ordering::Relaxed));
            if turn - before > LOST_CORE || crowd >= CROWD {
                return false;
            }
        }
        true
    }

    fn idle(&self) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(self.last_activity.load(Ordering::Relaxed)))
    }

    fn window(&self) -> Duration {
        Duration::from_nanos(self.window.load(Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }
}

/// Grows while events come soon enough for polling to find them, and closes when they do not.
fn next_window(window: Duration, gap: Duration, longest: Duration) -> Duration {
    if gap > longest {
        Duration::ZERO
    } else if gap > window {
        (window * 2).clamp(FIRST_WINDOW.min(longest), longest)
    } else {
        window
    }
}

/// What is above [`COMPANY`] adds up, what is below takes away; a turn without messages says nothing.
fn next_crowd(crowd: u64, carried: u64) -> u64 {
    if carried == 0 { crowd } else { (crowd + carried).saturating_sub(COMPANY) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(100);

    fn after(gaps_in_micros: &[u64]) -> Duration {
        let gaps = gaps_in_micros.iter().map(|gap| Duration::from_micros(*gap));
        gaps.fold(Duration::ZERO, |window, gap| next_window(window, gap, LONGEST))
    }

    #[test]
    fn the_window_grows_until_events_fall_into_it() {
        assert_eq!(after(&[30]), FIRST_WINDOW);
        assert_eq!(after(&[30, 30, 30, 30, 30]), Duration::from_micros(40));
        assert_eq!(after(&[99; 20]), LONGEST);
    }

    #[test]
    fn a_crowd_is_many_at_once_or_some_again_and_again() {
        let crowd = |turns: &[u64]| turns.iter().fold(0, |crowd, carried| next_crowd(crowd, *carried));
        assert!(crowd(&[32]) >= CROWD);
        assert!(crowd(&[4, 0, 4, 0, 4, 0, 4]) >= CROWD);
        assert!(crowd(&[1, 2, 1, 3, 2, 1, 0, 3, 2, 2, 1]) < CROWD, "one or two clients");
        assert_eq!(crowd(&[5, 1, 1, 1]), 0, "a burst that is over");
    }

    #[test]
    fn rare_events_close_it_and_a_busy_worker_needs_none() {
        assert_eq!(after(&[30, 30, 30, 5000]), Duration::ZERO);
        assert_eq!(after(&[1; 20]), FIRST_WINDOW);
    }
}
