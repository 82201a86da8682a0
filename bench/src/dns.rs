//! `portolan-dns` compared with other DNS servers: 10,000 Services, the server on one core and the generator
//! on another.

mod changing_service;
mod dnsperf;
mod flows;
mod hickory;
mod open_loop;
mod osnoise;
mod overload;
mod propagation;
mod restarts;
mod scale;
mod servers;
mod tcp;
mod workload;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::comparison::PathResult;
use crate::cores::{self, HighPriority};
use crate::interleave::{BLOCK, Measurement, Variant, interleave};
use crate::interrupt;
use crate::load::{self, Block};
use crate::record::{Estimate, Record, Table};
use crate::statistics::{bootstrap, paired, ratio_of_medians};
use flows::Flows;
pub use hickory::serve_with_hickory;
use open_loop::OpenLoop;
use servers::{Lab, Server};
use tcp::TcpConnections;
use workload::Queries;

/// A part of the DNS measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DnsPart {
    /// Names of Services over UDP, in a closed loop.
    Hits,
    /// Names that do not exist, as the search list produces them.
    Missing,
    /// Cached external names, over UDP and TCP.
    Cached,
    /// Half of each server's capacity.
    HalfLoad,
    /// Time from the rename of a manifest to the first answer with its content.
    Visible,
    /// Queries lost during hot restarts and reloads.
    Restarts,
    /// Memory with 10,000 Services and 150,000 endpoints.
    Scale,
    /// Ten times the server's capacity.
    Overload,
}

/// Every part, in the order of the report.
pub const DNS_PARTS: [DnsPart; 8] = [
    DnsPart::Hits,
    DnsPart::Missing,
    DnsPart::Cached,
    DnsPart::HalfLoad,
    DnsPart::Visible,
    DnsPart::Restarts,
    DnsPart::Scale,
    DnsPart::Overload,
];

const OURS: &str = "portolan-dns";

/// Peers that serve cluster names, and peers that cache external names.
const CLUSTER: [&str; 3] = ["knotd", "hickory", "CoreDNS"];
const CACHES: [&str; 2] = ["unbound", "CoreDNS"];

/// An open loop needs more queries in a block.
const HALF_LOAD_BLOCK: Duration = Duration::from_millis(500);

/// A server with a lower CPU utilization has waited for the generator.
const SATURATED: f64 = 0.9;

/// Measures the DNS servers on private nodes.
///
/// The record ends early when an installed server cannot be started or gives a wrong answer. A server that is
/// not installed is skipped, and the record says how to install it.
pub fn dns(rounds: usize, parts: &[DnsPart]) -> Record {
    Record::of("dns", |record| measure(record, rounds, parts))
}

fn measure(record: &mut Record, rounds: usize, parts: &[DnsPart]) -> Result<()> {
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    record.set("flows", format!("{} of {} queries each", flows::FLOWS, flows::BURST));
    record.set("connections", format!("{} of {} queries each", tcp::CONNECTIONS, tcp::PIPELINED));
    let _priority = HighPriority::acquire();
    let has = |part| parts.contains(&part) && !interrupt::requested();
    if parts
        .iter()
        .any(|part| matches!(part, DnsPart::Hits | DnsPart::Missing | DnsPart::Cached | DnsPart::HalfLoad))
    {
        let lab = Lab::with_all(record)?;
        record.set("cores", format!("generator {}, server {}", lab.cores.generator, lab.cores.server));
        record.configurations.extend(lab.servers.iter().map(|server| server.configuration.clone()));
        let measured = side_by_side(record, &lab, rounds, has);
        evaluate(record);
        measured?;
        memory(record, &lab);
    }
    if has(DnsPart::Visible) {
        propagation::measure(record, rounds * 10)?;
    }
    if has(DnsPart::Restarts) {
        // A full run has 100 of each.
        restarts::measure(record, (rounds * 10).div_ceil(3).min(100))?;
    }
    if has(DnsPart::Scale) {
        scale::measure(record)?;
    }
    if has(DnsPart::Overload) {
        overload::measure(record)?;
    }
    Ok(())
}

fn side_by_side(record: &mut Record, lab: &Lab, rounds: usize, has: impl Fn(DnsPart) -> bool) -> Result<()> {
    let (services, missing, external) = (Queries::services(), Queries::missing(), Queries::external());
    let fast = |queries| Load { lab, queries, kind: Kind::Udp };
    if has(DnsPart::Hits) || has(DnsPart::HalfLoad) {
        let description = "closed loop over UDP: A records of 10,000 Services";
        fast(&services).compare(record, "hits", description, rounds, &CLUSTER)?;
        dnsperf::check(record, lab, &services, rounds.div_ceil(6))?;
    }
    if has(DnsPart::Missing) {
        let description = "closed loop over UDP: names that do not exist, from a search list";
        // hickory scans the zone for each: a few hundred queries/s, and it is still busy after the block.
        let peers = CLUSTER.into_iter().filter(|name| *name != "hickory").collect::<Vec<_>>();
        fast(&missing).compare(record, "NXDOMAIN", description, rounds, &peers)?;
        let why =
            "hickory with names that do not exist: it scans the zone for each query, a few hundred queries/s";
        record.not_measured.push(why.to_owned());
    }
    if has(DnsPart::Cached) && lab.has_upstream() && CACHES.iter().any(|name| lab.server(name).is_some()) {
        for server in lab.servers.iter().filter(|server| server.name == OURS || CACHES.contains(&server.name))
        {
            interrupt::check()?;
            fill_cache(lab, server, &external)?;
        }
        let description = "closed loop over UDP: 10,000 cached external names";
        fast(&external).compare(record, "cached", description, rounds, &CACHES)?;
        let description = "closed loop over TCP, pipelined: the same external names";
        let tcp = Load { lab, queries: &external, kind: Kind::Tcp };
        tcp.compare(record, "TCP", description, rounds, &CACHES)?;
    }
    if has(DnsPart::HalfLoad) {
        half_load(record, lab, &services, rounds)?;
    }
    Ok(())
}

/// How queries are sent.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Tcp,
    /// Over UDP at a fixed rate, queries a second.
    OpenLoop(u32),
}

#[derive(Clone, Copy)]
struct Load<'a> {
    lab: &'a Lab,
    queries: &'a Queries,
    kind: Kind,
}

impl Load<'_> {
    /// Compares portolan-dns, portolan-dns again (A/A) and the running peers.
    fn compare(
        self,
        record: &mut Record,
        title: &str,
        description: &str,
        rounds: usize,
        peers: &[&str],
    ) -> Result<()> {
        let again = format!("{OURS} again");
        let servers =
            [(OURS, OURS), (&again, OURS)].into_iter().chain(peers.iter().map(|name| (*name, *name)));
        let variants: Vec<Variant<'_>> = servers
            .filter_map(|(name, server)| {
                let server = self.lab.server(server)?;
                let block = Box::new(move |length| self.block(server.address, length));
                Some(Variant { name, process: Some(&server.process), block })
            })
            .collect();
        let (title, description) = (title.to_owned(), description.to_owned());
        let measurement = Measurement {
            title,
            description,
            unit: "requests",
            length: BLOCK,
            rounds,
            shows_stalls: false,
            saturates: true,
        };
        interleave(record, &measurement, &variants)
    }

    /// Runs one block on the generator's core.
    fn block(self, server: SocketAddr, length: Duration) -> Result<Block> {
        self.lab.node.run(|| {
            cores::pin(self.lab.cores.generator)?;
            let mut block = Block::new();
            let from = fastrand::usize(..self.queries.messages.len());
            let preempted = load::preempted()?;
            match self.kind {
                Kind::Udp => Flows::open(server, self.queries, from)?.load(&mut block, length)?,
                Kind::Tcp => TcpConnections::open(server, self.queries, from)?.load(&mut block, length)?,
                Kind::OpenLoop(rate) => {
                    OpenLoop::open(server, self.queries, from)?.load(&mut block, rate, length)?;
                }
            }
            block.preempted = load::preempted()? - preempted;
            Ok(block)
        })
    }
}

/// Queries every name once, at a rate that the upstream server can answer.
fn fill_cache(lab: &Lab, server: &Server, queries: &Queries) -> Result<()> {
    let load = Load { lab, queries, kind: Kind::OpenLoop(5000) };
    // The warm-up round queries lost names again.
    load.block(server.address, Duration::from_secs(queries.messages.len() as u64 / 5000)).map(|_block| ())
}

/// Measures each server in an open loop at half of its own rate.
fn half_load(record: &mut Record, lab: &Lab, queries: &Queries, rounds: usize) -> Result<()> {
    let Some(hits) = record.comparison("hits").cloned() else { return Ok(()) };
    let variants: Vec<Variant<'_>> = hits
        .paths
        .iter()
        .filter_map(|path| {
            let server = lab.server(path.path.strip_suffix(" again").unwrap_or(&path.path))?;
            let load = Load { lab, queries, kind: Kind::OpenLoop(whole(path.rate.value / 2.0)) };
            let block = Box::new(move |length| load.block(server.address, length));
            Some(Variant { name: &path.path, process: Some(&server.process), block })
        })
        .collect();
    let rounds = rounds.div_ceil(2);
    let measurement = Measurement {
        title: "half load".to_owned(),
        description: "each at half of its own rate, open loop; latency from the scheduled time".to_owned(),
        unit: "requests",
        length: HALF_LOAD_BLOCK,
        rounds,
        shows_stalls: false,
        saturates: false,
    };
    interleave(record, &measurement, &variants)?;
    drop(variants);
    let own = hits.path(OURS).map_or(0.0, |path| path.rate.value / 2.0);
    osnoise::measure(record, lab.cores, whole(own), rounds, HALF_LOAD_BLOCK)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate that was measured")]
fn whole(rate: f64) -> u32 {
    (rate as u32).max(1)
}

/// Fills in the figures that have a target.
fn evaluate(record: &mut Record) {
    let rate: fn(&PathResult) -> Vec<f64> = |path| path.rounds.iter().map(|round| round[3]).collect();
    let cpu: fn(&PathResult) -> Vec<f64> = |path| path.between_rounds.clone();
    for (id, title, peer, values) in [
        ("udp-knotd", "hits", "knotd", rate),
        ("udp-hickory", "hits", "hickory", rate),
        ("udp-coredns", "hits", "CoreDNS", rate),
        ("cpu-knotd", "hits", "knotd", cpu),
        ("cached-unbound", "cached", "unbound", rate),
        ("tcp-unbound", "TCP", "unbound", rate),
    ] {
        if let Some(ratio) = ratio(record, title, peer, values) {
            record.measured(id, ratio);
        }
    }
    let own = |title: &str| Some(cpu(record.comparison(title)?.path(OURS)?));
    if let (Some(missing), Some(hits)) = (own("NXDOMAIN"), own("hits")) {
        record.measured("nxdomain", ratio_of_medians(&missing, &hits));
    }
    let half = record.comparison("half load").and_then(|comparison| comparison.path(OURS)).cloned();
    if let Some(half) = half {
        let p99: Vec<f64> = half.rounds.iter().map(|round| round[1] / 1000.0).collect();
        record.measured("half-load", bootstrap(&p99));
        record.remark("half-load", format!("at {:.0} queries/s", half.rate.value));
    }
    let unsaturated: Vec<String> = record
        .comparisons
        .iter()
        .filter(|comparison| comparison.title != "half load")
        .flat_map(|comparison| comparison.paths.iter().map(|path| (comparison.title.clone(), path)))
        .filter_map(|(title, path)| {
            let busy = path.busy.filter(|busy| *busy < SATURATED)?;
            let share = busy * 100.0;
            Some(format!(
                "{title}: {} was busy for {share:.0}% of the time: the generator is the limit, or a stall",
                path.path
            ))
        })
        .collect();
    record.warnings.extend(unsaturated);
}

/// Returns the ratio of portolan-dns to a peer, round by round.
fn ratio(record: &Record, title: &str, peer: &str, values: fn(&PathResult) -> Vec<f64>) -> Option<Estimate> {
    let of = |path: &str| Some(values(record.comparison(title)?.path(path)?));
    Some(paired(&of(OURS)?, &of(peer)?, |own, other| own / other))
}

fn memory(record: &mut Record, lab: &Lab) {
    let note = "After all measurements above. Resident memory now and its peak, MiB.";
    let mut table = Table::new("Memory with 10,000 Services", &["server", "now", "peak"], note);
    for server in &lab.servers {
        let memory = server.process.memory();
        table.row([server.name.to_owned(), format!("{:.1}", memory.now), format!("{:.1}", memory.peak)]);
    }
    record.tables.push(table);
}
