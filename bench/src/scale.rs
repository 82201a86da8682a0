//! The programs on a real API server with many Services and endpoints, and kube-proxy beside them.

mod fill;
mod found;
mod ground;
mod subject;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::interrupt;
use crate::peers;
use crate::processor::Memory;
use crate::progress::Progress;
use crate::record::Record;
use found::Found;
use ground::Ground;
use subject::{Kind, Subject};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services in the API server.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// Changes whose way to the next connection is timed, and Services made while both daemons run.
    pub changes: usize,
}

impl Size {
    /// What is asked for.
    pub const FULL: Self = Self { services: 10_000, endpoints: 15, changes: 100 };
    /// What shows that it works.
    pub const QUICK: Self = Self { services: 500, endpoints: 15, changes: 3 };
}

/// What a program may take to serve all this. kube-proxy has needed minutes (kubernetes#135639).
const START: Duration = Duration::from_secs(600);

/// What a change, or a list, may take.
const SOON: Duration = Duration::from_secs(120);

/// Fills an API server, then starts each program on it: what it takes, and how soon a change is served.
///
/// When a program cannot be set up the record ends there. Where the control plane is not built nothing is measured, and it
/// says how to get it.
pub fn scale(size: Size) -> Record {
    Record::of("scale", |record| {
        record.set("services", size.services);
        record.set("endpoints", size.services * size.endpoints);
        record.set("changes", size.changes);
        if testbed::go_tool("control-plane").is_err() {
            record.not_measured.push("the Kubernetes control plane: not built; `make tools`".to_owned());
            return Ok(());
        }
        on_a_control_plane(record, size)
    })
}

fn on_a_control_plane(record: &mut Record, size: Size) -> Result<()> {
    let mut ground = Ground::new()?;
    let filled = fill::fill(&ground.control_plane, size.services, size.endpoints)?;
    interrupt::check()?;
    record.set("created in", format!("{:.0} s", filled.as_secs_f64()));
    let mut kinds = vec![Kind::Proxy, Kind::KubeProxy, Kind::Dns];
    if !peers::is_there(record, "kube-proxy, which calls nft", peers::NFT) {
        kinds.retain(|kind| *kind != Kind::KubeProxy);
    }
    let mut found = Vec::new();
    let measured: Result<()> = kinds.into_iter().try_for_each(|kind| {
        found.push(measure(&mut ground, kind, size.changes).with_context(|| kind.name())?);
        Ok(())
    });
    judge(record, &found, size);
    record.tables.push(found::table(&found, size));
    measured?;
    let known = know(&ground, size.changes).context("Services made known")?;
    record.measured("known", milliseconds(percentile(&known, 99)));
    record.tables.push(found::known(&known));
    Ok(())
}

/// Fills in what is asked for, with the size it is true of.
fn judge(record: &mut Record, found: &[Found], size: Size) {
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

fn measure(ground: &mut Ground, kind: Kind, changes: usize) -> Result<Found> {
    ground.point(kind.probe(), 0)?;
    let started = Instant::now();
    let subject = Subject::start(kind, ground)?;
    until(START, || subject.serves(ground, 0))?;
    let ready = started.elapsed();
    let (cpu, at_start) = (subject.time(), subject.memory());
    let mut progress = Progress::new(kind.name(), changes);
    let mut times = Vec::new();
    for change in 1..=changes {
        progress.at(change);
        interrupt::check()?;
        ground.point(kind.probe(), change % 2)?;
        let patched = Instant::now();
        until(SOON, || subject.serves(ground, change % 2))?;
        times.push(patched.elapsed());
    }
    let relisted = if subject.tells_lists() { Some(relist(ground, &subject)?) } else { None };
    subject.stop(ground)?;
    Ok(Found { kind, ready, cpu, at_start, relisted, changes: times })
}

/// Makes Services, one after the other, and asks for each by its name from a pod until it answers.
fn know(ground: &Ground, services: usize) -> Result<Vec<Duration>> {
    let mut daemons = Vec::new();
    for kind in [Kind::Proxy, Kind::Dns] {
        ground.point(kind.probe(), 0)?;
        let daemon = Subject::start(kind, ground)?;
        until(START, || daemon.serves(ground, 0))?;
        daemons.push(daemon);
    }
    let mut progress = Progress::new("from creation to an answer", services);
    let mut times = Vec::new();
    for number in 0..services {
        progress.at(number);
        interrupt::check()?;
        let name = ground.create(number)?;
        let created = Instant::now();
        until(SOON, || ground.is_known(&name))?;
        times.push(created.elapsed());
    }
    daemons.into_iter().try_for_each(|daemon| daemon.stop(ground))?;
    Ok(times)
}

/// The least time that so many of a hundred do not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The API server forgets what was, so that everything has to be listed once more.
fn relist(ground: &mut Ground, subject: &Subject) -> Result<Memory> {
    ground.point(subject.kind.probe(), 1)?;
    let lists = subject.lists();
    subject.reset_peak()?;
    ground.control_plane.stop_server();
    ground.control_plane.compact()?;
    ground.control_plane.start_server()?;
    until(SOON, || {
        let now = subject.lists();
        ensure!(now >= lists + 2, "{now} lists");
        Ok(())
    })?;
    until(SOON, || subject.serves(ground, 1))?;
    Ok(subject.memory())
}

fn until(patience: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while let Err(error) = attempt() {
        if Instant::now() > deadline || interrupt::requested() {
            return Err(error);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
