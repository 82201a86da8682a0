//! A Service that is proxied.

use std::sync::Arc;

use discovery::model::{self, IpFamily};
use prometheus::IntGaugeVec;

use crate::frontend::FrontendKey;
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::service_port::ServicePort;
use crate::traffic::Traffic;

/// The proxier's state of it.
#[derive(Debug, Default)]
pub(super) struct ProxiedService {
    /// The open frontends.
    pub(super) keys: Vec<FrontendKey>,
    /// The traffic of each port, even without endpoints.
    traffic: Vec<Arc<Traffic>>,
    without_local: Vec<(&'static str, IpFamily)>,
}

impl ProxiedService {
    /// Updates it to its new state: the ports that are served.
    pub(super) fn update(&mut self, ports: &[model::ServicePort], plan: &Plan, without_local: &IntGaugeVec) {
        self.set_without_local(plan.without_local.clone(), without_local);
        self.traffic.retain(|traffic| {
            let is_same = |port: &model::ServicePort| {
                port.name == traffic.port.name && port.protocol == traffic.port.protocol
            };
            ports.iter().any(is_same)
        });
    }

    /// The traffic of a port, created if necessary.
    pub(super) fn traffic(&mut self, port: ServicePort, metrics: &Metrics) -> Arc<Traffic> {
        let found = self.traffic.iter().find(|traffic| traffic.port == port);
        let traffic =
            found.cloned().unwrap_or_else(|| Arc::new(Traffic::new(port, Arc::clone(&metrics.services))));
        if found.is_none() {
            self.traffic.push(Arc::clone(&traffic));
        }
        traffic
    }

    /// Sets the ports and families that a policy leaves without an endpoint, which the gauge counts.
    pub(super) fn set_without_local(&mut self, ports: Vec<(&'static str, IpFamily)>, gauge: &IntGaugeVec) {
        let counted =
            |(policy, family): &(&str, IpFamily)| gauge.with_label_values(&[&family.to_string(), *policy]);
        self.without_local.iter().for_each(|port| counted(port).dec());
        ports.iter().for_each(|port| counted(port).inc());
        self.without_local = ports;
    }
}
