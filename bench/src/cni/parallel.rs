//! Pods that start at the same time, as those of a deployment do.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Result;
use netns::NetNs;

use super::contender::Contender;
use super::ports::mappings;
use crate::interrupt;
use crate::record::Table;
use crate::statistics::{bootstrap, median};

/// Pods that start at once.
const PODS: u16 = 16;

/// The table of the rows that [`measure`] returns.
pub(super) fn table() -> Table {
    let columns =
        ["plugin", "tracked", "ports", "ADD p50 (95%)", "longest ADD", "all ADDs (95%)", "all DELs (95%)"];
    let note = "Milliseconds, processes included. Ports are of each pod; the reference is bridge + host-local + portmap.";
    Table::new(&format!("{PODS} pods at once"), &columns, note)
}

/// Measures `rounds` of ADDs at once and then DELs at once, of pods with so many ports each. One round warms up.
pub(super) fn measure(contender: &Contender, ports: u16, rounds: usize) -> Result<[String; 4]> {
    let (mut each, mut adds, mut dels, mut longest) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
    for round in 0..=rounds {
        interrupt::check()?;
        let (added, all_added, all_deleted) = one(contender, ports)?;
        if round > 0 {
            longest = added.iter().copied().fold(longest, f64::max);
            each.push(median(&mut added.clone()));
            adds.push(all_added);
            dels.push(all_deleted);
        }
    }
    let cell = |values: &[f64]| {
        let estimate = bootstrap(values);
        format!("{:.2} ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
    };
    Ok([cell(&each), format!("{longest:.2}"), cell(&adds), cell(&dels)])
}

/// Milliseconds of each ADD, until the last ADD has ended, and until the last DEL has.
fn one(contender: &Contender, ports: u16) -> Result<(Vec<f64>, f64, f64)> {
    let names: Vec<String> = (0..PODS).map(|pod| format!("pod-{pod}")).collect();
    let paths = names.iter().map(|name| contender.node.add_netns(name)).collect::<Result<Vec<_>>>()?;
    let mappings: Vec<_> = (0..PODS).map(|pod| mappings(pod * ports, ports)).collect();
    contender.node.run(|| {
        let pods = usize::from(PODS);
        let add = |pod: usize| contender.add_with_ports(&names[pod], &paths[pod], &mappings[pod]);
        let (added, all_added) = at_once(pods, add);
        let added = added.into_iter().collect::<Result<Vec<_>>>()?;
        let del =
            |pod: usize| contender.del_with_ports(&names[pod], &paths[pod], &mappings[pod], &added[pod].0);
        let (deleted, all_deleted) = at_once(pods, del);
        deleted.into_iter().collect::<Result<Vec<_>>>()?;
        paths.iter().try_for_each(NetNs::remove_named)?;
        let each = added.iter().map(|(_, took)| milliseconds(*took)).collect();
        Ok((each, milliseconds(all_added), milliseconds(all_deleted)))
    })
}

/// Does `work` in so many threads that begin together. Returns what each returned, and how long all of them took.
pub(super) fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> (Vec<T>, Duration) {
    let barrier = Barrier::new(count + 1);
    std::thread::scope(|scope| {
        let (barrier, work) = (&barrier, &work);
        let spawn = |number| {
            scope.spawn(move || {
                barrier.wait();
                work(number)
            })
        };
        let running: Vec<_> = (0..count).map(spawn).collect();
        barrier.wait();
        let began = Instant::now();
        let join =
            |thread: std::thread::ScopedJoinHandle<'_, T>| thread.join().expect("a call does not panic");
        let results = running.into_iter().map(join).collect();
        (results, began.elapsed())
    })
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
