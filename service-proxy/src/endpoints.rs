//! Which endpoints of a Service port may be used.

use std::net::SocketAddr;

use discovery::ServiceEntry;
use discovery::model::{Conditions, IpFamily, ServicePort};

/// How many endpoints one connection tries before it gives up.
const ATTEMPTS: usize = 3;

/// The endpoints of one frontend, sorted by what they may be used for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EndpointSet {
    /// Candidates for new traffic.
    usable: Vec<SocketAddr>,
    /// Others that still serve, and so keep the UDP flows they have.
    draining: Vec<SocketAddr>,
}

impl EndpointSet {
    /// Sorts the endpoints of `port`: the ready ones, or while none is ready those that are terminating but still
    /// serve (KEP-1669).
    pub(crate) fn of(entry: &ServiceEntry, port: &ServicePort, family: IpFamily) -> Self {
        let endpoints = entry.endpoints(port, family);
        let pick = |wanted: fn(Conditions) -> bool| -> Vec<SocketAddr> {
            endpoints.iter().filter(|(_, e)| wanted(e.conditions)).map(|(address, _)| *address).collect()
        };
        let ready = pick(|c| c.ready);
        let leaving = pick(|c| !c.ready && c.serving && c.terminating);
        if ready.is_empty() {
            Self { usable: leaving, draining: Vec::new() }
        } else {
            Self { usable: ready, draining: leaving }
        }
    }

    /// Whether new traffic has nowhere to go.
    pub(crate) fn is_empty(&self) -> bool {
        self.usable.is_empty()
    }

    /// Whether a UDP flow may stay where it is.
    pub(crate) fn may_keep(&self, endpoint: SocketAddr) -> bool {
        self.usable.contains(&endpoint) || self.draining.contains(&endpoint)
    }

    /// One endpoint, uniformly at random.
    pub(crate) fn choose(&self) -> Option<SocketAddr> {
        fastrand::choice(&self.usable).copied()
    }

    /// A random endpoint and the ones to try after it, all different.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        let count = self.usable.len();
        let start = if count == 0 { 0 } else { fastrand::usize(..count) };
        (0..count.min(ATTEMPTS)).map(move |step| self.usable[(start + step) % count])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use discovery::model::{
        Endpoint, EndpointPort, EndpointSlice, FamilyPolicy, NamespacedName, Protocol, Service, ServiceKind,
        TargetPort,
    };

    use super::*;

    fn entry(conditions: &[(&str, bool, bool, bool)]) -> (ServiceEntry, ServicePort) {
        let port = ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target_port: TargetPort::Number(8080),
        };
        let name = NamespacedName::new("default", "web");
        let endpoints = conditions.iter().map(|&(address, ready, serving, terminating)| Endpoint {
            address: address.parse().unwrap(),
            conditions: Conditions { ready, serving, terminating },
            hostname: None,
            node_name: None,
            zone: None,
        });
        let slice = EndpointSlice {
            name: name.clone(),
            service: name.clone(),
            family: IpFamily::V4,
            ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: endpoints.collect(),
        };
        let service = Service {
            name,
            kind: ServiceKind::ClusterIp { requested: vec![], families: FamilyPolicy(vec![IpFamily::V4]) },
            ports: vec![port.clone()],
            selector: [].into(),
            publish_not_ready: false,
        };
        (ServiceEntry { service: service.into(), cluster_ips: vec![], slices: vec![Arc::new(slice)] }, port)
    }

    fn set(conditions: &[(&str, bool, bool, bool)]) -> EndpointSet {
        let (entry, port) = entry(conditions);
        EndpointSet::of(&entry, &port, IpFamily::V4)
    }

    #[test]
    fn terminating_endpoints_serve_only_while_none_is_ready() {
        let leaving = ("10.22.0.2", false, true, true);
        let gone = ("10.22.0.3", false, false, true);
        let unready = ("10.22.0.4", false, false, false);
        let ready = ("10.22.0.5", true, true, false);
        let alone = set(&[leaving, gone, unready]);
        assert_eq!(alone.usable, ["10.22.0.2:8080".parse().unwrap()]);
        let together = set(&[leaving, gone, unready, ready]);
        assert_eq!(together.usable, ["10.22.0.5:8080".parse().unwrap()]);
        assert!(together.may_keep("10.22.0.2:8080".parse().unwrap()));
        assert!(!together.may_keep("10.22.0.4:8080".parse().unwrap()));
        assert!(set(&[gone, unready]).is_empty());
    }

    #[test]
    fn candidates_are_distinct_bounded_and_evenly_spread() {
        let four = ["10.22.0.1", "10.22.0.2", "10.22.0.3", "10.22.0.4"].map(|a| (a, true, true, false));
        let set = set(&four);
        let mut first = std::collections::HashMap::new();
        for _ in 0..4000 {
            let tried: Vec<SocketAddr> = set.candidates().collect();
            let distinct: std::collections::HashSet<_> = tried.iter().collect();
            assert_eq!((tried.len(), distinct.len()), (3, 3));
            *first.entry(tried[0]).or_insert(0) += 1;
        }
        assert!(first.len() == 4 && first.values().all(|n| (800..1200).contains(n)), "{first:?}");
    }
}
