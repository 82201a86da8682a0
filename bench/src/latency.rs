//! Direct against virtual IP: what the path through a Service adds.

use anyhow::Result;

use crate::environment::Environment;
use crate::interleave::{BLOCK, measure};
use crate::load::Shape;
use crate::report::Results;
use crate::topology::Topology;

/// Measures in a node of its own.
///
/// # Errors
/// When the node, a pod or a program cannot be set up.
pub fn latency(rounds: usize, shapes: &[Shape]) -> Result<Results> {
    let topology = Topology::new(&[])?;
    // Direct comes twice: what the two differ by is the noise of the machine.
    let paths =
        [topology.direct("direct")?, topology.direct("direct again")?, topology.through_proxy("virtual IP")?];
    let mut results = Vec::new();
    for shape in shapes {
        results.extend(measure(*shape, &paths, rounds)?);
    }
    Ok(Results { environment: Environment::capture(), rounds, block_ms: BLOCK.as_millis(), paths: results })
}
