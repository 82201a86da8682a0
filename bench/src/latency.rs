//! Direct against virtual IP: what the path through a Service adds.

use anyhow::Result;

use crate::interleave::{BLOCK, measure};
use crate::load::Shape;
use crate::record::Record;
use crate::topology::Topology;

/// Measures in a node of its own.
///
/// # Errors
/// When the node, a pod or a program cannot be set up.
pub fn latency(rounds: usize, shapes: &[Shape]) -> Result<Record> {
    let mut record = Record::new("latency");
    record.set("rounds", rounds);
    record.set("block", format!("{} ms", BLOCK.as_millis()));
    let topology = Topology::new(&[])?;
    // Direct comes twice: what the two differ by is the noise of the machine.
    let paths =
        [topology.direct("direct")?, topology.direct("direct again")?, topology.through_proxy("virtual IP")?];
    for shape in shapes {
        record.comparisons.push(measure(*shape, &paths, rounds)?);
    }
    for (shape, id) in [("RR", "rr"), ("CRR", "crr")] {
        let found = record.comparisons.iter().find(|comparison| comparison.title == shape);
        if let Some(added) = found.and_then(|comparison| comparison.path("virtual IP")?.added) {
            record.measured(&format!("{id}-p50"), added.p50);
            record.measured(&format!("{id}-p99"), added.p99);
        }
    }
    record.finish();
    Ok(record)
}
