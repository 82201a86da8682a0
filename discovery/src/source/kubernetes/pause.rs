//! How long to wait before asking again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);

/// A server that is back is found within this.
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles with each failure. Half of it is left to chance, so that the nodes of a cluster do not all ask at once.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failures: u32,
}

impl Pause {
    /// The next pause; at least as long as the server has asked for.
    pub(super) fn next(&mut self, asked_for: Duration) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0).max(asked_for.mul_f64(1.0 + fastrand::f64() / 2.0))
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_are_never_the_same_and_respect_what_the_server_asks_for() {
        let mut pause = Pause::default();
        let pauses: Vec<Duration> = (0..12).map(|_| pause.next(Duration::ZERO)).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        assert!(pauses[11] >= LONGEST / 2 && pauses[11] <= LONGEST, "{pauses:?}");
        assert_ne!(pauses[10], pauses[11]);
        assert!(pause.next(Duration::from_secs(30)) >= Duration::from_secs(30));
        pause.reset();
        assert!(pause.next(Duration::ZERO) <= FIRST);
    }
}
