//! Medians and their uncertainty.

use fastrand::Rng;

use serde::{Deserialize, Serialize};

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// A value and its 95% interval.
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

    /// Returns half the width of the interval.
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Returns how far a difference, of either sign, exceeds the noise.
    #[must_use]
    pub fn beyond(self, noise: f64) -> Self {
        let size = |difference: f64| (difference.abs() - noise).max(0.0);
        let (low, high) = (size(self.low), size(self.high));
        let least = if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { low.min(high) };
        Self { value: size(self.value), low: least, high: low.max(high) }
    }

    /// Returns the estimate in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// A count or a single observation, without an interval.
impl From<f64> for Estimate {
    fn from(value: f64) -> Self {
        Self { value, low: value, high: value }
    }
}

/// Returns the median; zero without values.
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

/// Returns the median with its 95% bootstrap interval. The same values give the same result.
pub(crate) fn bootstrap(values: &[f64]) -> Estimate {
    let mut random = Rng::with_seed(0x5EED);
    resampled(median(&mut values.to_vec()), || resample(values, &mut random))
}

/// Returns the ratio of two medians that were measured at different times, so that their rounds are not
/// paired.
pub(crate) fn ratio_of_medians(values: &[f64], baseline: &[f64]) -> Estimate {
    let mut random = Rng::with_seed(0x5EED);
    let value = median(&mut values.to_vec()) / median(&mut baseline.to_vec());
    resampled(value, || resample(values, &mut random) / resample(baseline, &mut random))
}

fn resampled(value: f64, draw: impl FnMut() -> f64) -> Estimate {
    let mut drawn: Vec<f64> = std::iter::repeat_with(draw).take(RESAMPLES).collect();
    drawn.sort_by(f64::total_cmp);
    Estimate::new(drawn[RESAMPLES / 40], value, drawn[RESAMPLES - 1 - RESAMPLES / 40])
}

/// Returns the median of a sample of the same size, drawn with replacement.
fn resample(values: &[f64], random: &mut Rng) -> f64 {
    let mut drawn: Vec<f64> =
        values.iter().map(|_| random.choice(values).copied().unwrap_or_default()).collect();
    median(&mut drawn)
}

/// Returns the confidence of an interval for a column head. With few rounds the interval is the range of the
/// values, which misses the true median in two of 2^rounds runs: with three rounds in one of four.
pub(crate) fn confidence(rounds: usize) -> String {
    if rounds < 6 { format!("range of {rounds}") } else { "95%".to_owned() }
}

/// Compares values of the same round and returns the median with its interval.
pub(crate) fn paired(values: &[f64], baseline: &[f64], by: impl Fn(f64, f64) -> f64) -> Estimate {
    let paired: Vec<f64> = values.iter().zip(baseline).map(|(&value, &other)| by(value, other)).collect();
    bootstrap(&paired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn interval_contains_the_true_median_as_often_as_stated() {
        let mut random = Rng::with_seed(7);
        let trials = 300;
        let mut contained = 0;
        for _ in 0..trials {
            // Skewed, as latencies are; the median of an exponential distribution is ln 2.
            let values: Vec<f64> = (0..60).map(|_| -(1.0 - random.f64()).ln()).collect();
            let estimate = bootstrap(&values);
            contained += u32::from(estimate.low <= 2_f64.ln() && 2_f64.ln() <= estimate.high);
        }
        let share = f64::from(contained) / f64::from(trials);
        assert!((0.91..=0.99).contains(&share), "{share}");
    }

    #[test]
    fn noise_is_subtracted_from_a_difference_and_its_interval() {
        for (difference, expected) in [
            (Estimate::new(-9.0, -8.0, 3.0), Estimate::new(0.0, 6.0, 7.0)),
            (Estimate::new(-9.0, -8.0, -5.0), Estimate::new(3.0, 6.0, 7.0)),
            (Estimate::new(3.0, 4.0, 5.0), Estimate::new(1.0, 2.0, 3.0)),
            (Estimate::new(-1.5, 1.0, 1.5), Estimate::new(0.0, 0.0, 0.0)),
        ] {
            assert_eq!(difference.beyond(2.0), expected);
        }
    }

    #[test]
    fn interval_of_few_rounds_is_called_a_range() {
        let mut random = Rng::with_seed(7);
        let contained = |rounds: usize, random: &mut Rng| {
            let trial = |_: &u32| {
                let values: Vec<f64> = (0..rounds).map(|_| random.f64()).collect();
                let estimate = bootstrap(&values);
                estimate.low <= 0.5 && 0.5 <= estimate.high
            };
            (0..400).filter(trial).count()
        };
        assert_eq!((confidence(3), confidence(6)), ("range of 3".to_owned(), "95%".to_owned()));
        assert!(contained(3, &mut random) < 340, "three rounds contain it in 300 of 400");
        assert!(contained(6, &mut random) > 360);
    }

    #[test]
    fn ratio_of_medians_has_the_uncertainty_of_both() {
        let wide: Vec<f64> = (0..40).map(|value| 90.0 + f64::from(value) / 2.0).collect();
        let ratio = ratio_of_medians(&wide, &[50.0; 40]);
        assert!((1.9..2.1).contains(&ratio.value) && ratio.low < ratio.value && ratio.value < ratio.high);
        assert_eq!(ratio_of_medians(&[50.0; 40], &[50.0; 40]), Estimate::new(1.0, 1.0, 1.0));
    }

    #[test]
    fn pairing_removes_common_drift() {
        let drift = |round: u32| f64::from(round) * 10.0;
        let base: Vec<f64> = (0..60).map(drift).collect();
        let more: Vec<f64> = (0..60).map(|round| drift(round) + 3.0).collect();
        let added = paired(&more, &base, |more, base| more - base);
        assert_eq!((added.low, added.value, added.high), (3.0, 3.0, 3.0));
    }
}
