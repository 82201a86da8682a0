//! The generator checked against another one: sockperf, on the direct path, in turn.

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::Program;

use crate::comparison::Percentile;
use crate::interrupt;
use crate::load::{self, Shape};
use crate::progress::Progress;
use crate::record::{Record, Table, micros};
use crate::statistics::{bootstrap, paired};
use crate::topology::Topology;

const BINARY: &str = "/usr/bin/sockperf";

const PORT: u16 = 9092;

/// Adds a table and the figure `sockperf` to the record, which has the RR comparison already.
pub(crate) fn check(record: &mut Record, topology: &Topology, rounds: usize) -> Result<()> {
    if !FilePath::new(BINARY).exists() {
        record.not_measured.push("sockperf: not installed; `apt-get install sockperf` as root".to_owned());
        return Ok(());
    }
    let (server, port) = (&topology.server.ip, PORT.to_string());
    let arguments = ["netns", "exec", "server", BINARY, "server", "--tcp", "-i", server, "-p", &port];
    let log = topology.cluster.directory().join("sockperf.log");
    let _server = Program::start(&topology.cluster.node, FilePath::new("/usr/sbin/ip"), &arguments, &log)?;
    topology.wait(server, PORT)?;
    let direct = topology.direct("direct")?;
    let (mut own, mut other) = (Vec::new(), Vec::new());
    let mut progress = Progress::new("sockperf", rounds);
    for round in 0..rounds {
        progress.at(round);
        if interrupt::requested() {
            return Ok(());
        }
        let block =
            direct.client.run(|| load::run(Shape::Requests.into(), &direct.to, Duration::from_secs(1)))??;
        own.push(micros(block.latencies.value_at_quantile(0.5)));
        other.push(median(topology)?);
    }
    drop(progress);
    let difference = paired(&own, &other, |own, other| own - other);
    let noise =
        record.comparison("RR").and_then(|comparison| comparison.noise(Percentile::P50)).unwrap_or(0.0);
    let mut table = Table::new(
        "The generator beside sockperf, on the direct path",
        &["p50, µs", "portolan-bench", "sockperf", "difference (95%)", "A/A"],
        "64 bytes each way on one connection, a second each in turn; each with its own server.",
    );
    let one = |value: f64| format!("{value:.1}");
    let interval = format!("{:+.1} ({:+.1} to {:+.1})", difference.value, difference.low, difference.high);
    let medians = [one(bootstrap(&own).value), one(bootstrap(&other).value)];
    table.row([format!("{rounds} rounds")].into_iter().chain(medians).chain([interval, one(noise)]));
    record.tables.push(table);
    record.measured("sockperf", (difference.value.abs() - noise).max(0.0));
    Ok(())
}

/// Of one second of sockperf's ping-pong, whole round trips, µs.
fn median(topology: &Topology) -> Result<f64> {
    let server = &topology.server.ip;
    let command =
        format!("{BINARY} ping-pong --tcp -i {server} -p {PORT} -t 1 -m {} --full-rtt", load::MESSAGE);
    let said = topology.client.shell(&topology.cluster.node, &command)?;
    let line = said.lines().find(|line| line.contains("percentile 50.000"));
    let value = line.and_then(|line| line.split_once('=')?.1.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("sockperf said no median: {said}"))
}
