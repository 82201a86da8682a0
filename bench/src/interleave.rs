//! Paths measured side by side: short blocks in random order, compared round by round.

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

/// Short, so that a drift of the machine's speed meets all paths alike.
pub(crate) const BLOCK: Duration = Duration::from_millis(200);

/// An open loop needs some requests in a block.
const OPEN_BLOCK: Duration = Duration::from_millis(500);

/// One way from the client to the server.
pub(crate) struct Path<'a> {
    pub(crate) name: String,
    /// Where the client is.
    pub(crate) client: &'a NetNs,
    pub(crate) to: Destination,
    /// What it cannot carry.
    pub(crate) without: &'static [Shape],
    /// Who carries it, if not the kernel.
    pub(crate) process: Option<Process>,
}

/// One of those that are measured side by side.
pub(crate) struct Contender<'a> {
    pub(crate) name: &'a str,
    /// Whose processor time counts as spent between client and server.
    pub(crate) process: Option<&'a Process>,
    /// Loads it for so long.
    pub(crate) block: Box<dyn Fn(Duration) -> Result<Block> + 'a>,
}

/// What is measured, in words, and how.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    pub(crate) title: String,
    pub(crate) words: String,
    /// `requests`; of a stream, `MiB`.
    pub(crate) unit: &'static str,
    pub(crate) length: Duration,
    pub(crate) rounds: usize,
    /// Whether the slowest request of each block is worth a chart.
    pub(crate) shows_stalls: bool,
    /// Whether it asks for more than can be carried.
    pub(crate) saturates: bool,
}

/// What is collected of one path.
struct Total {
    latencies: Histogram<u64>,
    lag: Histogram<u64>,
    errors: u64,
    units: f64,
    spent: Spent,
    preempted: u64,
    rounds: Vec<[f64; 4]>,
    /// Processor time of the program in between, µs a unit, in each round.
    between: Vec<f64>,
    took: Duration,
    blocks: Vec<RawBlock>,
}

/// Measures every path that carries the load for `rounds` rounds, as [`interleave`] does.
pub(crate) fn measure(record: &mut Record, load: Load, paths: &[Path<'_>], rounds: usize) -> Result<()> {
    measure_as(record, load, "", paths, rounds)
}

/// As [`measure`], with words behind the load's title that say what is special about these paths.
pub(crate) fn measure_as(
    record: &mut Record,
    load: Load,
    special: &str,
    paths: &[Path<'_>],
    rounds: usize,
) -> Result<()> {
    let paths = paths.iter().filter(|path| !path.without.contains(&load.shape));
    let contenders: Vec<Contender<'_>> = paths
        .map(|path| Contender {
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
        title: load.title() + special,
        words: load.words(),
        unit: if load.shape == Shape::Stream { "MiB" } else { "requests" },
        length: if load.shape == Shape::Open { OPEN_BLOCK } else { BLOCK },
        rounds,
        shows_stalls: matches!(load.shape, Shape::Requests | Shape::Open)
            && load.message == load::MESSAGE
            && load.connections == 1,
        // The server and whoever carries take a core each.
        saturates: load.connections > std::thread::available_parallelism()?.get(),
    };
    interleave(record, &measurement, &contenders)
}

/// Measures every contender for some rounds after one that warms up, and adds what was found to the record: the
/// comparison, the distributions, the raw data. The first one is what the others are compared with. A run that is
/// interrupted, or fails, keeps the rounds that are whole.
pub(crate) fn interleave(
    record: &mut Record,
    measurement: &Measurement,
    contenders: &[Contender<'_>],
) -> Result<()> {
    let mut totals: Vec<Total> = contenders.iter().map(|_| Total::new()).collect();
    let measured = all_rounds(record, measurement, contenders, &mut totals);
    if totals.first().is_some_and(|total| !total.rounds.is_empty()) {
        conclude(record, measurement, contenders, totals)?;
    }
    measured
}

fn all_rounds(
    record: &mut Record,
    measurement: &Measurement,
    contenders: &[Contender<'_>],
    totals: &mut [Total],
) -> Result<()> {
    let Measurement { title, rounds, length, .. } = measurement;
    let began = Instant::now();
    let mut progress = Progress::new(title, *rounds);
    for round in 0..=*rounds {
        progress.at(round);
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        fastrand::shuffle(&mut order);
        let mut found = Vec::new();
        for index in order {
            if interrupt::requested() {
                record.interrupted = Some(format!("by a signal, in round {round} of {rounds} of {title}"));
                return Ok(());
            }
            let contender = &contenders[index];
            let block = block(contender, *length);
            found.push((index, block.with_context(|| format!("{title} through {}", contender.name))?));
        }
        // Only whole rounds can be compared; the first one warms up.
        if round > 0 && found.len() == contenders.len() {
            for (index, (block, spent)) in found {
                totals[index].add(round, began, block, spent)?;
            }
        }
    }
    Ok(())
}

fn block(contender: &Contender<'_>, length: Duration) -> Result<(Block, Spent)> {
    let before = Meter::read(contender.process);
    let block = (contender.block)(length)?;
    Ok((block, before.until(&Meter::read(contender.process))))
}

fn conclude(
    record: &mut Record,
    measurement: &Measurement,
    contenders: &[Contender<'_>],
    totals: Vec<Total>,
) -> Result<()> {
    let Measurement { title, words, unit, length, shows_stalls, saturates, .. } = measurement;
    let is_stream = *unit == "MiB";
    let first = totals[0].rounds.clone();
    let (mut results, mut stalls) = (Vec::new(), Vec::new());
    for (index, (contender, total)) in contenders.iter().zip(totals).enumerate() {
        if !total.latencies.is_empty() {
            record.distribution(title, contender.name, &total.latencies);
        }
        if !total.lag.is_empty() {
            record.distribution(&format!("{title}: sent late"), contender.name, &total.lag);
        }
        results.push(total.result(is_stream, contender, (index > 0).then_some(&first)));
        let blocks = total.blocks;
        stalls.push(Line {
            name: contender.name.to_owned(),
            points: blocks.iter().filter_map(slowest).collect(),
        });
        record.raw.push(RawPath { load: title.clone(), path: contender.name.to_owned(), blocks });
    }
    let comparison = Comparison {
        title: title.clone(),
        load: words.clone(),
        unit: (*unit).to_owned(),
        rounds: first.len(),
        block_ms: u64::try_from(length.as_millis())?,
        saturated: *saturates,
        paths: results,
    };
    if *shows_stalls {
        record.charts.push(Chart {
            title: format!("{title}: the slowest request of each block"),
            note: "Stalls show as peaks, on the path they happened to meet.".to_owned(),
            x: Axis::linear("seconds since the start"),
            y: Axis::logarithmic("µs"),
            lines: stalls,
        });
    }
    record.warnings.extend(comparison.warnings());
    record.comparisons.push(comparison);
    Ok(())
}

/// Nothing of a block without an answer: its axis has no zero.
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

    fn result(
        &self,
        is_stream: bool,
        contender: &Contender<'_>,
        first: Option<&Vec<[f64; 4]>>,
    ) -> PathResult {
        let at = |quantile| micros(self.latencies.value_at_quantile(quantile));
        let lag = |quantile| micros(self.lag.value_at_quantile(quantile));
        let column =
            |rounds: &[[f64; 4]], index: usize| rounds.iter().map(|round| round[index]).collect::<Vec<_>>();
        // What answers nothing takes no time, and adds none.
        let has_answered = |rounds: &[[f64; 4]]| rounds.iter().any(|round| round[3] > 0.0);
        let compared = first.filter(|first| !is_stream && has_answered(first) && has_answered(&self.rounds));
        let per_unit = |amount: f64| (self.units > 0.0).then(|| amount / self.units);
        let micros_per_unit = |time: Duration| per_unit(time.as_secs_f64() * 1e6);
        PathResult {
            path: contender.name.to_owned(),
            again: contender.name.ends_with(" again"),
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
                between: contender.process.and_then(|_| micros_per_unit(self.spent.between)),
                all: micros_per_unit(self.spent.between + self.spent.own),
                switches: per_unit(self.spent.switches as f64),
                preempted: self.preempted,
                steal_ms: self.spent.steal * 1000.0,
            },
            lag: (!self.lag.is_empty()).then(|| [lag(0.5), lag(0.99), micros(self.lag.max())]),
            rounds: self.rounds.clone(),
            between_rounds: contender.process.map_or_else(Vec::new, |_| self.between.clone()),
            busy: contender.process.map(|_| self.spent.between.as_secs_f64() / self.took.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests;
