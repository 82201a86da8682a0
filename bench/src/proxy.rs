//! `portolan-proxy` against the relays a user could pick instead, all on one node, to one server.

use anyhow::{Result, bail};

use crate::interleave::{BLOCK, Path, measure};
use crate::load::Shape;
use crate::peers::{self, Peer};
use crate::record::Record;
use crate::topology::Topology;

/// Measures in a node of its own.
///
/// # Errors
/// When a program cannot be set up, and when a peer is not installed: the message says how to get it.
pub fn proxy(rounds: usize, shapes: &[Shape]) -> Result<Record> {
    let missing = peers::missing();
    if !missing.is_empty() {
        bail!("not installed: {}; `apt-get install --no-install-recommends {0}`", missing.join(" "));
    }
    let mut record = Record::new("proxy");
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    let topology = Topology::new(&[])?;
    // A node has one proxy, so the one that does not poll is on a node of its own.
    let sleeping = Topology::new(&["--poll", "0"])?;
    let peers: [Peer<'_>; 2] = [peers::haproxy(&topology)?, peers::nginx(&topology)?];
    peers::nftables(&topology)?;
    let (_running, carried): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
    let mut paths: Vec<Path<'_>> = vec![
        topology.direct("direct")?,
        topology.direct("direct again")?,
        topology.through_proxy("portolan-proxy")?,
        sleeping.through_proxy("without polling")?,
    ];
    paths.extend(carried);
    paths.push(topology.path("nftables", peers::NFTABLES_ADDRESS, peers::PORTS, None)?);
    for shape in shapes {
        record.comparisons.push(measure(*shape, &paths, rounds)?);
    }
    record.finish();
    Ok(record)
}
