//! Checks the generator against sockperf on the direct path, in turn. Client and server of each are pinned to
//! the same cores as in a comparison: left to the scheduler, medians have two modes.

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::Program;

use crate::cores::{self, Cores};
use crate::interleave::Path;
use crate::interrupt;
use crate::load::{self, Shape};
use crate::progress::Progress;
use crate::record::{Record, Table, micros};
use crate::statistics::{bootstrap, paired};
use crate::topology::Topology;

const BINARY: &str = "/usr/bin/sockperf";

const PORT: u16 = 9092;

/// Measurements of a round.
const OWN: usize = 0;
const AGAIN: usize = 1;
const SOCKPERF: usize = 2;

/// Adds a table and the figure `sockperf` to the record.
pub(crate) fn check(record: &mut Record, topology: &Topology, rounds: usize) -> Result<()> {
    if !FilePath::new(BINARY).exists() {
        record.not_measured.push("sockperf: not installed; `apt-get install sockperf` as root".to_owned());
        return Ok(());
    }
    let cores = match Cores::choose() {
        Ok(cores) => cores,
        Err(error) => {
            record.not_measured.push(format!("sockperf: {error}"));
            return Ok(());
        }
    };
    let (server, port, core) = (&topology.server.ip, PORT.to_string(), cores.server.to_string());
    let arguments = [
        "netns", "exec", "server", "taskset", "-c", &core, BINARY, "server", "--tcp", "-i", server, "-p",
        &port,
    ];
    let log = topology.cluster.directory().join("sockperf.log");
    let _server = Program::start(&topology.cluster.node, FilePath::new("/usr/sbin/ip"), &arguments, &log)?;
    topology.wait(server, PORT)?;
    let direct = topology.direct("direct")?;
    // The generator of this program is measured twice, for the A/A noise of one-second blocks.
    let mut medians: [Vec<f64>; 3] = Default::default();
    let (mut order, mut progress) = ([OWN, AGAIN, SOCKPERF], Progress::new("sockperf", rounds));
    for round in 0..rounds {
        progress.at(round);
        fastrand::shuffle(&mut order);
        for which in order {
            if interrupt::requested() {
                return Ok(());
            }
            medians[which].push(if which == SOCKPERF {
                sockperf_median(topology, cores.generator)?
            } else {
                own_median(&direct)?
            });
        }
    }
    drop(progress);
    let difference = paired(&medians[OWN], &medians[SOCKPERF], |own, other| own - other);
    let again = paired(&medians[AGAIN], &medians[OWN], |again, own| again - own);
    let noise = again.low.abs().max(again.high.abs());
    let mut table = Table::new(
        "The generator beside sockperf, on the direct path",
        &["p50, µs", "portolan-bench", "sockperf", "difference (95%)", "A/A"],
        "64 bytes each way on one connection, a second each in random order; each with its own server. \
         A/A: portolan-bench, measured twice in each round.",
    );
    let one = |value: f64| format!("{value:.1}");
    let interval = format!("{:+.1} ({:+.1} to {:+.1})", difference.value, difference.low, difference.high);
    let medians = [OWN, SOCKPERF].map(|which| one(bootstrap(&medians[which]).value));
    table.row([format!("{rounds} rounds")].into_iter().chain(medians).chain([interval, one(noise)]));
    record.tables.push(table);
    record.measured("sockperf", difference.beyond(noise));
    Ok(())
}

/// Returns the median of one second of this program's generator, µs.
fn own_median(direct: &Path<'_>) -> Result<f64> {
    let block = direct.client.run(|| {
        cores::pin_client()?;
        load::run(Shape::Requests.into(), &direct.to, Duration::from_secs(1))
    })??;
    Ok(micros(block.latencies.value_at_quantile(0.5)))
}

/// Returns the median round trip of one second of sockperf's ping-pong, µs.
fn sockperf_median(topology: &Topology, core: usize) -> Result<f64> {
    let server = &topology.server.ip;
    let command = format!(
        "taskset -c {core} {BINARY} ping-pong --tcp -i {server} -p {PORT} -t 1 -m {} --full-rtt",
        load::MESSAGE
    );
    let output = topology.client.shell(&topology.cluster.node, &command)?;
    let line = output.lines().find(|line| line.contains("percentile 50.000"));
    let value = line.and_then(|line| line.split_once('=')?.1.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("no median in the output of sockperf: {output}"))
}
