//! Paths measured side by side: short blocks in random order, compared round by round.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use netns::NetNs;

use crate::comparison::{Added, Comparison, PathResult, Usage};
use crate::load::{self, Shape};
use crate::meter::{Meter, Spent};
use crate::processor::Process;
use crate::record::micros;
use crate::statistics::{bootstrap, paired};

/// Short, so that a drift of the machine's speed meets all paths alike.
pub(crate) const BLOCK: Duration = Duration::from_millis(200);

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

/// What is collected of one path.
struct Total {
    latencies: Histogram<u64>,
    errors: u64,
    units: f64,
    spent: Spent,
    preempted: u64,
    rounds: Vec<[f64; 4]>,
}

/// Measures every path that carries `shape` for `rounds` rounds after one that warms up. The first path is what the
/// others are compared with.
pub(crate) fn measure(shape: Shape, paths: &[Path<'_>], rounds: usize) -> Result<Comparison> {
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
            let before = Meter::read(path.process.as_ref());
            let block = path.client.run(|| load::run(shape, address, BLOCK))?;
            let block = block.with_context(|| format!("{} through {}", shape.name(), path.name))?;
            if round > 0 {
                total.spent += before.until(&Meter::read(path.process.as_ref()));
                total.add(&block)?;
            }
        }
    }
    let first = totals[0].rounds.clone();
    Ok(Comparison {
        title: shape.name().to_owned(),
        load: format!("{} bytes each way", load::MESSAGE),
        unit: if shape == Shape::Stream { "MiB" } else { "requests" }.to_owned(),
        rounds,
        block_ms: u64::try_from(BLOCK.as_millis())?,
        paths: paths.iter().zip(totals).map(|(path, total)| total.result(shape, path, &first)).collect(),
    })
}

impl Total {
    fn new() -> Self {
        Self {
            latencies: load::histogram(),
            errors: 0,
            units: 0.0,
            spent: Spent::default(),
            preempted: 0,
            rounds: Vec::new(),
        }
    }

    fn add(&mut self, block: &load::Block) -> Result<()> {
        self.errors += block.errors;
        self.units += block.units;
        self.preempted += block.preempted;
        let at = |quantile| micros(block.latencies.value_at_quantile(quantile));
        self.rounds.push([at(0.5), at(0.99), at(0.999), block.units / block.took.as_secs_f64()]);
        Ok(self.latencies.add(&block.latencies)?)
    }

    fn result(self, shape: Shape, path: &Path<'_>, first: &[[f64; 4]]) -> PathResult {
        let at = |quantile| micros(self.latencies.value_at_quantile(quantile));
        let is_first = self.rounds == first;
        let column =
            |rounds: &[[f64; 4]], index: usize| rounds.iter().map(|round| round[index]).collect::<Vec<_>>();
        let added =
            |index| paired(&column(&self.rounds, index), &column(first, index), |own, other| own - other);
        let per_unit = |time: Duration| time.as_secs_f64() * 1e6 / self.units;
        PathResult {
            path: path.name.to_owned(),
            again: path.name.ends_with(" again"),
            requests: self.latencies.len(),
            errors: self.errors,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.latencies.max()),
            rate: bootstrap(&column(&self.rounds, 3)),
            added: (!is_first && shape != Shape::Stream).then(|| Added {
                p50: added(0),
                p99: added(1),
                p999: added(2),
            }),
            relative_rate: paired(&column(&self.rounds, 3), &column(first, 3), |own, other| own / other),
            usage: Usage {
                between: path.process.as_ref().map(|_| per_unit(self.spent.between)),
                all: per_unit(self.spent.between + self.spent.own),
                switches: self.spent.switches as f64 / self.units,
                preempted: self.preempted,
                steal_ms: self.spent.steal * 1000.0,
            },
            lag: None,
            rounds: self.rounds,
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
