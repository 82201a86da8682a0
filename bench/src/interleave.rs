//! Measures variants side by side: short blocks in random order, compared round by round.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use netns::NetNs;

use crate::comparison::{Added, Comparison, PathResult, Usage};
use crate::cores;
use crate::interrupt;
use crate::load::{self, Block, Destination, Load, Shape};
use crate::meter::{Meter, Spent};
use crate::processor::Process;
use crate::progress::Progress;
use crate::raw::{RawBlock, RawPath};
use crate::record::{Axis, Chart, Line, Record, micros};
use crate::statistics::{bootstrap, paired};

/// Length of a block. It is short, so that a drift of the machine's speed affects all paths alike.
pub(crate) const BLOCK: Duration = Duration::from_millis(200);

/// Length of a block of an open loop, which needs more requests.
const OPEN_BLOCK: Duration = Duration::from_millis(500);

/// One way from the client to the server.
pub(crate) struct Path<'a> {
    pub(crate) name: String,
    /// The client's network namespace.
    pub(crate) client: &'a NetNs,
    pub(crate) to: Destination,
    /// Shapes of load that the path does not support.
    pub(crate) without: &'static [Shape],
    /// The proxy on the path, if there is one.
    pub(crate) process: Option<Process>,
}

/// One of the alternatives that are measured side by side.
pub(crate) struct Variant<'a> {
    pub(crate) name: &'a str,
    /// The program under test, whose CPU time is measured.
    pub(crate) process: Option<&'a Process>,
    /// Runs the load for one block of this length.
    pub(crate) block: Box<dyn Fn(Duration) -> Result<Block> + 'a>,
}

/// Description and parameters of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    pub(crate) title: String,
    pub(crate) description: String,
    /// `requests`, or `MiB` for a stream.
    pub(crate) unit: &'static str,
    pub(crate) length: Duration,
    pub(crate) rounds: usize,
    /// Whether to chart the slowest request of each block.
    pub(crate) shows_stalls: bool,
    /// Whether the load saturates the variants.
    pub(crate) saturates: bool,
}

/// The accumulated results of one variant.
struct Total {
    latencies: Histogram<u64>,
    lag: Histogram<u64>,
    errors: u64,
    units: f64,
    spent: Spent,
    preempted: u64,
    rounds: Vec<[f64; 4]>,
    /// CPU time of the program under test, µs a unit, in each round.
    between: Vec<f64>,
    took: Duration,
    blocks: Vec<RawBlock>,
}

/// Measures every path that supports the load, as [`interleave`] does.
pub(crate) fn measure(record: &mut Record, load: Load, paths: &[Path<'_>], rounds: usize) -> Result<()> {
    measure_with_suffix(record, load, "", paths, rounds)
}

/// As [`measure`], with a suffix for the title that says what is special about these paths.
pub(crate) fn measure_with_suffix(
    record: &mut Record,
    load: Load,
    suffix: &str,
    paths: &[Path<'_>],
    rounds: usize,
) -> Result<()> {
    let paths = paths.iter().filter(|path| !path.without.contains(&load.shape));
    let variants: Vec<Variant<'_>> = paths
        .map(|path| Variant {
            name: &path.name,
            process: path.process.as_ref(),
            block: Box::new(move |length| {
                path.client.run(|| {
                    cores::pin_client()?;
                    load::run(load, &path.to, length)
                })?
            }),
        })
        .collect();
    let measurement = Measurement {
        title: load.title() + suffix,
        description: load.description(),
        unit: if load.shape == Shape::Stream { "MiB" } else { "requests" },
        length: if load.shape == Shape::Open { OPEN_BLOCK } else { BLOCK },
        rounds,
        shows_stalls: matches!(load.shape, Shape::Requests | Shape::Open)
            && load.message == load::MESSAGE
            && load.connections == 1,
        // Server and proxy take one core each.
        saturates: load.connections > std::thread::available_parallelism()?.get(),
    };
    interleave(record, &measurement, &variants)
}

/// Measures every variant for a number of rounds after a warm-up round, and adds the comparison, the
/// distributions and the raw data to the record. The first variant is the baseline. After an interrupt or an
/// error, the complete rounds count.
pub(crate) fn interleave(
    record: &mut Record,
    measurement: &Measurement,
    variants: &[Variant<'_>],
) -> Result<()> {
    let mut totals: Vec<Total> = variants.iter().map(|_| Total::new()).collect();
    let measured = run_rounds(record, measurement, variants, &mut totals);
    if totals.first().is_some_and(|total| !total.rounds.is_empty()) {
        add_results(record, measurement, variants, totals)?;
    }
    measured
}

fn run_rounds(
    record: &mut Record,
    measurement: &Measurement,
    variants: &[Variant<'_>],
    totals: &mut [Total],
) -> Result<()> {
    let Measurement { title, rounds, length, .. } = measurement;
    let began = Instant::now();
    let mut progress = Progress::new(title, *rounds);
    for round in 0..=*rounds {
        progress.at(round);
        let mut order: Vec<usize> = (0..variants.len()).collect();
        fastrand::shuffle(&mut order);
        let mut blocks = Vec::new();
        for index in order {
            if interrupt::requested() {
                record.interrupted = Some(format!("by a signal, in round {round} of {rounds} of {title}"));
                return Ok(());
            }
            let variant = &variants[index];
            let block = block(variant, *length);
            blocks.push((index, block.with_context(|| format!("{title} through {}", variant.name))?));
        }
        // Only complete rounds can be compared. The first round is a warm-up.
        if round > 0 && blocks.len() == variants.len() {
            for (index, (block, spent)) in blocks {
                totals[index].add(round, began, block, spent)?;
            }
        }
    }
    Ok(())
}

fn block(variant: &Variant<'_>, length: Duration) -> Result<(Block, Spent)> {
    let before = Meter::read(variant.process);
    let block = (variant.block)(length)?;
    Ok((block, before.until(&Meter::read(variant.process))))
}

fn add_results(
    record: &mut Record,
    measurement: &Measurement,
    variants: &[Variant<'_>],
    totals: Vec<Total>,
) -> Result<()> {
    let Measurement { title, description, unit, length, shows_stalls, saturates, .. } = measurement;
    let is_stream = *unit == "MiB";
    let first = totals[0].rounds.clone();
    let (mut results, mut stalls) = (Vec::new(), Vec::new());
    for (index, (variant, total)) in variants.iter().zip(totals).enumerate() {
        if !total.latencies.is_empty() {
            record.distribution(title, variant.name, &total.latencies);
        }
        if !total.lag.is_empty() {
            record.distribution(&format!("{title}: sent late"), variant.name, &total.lag);
        }
        results.push(total.result(is_stream, variant, (index > 0).then_some(&first)));
        let blocks = total.blocks;
        stalls.push(Line {
            name: variant.name.to_owned(),
            points: blocks.iter().filter_map(slowest).collect(),
        });
        record.raw.push(RawPath { load: title.clone(), path: variant.name.to_owned(), blocks });
    }
    let comparison = Comparison {
        title: title.clone(),
        load: description.clone(),
        unit: (*unit).to_owned(),
        rounds: first.len(),
        block_ms: u64::try_from(length.as_millis())?,
        saturated: *saturates,
        paths: results,
    };
    if *shows_stalls {
        record.charts.push(Chart {
            title: format!("{title}: the slowest request of each block"),
            note: "Stalls show as peaks on the path that was measured at that moment.".to_owned(),
            x: Axis::linear("seconds since the start"),
            y: Axis::logarithmic("µs"),
            lines: stalls,
        });
    }
    record.warnings.extend(comparison.warnings());
    record.comparisons.push(comparison);
    Ok(())
}

/// Returns the slowest request of a block; `None` if it has no answer, since the logarithmic axis has no
/// zero.
fn slowest(block: &RawBlock) -> Option<[f64; 2]> {
    (!block.latencies.is_empty()).then(|| [block.at.as_secs_f64(), micros(block.latencies.max())])
}

impl Total {
    fn new() -> Self {
        Self {
            latencies: load::histogram(),
            lag: load::histogram(),
            errors: 0,
            units: 0.0,
            spent: Spent::default(),
            preempted: 0,
            rounds: Vec::new(),
            between: Vec::new(),
            took: Duration::ZERO,
            blocks: Vec::new(),
        }
    }

    fn add(&mut self, round: usize, began: Instant, block: Block, spent: Spent) -> Result<()> {
        self.errors += block.errors;
        self.units += block.units;
        self.preempted += block.preempted;
        self.spent += spent;
        let at = |quantile| micros(block.latencies.value_at_quantile(quantile));
        self.rounds.push([at(0.5), at(0.99), at(0.999), block.units / block.took.as_secs_f64()]);
        let between = (block.units > 0.0).then(|| spent.between.as_secs_f64() * 1e6 / block.units);
        self.between.push(between.unwrap_or(0.0));
        self.took += block.took;
        self.latencies.add(&block.latencies)?;
        self.lag.add(&block.lag)?;
        self.blocks.push(RawBlock {
            round,
            at: block.began - began,
            took: block.took,
            latencies: block.latencies,
            errors: block.errors,
            units: block.units,
            steal: spent.steal,
            preempted: block.preempted,
        });
        Ok(())
    }

    fn result(&self, is_stream: bool, variant: &Variant<'_>, first: Option<&Vec<[f64; 4]>>) -> PathResult {
        let at = |quantile| micros(self.latencies.value_at_quantile(quantile));
        let lag = |quantile| micros(self.lag.value_at_quantile(quantile));
        let column =
            |rounds: &[[f64; 4]], index: usize| rounds.iter().map(|round| round[index]).collect::<Vec<_>>();
        // A variant without answers has no latency to compare.
        let has_answered = |rounds: &[[f64; 4]]| rounds.iter().any(|round| round[3] > 0.0);
        let compared = first.filter(|first| !is_stream && has_answered(first) && has_answered(&self.rounds));
        let per_unit = |amount: f64| (self.units > 0.0).then(|| amount / self.units);
        let micros_per_unit = |time: Duration| per_unit(time.as_secs_f64() * 1e6);
        PathResult {
            path: variant.name.to_owned(),
            again: variant.name.ends_with(" again"),
            requests: self.latencies.len(),
            errors: self.errors,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.latencies.max()),
            rate: bootstrap(&column(&self.rounds, 3)),
            added: compared.map(|first| {
                let added = |index| {
                    paired(&column(&self.rounds, index), &column(first, index), |own, other| own - other)
                };
                Added { p50: added(0), p99: added(1), p999: added(2) }
            }),
            relative_rate: first.map_or_else(
                || 1.0.into(),
                |first| {
                    let ratio = |own: f64, other: f64| if other > 0.0 { own / other } else { 0.0 };
                    paired(&column(&self.rounds, 3), &column(first, 3), ratio)
                },
            ),
            usage: Usage {
                between: variant.process.and_then(|_| micros_per_unit(self.spent.between)),
                all: micros_per_unit(self.spent.between + self.spent.own),
                switches: per_unit(self.spent.switches as f64),
                preempted: self.preempted,
                steal_ms: self.spent.steal * 1000.0,
            },
            lag: (!self.lag.is_empty()).then(|| [lag(0.5), lag(0.99), micros(self.lag.max())]),
            rounds: self.rounds.clone(),
            between_rounds: variant.process.map_or_else(Vec::new, |_| self.between.clone()),
            busy: variant.process.map(|_| self.spent.between.as_secs_f64() / self.took.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests;
