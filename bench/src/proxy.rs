//! `portolan-proxy` against the relays a user could pick instead, all on one node, to one server.

use anyhow::{Result, bail};

use crate::environment::Environment;
use crate::interleave::{BLOCK, Path, measure};
use crate::load::Shape;
use crate::peers::{self, Peer, nftables};
use crate::report::Results;
use crate::topology::Topology;

/// Measures in a node of its own.
///
/// # Errors
/// When a program cannot be set up, and when a peer is not installed: the message says how to get it.
pub fn proxy(rounds: usize, shapes: &[Shape]) -> Result<Results> {
    let missing = peers::missing();
    if !missing.is_empty() {
        bail!("not installed: {}; `apt-get install --no-install-recommends {0}`", missing.join(" "));
    }
    let topology = Topology::new()?;
    let peers: [Peer; 3] =
        [peers::second_proxy(&topology)?, peers::haproxy(&topology)?, peers::nginx(&topology)?];
    nftables(&topology)?;
    let mut paths: Vec<Path> = vec![
        topology.direct("direct")?,
        topology.direct("direct again")?,
        topology.through_proxy("portolan-proxy")?,
    ];
    let (_running, carried): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
    paths.extend(carried);
    paths.push(topology.path("nftables", peers::NFTABLES_ADDRESS, peers::PORTS, None)?);
    let mut results = Vec::new();
    for shape in shapes {
        results.extend(measure(*shape, &topology.client.netns, &paths, rounds)?);
    }
    Ok(Results { environment: Environment::capture(), rounds, block_ms: BLOCK.as_millis(), paths: results })
}
