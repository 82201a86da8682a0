//! Direct against virtual IP: what the path through a Service adds.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::Result;
use testbed::{Fleet, Network, Plugin, Pod};

use crate::interleave::{BLOCK, Path, measure};
use crate::interrupt;
use crate::load::{self, Destination, Load, Shape, server};
use crate::record::{Axis, Chart, Line, Record};
use crate::sockperf;
use crate::topology::{Topology, reuse_ports};

/// Rates of the open loop, requests a second.
const RATES: [u32; 4] = [1000, 2000, 4000, 8000];

/// Bytes of a request beside the usual.
const MESSAGES: [usize; 4] = [1, 1024, 16_384, 65_536];

/// Connections beside the usual.
const CONNECTIONS: [usize; 2] = [4, 16];

/// Reference plugins of containernetworking-plugins.
const REFERENCE: [&str; 2] = ["bridge", "ptp"];

/// Measures in a node of its own.
///
/// # Errors
/// When the node, a pod or a program cannot be set up.
pub fn latency(rounds: usize, shapes: &[Shape]) -> Result<Record> {
    let mut record = Record::new("latency");
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    record.distribution("floor", "nothing at all", &load::floor(Duration::from_secs(1))?);
    let topology = Topology::new(&[])?;
    let far = Far::start()?;
    let pairs =
        REFERENCE.iter().map(|&plugin| Pair::attach(&topology, plugin)).collect::<Result<Vec<_>>>()?;
    server::start_on_loopback(&topology.client.netns)?;
    // Direct comes twice: what the two differ by is the noise of the machine.
    let mut paths = vec![
        topology.direct("direct")?,
        topology.direct("direct again")?,
        topology.through_proxy("virtual IP")?,
    ];
    for shape in shapes.iter().filter(|&&shape| shape != Shape::Open) {
        if *shape == Shape::Requests {
            paths.extend(other_paths(&topology, &pairs, &far)?);
        }
        if !interrupt::requested() {
            measure(&mut record, (*shape).into(), &paths, rounds)?;
        }
        paths.truncate(3);
        if *shape == Shape::Requests && !interrupt::requested() {
            sockperf::check(&mut record, &topology, rounds.div_ceil(6))?;
        }
    }
    if shapes.contains(&Shape::Requests) {
        let messages = MESSAGES.map(|message| Load { message, ..Shape::Requests.into() });
        let connections = CONNECTIONS.map(|connections| Load { connections, ..Shape::Requests.into() });
        for load in messages.into_iter().chain(connections).filter(|_| !interrupt::requested()) {
            measure(&mut record, load, &paths, rounds.div_ceil(2))?;
        }
    }
    if shapes.contains(&Shape::Open) {
        for rate in RATES.iter().filter(|_| !interrupt::requested()) {
            measure(&mut record, Load::open(*rate), &paths, rounds.div_ceil(2))?;
        }
        record.charts.extend(rate_chart(&record));
    }
    judge(&mut record);
    record.finish();
    Ok(record)
}

/// A client and a server that a reference plugin has attached to the node.
struct Pair {
    name: String,
    client: Pod,
    server: Pod,
}

impl Pair {
    fn attach(topology: &Topology, plugin: &'static str) -> Result<Self> {
        let subnet = if plugin == "bridge" { "10.23.0.0/16" } else { "10.24.0.0/16" };
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": plugin, "type": plugin, "bridge": "reference0", "isGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] },
        });
        let binary = FilePath::new("/usr/lib/cni").join(plugin);
        let network = Network::with_config(Plugin { binary, node: topology.cluster.node.clone() }, config);
        let (client, server) =
            (network.add(&format!("{plugin}-client"))?, network.add(&format!("{plugin}-server"))?);
        server::start(&server.netns, server.ip.parse()?)?;
        Ok(Self { name: format!("reference {plugin}"), client, server })
    }
}

/// Two nodes on one link, with a host route to each other's pods.
struct Far {
    fleet: Fleet,
    client: Pod,
    server: Pod,
}

impl Far {
    fn start() -> Result<Self> {
        let fleet = Fleet::start(&[0, 0])?;
        fleet.route_pods()?;
        let (client, server) =
            (fleet.members[0].add_pod("far-client")?, fleet.members[1].add_pod("far-server")?);
        for ns in [&client.netns, &server.netns] {
            ns.run(reuse_ports)??;
        }
        server::start(&server.netns, server.ip.parse()?)?;
        Ok(Self { fleet, client, server })
    }
}

/// Everything else there is to compare with: the loopback, reference plugins, another node.
fn other_paths<'a>(topology: &'a Topology, pairs: &'a [Pair], far: &'a Far) -> Result<Vec<Path<'a>>> {
    debug_assert!(far.fleet.members.len() == 2, "a client's node and a server's");
    let path = |name: &str, client: &'a Pod, ip: &str| -> Result<Path<'a>> {
        let at = |port| Ok::<_, std::net::AddrParseError>(SocketAddr::new(ip.parse()?, port));
        let to =
            Destination { echo: at(server::ECHO_PORT)?, sink: at(server::SINK_PORT)?, host: String::new() };
        Ok(Path { name: name.to_owned(), client: &client.netns, to, without: &[], process: None })
    };
    let mut paths = vec![path("loopback", &topology.client, "127.0.0.1")?];
    for pair in pairs {
        paths.push(path(&pair.name, &pair.client, &pair.server.ip)?);
    }
    paths.push(path("another node", &far.client, &far.server.ip)?);
    Ok(paths)
}

/// Rate against p99 of each path.
fn rate_chart(record: &Record) -> Option<Chart> {
    let measured: Vec<_> = RATES
        .iter()
        .filter_map(|&rate| Some((rate, record.comparison(&Load::open(rate).title())?)))
        .collect();
    let names = measured.first()?.1.paths.iter().map(|path| path.path.clone());
    let line = |name: String| Line {
        points: measured
            .iter()
            .filter_map(|(rate, comparison)| Some([f64::from(*rate), comparison.path(&name)?.p99]))
            .collect(),
        name,
    };
    Some(Chart {
        title: "Rate against p99".to_owned(),
        note: "Open loop, latency from the intended moment. The generator spins on a core of its own."
            .to_owned(),
        x: Axis::linear("requests a second"),
        y: Axis::logarithmic("p99, µs"),
        lines: names.map(line).collect(),
    })
}

/// Fills in what is asked for.
fn judge(record: &mut Record) {
    for (title, id) in [("RR", "rr"), ("CRR", "crr"), ("cold", "cold"), ("open loop 1000/s", "open")] {
        let added = record.comparison(title).and_then(|comparison| comparison.path("virtual IP")?.added);
        let Some(added) = added else { continue };
        if id != "open" {
            record.measured(&format!("{id}-p50"), added.p50);
        }
        if id != "cold" {
            record.measured(&format!("{id}-p99"), added.p99);
        }
    }
}
