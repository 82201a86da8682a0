//! `portolan-cni` against the reference plugins: ADD and DEL one by one and at once, memory, and where the time goes.
//!
//! Each contender has a node of its own; a round runs ADD and DEL of every one in random order. A command is timed from
//! before its process is started until it has ended, as a runtime waits for it; namespaces are made and removed outside.
//! What is compared is a pod beside others, as nodes have them. The first pod of a node, for which its rules or its bridge
//! are set up, has a row of its own.

mod burst;
mod command;
mod contender;
mod parallel;
mod ports;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::interrupt;
use crate::peers;
use crate::progress::Progress;
use crate::record::{Record, Table};
use crate::statistics::{bootstrap, median, paired};
use contender::{BESIDE_ONE, Contender, FIRST, Kind};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    rounds: usize,
    /// Addresses in use, beside one and 250.
    many: usize,
    bursts: usize,
    /// Pods of each burst.
    pods: usize,
}

/// What one contender has shown, milliseconds a round.
#[derive(Debug, Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// Measures in nodes of its own.
///
/// When a node cannot be set up or a plugin fails the record ends there. A reference plugin that is not installed is left
/// out, and it says how to get it.
pub fn cni(quick: bool) -> Record {
    let extent = if quick {
        Extent { rounds: 6, many: 500, bursts: 1, pods: 100 }
    } else {
        Extent { rounds: 150, many: 5000, bursts: 5, pods: 300 }
    };
    Record::of("cni", |record| measure(record, extent))
}

fn measure(record: &mut Record, extent: Extent) -> Result<()> {
    record.set("rounds", extent.rounds);
    record.set("addresses in use", format!("1, 250, {}", extent.many));
    record.set("bursts", format!("{} of {} ADDs", extent.bursts, extent.pods));
    let kinds = Kind::available(record);
    let contenders = contenders(&kinds, extent.many)?;
    let mut times = BTreeMap::new();
    let timed = one_by_one(&contenders, extent.rounds, &mut times);
    show(record, &contenders, &times);
    judge(record, &times, extent.many);
    timed?;
    interrupt::check()?;
    split(record, &contenders[0], extent.rounds)?;
    let memory = |_| interrupt::check().and_then(|()| contenders[0].memory_of_add());
    let memory = (0..20).map(memory).collect::<Result<Vec<_>>>()?;
    record.measured("add-memory", memory.into_iter().fold(0.0, f64::max));
    drop(contenders);
    let has_portmap =
        kinds.contains(&Kind::Bridge) && peers::is_there(record, "reference portmap", peers::PORTMAP);
    ports::measure(record, has_portmap, extent.rounds.min(20))?;
    burst::measure(record, kinds.contains(&Kind::Bridge), extent.pods, extent.bursts)
}

/// What is measured one by one. The first is the plain one of ours.
fn contenders(available: &[Kind], many: usize) -> Result<Vec<Contender>> {
    let mut wanted = Vec::new();
    for in_use in [BESIDE_ONE, 250, many, FIRST] {
        wanted.extend([(Kind::Portolan { masquerade: true }, in_use), (Kind::Bridge, in_use)]);
    }
    let once = [Kind::Portolan { masquerade: false }, Kind::Ptp, Kind::Kernel];
    wanted.extend(once.map(|kind| (kind, BESIDE_ONE)));
    let there = wanted.into_iter().filter(|(kind, _)| available.contains(kind));
    there.map(|(kind, in_use)| Contender::new(kind, in_use)).collect()
}

/// Rounds that are not whole do not count.
fn one_by_one(contenders: &[Contender], rounds: usize, times: &mut BTreeMap<String, Times>) -> Result<()> {
    let mut progress = Progress::new("ADD and DEL", rounds);
    // One round warms up.
    for round in 0..=rounds {
        if interrupt::requested() {
            break;
        }
        progress.at(round);
        let mut order: Vec<&Contender> = contenders.iter().collect();
        fastrand::shuffle(&mut order);
        let round_of = |contender: &Contender| {
            let name = contender.name();
            contender.round().with_context(|| name.clone()).map(|took| (name, took))
        };
        let found = order.into_iter().map(round_of).collect::<Result<Vec<_>>>()?;
        for (name, (add, del)) in found.into_iter().filter(|_| round > 0) {
            let own = times.entry(name).or_default();
            own.add.push(add);
            own.del.push(del);
        }
    }
    Ok(())
}

fn show(record: &mut Record, contenders: &[Contender], times: &BTreeMap<String, Times>) {
    let columns = ["plugin", "ADD p50 (95%)", "ADD p99", "DEL p50 (95%)", "DEL p99"];
    let mut table = Table::new(
        "ADD and DEL, one by one",
        &columns,
        "Milliseconds, process included, beside one other pod unless said.",
    );
    for contender in contenders {
        let name = contender.name();
        let Some(own) = times.get(&name) else { continue };
        let cell = |values: &[f64]| {
            let estimate = bootstrap(values);
            format!("{:.2} ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
        };
        let cells = [cell(&own.add), percentile(&own.add, 99), cell(&own.del), percentile(&own.del, 99)];
        table.row(std::iter::once(name.clone()).chain(cells));
        for (group, values) in [("ADD", &own.add), ("DEL", &own.del)] {
            record.milliseconds(group, &name, values);
        }
    }
    record.tables.push(table);
}

fn percentile(values: &[f64], percent: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

/// Ratios of the same round: what disturbs the machine meets both.
fn judge(record: &mut Record, times: &BTreeMap<String, Times>, many: usize) {
    let ours = |in_use| contender::name(Kind::Portolan { masquerade: true }, in_use);
    let unmasqueraded = contender::name(Kind::Portolan { masquerade: false }, BESIDE_ONE);
    let [bridge, ptp, kernel] =
        [Kind::Bridge, Kind::Ptp, Kind::Kernel].map(|kind| contender::name(kind, BESIDE_ONE));
    let ratio = |of: &str, to: &str, which: fn(&Times) -> &Vec<f64>| {
        let (of, to) = (times.get(of)?, times.get(to)?);
        Some(paired(which(of), which(to), |value, other| value / other))
    };
    let add: fn(&Times) -> &Vec<f64> = |times| &times.add;
    let del: fn(&Times) -> &Vec<f64> = |times| &times.del;
    for (id, ratio) in [
        ("add-bridge", ratio(&ours(BESIDE_ONE), &bridge, add)),
        ("add-ptp", ratio(&unmasqueraded, &ptp, add)),
        ("add-5000", ratio(&ours(many), &ours(BESIDE_ONE), add)),
        ("del-bridge", ratio(&ours(BESIDE_ONE), &bridge, del)),
        ("del-kernel", ratio(&ours(BESIDE_ONE), &kernel, del)),
    ] {
        if let Some(ratio) = ratio {
            record.measured(id, ratio);
        }
    }
    if let Some(least) = ratio(&kernel, &bridge, del) {
        let remark = format!("ip link del of a veth alone takes {:.2} x", least.value);
        record.remark("del-bridge", remark);
    }
    if many != 5000 {
        record.remark("add-5000", format!("with {many} addresses in use: a quick run"));
    }
}

/// Where the time of ours goes, by its own trace.
fn split(record: &mut Record, contender: &Contender, rounds: usize) -> Result<()> {
    let mut spent: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds.min(50) {
        interrupt::check()?;
        for (command, spans) in contender.traced_round()? {
            for (span, milliseconds) in spans {
                spent.entry((command.clone(), span)).or_default().push(milliseconds);
            }
        }
    }
    let note =
        "Milliseconds, medians. exec: starting the process and its end; own: the rest of its own code.";
    let mut table = Table::new("Where the time of portolan-cni goes", &["span", "ADD", "DEL"], note);
    let spans = ["exec", "parse", "lock", "netns", "netlink", "nft", "store", "delegate", "own", "all"];
    for span in spans {
        let cell = |command: &str| {
            let found = spent.get_mut(&(command.to_owned(), span.to_owned()));
            found.map_or_else(|| "-".to_owned(), |values| format!("{:.3}", median(values)))
        };
        table.row(std::iter::once(span.to_owned()).chain(["ADD", "DEL"].map(cell)));
    }
    record.tables.push(table);
    Ok(())
}
