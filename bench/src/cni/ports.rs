//! Ports of the node, and connections that it tracks: what they cost ADD and DEL, of their own pod and of others.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns::NetNs;
use serde_json::{Value, json};

use super::command::{Call, run};
use super::contender::{BESIDE_ONE, Contender, Kind};
use super::parallel;
use crate::interrupt;
use crate::record::{Record, Table};
use crate::statistics::{bootstrap, paired};

/// What a busy node tracks.
const TRACKED: u16 = 50_000;
const SOURCES: u16 = 2;

/// A passive FTP server or a media server publishes so many.
const MANY: u16 = 3000;
const FIRST_PORT: u16 = 20_000;

/// The reference plugin starts several processes for each port: so many are enough to see what one costs.
const MANY_OF_REFERENCE: u16 = 100;

/// What one kind has shown, milliseconds a round.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// What is measured of one contender.
struct Row {
    name: String,
    ports: u16,
    times: Times,
}

/// Measures `rounds` of ADD and DEL without ports, with one and with many, beside none and beside many tracked connections; and
/// an ADD without ports while a pod with many is attached. Then pods that start at once, without a port and with one.
pub(super) fn measure(record: &mut Record, has_reference: bool, rounds: usize) -> Result<()> {
    record.set("tracked connections", u32::from(TRACKED) * u32::from(SOURCES));
    let mut kinds = vec![Kind::Portolan { masquerade: true }];
    kinds.extend(has_reference.then_some(Kind::Bridge));
    let columns =
        ["plugin", "tracked", "ports", "ADD p50 (95%)", "DEL p50 (95%)", "another ADD meanwhile, longest"];
    let note = "Milliseconds, processes included; ports over TCP, in a row. The reference is bridge + host-local + portmap.";
    let mut table = Table::new("Ports and tracked connections", &columns, note);
    let mut at_once = parallel::table();
    for kind in kinds {
        let node = [Contender::new(kind, BESIDE_ONE)?, Contender::new(kind, BESIDE_ONE)?];
        track(&node[1])?;
        let many = if kind == Kind::Bridge { MANY_OF_REFERENCE } else { MANY };
        let mut found = Vec::new();
        for (contender, tracked) in node.iter().zip(["none", "100,000"]) {
            let mut rows: Vec<Row> = [0, 1, many]
                .map(|ports| Row { name: contender.name(), ports, times: Times::default() })
                .into();
            for round in 0..=rounds {
                interrupt::check()?;
                for row in &mut rows {
                    let (add, del) = one(contender, row.ports)?;
                    // One round warms up.
                    if round > 0 {
                        row.times.add.push(add);
                        row.times.del.push(del);
                    }
                }
            }
            let meanwhile = beside(contender, many)?;
            for row in &rows {
                let cell = |values: &[f64]| {
                    let estimate = bootstrap(values);
                    format!("{:.2} ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
                };
                let longest = if row.ports == many { format!("{meanwhile:.2}") } else { "-".to_owned() };
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
                let cells = parallel::measure(contender, ports, rounds.div_ceil(4))?;
                let labels = [contender.name(), tracked.to_owned(), ports.to_string()];
                at_once.row(labels.into_iter().chain(cells));
            }
            found.push(rows);
        }
        if kind != Kind::Bridge {
            judge(record, &found);
        }
    }
    record.tables.extend([table, at_once]);
    Ok(())
}

/// Ratios of ours, of the same round.
fn judge(record: &mut Record, found: &[Vec<Row>]) {
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

/// ADD and DEL of a pod with so many ports, milliseconds.
fn one(contender: &Contender, ports: u16) -> Result<(f64, f64)> {
    let path = contender.node.add_netns("pod")?;
    let (mappings, name) = (mappings(0, ports), "pod");
    contender.node.run(|| {
        let (result, add) = contender.add_with_ports(name, &path, &mappings)?;
        let del = contender.del_with_ports(name, &path, &mappings, &result)?;
        NetNs::remove_named(&path)?;
        Ok((milliseconds(add), milliseconds(del)))
    })
}

/// The longest ADD without ports while pods with many are attached and detached, milliseconds.
fn beside(contender: &Contender, ports: u16) -> Result<f64> {
    let paths = ["many", "other"].map(|name| contender.node.add_netns(name));
    let [many, other] = paths;
    let (many, other) = (many?, other?);
    let mappings = mappings(0, ports);
    contender.node.run(|| {
        let is_done = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let (mappings, many, is_done) = (&mappings, &many, &is_done);
            let busy = scope.spawn(move || {
                let attached = (0..3).try_for_each(|_| {
                    let (result, _) = contender.add_with_ports("many", many, mappings)?;
                    contender.del_with_ports("many", many, mappings, &result).map(drop)
                });
                is_done.store(true, Ordering::Relaxed);
                attached
            });
            let mut longest = Duration::ZERO;
            while !is_done.load(Ordering::Relaxed) {
                let (_, took) = run(&contender.call("ADD", "other", &other))?;
                longest = longest.max(took);
                run(&contender.call("DEL", "other", &other))?;
            }
            busy.join().expect("a pod with many ports comes and goes without a panic")?;
            Ok::<_, anyhow::Error>(longest)
        })?;
        NetNs::remove_named(&many)?;
        NetNs::remove_named(&other)?;
        Ok(milliseconds(longest))
    })
}

/// Has the node track connections: datagrams from outside to ports where nothing listens.
fn track(contender: &Contender) -> Result<()> {
    contender.node.shell("echo 3600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout")?;
    let to = contender.node.address().to_owned();
    contender.node.outside().run(|| {
        for _ in 0..SOURCES {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            for port in 0..TRACKED {
                // ICMP port unreachable: nothing listens.
                drop(socket.send_to(b"x", (&*to, port + 10_000)));
            }
        }
        Ok::<_, std::io::Error>(())
    })??;
    let tracked = contender.node.shell("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    let tracked: u32 = tracked.trim().parse()?;
    let wanted = u32::from(TRACKED) * u32::from(SOURCES);
    ensure!(tracked > wanted / 10 * 9, "{tracked} connections are tracked, not {wanted}");
    Ok(())
}

/// So many ports in a row, the first of them `offset` behind the first of all.
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

impl Contender {
    /// ADD with port mappings: of the reference, by portmap behind it in the chain.
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
