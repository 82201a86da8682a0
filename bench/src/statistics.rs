//! Medians and their uncertainty.

use fastrand::Rng;

use serde::{Deserialize, Serialize};

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// A value and the 95% interval it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The best single value.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    /// Lower end, value, upper end.
    pub fn new(low: f64, value: f64, high: f64) -> Self {
        Self { value, low, high }
    }

    /// Half of what is between the ends.
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// A count, or a single observation: no interval.
impl From<f64> for Estimate {
    fn from(value: f64) -> Self {
        Self { value, low: value, high: value }
    }
}

/// The median; zero of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    if values.is_empty() {
        return 0.0;
    }
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp);
    match lower {
        Some(lower) if values.len().is_multiple_of(2) => f64::midpoint(lower, upper),
        _ => upper,
    }
}

/// The median, and where it lies with 95% confidence, by resampling the rounds. The same values give the same answer.
pub(crate) fn bootstrap(values: &[f64]) -> Estimate {
    let mut random = Rng::with_seed(0x5EED);
    let mut resampled = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            resampled.fill_with(|| random.choice(values).copied().unwrap_or_default());
            median(&mut resampled)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let (low, high) = (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40]);
    Estimate::new(low, median(&mut values.to_vec()), high)
}

/// Differences of values of the same round.
pub(crate) fn paired(values: &[f64], others: &[f64], by: impl Fn(f64, f64) -> f64) -> Estimate {
    let paired: Vec<f64> = values.iter().zip(others).map(|(&value, &other)| by(value, other)).collect();
    bootstrap(&paired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_of_odd_and_even_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn the_interval_holds_the_true_median_about_as_often_as_it_says() {
        let mut random = Rng::with_seed(7);
        let trials = 300;
        let mut held = 0;
        for _ in 0..trials {
            // Skewed, as latencies are; the median of an exponential distribution is ln 2.
            let values: Vec<f64> = (0..60).map(|_| -(1.0 - random.f64()).ln()).collect();
            let estimate = bootstrap(&values);
            held += u32::from(estimate.low <= 2_f64.ln() && 2_f64.ln() <= estimate.high);
        }
        let share = f64::from(held) / f64::from(trials);
        assert!((0.91..=0.99).contains(&share), "{share}");
    }

    #[test]
    fn pairing_removes_what_both_have_in_common() {
        let drift = |round: u32| f64::from(round) * 10.0;
        let base: Vec<f64> = (0..60).map(drift).collect();
        let more: Vec<f64> = (0..60).map(|round| drift(round) + 3.0).collect();
        let added = paired(&more, &base, |more, base| more - base);
        assert_eq!((added.low, added.value, added.high), (3.0, 3.0, 3.0));
    }
}
