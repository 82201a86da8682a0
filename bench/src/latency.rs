//! The latency that a Service adds: virtual IP compared with the direct path.

mod baselines;
mod many_services;

use std::time::Duration;

use anyhow::Result;

use crate::comparison::Percentile;
use crate::interleave::{BLOCK, measure};
use crate::interrupt;
use crate::load::{self, Load, Shape, server};
use crate::record::{Axis, Chart, Line, Record};
use crate::sockperf;
use crate::topology::Topology;
use baselines::Baselines;

/// Rates of the open loop, requests a second.
const RATES: [u32; 4] = [1000, 2000, 4000, 8000];

/// Further request sizes, bytes.
const MESSAGES: [usize; 4] = [1, 1024, 16_384, 65_536];

/// Further numbers of connections.
const CONNECTIONS: [usize; 2] = [4, 16];

/// Measures the latency on a private node.
///
/// The record ends early when the node, a pod or a program cannot be started.
pub fn latency(rounds: usize, shapes: &[Shape]) -> Record {
    Record::of("latency", |record| {
        let measured = every_load(record, rounds, shapes);
        evaluate(record);
        measured
    })
}

fn every_load(record: &mut Record, rounds: usize, shapes: &[Shape]) -> Result<()> {
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    record.distribution("floor", "nothing at all", &load::floor(Duration::from_secs(1))?);
    let topology = Topology::new(&[])?;
    let baselines = Baselines::start(record, &topology)?;
    server::start_on_loopback(&topology.client.netns)?;
    // The direct path is measured twice: the difference is the noise of the machine (A/A).
    let mut paths = vec![
        topology.direct("direct")?,
        topology.direct("direct again")?,
        topology.through_proxy("virtual IP")?,
    ];
    for shape in shapes.iter().filter(|&&shape| shape != Shape::Open) {
        if *shape == Shape::Requests {
            paths.extend(baselines.paths(&topology)?);
        }
        if !interrupt::requested() {
            measure(record, (*shape).into(), &paths, rounds)?;
        }
        paths.truncate(3);
        if *shape == Shape::Requests && !interrupt::requested() {
            sockperf::check(record, &topology, rounds.div_ceil(2))?;
        }
    }
    if shapes.contains(&Shape::Requests) {
        let messages = MESSAGES.map(|message| Load { message, ..Shape::Requests.into() });
        let connections = CONNECTIONS.map(|connections| Load { connections, ..Shape::Requests.into() });
        for load in messages.into_iter().chain(connections).filter(|_| !interrupt::requested()) {
            measure(record, load, &paths, rounds.div_ceil(2))?;
        }
    }
    if many_services::SHAPES.iter().all(|shape| shapes.contains(shape)) && !interrupt::requested() {
        many_services::measure(record, &topology, rounds.div_ceil(2))?;
    }
    if shapes.contains(&Shape::Open) {
        for rate in RATES.iter().filter(|_| !interrupt::requested()) {
            measure(record, Load::open(*rate), &paths, rounds.div_ceil(2))?;
        }
        record.charts.extend(rate_chart(record));
    }
    Ok(())
}

/// Returns the chart of rate against p99 of each path.
fn rate_chart(record: &Record) -> Option<Chart> {
    let measured: Vec<_> = RATES
        .iter()
        .filter_map(|&rate| Some((rate, record.comparison(&Load::open(rate).title())?)))
        .collect();
    let names = measured.first()?.1.paths.iter().map(|path| path.path.clone());
    let line = |name: String| Line {
        points: measured
            .iter()
            .filter_map(|(rate, comparison)| Some([f64::from(*rate), comparison.path(&name)?.p99]))
            .collect(),
        name,
    };
    Some(Chart {
        title: "Rate against p99".to_owned(),
        note: "Open loop, latency from the intended moment. The generator spins on a core of its own."
            .to_owned(),
        x: Axis::linear("requests a second"),
        y: Axis::logarithmic("p99, µs"),
        lines: names.map(line).collect(),
    })
}

/// Fills in the figures that have a target.
fn evaluate(record: &mut Record) {
    use Percentile::{P50, P99};
    let many = format!("{}{}", Load::from(Shape::Connections).title(), many_services::AMONG_MANY);
    for (id, title, path, percentile) in [
        ("rr-p50", "RR", "virtual IP", P50),
        ("rr-p99", "RR", "virtual IP", P99),
        ("crr-p50", "CRR", "virtual IP", P50),
        ("crr-p99", "CRR", "virtual IP", P99),
        ("cold-p50", "cold", "virtual IP", P50),
        ("cold-p99", "cold", "virtual IP", P99),
        ("many-p99", &many, many_services::MANY, P99),
        ("open-p99", "open loop 1000/s", "virtual IP", P99),
    ] {
        let Some(comparison) = record.comparison(title) else { continue };
        let Some(added) = comparison.path(path).and_then(|path| path.added) else { continue };
        let noise = comparison.noise(percentile);
        record.measured_in_noise(id, added.at(percentile), noise);
    }
}
