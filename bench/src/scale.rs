//! The programs on a real API server with many Services and endpoints, and kube-proxy beside them.

mod fill;
mod ground;
mod subject;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::interrupt;
use crate::processor::Memory;
use crate::record::{Record, Table};
use ground::Ground;
use subject::{Kind, Subject};

/// Changes whose way to the next connection is timed, and Services made while both daemons run.
const CHANGES: usize = 100;

/// What a program may take to serve all this. kube-proxy has needed minutes (kubernetes#135639).
const START: Duration = Duration::from_secs(600);

/// What a change, or a list, may take.
const SOON: Duration = Duration::from_secs(120);

/// Fills an API server, then starts each program on it: what it takes, and how soon a change is served.
///
/// # Errors
/// When a program cannot be set up.
pub fn scale(services: usize, endpoints: usize) -> Result<Record> {
    let mut record = Record::new("scale");
    record.set("services", services);
    record.set("endpoints", services * endpoints);
    let mut ground = Ground::new()?;
    let filled = fill::fill(&ground.control_plane, services, endpoints)?;
    record.set("created in", format!("{:.0} s", filled.as_secs_f64()));
    let columns = [
        "program",
        "start to serving, s",
        "CPU of it, s",
        "resident, MiB",
        "peak, MiB",
        "after a relist, MiB",
        "peak of it, MiB",
        "change to served, ms: p50",
        "p99",
    ];
    let title = format!("{services} Services with {endpoints} endpoints each, from the API server");
    let note = "A change is a patch of an EndpointSlice; its time is from the API server's answer to the first connection that \
                reaches the new endpoint (proxies), or the first answer with its address (DNS).";
    let mut table = Table::new(&title, &columns, note);
    for kind in [Kind::Proxy, Kind::KubeProxy, Kind::Dns] {
        if !interrupt::requested() {
            table.row(measure(&mut ground, kind).with_context(|| kind.name())?);
        }
    }
    record.tables.push(table);
    if !interrupt::requested() {
        let known = know(&ground).context("Services made known")?;
        record.measured("known", milliseconds(percentile(&known, 99)));
        let columns = ["Services created", "ms: p50", "p99", "longest"];
        let note = "Both daemons run. From the API server's answer to the second object, the slice, to the answer of the endpoint to a pod \
                    that has asked for the name and connected to what it was told; it asks again at once.";
        let mut table = Table::new("From creation to an answer by name", &columns, note);
        let times = [50, 99, 100].map(|percent| format!("{:.1}", milliseconds(percentile(&known, percent))));
        table.row([vec![known.len().to_string()], times.to_vec()].concat());
        record.tables.push(table);
    }
    record.finish();
    Ok(record)
}

fn measure(ground: &mut Ground, kind: Kind) -> Result<Vec<String>> {
    ground.point(kind.probe(), 0)?;
    let started = Instant::now();
    let subject = Subject::start(kind, ground)?;
    until(START, || subject.serves(ground, 0))?;
    let ready = started.elapsed();
    let (cpu, at_start) = (subject.time(), subject.memory());
    let mut changes = Vec::new();
    for change in 1..=CHANGES {
        ground.point(kind.probe(), change % 2)?;
        let patched = Instant::now();
        until(SOON, || subject.serves(ground, change % 2))?;
        changes.push(patched.elapsed());
    }
    let relisted = if subject.tells_lists() { Some(relist(ground, &subject)?) } else { None };
    let ms = |percent| format!("{:.1}", milliseconds(percentile(&changes, percent)));
    let mib = |mebibytes: f64| format!("{mebibytes:.0}");
    let row = vec![
        kind.name().to_owned(),
        format!("{:.1}", ready.as_secs_f64()),
        format!("{:.1}", cpu.as_secs_f64()),
        mib(at_start.now),
        mib(at_start.peak),
        relisted.map_or_else(|| "-".to_owned(), |memory| mib(memory.now)),
        relisted.map_or_else(|| "-".to_owned(), |memory| mib(memory.peak)),
        ms(50),
        ms(99),
    ];
    subject.stop(ground)?;
    Ok(row)
}

/// Makes Services, one after the other, and asks for each by its name from a pod until it answers.
fn know(ground: &Ground) -> Result<Vec<Duration>> {
    let mut daemons = Vec::new();
    for kind in [Kind::Proxy, Kind::Dns] {
        ground.point(kind.probe(), 0)?;
        let daemon = Subject::start(kind, ground)?;
        until(START, || daemon.serves(ground, 0))?;
        daemons.push(daemon);
    }
    let mut times = Vec::new();
    for number in 0..CHANGES {
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
    let lists = subject.lists();
    subject.reset_peak()?;
    ground.control_plane.stop_server();
    ground.control_plane.start_server()?;
    ground.point(subject.kind.probe(), 1)?;
    ground.control_plane.compact()?;
    ground.control_plane.stop_server();
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
