//! The cost of host ports and tracked connections for ADD and DEL, of the pod that has them and of other
//! pods.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns::NetNs;
use serde_json::{Value, json};

use super::command::{Call, run};
use super::parallel;
use super::setup::{Kind, ONE_OTHER_POD, Setup};
use crate::interrupt;
use crate::record::{Record, Table};
use crate::statistics::{bootstrap, paired};

/// Tracked connections of a busy node: one for each port and source.
const TRACKED: u16 = 50_000;
const SOURCES: u16 = 2;

/// A passive FTP server or a media server publishes thousands of ports.
const MANY: u16 = 3000;
const FIRST_PORT: u16 = 20_000;

/// The reference plugin starts several processes for each port: fewer ports are enough to measure the cost of
/// one.
const MANY_OF_REFERENCE: u16 = 100;

/// ADD and DEL times, milliseconds, one value a round.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// One row of the table.
struct Row {
    name: String,
    ports: u16,
    times: Times,
}

/// Measures `rounds` of ADD and DEL with no, one and many ports, without and with tracked connections, and an
/// ADD without ports while a pod with many ports is attached. Then measures concurrent ADDs of pods without
/// and with a port.
pub(super) fn measure(record: &mut Record, has_reference: bool, rounds: usize) -> Result<()> {
    record.set("tracked connections", u32::from(TRACKED) * u32::from(SOURCES));
    let mut kinds = vec![Kind::Portolan { masquerade: true }];
    kinds.extend(has_reference.then_some(Kind::Bridge));
    let columns =
        ["plugin", "tracked", "ports", "ADD p50 (95%)", "DEL p50 (95%)", "another ADD meanwhile, longest"];
    let note = "Milliseconds, processes included; ports over TCP, in a row. The reference is bridge + \
        host-local + portmap.";
    let mut table = Table::new("Ports and tracked connections", &columns, note);
    let mut concurrent = parallel::table();
    for kind in kinds {
        let node = [Setup::new(kind, ONE_OTHER_POD)?, Setup::new(kind, ONE_OTHER_POD)?];
        track(&node[1])?;
        let many = if kind == Kind::Bridge { MANY_OF_REFERENCE } else { MANY };
        let mut found = Vec::new();
        for (setup, tracked) in node.iter().zip(["none", "100,000"]) {
            let mut rows: Vec<Row> =
                [0, 1, many].map(|ports| Row { name: setup.name(), ports, times: Times::default() }).into();
            for round in 0..=rounds {
                interrupt::check()?;
                for row in &mut rows {
                    let (add, del) = one(setup, row.ports)?;
                    // The first round is a warm-up.
                    if round > 0 {
                        row.times.add.push(add);
                        row.times.del.push(del);
                    }
                }
            }
            let longest_add = longest_concurrent_add(setup, many)?;
            for row in &rows {
                let cell = |values: &[f64]| {
                    let estimate = bootstrap(values);
                    format!("{:.2} ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
                };
                let longest = if row.ports == many { format!("{longest_add:.2}") } else { "-".to_owned() };
                let cells = [
                    tracked.to_owned(),
                    row.ports.to_string(),
                    cell(&row.times.add),
                    cell(&row.times.del),
                    longest,
                ];
                table.row(std::iter::once(row.name.clone()).chain(cells));
            }
            for ports in [0, 1] {
                let cells = parallel::measure(setup, ports, rounds.div_ceil(4))?;
                let labels = [setup.name(), tracked.to_owned(), ports.to_string()];
                concurrent.row(labels.into_iter().chain(cells));
            }
            found.push(rows);
        }
        if kind != Kind::Bridge {
            evaluate(record, &found);
        }
    }
    record.tables.extend([table, concurrent]);
    Ok(())
}

/// Fills in the ratios of `portolan-cni`, each of values of the same round.
fn evaluate(record: &mut Record, found: &[Vec<Row>]) {
    let [none, tracked] = found else { return };
    let by = |value: f64, other: f64| value / other;
    for (id, of, to) in [
        ("add-tracked", &tracked[1].times.add, &none[1].times.add),
        ("del-tracked", &tracked[1].times.del, &none[1].times.del),
        ("add-ports", &none[2].times.add, &none[1].times.add),
        ("del-ports", &none[2].times.del, &none[1].times.del),
    ] {
        record.measured(id, paired(of, to, by));
    }
}

/// Returns the times of ADD and DEL of a pod with `ports` ports, milliseconds.
fn one(setup: &Setup, ports: u16) -> Result<(f64, f64)> {
    let path = setup.node.add_netns("pod")?;
    let (mappings, name) = (mappings(0, ports), "pod");
    setup.node.run(|| {
        let (result, add) = setup.add_with_ports(name, &path, &mappings)?;
        let del = setup.del_with_ports(name, &path, &mappings, &result)?;
        NetNs::remove_named(&path)?;
        Ok((milliseconds(add), milliseconds(del)))
    })
}

/// Returns the longest ADD of a pod without ports while a pod with many ports is attached and detached,
/// milliseconds.
fn longest_concurrent_add(setup: &Setup, ports: u16) -> Result<f64> {
    let [many, other] = ["many", "other"].map(|name| setup.node.add_netns(name));
    let (many, other) = (many?, other?);
    let mappings = mappings(0, ports);
    setup.node.run(|| {
        let is_done = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let (mappings, many, is_done) = (&mappings, &many, &is_done);
            let busy = scope.spawn(move || {
                let attached = (0..3).try_for_each(|_| {
                    let (result, _) = setup.add_with_ports("many", many, mappings)?;
                    setup.del_with_ports("many", many, mappings, &result).map(|_took| ())
                });
                is_done.store(true, Ordering::Relaxed);
                attached
            });
            let mut longest = Duration::ZERO;
            while !is_done.load(Ordering::Relaxed) {
                let (_, took) = run(&setup.call("ADD", "other", &other))?;
                longest = longest.max(took);
                run(&setup.call("DEL", "other", &other))?;
            }
            busy.join().expect("attaching a pod with many ports does not panic")?;
            Ok::<_, anyhow::Error>(longest)
        })?;
        NetNs::remove_named(&many)?;
        NetNs::remove_named(&other)?;
        Ok(milliseconds(longest))
    })
}

/// Fills the node's connection tracking with datagrams from outside to closed ports.
fn track(setup: &Setup) -> Result<()> {
    setup.node.shell("echo 3600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout")?;
    let to = setup.node.address().to_owned();
    setup.node.outside().run(|| {
        for _ in 0..SOURCES {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            for port in 0..TRACKED {
                // Fails with the ICMP port unreachable of an earlier datagram: the ports are closed.
                let _ = socket.send_to(b"x", (&*to, port + 10_000));
            }
        }
        Ok::<_, std::io::Error>(())
    })??;
    let tracked = setup.node.shell("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    let tracked: u32 = tracked.trim().parse()?;
    let wanted = u32::from(TRACKED) * u32::from(SOURCES);
    ensure!(tracked > wanted / 10 * 9, "{tracked} connections are tracked, not {wanted}");
    Ok(())
}

/// Returns mappings of `ports` consecutive ports from [`FIRST_PORT`] + `offset` on.
pub(super) fn mappings(offset: u16, ports: u16) -> Value {
    let mapping = |port: u16| {
        let port = FIRST_PORT + offset + port;
        json!({ "hostPort": port, "containerPort": port, "protocol": "tcp" })
    };
    (0..ports).map(mapping).collect()
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

impl Setup {
    /// Runs ADD with port mappings. The reference plugin needs portmap as the next plugin of the chain.
    pub(super) fn add_with_ports(
        &self,
        container: &str,
        netns: &Path,
        mappings: &Value,
    ) -> Result<(Value, Duration)> {
        let config = self.with_ports(mappings)?;
        let (result, took) = run(&Call { config: &config, ..self.call("ADD", container, netns) })?;
        if self.is_ours() {
            return Ok((result, took));
        }
        let config = portmap(mappings, &result);
        let call = Call { binary: Path::new(PORTMAP), config: &config, ..self.call("ADD", container, netns) };
        let (_, more) = run(&call).context("portmap")?;
        Ok((result, took + more))
    }

    pub(super) fn del_with_ports(
        &self,
        container: &str,
        netns: &Path,
        mappings: &Value,
        result: &Value,
    ) -> Result<Duration> {
        let mut took = Duration::ZERO;
        if !self.is_ours() {
            let config = portmap(mappings, result);
            let call =
                Call { binary: Path::new(PORTMAP), config: &config, ..self.call("DEL", container, netns) };
            took = run(&call).context("portmap")?.1;
        }
        let config = self.with_ports(mappings)?;
        Ok(took + run(&Call { config: &config, ..self.call("DEL", container, netns) })?.1)
    }

    fn with_ports(&self, mappings: &Value) -> Result<String> {
        let mut config: Value = serde_json::from_str(self.config())?;
        if self.is_ours() {
            config["runtimeConfig"] = json!({ "portMappings": mappings });
        }
        Ok(config.to_string())
    }
}

const PORTMAP: &str = "/usr/lib/cni/portmap";

fn portmap(mappings: &Value, previous: &Value) -> String {
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "snat": true,
        "runtimeConfig": { "portMappings": mappings }, "prevResult": previous,
    });
    config.to_string()
}
