//! Paths measured side by side: short blocks in random order, compared round by round.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use netns::NetNs;
use serde::Serialize;

use crate::load::{self, Shape};
use crate::processor::Process;

/// Short, so that a drift of the machine's speed meets all paths alike.
pub(crate) const BLOCK: Duration = Duration::from_millis(200);

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// One way from the client to the server.
pub(crate) struct Path<'a> {
    pub(crate) name: &'static str,
    /// Where the client is.
    pub(crate) client: &'a NetNs,
    /// Where it is entered, for each shape it can carry.
    pub(crate) addresses: BTreeMap<&'static str, SocketAddr>,
    /// Who carries it, if not the kernel.
    pub(crate) process: Option<Process>,
}

/// What one path has shown under one shape of load; times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct PathResult {
    pub(crate) shape: &'static str,
    pub(crate) path: &'static str,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// Requests, or MiB of a stream, a second: median over the rounds.
    pub(crate) rate: f64,
    /// Processor time of the program in between, for each request or MiB.
    pub(crate) processor: Option<f64>,
    /// p50 less that of the first path in the same round: median over the rounds, and its 95% bootstrap interval.
    pub(crate) added: [f64; 3],
    /// Rate over that of the first path, likewise.
    pub(crate) relative_rate: [f64; 3],
}

/// What is collected of one path.
struct Total {
    latencies: Histogram<u64>,
    errors: u64,
    units: f64,
    processor: Duration,
    medians: Vec<f64>,
    rates: Vec<f64>,
}

/// Measures every path that carries `shape` for `rounds` rounds after one that warms up. The first path is what the
/// others are compared with.
pub(crate) fn measure(shape: Shape, paths: &[Path<'_>], rounds: usize) -> Result<Vec<PathResult>> {
    let paths: Vec<&Path<'_>> =
        paths.iter().filter(|path| path.addresses.contains_key(shape.name())).collect();
    let mut totals: Vec<Total> = paths.iter().map(|_| Total::new()).collect();
    for round in 0..=rounds {
        progress(shape.name(), round, rounds);
        let mut order: Vec<usize> = (0..paths.len()).collect();
        fastrand::shuffle(&mut order);
        for index in order {
            let (path, total) = (paths[index], &mut totals[index]);
            let address = path.addresses[shape.name()];
            let before = path.process.as_ref().map(Process::time);
            let block = path.client.run(|| load::run(shape, address, BLOCK))?;
            let block = block.with_context(|| format!("{} through {}", shape.name(), path.name))?;
            if round > 0 {
                let after = path.process.as_ref().map(Process::time);
                total.processor += after.zip(before).map_or(Duration::ZERO, |(after, before)| after - before);
                total.add(&block)?;
            }
        }
    }
    let first = (totals[0].medians.clone(), totals[0].rates.clone());
    Ok(paths.iter().zip(totals).map(|(path, total)| total.result(shape, path, &first)).collect())
}

impl Total {
    fn new() -> Self {
        Self {
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds"),
            errors: 0,
            units: 0.0,
            processor: Duration::ZERO,
            medians: Vec::new(),
            rates: Vec::new(),
        }
    }

    fn add(&mut self, block: &load::Block) -> Result<()> {
        self.errors += block.errors;
        self.units += block.units;
        self.medians.push(micros(block.latencies.value_at_quantile(0.5)));
        self.rates.push(block.units / block.took.as_secs_f64());
        Ok(self.latencies.add(&block.latencies)?)
    }

    fn result(self, shape: Shape, path: &Path<'_>, first: &(Vec<f64>, Vec<f64>)) -> PathResult {
        let added = self.medians.iter().zip(&first.0).map(|(own, other)| own - other).collect();
        let relative = self.rates.iter().zip(&first.1).map(|(own, other)| own / other).collect();
        let at = |quantile| micros(self.latencies.value_at_quantile(quantile));
        PathResult {
            shape: shape.name(),
            path: path.name,
            requests: self.latencies.len(),
            errors: self.errors,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.latencies.max()),
            rate: median(self.rates),
            processor: path.process.as_ref().map(|_| self.processor.as_secs_f64() * 1e6 / self.units),
            added: with_interval(added),
            relative_rate: with_interval(relative),
        }
    }
}

#[expect(clippy::print_stderr, reason = "progress, for people")]
fn progress(shape: &str, round: usize, rounds: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{shape}: round {round} of {rounds} ");
        if round == rounds {
            eprint!("\r{:40}\r", "");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The median, and where it lies with 95% confidence, by resampling the rounds.
fn with_interval(values: Vec<f64>) -> [f64; 3] {
    let resample = || median((0..values.len()).filter_map(|_| fastrand::choice(&values).copied()).collect());
    let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| resample()).collect();
    medians.sort_by(f64::total_cmp);
    let (low, high) = (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40]);
    [median(values), low, high]
}
