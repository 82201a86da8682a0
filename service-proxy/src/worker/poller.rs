//! Adaptive polling: polls for the next event instead of sleeping, for as long as that pays.
//!
//! Putting a thread to sleep and waking it costs more than copying a small message. After activity the poller
//! therefore keeps the worker's event loop running (`epoll_wait` without a timeout) for a short window. It
//! adapts the window like KVM's halt polling: an event soon after the window makes it grow, a much later one
//! closes it. A worker that loses its core while polling has delayed another process, and one with several
//! messages per turn does not need to poll: it then sleeps between events for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The first window.
const FIRST_WINDOW: Duration = Duration::from_micros(10);

/// A turn of the loop takes microseconds. A turn of this length was preempted in favour of another process.
const LOST_CORE: Duration = Duration::from_millis(1);

/// Messages per turn that do not count as a batch.
const SMALL_BATCH: u64 = 2;

/// The number of messages above that, over some turns, that make a batch. A sleep then costs one wake-up for
/// all of them. A thread that never sleeps is preempted by each task that it wakes, message by message,
/// whereas one that has slept handles all of them first.
const BATCH_LIMIT: u64 = 8;

/// Polling for this time without being preempted means that a core is free.
const UNDISTURBED: Duration = Duration::from_millis(100);

/// How long a worker does not poll after it was preempted. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The poller of one worker. Used on that worker's thread only, so the atomics cost nothing.
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
    /// Creates a poller with a window of at most `longest`; zero disables polling.
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

    /// Records a small message: more may follow soon.
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

    /// Runs for ever beside the worker's other tasks.
    pub(crate) async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        let mut undisturbed = Duration::ZERO;
        loop {
            self.wake.notified().await;
            let started = Instant::now();
            if self.poll().await {
                undisturbed += started.elapsed();
                if undisturbed > UNDISTURBED {
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

    /// Polls until there is nothing to wait for. Returns false if it was preempted or if messages came in
    /// batches.
    async fn poll(&self) -> bool {
        let mut turn = Instant::now();
        let mut backlog = 0;
        self.carried.store(0, Ordering::Relaxed);
        while self.idle() < self.window() {
            // The runtime polls the sockets before it returns here.
            tokio::task::yield_now().await;
            let before = std::mem::replace(&mut turn, Instant::now());
            backlog = next_backlog(backlog, self.carried.swap(0, Ordering::Relaxed));
            if turn - before > LOST_CORE || backlog >= BATCH_LIMIT {
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

/// Grows while events come soon enough for polling, and closes otherwise.
fn next_window(window: Duration, gap: Duration, longest: Duration) -> Duration {
    if gap > longest {
        Duration::ZERO
    } else if gap > window {
        (window * 2).clamp(FIRST_WINDOW.min(longest), longest)
    } else {
        window
    }
}

/// Messages above [`SMALL_BATCH`] add up, a smaller turn subtracts; a turn without messages does not count.
fn next_backlog(backlog: u64, carried: u64) -> u64 {
    if carried == 0 { backlog } else { (backlog + carried).saturating_sub(SMALL_BATCH) }
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
    fn window_grows_until_events_fall_into_it() {
        assert_eq!(after(&[30]), FIRST_WINDOW);
        assert_eq!(after(&[30, 30, 30, 30, 30]), Duration::from_micros(40));
        assert_eq!(after(&[99; 20]), LONGEST);
    }

    #[test]
    fn batch_is_many_at_once_or_several_repeatedly() {
        let backlog =
            |turns: &[u64]| turns.iter().fold(0, |backlog, carried| next_backlog(backlog, *carried));
        assert!(backlog(&[32]) >= BATCH_LIMIT);
        assert!(backlog(&[4, 0, 4, 0, 4, 0, 4]) >= BATCH_LIMIT);
        assert!(backlog(&[1, 2, 1, 3, 2, 1, 0, 3, 2, 2, 1]) < BATCH_LIMIT, "one or two clients");
        assert_eq!(backlog(&[5, 1, 1, 1]), 0, "a burst that is over");
    }

    #[test]
    fn rare_events_close_the_window_and_a_busy_worker_needs_none() {
        assert_eq!(after(&[30, 30, 30, 5000]), Duration::ZERO);
        assert_eq!(after(&[1; 20]), FIRST_WINDOW);
    }
}
