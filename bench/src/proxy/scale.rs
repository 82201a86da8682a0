//! Many Services: time until the proxy is ready, its memory, and the time until a change is applied.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use testbed::{Cluster, HostnameServer, wait_for};

use crate::cores;
use crate::interleave::Path;
use crate::interrupt;
use crate::load::{Load, Shape, run};
use crate::processor::Process;
use crate::progress::Progress;
use crate::record::{Record, Table, micros};
use crate::services;
use crate::statistics::{Estimate, bootstrap, paired};
use crate::topology::Topology;

/// How much the run measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunSize {
    /// Starts with 10,000 Services, one in each file; at the last start a thousand in each file.
    starts: usize,
    changes: usize,
    /// Pairs of blocks, one with changes and one without.
    pairs: usize,
}

impl RunSize {
    pub(super) fn of(rounds: usize) -> Self {
        Self {
            starts: if rounds < 10 { 2 } else { 3 },
            changes: (rounds * 4).clamp(10, 400),
            pairs: rounds.clamp(3, 60),
        }
    }
}

/// The Service whose endpoint changes.
const CHANGING: &str = "changing";
const CHANGING_IP: &str = "10.96.9.9";

/// Pause between two changes under traffic.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs all measurements with many Services.
pub(super) fn measure(record: &mut Record, size: RunSize) -> Result<()> {
    let mut table = Table::new(
        "Many Services",
        &["Services", "endpoints", "files", "ready after", "resident"],
        "A proxy starts with existing manifests; it is ready when /readyz succeeds. Memory is read a \
         second later.",
    );
    let ready = measure_starts(record, &mut table, size);
    record.tables.push(table);
    ready?;
    interrupt::check()?;
    let topology = Topology::new(&[])?;
    services::write(&topology.cluster.manifests(), 10_000, 10, 1)?;
    measure_changes(record, &topology, size)
}

fn measure_starts(record: &mut Record, table: &mut Table, size: RunSize) -> Result<()> {
    let small = measure_start(table, 100, 10, 1)?;
    record.measured("small-memory", Estimate::from(small.memory));
    let mut big = Started::default();
    for start in 1..=size.starts {
        let in_files = if start == size.starts { 1000 } else { 1 };
        let next = measure_start(table, 10_000, 10, in_files)?;
        big.memory = big.memory.max(next.memory);
        big.ready = big.ready.max(next.ready);
    }
    record.measured("scale-ready", Estimate::from(big.ready));
    record.measured("scale-memory", Estimate::from(big.memory));
    let full = measure_start(table, 5000, 50, 1)?;
    record.measured("sync-250k", Estimate::from(full.ready));
    Ok(())
}

/// The worst values of several starts.
#[derive(Debug, Default)]
struct Started {
    /// Seconds.
    ready: f64,
    /// MiB.
    memory: f64,
}

fn measure_start(table: &mut Table, services: usize, endpoints: usize, in_files: usize) -> Result<Started> {
    interrupt::check()?;
    let mut cluster = Cluster::start()?;
    services::write(&cluster.manifests(), services, endpoints, in_files)?;
    cluster.proxy.kill();
    let began = Instant::now();
    cluster.restart_proxy()?;
    let ready = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(1));
    let memory = Process(cluster.proxy.id()).memory().now;
    let cells = [services, services * endpoints, services / in_files].map(|number| number.to_string());
    table.row(cells.into_iter().chain([format!("{ready:.2} s"), format!("{memory:.1} MiB")]));
    Ok(Started { ready, memory })
}

/// Changes the endpoint of one Service of ten thousand repeatedly. Measures the time until the new endpoint
/// gets connections and the effect on other traffic.
fn measure_changes(record: &mut Record, topology: &Topology, size: RunSize) -> Result<()> {
    let cluster = &topology.cluster;
    let pods = [cluster.add_pod("one")?, cluster.add_pod("other")?];
    let _servers = [HostnameServer::start(&pods[0], 9092)?, HostnameServer::start(&pods[1], 9092)?];
    let change = |number: usize| {
        let pod = &pods[number % 2];
        let manifest =
            services::manifest(CHANGING, CHANGING_IP, services::PORT, std::iter::once(pod.ip.clone()));
        cluster.apply("changing.yaml", &manifest).map(|()| pod.name.as_str())
    };
    let name = change(0)?;
    wait_for("the Service that changes", || {
        ensure!(current_endpoint(topology)? == name);
        Ok(())
    })?;
    let mut progress = Progress::new("changes", size.changes + 2 * size.pairs);
    let mut visible = Histogram::<u64>::new(3)?;
    for number in 1..=size.changes {
        if interrupt::requested() {
            return Ok(());
        }
        progress.at(number);
        let name = change(number)?;
        let renamed = Instant::now();
        while current_endpoint(topology)? != name {
            ensure!(renamed.elapsed() < Duration::from_secs(10), "the change was not applied within 10 s");
        }
        visible.record(u64::try_from(renamed.elapsed().as_nanos())?)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
    let milliseconds = |quantile: f64| visible.value_at_quantile(quantile) as f64 / 1e6;
    let mut table = Table::new(
        "A change among 10,000 Services",
        &["changes", "p50", "p99", "most"],
        "From the rename of the one file that changed to the first connection that reaches the new endpoint.",
    );
    let cells = [0.5, 0.99, 1.0].map(|quantile| format!("{:.1} ms", milliseconds(quantile)));
    table.row(std::iter::once(size.changes.to_string()).chain(cells));
    record.tables.push(table);
    record.distribution("changes", "visible after", &visible);
    record.measured("change-visible", Estimate::from(milliseconds(0.99)));
    measure_p99_increase(record, topology, size, &mut progress, &change)
}

/// Opens one connection from the client and returns the name of the endpoint that answers.
fn current_endpoint(topology: &Topology) -> Result<String> {
    let connect = || -> Result<String> {
        let mut name = String::new();
        TcpStream::connect((CHANGING_IP, 80))?.read_to_string(&mut name)?;
        Ok(name)
    };
    topology.client.netns.run(connect)?
}

/// Kinds of block: without changes, without changes again (A/A), with changes.
const CALM: usize = 0;
const AGAIN: usize = 1;
const BUSY: usize = 2;

/// Returns the p99 of requests on an open connection, µs.
fn block(path: &Path<'_>) -> Result<f64> {
    let block = path.client.run(|| {
        cores::pin_client()?;
        run(Load::from(Shape::Requests), &path.to, Duration::from_millis(500))
    })??;
    Ok(micros(block.latencies.value_at_quantile(0.99)))
}

/// Runs `work` while changes are applied.
fn with_changes<'a>(
    change: &(impl Fn(usize) -> Result<&'a str> + Sync),
    work: impl FnOnce() -> Result<f64>,
) -> Result<f64> {
    let is_done = AtomicBool::new(false);
    let (worked, changed) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<()> {
            let mut number = 0;
            while !is_done.load(Ordering::Relaxed) {
                change(number)?;
                number += 1;
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        let worked = work();
        is_done.store(true, Ordering::Relaxed);
        (worked, changing.join())
    });
    changed.ok().context("the thread that changes has panicked")??;
    worked
}

/// Measures how much changes increase the p99 of requests on an open connection.
fn measure_p99_increase<'a>(
    record: &mut Record,
    topology: &Topology,
    size: RunSize,
    progress: &mut Progress,
    change: &(impl Fn(usize) -> Result<&'a str> + Sync),
) -> Result<()> {
    let path = topology.through_proxy("portolan-proxy")?;
    let mut p99: [Vec<f64>; 3] = Default::default();
    let mut order = [CALM, AGAIN, BUSY];
    for pair in 0..size.pairs {
        progress.at(size.changes + 2 * pair);
        fastrand::shuffle(&mut order);
        for which in order {
            if interrupt::requested() {
                return Ok(());
            }
            p99[which].push(if which == BUSY {
                with_changes(change, || block(&path))?
            } else {
                block(&path)?
            });
        }
    }
    let [calm, again, busy] = p99;
    let added = paired(&busy, &calm, |busy, calm| busy - calm);
    let noise = paired(&again, &calm, |again, calm| again - calm);
    let width = noise.low.abs().max(noise.high.abs());
    let mut table = Table::new(
        "Traffic while things change",
        &["p99 of RR", "µs (95%)"],
        "Ten changes a second among 10,000 Services, on the two cores that client, server and proxy share.",
    );
    for (name, estimate) in [
        ("without changes", bootstrap(&calm)),
        ("with changes", bootstrap(&busy)),
        ("added", added),
        ("A/A", noise),
    ] {
        table.row([
            name.to_owned(),
            format!("{:.1} ({:.1} to {:.1})", estimate.value, estimate.low, estimate.high),
        ]);
    }
    record.tables.push(table);
    record.measured(
        "change-bump",
        Estimate::new(
            (added.low - width).max(0.0),
            (added.value - width).max(0.0),
            (added.high - width).max(0.0),
        ),
    );
    Ok(())
}
