//! How long a server takes.

/// Answers that are remembered.
const SAMPLES: usize = 64;

/// What a server is expected to take before it has answered once, in microseconds.
const UNKNOWN: u32 = 50_000;

/// The share of a new sample in the average: one eighth, as TCP does (RFC 6298 §2).
const SMOOTHING: u32 = 8;

/// The longest that one failure may add up to, in microseconds.
const WORST: u32 = 4_000_000;

/// The last answers of one server. Microseconds throughout.
#[derive(Debug)]
pub(super) struct Latency {
    smoothed: u32,
    samples: [u32; SAMPLES],
    count: usize,
}

impl Default for Latency {
    fn default() -> Self {
        Self { smoothed: UNKNOWN, samples: [0; SAMPLES], count: 0 }
    }
}

impl Latency {
    /// An answer came after so long.
    pub(super) fn answered(&mut self, took: u32) {
        if self.count == 0 {
            self.smoothed = took;
        }
        self.samples[self.count % SAMPLES] = took;
        self.count += 1;
        // One good answer after an outage is enough to be asked again soon.
        let ceiling = self.smoothed.min(took.saturating_mul(SMOOTHING));
        self.smoothed = ceiling - ceiling / SMOOTHING + took / SMOOTHING;
    }

    /// No answer came; it is expected to take twice as long next time.
    pub(super) fn failed(&mut self) {
        self.smoothed = self.smoothed.max(UNKNOWN).saturating_mul(2).min(WORST);
    }

    /// None has come for so long, and now another server was quicker.
    pub(super) fn overtaken(&mut self, after: u32) {
        if after > self.smoothed {
            self.smoothed = (self.smoothed - self.smoothed / SMOOTHING + after / SMOOTHING).min(WORST);
        }
    }

    /// What it is expected to take.
    pub(super) fn expected(&self) -> u32 {
        self.smoothed
    }

    /// What nineteen of twenty answers stayed below; `None` before there are a few.
    pub(super) fn p95(&self) -> Option<u32> {
        const FEW: usize = 8;
        let count = self.count.min(SAMPLES);
        if count < FEW {
            return None;
        }
        let mut sorted = self.samples;
        let sorted = &mut sorted[..count];
        sorted.sort_unstable();
        sorted.get(count * 95 / 100).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_makes_a_server_second_and_one_answer_brings_it_back() {
        let (mut fast, mut slow) = (Latency::default(), Latency::default());
        for _ in 0..100 {
            fast.answered(1000);
            slow.answered(20_000);
        }
        assert!(fast.expected() < slow.expected());
        assert_eq!(fast.p95(), Some(1000));
        fast.failed();
        assert!(fast.expected() > slow.expected());
        for _ in 0..20 {
            fast.failed();
        }
        assert_eq!(fast.expected(), WORST);
        fast.answered(1000);
        assert!(fast.expected() < slow.expected());
    }
}
