//! A Service that is carried.

use std::sync::Arc;

use discovery::ServiceEntry;
use discovery::model::{EndpointSlice, IpFamily};

use crate::frontend::FrontendKey;
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::service_port::ServicePort;
use crate::traffic::Traffic;

/// What the proxier knows of it.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// As last applied, to pass over it while it does not change.
    pub(super) entry: Option<Arc<ServiceEntry>>,
    /// Where it is open.
    pub(super) keys: Vec<FrontendKey>,
    /// The traffic of each of its ports, also of one that has no endpoints right now.
    traffic: Vec<Arc<Traffic>>,
    without_local: Vec<(&'static str, IpFamily)>,
}

impl Carried {
    /// Takes in its new state and returns the slices that are new in it.
    pub(super) fn update(&mut self, entry: &Arc<ServiceEntry>, plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let before = self.entry.replace(Arc::clone(entry));
        self.without_local.clone_from(&plan.without_local);
        self.traffic.retain(|traffic| {
            let is_same = |port: &&discovery::model::ServicePort| {
                port.name == traffic.port.name && port.protocol == traffic.port.protocol
            };
            entry.service.ports.iter().any(|port| is_same(&port))
        });
        let known = before.as_ref().map_or_else(Default::default, |before| &before.slices[..]);
        let is_known = |slice: &&Arc<EndpointSlice>| known.iter().any(|old| Arc::ptr_eq(old, slice));
        entry.slices.iter().filter(|slice| !is_known(slice)).cloned().collect()
    }

    /// The traffic of a port, from now on if there was none.
    pub(super) fn traffic(&mut self, port: ServicePort, metrics: &Metrics) -> Arc<Traffic> {
        let found = self.traffic.iter().find(|traffic| traffic.port == port);
        let traffic =
            found.cloned().unwrap_or_else(|| Arc::new(Traffic::new(port, Arc::clone(&metrics.services))));
        if found.is_none() {
            self.traffic.push(Arc::clone(&traffic));
        }
        traffic
    }

    /// For how many of its ports a policy leaves clients of a family without an endpoint.
    pub(super) fn without_local(&self, policy: &str, family: IpFamily) -> usize {
        self.without_local.iter().filter(|found| **found == (policy, family)).count()
    }
}
