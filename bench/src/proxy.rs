//! `portolan-proxy` compared with other proxies, all on one node, to one server.

mod idle;
mod scale;
mod syscalls;

use anyhow::Result;

use crate::comparison::{Comparison, PathResult};
use crate::interleave::{BLOCK, Path, measure};
use crate::interrupt;
use crate::load::Shape;
use crate::peers::{self, Start};
use crate::record::{Estimate, Record};
use crate::topology::Topology;

/// Measures the proxies on a private node.
///
/// The record ends early when a program cannot be started. A peer that is not installed is skipped, and the
/// record says how to install it.
pub fn proxy(rounds: usize, shapes: &[Shape]) -> Record {
    Record::of("proxy", |record| {
        let measured = side_by_side(record, rounds, shapes);
        evaluate(record);
        measured?;
        interrupt::check()?;
        // Measurements that belong to no single load run only with all loads.
        if syscalls::SHAPES.iter().all(|shape| shapes.contains(shape)) {
            syscalls::measure(record)?;
            idle::measure(record)?;
            scale::measure(record, scale::RunSize::of(rounds))?;
        }
        Ok(())
    })
}

fn side_by_side(record: &mut Record, rounds: usize, shapes: &[Shape]) -> Result<()> {
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    let topology = Topology::new(&[])?;
    // A node has one proxy, so the proxy without polling runs on a second node.
    let sleeping = Topology::new(&["--poll", "0"])?;
    let mut peers = Vec::new();
    let known = [
        ("HAProxy", peers::HAPROXY, peers::haproxy as Start),
        ("nginx", peers::NGINX, peers::nginx as Start),
    ];
    for (name, package, start) in known {
        if peers::is_installed(record, name, package) {
            peers.push(start(&topology)?);
        }
    }
    record.configurations.extend(peers.iter().map(|peer| peer.configuration.clone()));
    let mut paths: Vec<Path<'_>> = vec![
        topology.direct("direct")?,
        topology.direct("direct again")?,
        topology.through_proxy("portolan-proxy")?,
        sleeping.through_proxy("without polling")?,
    ];
    let (programs, peer_paths): (Vec<_>, Vec<_>) =
        peers.drain(..).map(|peer| (peer.program, peer.path)).unzip();
    paths.extend(peer_paths);
    if peers::is_installed(record, "nftables", peers::NFT) {
        record.configurations.push(peers::nftables(&topology)?);
        let mut nftables =
            topology.path("nftables", peers::NFTABLES_ADDRESS, peers::PORTS, "server", None)?;
        nftables.without = &[Shape::Cold];
        paths.push(nftables);
    }
    for shape in shapes {
        if !interrupt::requested() {
            measure(record, (*shape).into(), &paths, rounds)?;
        }
    }
    drop(programs);
    Ok(())
}

/// Fills in the figures that have a target.
fn evaluate(record: &mut Record) {
    let comparisons = record.comparisons.clone();
    let by_title = |title: &str| comparisons.iter().find(|comparison| comparison.title == title);
    if let Some(rr) = by_title("RR") {
        let better = better_peer(rr, |path| path.added.map_or(f64::MAX, |added| added.p50.value));
        for (id, path) in [("rr-added", "portolan-proxy"), ("rr-added-no-poll", "without polling")] {
            let (own, other) =
                (rr.path(path).and_then(|path| path.added), better.and_then(|path| path.added));
            if let (Some(own), Some(other)) = (own, other) {
                record.measured(id, added_ratio(own.p50, other.p50));
            }
        }
    }
    for (title, id) in
        [("RR x64", "rr64-rate"), ("CRR", "crr-rate"), ("stream", "stream-rate"), ("UDP RR", "udp-rate")]
    {
        let Some(comparison) = by_title(title) else { continue };
        let better = better_peer(comparison, |path| -path.rate.value);
        if let (Some(own), Some(other)) = (comparison.path("portolan-proxy"), better) {
            record.measured(id, rate_ratio(own, other));
            if let (Some(cpu), Some(peer_cpu), "RR x64") = (own.usage.between, other.usage.between, title) {
                record.measured("rr64-cpu", cpu / peer_cpu);
            }
        }
    }
}

/// Returns the one of HAProxy and nginx with the lower key.
fn better_peer(comparison: &Comparison, key: impl Fn(&PathResult) -> f64) -> Option<&PathResult> {
    let peers = ["HAProxy", "nginx"].into_iter().filter_map(|name| comparison.path(name));
    peers.min_by(|one, other| key(one).total_cmp(&key(other)))
}

/// Returns the ratio of two added latencies. The interval is the widest that both allow.
fn added_ratio(own: Estimate, other: Estimate) -> Estimate {
    let ends = [own.low / other.low, own.low / other.high, own.high / other.low, own.high / other.high];
    let (low, high) =
        ends.iter().fold((f64::MAX, f64::MIN), |(low, high), &end| (low.min(end), high.max(end)));
    Estimate::new(low, own.value / other.value, high)
}

/// Returns the ratio of two rates, round by round.
fn rate_ratio(own: &PathResult, other: &PathResult) -> Estimate {
    let rates = |path: &PathResult| path.rounds.iter().map(|round| round[3]).collect::<Vec<_>>();
    crate::statistics::paired(&rates(own), &rates(other), |own, other| own / other)
}
