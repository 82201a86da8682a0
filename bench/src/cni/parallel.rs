//! Concurrent ADDs and DELs, as of a deployment that scales up.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Result;
use netns::NetNs;

use super::ports::mappings;
use super::setup::Setup;
use crate::interrupt;
use crate::record::Table;
use crate::statistics::{bootstrap, median};

/// Pods of one round.
const PODS: u16 = 16;

/// Returns an empty table for the rows of [`measure`].
pub(super) fn table() -> Table {
    let columns =
        ["plugin", "tracked", "ports", "ADD p50 (95%)", "longest ADD", "all ADDs (95%)", "all DELs (95%)"];
    let note = "Milliseconds, processes included. Ports are of each pod; the reference is bridge + \
        host-local + portmap.";
    Table::new(&format!("{PODS} pods at once"), &columns, note)
}

/// Measures `rounds` of concurrent ADDs and then concurrent DELs of pods with `ports` ports each, after a
/// warm-up round.
pub(super) fn measure(setup: &Setup, ports: u16, rounds: usize) -> Result<[String; 4]> {
    let (mut each, mut adds, mut dels, mut longest) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
    for round in 0..=rounds {
        interrupt::check()?;
        let (added, all_added, all_deleted) = one(setup, ports)?;
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

/// Returns the milliseconds of each ADD, of all ADDs together and of all DELs together.
fn one(setup: &Setup, ports: u16) -> Result<(Vec<f64>, f64, f64)> {
    let names: Vec<String> = (0..PODS).map(|pod| format!("pod-{pod}")).collect();
    let paths = names.iter().map(|name| setup.node.add_netns(name)).collect::<Result<Vec<_>>>()?;
    let mappings: Vec<_> = (0..PODS).map(|pod| mappings(pod * ports, ports)).collect();
    setup.node.run(|| {
        let pods = usize::from(PODS);
        let add = |pod: usize| setup.add_with_ports(&names[pod], &paths[pod], &mappings[pod]);
        let (added, all_added) = run_concurrently(pods, add);
        let added = added.into_iter().collect::<Result<Vec<_>>>()?;
        let del = |pod: usize| setup.del_with_ports(&names[pod], &paths[pod], &mappings[pod], &added[pod].0);
        let (deleted, all_deleted) = run_concurrently(pods, del);
        deleted.into_iter().collect::<Result<Vec<_>>>()?;
        paths.iter().try_for_each(NetNs::remove_named)?;
        let each = added.iter().map(|(_, took)| milliseconds(*took)).collect();
        Ok((each, milliseconds(all_added), milliseconds(all_deleted)))
    })
}

/// Runs `work` in `count` threads that start together. Returns the results and the time until the last thread
/// ended.
pub(super) fn run_concurrently<T: Send>(
    count: usize,
    work: impl Fn(usize) -> T + Sync,
) -> (Vec<T>, Duration) {
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
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| {
            thread.join().expect("a worker thread does not panic")
        };
        let results = running.into_iter().map(join).collect();
        (results, began.elapsed())
    })
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
