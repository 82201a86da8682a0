//! The same request with ten thousand Services configured, and to a Service with a hundred endpoints.

use anyhow::Result;
use testbed::Pod;

use crate::interleave::measure_with_suffix;
use crate::interrupt;
use crate::load::{Shape, server};
use crate::processor::Process;
use crate::record::Record;
use crate::services;
use crate::topology::{ECHO, Topology};

/// Loads that the number of Services could affect.
pub(super) const SHAPES: [Shape; 2] = [Shape::Requests, Shape::Connections];

/// Suffix of the load's title, and name of the path to the Service with one endpoint.
pub(super) const AMONG_MANY: &str = " among many Services";
pub(super) const MANY: &str = "10,000 Services";

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 100;

/// The Service with many endpoints.
const WIDE_IP: &str = "10.96.9.7";

/// Compares with `few`, a topology with one Service.
pub(super) fn measure(record: &mut Record, few: &Topology, rounds: usize) -> Result<()> {
    let many = Topology::new(&[])?;
    let endpoints = (0..ENDPOINTS).map(|number| endpoint(&many, number)).collect::<Result<Vec<_>>>()?;
    services::write(&many.cluster.manifests(), SERVICES, 1, 1)?;
    let addresses = endpoints.iter().map(|pod| pod.ip.clone());
    // The proxy reads manifests in order: once this one is served, all are.
    many.cluster.apply("wide.yaml", &services::manifest("wide", WIDE_IP, server::ECHO_PORT, addresses))?;
    many.wait(WIDE_IP, ECHO)?;
    let proxy = Process(many.cluster.proxy.id());
    let paths = [
        few.direct("direct")?,
        few.direct("direct again")?,
        few.through_proxy("virtual IP")?,
        many.through_proxy(MANY)?,
        many.path("10,000 Services, 100 endpoints", WIDE_IP, (ECHO, ECHO), "wide", Some(proxy))?,
    ];
    for shape in SHAPES.into_iter().filter(|_| !interrupt::requested()) {
        measure_with_suffix(record, shape.into(), AMONG_MANY, &paths, rounds)?;
    }
    Ok(())
}

fn endpoint(topology: &Topology, number: usize) -> Result<Pod> {
    interrupt::check()?;
    let pod = topology.cluster.add_pod(&format!("wide-{number}"))?;
    server::start(&pod.netns, pod.ip.parse()?)?;
    Ok(pod)
}
