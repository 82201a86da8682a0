//! The metrics per Service port, for a bounded number of ports.
//!
//! The first ports with traffic get series of their own, which are removed with the port. The traffic of all
//! further ports is counted together, with empty labels. So a scrape stays small on a node with ten thousand
//! Services.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::metrics::register;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::service_port::ServicePort;

/// Maximum number of ports with their own series.
const MAX_PORTS: usize = 1000;

const LABELS: [&str; 4] = ["namespace", "service", "port", "protocol"];

/// The metric families.
#[derive(Debug)]
pub(crate) struct Services {
    families: [IntCounterVec; 6],
    max_ports: usize,
    /// The ports with series, and the number of users of each: a port that is deleted and added again
    /// overlaps with itself while old connections last.
    ports: Mutex<HashMap<ServicePort, usize>>,
}

/// The counters of one port, or of all ports without their own.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) opened: IntCounter,
    pub(crate) closed: IntCounter,
    pub(crate) shed: IntCounter,
    pub(crate) failed: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) received_bytes: IntCounter,
    own: Option<(Arc<Services>, ServicePort)>,
}

impl Services {
    pub(super) fn new(registry: &Registry) -> Arc<Self> {
        Self::with_room(registry, MAX_PORTS)
    }

    fn with_room(registry: &Registry, max_ports: usize) -> Arc<Self> {
        let family = |name: &str, help: &str| {
            let opts = Opts::new(format!("portolan_proxy_service_{name}"), help);
            register(registry, IntCounterVec::new(opts, &LABELS))
        };
        let families = [
            family("connections_opened_total", "TCP connections and UDP flows accepted."),
            family("connections_closed_total", "Of these, the ones closed for any reason."),
            family("connections_shed_total", "Connections reset because the Service had its maximum open."),
            family("connect_failures_total", "Connections for which no endpoint could be reached."),
            family("sent_bytes_total", "Bytes relayed from TCP clients to endpoints."),
            family("received_bytes_total", "Bytes relayed from endpoints to TCP clients."),
        ];
        Arc::new(Self { families, max_ports, ports: Mutex::default() })
    }

    /// The counters of a port. Its series exist until the last of these is dropped.
    pub(crate) fn counters(self: &Arc<Self>, port: &ServicePort) -> Counters {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = ports.len() < self.max_ports || ports.contains_key(port);
        let own = has_room.then(|| (Arc::clone(self), port.clone()));
        if has_room {
            *ports.entry(port.clone()).or_default() += 1;
        }
        let labels = if has_room { labels(port) } else { [""; 4] };
        let [opened, closed, shed, failed, sent_bytes, received_bytes] =
            self.families.each_ref().map(|family| family.with_label_values(&labels));
        Counters { opened, closed, shed, failed, sent_bytes, received_bytes, own }
    }

    fn release(&self, port: &ServicePort) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(users) = ports.get_mut(port) else { return };
        *users -= 1;
        if *users == 0 {
            ports.remove(port);
            for family in &self.families {
                // It fails only if the series never existed.
                let _ = family.remove_label_values(&labels(port));
            }
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if let Some((services, port)) = &self.own {
            services.release(port);
        }
    }
}

fn labels(port: &ServicePort) -> [&str; 4] {
    [&port.service.namespace, &port.service.name, &port.name, port.protocol.as_str()]
}

#[cfg(test)]
mod tests {
    use discovery::model::{NamespacedName, Protocol};

    use super::*;

    fn port(name: &str) -> ServicePort {
        ServicePort {
            service: NamespacedName::new("shop", name),
            name: "http".into(),
            protocol: Protocol::Tcp,
        }
    }

    fn series(registry: &Registry) -> Vec<(String, u64)> {
        let families = registry.gather();
        let opened = families.iter().find(|family| family.name().ends_with("_opened_total"));
        let metrics = opened.into_iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        let service = |metric: &prometheus::proto::Metric| {
            metric.get_label().iter().find(|label| label.name() == "service").unwrap().value().to_owned()
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
        metrics.map(|metric| (service(metric), metric.get_counter().get_value() as u64)).collect()
    }

    #[test]
    fn first_ports_have_their_own_series_and_further_ones_share_one() {
        let registry = Registry::new();
        let services = Services::with_room(&registry, 2);
        let counters = ["a", "b", "c", "d"].map(|name| services.counters(&port(name)));
        counters.iter().for_each(|counters| counters.opened.inc());
        assert_eq!(series(&registry), [(String::new(), 2), ("a".into(), 1), ("b".into(), 1)]);
    }

    #[test]
    fn series_are_removed_with_their_last_user() {
        let registry = Registry::new();
        let services = Services::with_room(&registry, 1);
        let old = services.counters(&port("a"));
        old.opened.inc();
        let new = services.counters(&port("a"));
        drop(old);
        new.opened.inc();
        assert_eq!(series(&registry), [("a".into(), 2)], "added again, it continues");
        drop(new);
        services.counters(&port("b")).opened.inc();
        assert_eq!(series(&registry), [], "no series is left");
    }
}
