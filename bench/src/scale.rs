//! The daemons and kube-proxy with a real API server that has many Services and endpoints.

mod cluster;
mod daemon;
mod fill;
mod results;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::interrupt;
use crate::peers;
use crate::processor::Memory;
use crate::progress::Progress;
use crate::record::Record;
use cluster::TestCluster;
use daemon::{Daemon, Kind};
use results::DaemonResult;

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services in the API server.
    pub services: usize,
    /// Endpoints of each Service.
    pub endpoints: usize,
    /// Endpoint changes to time, and Services to create while both daemons run.
    pub changes: usize,
}

impl Size {
    /// The size that the targets are for.
    pub const FULL: Self = Self { services: 10_000, endpoints: 15, changes: 100 };
    /// A quick run.
    pub const QUICK: Self = Self { services: 500, endpoints: 15, changes: 3 };
}

/// Deadline for a program to serve all Services. kube-proxy has needed minutes (kubernetes#135639).
const START_DEADLINE: Duration = Duration::from_secs(600);

/// Deadline for a change or a relist.
const CHANGE_DEADLINE: Duration = Duration::from_secs(120);

/// Fills an API server, then starts each program: measures start time, memory, and the time until a change is
/// served.
///
/// The record ends early when a program cannot be started. Without a built control plane nothing is measured,
/// and the record says how to build it.
pub fn scale(size: Size) -> Record {
    Record::of("scale", |record| {
        record.set("services", size.services);
        record.set("endpoints", size.services * size.endpoints);
        record.set("changes", size.changes);
        if testbed::go_tool("control-plane").is_err() {
            record.not_measured.push("the Kubernetes control plane: not built; `make tools`".to_owned());
            return Ok(());
        }
        measure_all(record, size)
    })
}

fn measure_all(record: &mut Record, size: Size) -> Result<()> {
    let mut cluster = TestCluster::new()?;
    let filled = fill::fill(&cluster.control_plane, size.services, size.endpoints)?;
    interrupt::check()?;
    record.set("created in", format!("{:.0} s", filled.as_secs_f64()));
    let mut kinds = vec![Kind::Proxy, Kind::KubeProxy, Kind::Dns];
    if !peers::is_installed(record, "kube-proxy, which calls nft", peers::NFT) {
        kinds.retain(|kind| *kind != Kind::KubeProxy);
    }
    let mut found = Vec::new();
    let measured: Result<()> = kinds.into_iter().try_for_each(|kind| {
        found.push(measure(&mut cluster, kind, size.changes).with_context(|| kind.name())?);
        Ok(())
    });
    evaluate(record, &found, size);
    record.tables.push(results::table(&found, size));
    measured?;
    let times = measure_creation(&cluster, size.changes).context("from creation to an answer by name")?;
    record.measured("known", milliseconds(percentile(&times, 99)));
    record.tables.push(results::creation_table(&times));
    Ok(())
}

/// Fills in the figures that have a target, with the size of the run.
fn evaluate(record: &mut Record, found: &[DaemonResult], size: Size) {
    let mut measured = |id: &str, value: f64| {
        record.measured(id, value);
        record.remark(id, format!("{} Services of {} endpoints", size.services, size.endpoints));
    };
    let of = |kind| found.iter().find(|found| found.kind == kind);
    if let (Some(own), Some(peer)) = (of(Kind::Proxy), of(Kind::KubeProxy)) {
        measured("start-kube-proxy", own.ready.as_secs_f64() / peer.ready.as_secs_f64());
        measured("memory-kube-proxy", own.at_start.peak / peer.at_start.peak);
    }
    if let Some(relisted) = of(Kind::Dns).and_then(|found| found.relisted) {
        measured("dns-relist", relisted.peak);
    }
}

fn measure(cluster: &mut TestCluster, kind: Kind, changes: usize) -> Result<DaemonResult> {
    cluster.set_endpoint(kind.probe(), 0)?;
    let started = Instant::now();
    let daemon = Daemon::start(kind, cluster)?;
    retry_until(START_DEADLINE, || daemon.check_serving(cluster, 0))?;
    let ready = started.elapsed();
    let (cpu, at_start) = (daemon.time(), daemon.memory());
    let mut progress = Progress::new(kind.name(), changes);
    let mut times = Vec::new();
    for change in 1..=changes {
        progress.at(change);
        interrupt::check()?;
        cluster.set_endpoint(kind.probe(), change % 2)?;
        let patched = Instant::now();
        retry_until(CHANGE_DEADLINE, || daemon.check_serving(cluster, change % 2))?;
        times.push(patched.elapsed());
    }
    let relisted = if daemon.logs_lists() { Some(relist(cluster, &daemon)?) } else { None };
    daemon.stop(cluster)?;
    Ok(DaemonResult { kind, ready, cpu, at_start, relisted, changes: times })
}

/// Creates Services in turn and measures the time until a pod reaches each by its name.
fn measure_creation(cluster: &TestCluster, services: usize) -> Result<Vec<Duration>> {
    let mut daemons = Vec::new();
    for kind in [Kind::Proxy, Kind::Dns] {
        cluster.set_endpoint(kind.probe(), 0)?;
        let daemon = Daemon::start(kind, cluster)?;
        retry_until(START_DEADLINE, || daemon.check_serving(cluster, 0))?;
        daemons.push(daemon);
    }
    let mut progress = Progress::new("from creation to an answer", services);
    let mut times = Vec::new();
    for number in 0..services {
        progress.at(number);
        interrupt::check()?;
        let name = cluster.create_service(number)?;
        let created = Instant::now();
        retry_until(CHANGE_DEADLINE, || cluster.check_by_name(&name))?;
        times.push(created.elapsed());
    }
    daemons.into_iter().try_for_each(|daemon| daemon.stop(cluster))?;
    Ok(times)
}

/// Returns a percentile of the times.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Restarts the API server with a compacted store, so that the daemon must relist. Returns the memory after
/// that.
fn relist(cluster: &mut TestCluster, daemon: &Daemon) -> Result<Memory> {
    cluster.set_endpoint(daemon.kind.probe(), 1)?;
    let lists = daemon.lists();
    daemon.reset_peak()?;
    cluster.control_plane.stop_server();
    cluster.control_plane.compact()?;
    cluster.control_plane.start_server()?;
    retry_until(CHANGE_DEADLINE, || {
        let now = daemon.lists();
        ensure!(now >= lists + 2, "{now} lists");
        Ok(())
    })?;
    retry_until(CHANGE_DEADLINE, || daemon.check_serving(cluster, 1))?;
    Ok(daemon.memory())
}

fn retry_until(limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while let Err(error) = attempt() {
        if Instant::now() > deadline || interrupt::requested() {
            return Err(error);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
