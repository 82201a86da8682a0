//! Direct against virtual IP, in interleaved blocks.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use testbed::{Cluster, wait_for};

use crate::environment::Environment;
use crate::load::{self, Shape};

/// Short, so that a drift of the machine's speed meets all paths alike.
const BLOCK: Duration = Duration::from_millis(200);

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Each round has one block of each path, in random order.
    pub rounds: usize,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Results {
    pub(crate) environment: Environment,
    pub(crate) rounds: usize,
    pub(crate) block_ms: u128,
    pub(crate) paths: Vec<PathResult>,
}

/// One path; times in microseconds.
#[derive(Debug, Serialize)]
pub struct PathResult {
    pub(crate) shape: &'static str,
    pub(crate) path: &'static str,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// p50 less that of `direct` in the same round: median over the rounds, and its 95% bootstrap interval.
    pub(crate) added: f64,
    pub(crate) added_low: f64,
    pub(crate) added_high: f64,
}

/// The paths. Direct comes twice: what the two differ by is the noise of the machine.
const PATHS: [&str; 3] = ["direct", "direct again", "virtual IP"];

/// Measures in a node of its own.
///
/// # Errors
/// When the node, a pod or a program cannot be set up.
pub fn measure(options: &Options) -> Result<Results> {
    let cluster = Cluster::start()?;
    let (client, server) = (cluster.add_pod("client")?, cluster.add_pod("server")?);
    for ns in [&client.netns, &server.netns] {
        ns.run(reuse_ports)??;
    }
    cluster.node.run(reuse_ports)?;
    let direct: SocketAddr = format!("{}:9090", server.ip).parse()?;
    load::serve(&server.netns, direct)?;
    cluster.apply("server.yaml", MANIFEST)?;
    let virtual_ip: SocketAddr = format!("{}:80", cluster.virtual_ip("server")?).parse()?;
    let addresses = [direct, direct, virtual_ip];
    wait_for("the service", || {
        client.netns.run(|| Ok(std::net::TcpStream::connect(virtual_ip).map(drop)?))?
    })?;

    let mut paths = Vec::new();
    for (shape, name) in [(Shape::Requests, "RR"), (Shape::Connections, "CRR")] {
        let mut totals: Vec<Histogram<u64>> = Vec::new();
        totals.resize_with(PATHS.len(), || {
            Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds")
        });
        let mut medians = vec![Vec::new(); PATHS.len()];
        let mut errors = vec![0; PATHS.len()];
        for round in 0..=options.rounds {
            progress(name, round, options.rounds);
            let mut order: Vec<usize> = (0..PATHS.len()).collect();
            fastrand::shuffle(&mut order);
            for path in order {
                let block = client.netns.run(|| load::run(shape, addresses[path], BLOCK))??;
                // The first round warms up.
                if round > 0 {
                    errors[path] += block.errors;
                    medians[path].push(micros(block.latencies.value_at_quantile(0.5)));
                    totals[path].add(&block.latencies)?;
                }
            }
        }
        for (index, path) in PATHS.iter().enumerate() {
            let added: Vec<f64> = medians[index].iter().zip(&medians[0]).map(|(a, b)| a - b).collect();
            let (low, high) = interval(&added);
            let at = |quantile| micros(totals[index].value_at_quantile(quantile));
            paths.push(PathResult {
                shape: name,
                path,
                requests: totals[index].len(),
                errors: errors[index],
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: micros(totals[index].max()),
                added: median(added),
                added_low: low,
                added_high: high,
            });
        }
    }
    let environment = Environment::capture();
    Ok(Results { environment, rounds: options.rounds, block_ms: BLOCK.as_millis(), paths })
}

const MANIFEST: &str = "
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 9090}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {containers: []}
";

/// Otherwise CRR measures the search for a free port among those in TIME_WAIT.
fn reuse_ports() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
}

#[expect(clippy::print_stderr, reason = "progress, for people")]
fn progress(shape: &str, round: usize, rounds: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{shape}: round {round} of {rounds} ");
        if round == rounds {
            eprint!("\r{:40}\r", "");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Where the median lies with 95% confidence, by resampling the rounds.
fn interval(values: &[f64]) -> (f64, f64) {
    let resample = || median((0..values.len()).filter_map(|_| fastrand::choice(values).copied()).collect());
    let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| resample()).collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
}
