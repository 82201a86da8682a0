//! The result of several paths measured side by side.

use serde::{Deserialize, Serialize};

use crate::statistics::Estimate;

/// One load over several paths.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Short: `RR`, `open loop, 1,000/s`.
    pub title: String,
    /// A description of the load.
    pub load: String,
    /// `requests` or `MiB`.
    pub unit: String,
    /// Blocks of each path.
    pub rounds: usize,
    /// Length of a block.
    pub block_ms: u64,
    /// Whether the load saturates the paths. A latency is then the number of requests in flight divided by
    /// the rate.
    #[serde(default)]
    pub saturated: bool,
    /// All paths. The first is the baseline; the one with `again` measures the noise.
    pub paths: Vec<PathResult>,
}

/// The result of one path. Times in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PathResult {
    /// Its name in tables.
    pub path: String,
    /// Whether it is the first path measured a second time (A/A).
    pub again: bool,
    /// Answered requests.
    pub requests: u64,
    /// Requests without an answer within the deadline.
    pub errors: u64,
    /// Quantiles over all blocks.
    pub p50: f64,
    /// 90%.
    pub p90: f64,
    /// 99%.
    pub p99: f64,
    /// 99.9%.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
    /// Requests, or MiB, a second: over the rounds.
    pub rate: Estimate,
    /// Latency added to the first path in the same round. `None` for the first path, for streams, and where
    /// either path has no answer.
    pub added: Option<Added>,
    /// Rate divided by the first path's rate in the same round.
    pub relative_rate: Estimate,
    /// Resources used.
    pub usage: Usage,
    /// Delay from the scheduled to the actual send time in an open loop: p50, p99, max.
    pub lag: Option<[f64; 3]>,
    /// p50, p99, p99.9 and rate of each round.
    pub rounds: Vec<[f64; 4]>,
    /// CPU time of the proxy or server under test in each round, µs a request.
    #[serde(default)]
    pub between_rounds: Vec<f64>,
    /// Cores used by that program; `None` if only the kernel is on the path.
    #[serde(default)]
    pub busy: Option<f64>,
}

/// Differences from the first path, round by round: median and 95% bootstrap interval.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Added {
    /// Of the medians.
    pub p50: Estimate,
    /// Of the 99th percentiles.
    pub p99: Estimate,
    /// Of the 99.9th percentiles.
    pub p999: Estimate,
}

/// Resources used for a request or a MiB; `None` for a path without answers.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the proxy or server under test, µs; `None` if only the kernel is on the path.
    pub between: Option<f64>,
    /// CPU time of client, server and the program under test, µs.
    pub all: Option<f64>,
    /// Context switches of the machine.
    pub switches: Option<f64>,
    /// Involuntary context switches of the client, over all blocks.
    pub preempted: u64,
    /// CPU steal time, ms over all blocks.
    pub steal_ms: f64,
}

/// Which percentile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Percentile {
    /// 50.
    P50,
    /// 99.
    P99,
    /// 99.9.
    P999,
}

impl Added {
    /// The difference at one percentile.
    pub fn at(&self, percentile: Percentile) -> Estimate {
        match percentile {
            Percentile::P50 => self.p50,
            Percentile::P99 => self.p99,
            Percentile::P999 => self.p999,
        }
    }
}

impl Comparison {
    /// Returns the A/A noise: the end of the A/A interval that is further from zero, µs.
    pub fn noise(&self, percentile: Percentile) -> Option<f64> {
        let again = self.paths.iter().find(|path| path.again)?.added?.at(percentile);
        Some(again.low.abs().max(again.high.abs()))
    }

    /// Returns the A/A noise of the rate, as a distance from factor one.
    pub fn rate_noise(&self) -> Option<f64> {
        let again = self.paths.iter().find(|path| path.again)?.relative_rate;
        Some((again.low - 1.0).abs().max((again.high - 1.0).abs()))
    }

    /// Returns whether the added latency is significant: its interval excludes zero and its value exceeds the
    /// noise.
    pub fn is_difference(&self, path: &PathResult, percentile: Percentile) -> bool {
        let (Some(added), Some(noise)) = (path.added, self.noise(percentile)) else { return false };
        let added = added.at(percentile);
        (added.low > 0.0 || added.high < 0.0) && added.value.abs() > noise
    }

    /// Returns the path of that name.
    pub fn path(&self, name: &str) -> Option<&PathResult> {
        self.paths.iter().find(|path| path.path == name)
    }

    /// Returns warnings for a reader: errors, a noisy machine, a late generator.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for path in self.paths.iter().filter(|path| path.errors > 0) {
            found.push(format!(
                "{}: {}: {} errors in {} requests",
                self.title, path.path, path.errors, path.requests
            ));
        }
        let (Some(noise), Some(first)) = (self.noise(Percentile::P50), self.paths.first()) else {
            return found;
        };
        if noise > first.p50 * TOO_NOISY {
            found.push(format!(
                "{}: the machine is noisy: the same path measured twice differs by up to {noise:.1} µs at a \
                 p50 of {:.1} µs; stop other load and measure again",
                self.title, first.p50
            ));
        }
        found.extend(self.lateness());
        found
    }

    /// Returns a warning if the generator sent late, so that the tail is the generator's and not the path's.
    fn lateness(&self) -> Option<String> {
        let late = |path: &&PathResult| path.lag.is_some_and(|[_, p99, _]| p99 > path.p99 * TOO_LATE);
        let worst = self.paths.iter().filter(late).map(|path| path.lag.unwrap_or_default()[1]);
        let worst = worst.max_by(f64::total_cmp)?;
        Some(format!(
            "{}: the generator was preempted: 1% of the requests was sent {worst:.0} µs late or more, which \
             is part of the p99",
            self.title
        ))
    }
}

/// A/A noise above this share of the median gives a warning.
const TOO_NOISY: f64 = 0.2;

/// A send delay above this share of the p99 gives a warning.
const TOO_LATE: f64 = 0.1;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A path that adds the same latency at every percentile.
    pub(crate) fn path(name: &str, errors: u64, added: Option<Estimate>) -> PathResult {
        let added = added.map(|estimate| Added { p50: estimate, p99: estimate, p999: estimate });
        PathResult {
            path: name.to_owned(),
            again: name.ends_with(" again"),
            requests: 1000,
            errors,
            p50: 50.0,
            p90: 60.0,
            p99: 70.0,
            p999: 80.0,
            max: 90.0,
            rate: 1.0.into(),
            added,
            relative_rate: 1.0.into(),
            usage: Usage::default(),
            lag: None,
            rounds: Vec::new(),
            between_rounds: Vec::new(),
            busy: None,
        }
    }

    fn compared(noise: f64, errors: u64) -> Comparison {
        Comparison {
            title: "RR".to_owned(),
            load: String::new(),
            unit: "requests".to_owned(),
            rounds: 10,
            block_ms: 200,
            saturated: false,
            paths: vec![
                path("direct", 0, None),
                path("direct again", 0, Some(Estimate::new(-noise, 0.1, 1.0))),
                path("proxy", errors, Some(Estimate::new(4.0, 5.0, 6.0))),
            ],
        }
    }

    #[test]
    fn difference_within_the_noise_is_not_significant() {
        let quiet = compared(2.0, 0);
        assert!(quiet.is_difference(&quiet.paths[2], Percentile::P50));
        let noisy = compared(5.5, 0);
        assert!(!noisy.is_difference(&noisy.paths[2], Percentile::P50));
        assert!(!quiet.is_difference(&quiet.paths[1], Percentile::P99), "zero is inside its interval");
    }

    #[test]
    fn noisy_machine_and_errors_give_warnings() {
        assert_eq!(compared(2.0, 0).warnings(), Vec::<String>::new());
        assert!(compared(20.0, 0).warnings()[0].contains("the machine is noisy"));
        assert!(compared(2.0, 3).warnings()[0].contains("RR: proxy: 3 errors in 1000 requests"));
    }

    #[test]
    fn late_generator_of_an_open_loop_gives_a_warning() {
        let mut open = compared(2.0, 0);
        open.paths[2].lag = Some([0.1, 6.0, 9.0]);
        assert_eq!(open.warnings(), Vec::<String>::new());
        open.paths[0].lag = Some([0.1, 30.0, 9000.0]);
        assert!(open.warnings()[0].contains("sent 30 µs late or more"));
    }
}
