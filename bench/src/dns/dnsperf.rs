//! Checks the generator against dnsperf, in turn, on the same core.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::flows::{BURST, FLOWS};
use super::servers::{Lab, Server};
use super::workload::{self, Queries};
use super::{Kind, Load};
use crate::interrupt;
use crate::progress::Progress;
use crate::record::{Estimate, Record, Table};
use crate::statistics::{bootstrap, paired};

const BINARY: &str = "/usr/bin/dnsperf";

/// Length of a block of each generator.
const BLOCK: Duration = Duration::from_secs(1);

/// A server that is the bottleneck with both generators: both must measure the same rate.
const REFERENCE: &str = "hickory";

/// Adds a table, and the figure `dnsperf`.
pub(super) fn check(record: &mut Record, lab: &Lab, queries: &Queries, rounds: usize) -> Result<()> {
    if !Path::new(BINARY).exists() {
        record.not_measured.push("dnsperf: not installed; `apt-get install dnsperf` as root".to_owned());
        return Ok(());
    }
    let file = lab.directory().join("queries");
    std::fs::write(&file, workload::dnsperf_lines(queries))?;
    let note = format!(
        "{FLOWS} clients, {} queries in flight, a second each in turn, on one core. busy: cores used by the \
         server. Where dnsperf is the bottleneck, the server has idle time.",
        FLOWS * BURST
    );
    let columns = ["queries/s", "portolan-bench", "busy", "dnsperf", "busy", "of dnsperf's (95%)"];
    let mut table = Table::new("The generator beside dnsperf", &columns, &note);
    let mut progress = Progress::new("dnsperf", rounds * lab.servers.len());
    for (index, server) in lab.servers.iter().filter(|server| server.name != "unbound").enumerate() {
        let (mut own, mut other, mut busy) = (Vec::new(), Vec::new(), [0.0; 2]);
        for round in 0..rounds {
            progress.at(index * rounds + round);
            if interrupt::requested() {
                return Ok(());
            }
            let load = Load { lab, queries, kind: Kind::Udp };
            let before = server.process.time();
            let block = load.block(server.address, BLOCK)?;
            let between = server.process.time();
            own.push(block.units / block.took.as_secs_f64());
            other.push(dnsperf(lab, server, &file)?);
            busy[0] += (between - before).as_secs_f64() / block.took.as_secs_f64();
            busy[1] += (server.process.time() - between).as_secs_f64() / BLOCK.as_secs_f64();
        }
        let ratio = paired(&own, &other, |own, other| own / other);
        let busy = busy.map(|busy| format!("{:.2}", busy / rounds as f64));
        let whole = |values: &[f64]| format!("{:.0}", bootstrap(values).value);
        let [own_busy, other_busy] = busy;
        let Estimate { value, low, high } = ratio;
        let cells = [whole(&own), own_busy, whole(&other), other_busy];
        table.row(
            [server.name.to_owned()]
                .into_iter()
                .chain(cells)
                .chain([format!("{value:.2} ({low:.2} to {high:.2})")]),
        );
        if server.name == REFERENCE {
            record.measured("dnsperf", Estimate::new(low - 1.0, value - 1.0, high - 1.0).beyond(0.0));
            record.remark("dnsperf", format!("of {REFERENCE}, the bottleneck with both generators"));
        }
    }
    record.tables.push(table);
    Ok(())
}

/// Runs dnsperf and returns the queries a second.
fn dnsperf(lab: &Lab, server: &Server, file: &Path) -> Result<f64> {
    let output = lab.node.shell(&format!(
        "taskset -c {} {BINARY} -s {} -d {} -c {FLOWS} -q {} -T 1 -l {}",
        lab.cores.generator,
        server.address.ip(),
        file.display(),
        FLOWS * BURST,
        BLOCK.as_secs()
    ))?;
    let line = output.lines().find_map(|line| line.trim().strip_prefix("Queries per second:"));
    line.and_then(|rate| rate.trim().parse().ok())
        .with_context(|| format!("no rate in the output of dnsperf: {output}"))
}
