//! `portolan-dns` beside other servers: 10,000 Services, the server on one core and the generator on another.

mod changing;
mod dnsperf;
mod flows;
mod hickory;
mod names;
mod overload;
mod paced;
mod restarts;
mod scale;
mod servers;
mod stalls;
mod streams;
mod visible;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::comparison::PathResult;
use crate::cores::{self, Precedence};
use crate::interleave::{BLOCK, Contender, Measurement, interleave};
use crate::interrupt;
use crate::load::{self, Block};
use crate::record::{Estimate, Record, Table};
use crate::statistics::{bootstrap, paired, ratio_of_medians};
use flows::Flows;
pub use hickory::serve_with_hickory;
use names::Queries;
use paced::Paced;
use servers::{Lab, Server};
use streams::Streams;

/// A part of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DnsPart {
    /// Names of Services over UDP, as fast as it goes.
    Hits,
    /// Names that do not exist, as a search list makes them.
    Missing,
    /// Names outside, once they are known, over UDP and TCP.
    Cached,
    /// At half of what each server can do.
    HalfLoad,
    /// From a file's rename to the first answer that shows it.
    Visible,
    /// What is lost while processes, and then states, follow each other.
    Restarts,
    /// Memory with 10,000 Services and 150,000 endpoints.
    Scale,
    /// Ten times as many queries as the server can answer.
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

/// Who serves names of the cluster, and who remembers names outside.
const CLUSTER: [&str; 3] = ["knotd", "hickory", "CoreDNS"];
const CACHES: [&str; 2] = ["unbound", "CoreDNS"];

/// An open loop needs more queries in a block.
const HALF_LOAD_BLOCK: Duration = Duration::from_millis(500);

/// A server that is busy for less of the time has waited for the generator.
const SATURATED: f64 = 0.9;

/// Measures in nodes of its own.
///
/// When a server that is there cannot be started or gives a wrong answer the record ends there. One that is not there is left
/// out, and it says how to get it.
pub fn dns(rounds: usize, parts: &[DnsPart]) -> Record {
    Record::of("dns", |record| measure(record, rounds, parts))
}

fn measure(record: &mut Record, rounds: usize, parts: &[DnsPart]) -> Result<()> {
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    record.set("flows", format!("{} of {} queries each", flows::FLOWS, flows::BURST));
    record.set("connections", format!("{} of {} queries each", streams::CONNECTIONS, streams::PIPELINED));
    let _precedence = Precedence::take();
    let has = |part| parts.contains(&part) && !interrupt::requested();
    if parts
        .iter()
        .any(|part| matches!(part, DnsPart::Hits | DnsPart::Missing | DnsPart::Cached | DnsPart::HalfLoad))
    {
        let lab = Lab::with_all(record)?;
        record.set("cores", format!("generator {}, server {}", lab.cores.generator, lab.cores.server));
        record.configurations.extend(lab.servers.iter().map(|server| server.configuration.clone()));
        let measured = side_by_side(record, &lab, rounds, has);
        judge(record);
        measured?;
        memory(record, &lab);
    }
    if has(DnsPart::Visible) {
        visible::measure(record, rounds * 10)?;
    }
    if has(DnsPart::Restarts) {
        // A hundred of each in a full run.
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
    let fast = |queries| Load { lab, queries, kind: Kind::Datagrams };
    if has(DnsPart::Hits) || has(DnsPart::HalfLoad) {
        let words = "closed loop over UDP: A records of 10,000 Services";
        fast(&services).compare(record, "hits", words, rounds, &CLUSTER)?;
        dnsperf::check(record, lab, &services, rounds.div_ceil(6))?;
    }
    if has(DnsPart::Missing) {
        let words = "closed loop over UDP: names a search list makes, which do not exist";
        // hickory looks through the whole zone for each: some hundred a second, and no end of it after a block.
        let peers = CLUSTER.into_iter().filter(|name| *name != "hickory").collect::<Vec<_>>();
        fast(&missing).compare(record, "NXDOMAIN", words, rounds, &peers)?;
        let why = "hickory with names that do not exist: it looks through the whole zone for each, some hundred a second";
        record.not_measured.push(why.to_owned());
    }
    if has(DnsPart::Cached) && lab.has_upstream() && CACHES.iter().any(|name| lab.server(name).is_some()) {
        for server in lab.servers.iter().filter(|server| server.name == OURS || CACHES.contains(&server.name))
        {
            interrupt::check()?;
            learn(lab, server, &external)?;
        }
        let words = "closed loop over UDP: 10,000 names outside, all of them known by now";
        fast(&external).compare(record, "cached", words, rounds, &CACHES)?;
        let words = "closed loop over TCP, pipelined: the same names outside";
        let tcp = Load { lab, queries: &external, kind: Kind::Streams };
        tcp.compare(record, "TCP", words, rounds, &CACHES)?;
    }
    if has(DnsPart::HalfLoad) {
        half_load(record, lab, &services, rounds)?;
    }
    Ok(())
}

/// How queries are asked.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Datagrams,
    Streams,
    /// At so many a second.
    Paced(u32),
}

#[derive(Clone, Copy)]
struct Load<'a> {
    lab: &'a Lab,
    queries: &'a Queries,
    kind: Kind,
}

impl Load<'_> {
    /// Ours, ours again, and the peers that are there.
    fn compare(
        self,
        record: &mut Record,
        title: &str,
        words: &str,
        rounds: usize,
        peers: &[&str],
    ) -> Result<()> {
        let again = format!("{OURS} again");
        let servers =
            [(OURS, OURS), (&again, OURS)].into_iter().chain(peers.iter().map(|name| (*name, *name)));
        let contenders: Vec<Contender<'_>> = servers
            .filter_map(|(name, server)| {
                let server = self.lab.server(server)?;
                let block = Box::new(move |length| self.block(server.address, length));
                Some(Contender { name, process: Some(&server.process), block })
            })
            .collect();
        let (title, words) = (title.to_owned(), words.to_owned());
        let asked = Measurement {
            title,
            words,
            unit: "requests",
            length: BLOCK,
            rounds,
            shows_stalls: false,
            saturates: true,
        };
        interleave(record, &asked, &contenders)
    }

    /// On the generator's core.
    fn block(self, server: SocketAddr, length: Duration) -> Result<Block> {
        self.lab.node.run(|| {
            cores::pin(self.lab.cores.generator)?;
            let mut block = Block::new();
            let from = fastrand::usize(..self.queries.messages.len());
            let preempted = load::preempted()?;
            match self.kind {
                Kind::Datagrams => Flows::open(server, self.queries, from)?.load(&mut block, length)?,
                Kind::Streams => Streams::open(server, self.queries, from)?.load(&mut block, length)?,
                Kind::Paced(rate) => {
                    Paced::open(server, self.queries, from)?.load(&mut block, rate, length)?;
                }
            }
            block.preempted = load::preempted()? - preempted;
            Ok(block)
        })
    }
}

/// Asks for every name once, at a rate that the one it asks can follow.
fn learn(lab: &Lab, server: &Server, queries: &Queries) -> Result<()> {
    let load = Load { lab, queries, kind: Kind::Paced(5000) };
    // What is lost is asked again in the round that warms up.
    load.block(server.address, Duration::from_secs(queries.messages.len() as u64 / 5000)).map(drop)
}

/// Each at half of its own rate, by the clock.
fn half_load(record: &mut Record, lab: &Lab, queries: &Queries, rounds: usize) -> Result<()> {
    let Some(hits) = record.comparison("hits").cloned() else { return Ok(()) };
    let contenders: Vec<Contender<'_>> = hits
        .paths
        .iter()
        .filter_map(|path| {
            let server = lab.server(path.path.strip_suffix(" again").unwrap_or(&path.path))?;
            let load = Load { lab, queries, kind: Kind::Paced(whole(path.rate.value / 2.0)) };
            let block = Box::new(move |length| load.block(server.address, length));
            Some(Contender { name: &path.path, process: Some(&server.process), block })
        })
        .collect();
    let rounds = rounds.div_ceil(2);
    let asked = Measurement {
        title: "half load".to_owned(),
        words: "each at half of its own rate, by the clock; latency from the intended moment".to_owned(),
        unit: "requests",
        length: HALF_LOAD_BLOCK,
        rounds,
        shows_stalls: false,
        saturates: false,
    };
    interleave(record, &asked, &contenders)?;
    drop(contenders);
    let own = hits.path(OURS).map_or(0.0, |path| path.rate.value / 2.0);
    stalls::measure(record, lab.cores, whole(own), rounds, HALF_LOAD_BLOCK)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate that was measured")]
fn whole(rate: f64) -> u32 {
    (rate as u32).max(1)
}

/// Fills in what is asked for.
fn judge(record: &mut Record) {
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
    let waited: Vec<String> = record
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
    record.warnings.extend(waited);
}

/// Ours over a peer's, round by round.
fn ratio(record: &Record, title: &str, peer: &str, values: fn(&PathResult) -> Vec<f64>) -> Option<Estimate> {
    let of = |path: &str| Some(values(record.comparison(title)?.path(path)?));
    Some(paired(&of(OURS)?, &of(peer)?, |own, other| own / other))
}

fn memory(record: &mut Record, lab: &Lab) {
    let note = "After all of the above. Resident now and at its highest, MiB.";
    let mut table = Table::new("Memory with 10,000 Services", &["server", "now", "peak"], note);
    for server in &lab.servers {
        let memory = server.process.memory();
        table.row([server.name.to_owned(), format!("{:.1}", memory.now), format!("{:.1}", memory.peak)]);
    }
    record.tables.push(table);
}
