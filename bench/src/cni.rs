//! `portolan-cni` compared with the reference plugins: sequential and concurrent ADD and DEL, memory, time by
//! phase.
//!
//! Each plugin setup has its own node. A round runs ADD and DEL of every setup in random order. A command is
//! timed from before its process starts until it exits, as a runtime sees it. Creating and removing
//! namespaces is not timed. The comparison uses nodes that already have a pod. The first pod of a node, for
//! which the plugin creates rules or a bridge, has its own row.

mod burst;
mod command;
mod parallel;
mod ports;
mod setup;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::interrupt;
use crate::peers;
use crate::progress::Progress;
use crate::record::{Record, Table};
use crate::statistics::{bootstrap, median, paired};
use setup::{FIRST_POD, Kind, ONE_OTHER_POD, Setup};

/// How much the run measures.
#[derive(Clone, Copy, Debug)]
struct RunSize {
    rounds: usize,
    /// The largest number of addresses in use; 1 and 250 are always measured.
    many: usize,
    bursts: usize,
    /// Pods in each burst.
    pods: usize,
}

/// ADD and DEL times of one setup, milliseconds, one value a round.
#[derive(Debug, Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// Measures the CNI plugins on private nodes.
///
/// The record ends early when a node cannot be created or a plugin fails. A reference plugin that is not
/// installed is skipped, and the record says how to install it.
pub fn cni(quick: bool) -> Record {
    let size = if quick {
        RunSize { rounds: 6, many: 500, bursts: 1, pods: 100 }
    } else {
        RunSize { rounds: 150, many: 5000, bursts: 5, pods: 300 }
    };
    Record::of("cni", |record| measure(record, size))
}

fn measure(record: &mut Record, size: RunSize) -> Result<()> {
    record.set("rounds", size.rounds);
    record.set("addresses in use", format!("1, 250, {}", size.many));
    record.set("bursts", format!("{} of {} ADDs", size.bursts, size.pods));
    let kinds = Kind::available(record);
    let setups = setups(&kinds, size.many)?;
    let mut times = BTreeMap::new();
    let timed = one_by_one(&setups, size.rounds, &mut times);
    add_times_table(record, &setups, &times);
    evaluate(record, &times, size.many);
    timed?;
    interrupt::check()?;
    add_phase_table(record, &setups[0], size.rounds)?;
    let memory = |_| interrupt::check().and_then(|()| setups[0].memory_of_add());
    let memory = (0..20).map(memory).collect::<Result<Vec<_>>>()?;
    record.measured("add-memory", memory.into_iter().fold(0.0, f64::max));
    drop(setups);
    let has_portmap =
        kinds.contains(&Kind::Bridge) && peers::is_installed(record, "reference portmap", peers::PORTMAP);
    ports::measure(record, has_portmap, size.rounds.min(20))?;
    burst::measure(record, kinds.contains(&Kind::Bridge), size.pods, size.bursts)
}

/// Returns the setups of the sequential measurement. The first is `portolan-cni` with one other pod.
fn setups(available: &[Kind], many: usize) -> Result<Vec<Setup>> {
    let mut wanted = Vec::new();
    for in_use in [ONE_OTHER_POD, 250, many, FIRST_POD] {
        wanted.extend([(Kind::Portolan { masquerade: true }, in_use), (Kind::Bridge, in_use)]);
    }
    let once = [Kind::Portolan { masquerade: false }, Kind::Ptp, Kind::Kernel];
    wanted.extend(once.map(|kind| (kind, ONE_OTHER_POD)));
    let installed = wanted.into_iter().filter(|(kind, _)| available.contains(kind));
    installed.map(|(kind, in_use)| Setup::new(kind, in_use)).collect()
}

/// Runs the rounds. An incomplete round does not count.
fn one_by_one(setups: &[Setup], rounds: usize, times: &mut BTreeMap<String, Times>) -> Result<()> {
    let mut progress = Progress::new("ADD and DEL", rounds);
    // The first round is a warm-up.
    for round in 0..=rounds {
        if interrupt::requested() {
            break;
        }
        progress.at(round);
        let mut order: Vec<&Setup> = setups.iter().collect();
        fastrand::shuffle(&mut order);
        let round_of = |setup: &Setup| {
            let name = setup.name();
            setup.round().with_context(|| name.clone()).map(|took| (name, took))
        };
        let measured = order.into_iter().map(round_of).collect::<Result<Vec<_>>>()?;
        for (name, (add, del)) in measured.into_iter().filter(|_| round > 0) {
            let own = times.entry(name).or_default();
            own.add.push(add);
            own.del.push(del);
        }
    }
    Ok(())
}

fn add_times_table(record: &mut Record, setups: &[Setup], times: &BTreeMap<String, Times>) {
    let columns = ["plugin", "ADD p50 (95%)", "ADD p99", "DEL p50 (95%)", "DEL p99"];
    let mut table = Table::new(
        "ADD and DEL, one by one",
        &columns,
        "Milliseconds, process included, beside one other pod unless the row says otherwise.",
    );
    for setup in setups {
        let name = setup.name();
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

/// Compares values of the same round: a disturbance of the machine then affects both.
fn evaluate(record: &mut Record, times: &BTreeMap<String, Times>, many: usize) {
    let ours = |in_use| setup::name(Kind::Portolan { masquerade: true }, in_use);
    let unmasqueraded = setup::name(Kind::Portolan { masquerade: false }, ONE_OTHER_POD);
    let [bridge, ptp, kernel] =
        [Kind::Bridge, Kind::Ptp, Kind::Kernel].map(|kind| setup::name(kind, ONE_OTHER_POD));
    let ratio = |of: &str, to: &str, which: fn(&Times) -> &Vec<f64>| {
        let (of, to) = (times.get(of)?, times.get(to)?);
        Some(paired(which(of), which(to), |value, other| value / other))
    };
    let add: fn(&Times) -> &Vec<f64> = |times| &times.add;
    let del: fn(&Times) -> &Vec<f64> = |times| &times.del;
    for (id, ratio) in [
        ("add-bridge", ratio(&ours(ONE_OTHER_POD), &bridge, add)),
        ("add-ptp", ratio(&unmasqueraded, &ptp, add)),
        ("add-5000", ratio(&ours(many), &ours(ONE_OTHER_POD), add)),
        ("del-bridge", ratio(&ours(ONE_OTHER_POD), &bridge, del)),
        ("del-kernel", ratio(&ours(ONE_OTHER_POD), &kernel, del)),
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

/// Splits the time of `portolan-cni` into phases, from its own trace.
fn add_phase_table(record: &mut Record, setup: &Setup, rounds: usize) -> Result<()> {
    let mut spent: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds.min(50) {
        interrupt::check()?;
        for (command, spans) in setup.traced_round()? {
            for (span, milliseconds) in spans {
                spent.entry((command.clone(), span)).or_default().push(milliseconds);
            }
        }
    }
    let note = "Milliseconds, medians. exec: process start and exit; own: the rest of the plugin's code.";
    let mut table = Table::new("Time of portolan-cni by phase", &["span", "ADD", "DEL"], note);
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
