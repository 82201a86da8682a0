//! Paths to compare with: the loopback, other pod networks, other nodes.

use std::net::SocketAddr;
use std::path::Path as FilePath;

use anyhow::Result;
use serde_json::json;
use testbed::{Binaries, Fleet, Network, Plugin, Pod};

use crate::interleave::Path;
use crate::interrupt;
use crate::load::{Destination, server};
use crate::peers;
use crate::processor::Process;
use crate::record::Record;
use crate::services;
use crate::topology::{ECHO, SINK, Topology, reuse_ports};

/// The Service of a server on another node.
const REMOTE: &str = "far";
const REMOTE_IP: &str = "10.96.9.8";

/// All baseline paths.
pub(super) struct Baselines {
    pairs: Vec<Pair>,
    cross_node: Vec<CrossNode>,
}

impl Baselines {
    pub(super) fn start(record: &mut Record, topology: &Topology) -> Result<Self> {
        let mut pairs = vec![Pair::attach(topology, "bridge mode", "portolan-cni", "10.25.0.0/16")?];
        for (name, package, plugin, subnet) in [
            ("reference bridge", peers::BRIDGE, "bridge", "10.23.0.0/16"),
            ("reference ptp", peers::PTP, "ptp", "10.24.0.0/16"),
        ] {
            if peers::is_installed(record, name, package) {
                pairs.push(Pair::attach(topology, name, plugin, subnet)?);
            }
        }
        // Nodes on one link have routes to each other's pods; nodes on two links use a tunnel.
        let cross_node =
            vec![CrossNode::start("another node", &[0, 0])?, CrossNode::start("VXLAN", &[0, 1])?];
        Ok(Self { pairs, cross_node })
    }

    pub(super) fn paths<'a>(&'a self, topology: &'a Topology) -> Result<Vec<Path<'a>>> {
        let direct = (server::ECHO_PORT, server::SINK_PORT);
        let mut paths = vec![path("loopback", &topology.client, "127.0.0.1", direct, None)?];
        for pair in &self.pairs {
            paths.push(path(&pair.name, &pair.client, &pair.server.ip, direct, None)?);
        }
        for remote in &self.cross_node {
            paths.push(path(remote.name, &remote.client, &remote.server.ip, direct, None)?);
            let name = format!("{}, virtual IP", remote.name);
            let proxy = Process(remote.fleet.members[0].proxy.id());
            paths.push(path(&name, &remote.client, REMOTE_IP, (ECHO, SINK), Some(proxy))?);
        }
        Ok(paths)
    }
}

fn path<'a>(
    name: &str,
    client: &'a Pod,
    ip: &str,
    (echo, sink): (u16, u16),
    process: Option<Process>,
) -> Result<Path<'a>> {
    let ip = ip.parse()?;
    let to =
        Destination { echo: SocketAddr::new(ip, echo), sink: SocketAddr::new(ip, sink), host: String::new() };
    Ok(Path { name: name.to_owned(), client: &client.netns, to, without: &[], process })
}

/// A client and a server on the topology's node, attached by another plugin or mode.
struct Pair {
    name: String,
    client: Pod,
    server: Pod,
}

impl Pair {
    fn attach(topology: &Topology, name: &str, plugin: &str, subnet: &str) -> Result<Self> {
        let ranges = json!([[{ "subnet": subnet }]]);
        let (binary, config) = if plugin == "portolan-cni" {
            let config = json!({
                "cniVersion": "1.1.0", "name": "bridged", "type": plugin, "mode": "bridge",
                "bridge": "bridge-mode0", "isDefaultGateway": true, "ipam": { "ranges": ranges },
            });
            (Binaries::find()?.path(plugin), config)
        } else {
            let config = json!({
                "cniVersion": "1.0.0", "name": plugin, "type": plugin, "bridge": "reference0",
                "isGateway": true,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] },
            });
            (FilePath::new("/usr/lib/cni").join(plugin), config)
        };
        let network = Network::with_config(Plugin { binary, node: topology.cluster.node.clone() }, config);
        let pod = |role: &str| network.add(&format!("{}-{role}", name.replace(' ', "-")));
        let (client, server) = (pod("client")?, pod("server")?);
        server::start(&server.netns, server.ip.parse()?)?;
        Ok(Self { name: name.to_owned(), client, server })
    }
}

/// A client on one node and a server on another one, which is also the endpoint of a Service.
struct CrossNode {
    name: &'static str,
    fleet: Fleet,
    client: Pod,
    server: Pod,
}

impl CrossNode {
    fn start(name: &'static str, subnets: &[usize; 2]) -> Result<Self> {
        interrupt::check()?;
        let fleet = Fleet::start(subnets)?;
        fleet.route_pods()?;
        let (client, server) =
            (fleet.members[0].add_pod("far-client")?, fleet.members[1].add_pod("far-server")?);
        for ns in [&client.netns, &server.netns] {
            ns.run(reuse_ports)??;
        }
        server::start(&server.netns, server.ip.parse()?)?;
        let addresses = std::iter::once(server.ip.clone());
        fleet.members[0]
            .apply("far.yaml", &services::manifest(REMOTE, REMOTE_IP, server::ECHO_PORT, addresses))?;
        services::wait(&client, REMOTE_IP, ECHO)?;
        Ok(Self { name, fleet, client, server })
    }
}
