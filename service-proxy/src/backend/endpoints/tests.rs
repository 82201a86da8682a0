use discovery::model::{
    Conditions, Endpoint as ModelEndpoint, EndpointPort, EndpointSlice, FamilyPolicy, NamespacedName,
    Protocol, ProxyClass, Service, ServiceKind, TargetPort, TrafficRules,
};

use super::*;
use crate::known_addresses::KnownAddresses;

/// An address, then the letters of the topology tests: ready, serving, terminating.
fn entry(endpoints: &[(&str, &str)], rules: TrafficRules) -> (ServiceEntry, ServicePort) {
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        target_port: TargetPort::Number(8080),
        node_port: Some(30_080),
    };
    let name = NamespacedName::new("default", "web");
    let endpoints = endpoints.iter().map(|(address, marks)| ModelEndpoint {
        address: address.parse().unwrap(),
        conditions: Conditions {
            ready: marks.contains('r'),
            serving: marks.contains('s'),
            terminating: marks.contains('t'),
        },
        hostname: None,
        pod: None,
        node_name: None,
        zone: None,
        hints: None,
    });
    let slice = EndpointSlice {
        name: name.clone(),
        service: name.clone(),
        proxy_class: ProxyClass::Default,
        triggered_at: None,
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
        rules,
    };
    let slices = vec![Arc::new(slice)];
    let precedence = discovery::Precedence::default();
    (ServiceEntry { service: service.into(), cluster_ips: vec![], slices, precedence }, port)
}

fn set(endpoints: &[(&str, &str)], rules: TrafficRules, scope: Scope) -> EndpointSet {
    let (entry, port) = entry(endpoints, rules);
    let known_addresses = KnownAddresses {
        local_pods: Arc::new([("10.22.0.2".parse().unwrap(), None)].into()),
        ..KnownAddresses::default()
    };
    let node_context = NodeContext { known_addresses, ..NodeContext::default() };
    let selection = Selection::of(&entry, &port, IpFamily::V4, scope, &node_context);
    EndpointSet::new(selection, None)
}

fn addresses(pool: &Pool) -> Vec<String> {
    pool.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn flow_may_stay_with_an_endpoint_that_still_serves() {
    let set = set(
        &[("10.22.0.2", "st"), ("10.22.0.3", "t"), ("10.22.0.5", "rs")],
        TrafficRules::default(),
        Scope::Internal,
    );
    assert_eq!(addresses(set.pool(|| true)), ["10.22.0.5:8080"]);
    assert!(set.may_keep("10.22.0.2:8080".parse().unwrap()));
    assert!(!set.may_keep("10.22.0.3:8080".parse().unwrap()));
}

#[test]
fn external_clients_stay_on_this_node_and_internal_ones_need_not() {
    let both = [("10.22.0.2", "rs"), ("10.23.0.2", "rs")];
    let rules = TrafficRules { external_local: true, ..TrafficRules::default() };
    let external = set(&both, rules.clone(), Scope::External);
    assert_eq!(addresses(external.pool(|| true)), ["10.22.0.2:8080", "10.23.0.2:8080"]);
    assert_eq!(addresses(external.pool(|| false)), ["10.22.0.2:8080"]);
    let cluster = set(&both, rules, Scope::Internal);
    assert_eq!(addresses(cluster.pool(|| false)).len(), 2, "a cluster IP has no external clients");
}

#[test]
fn only_load_balancer_addresses_check_source_ranges() {
    let rules =
        TrafficRules { source_ranges: vec!["198.51.100.0/24".parse().unwrap()], ..TrafficRules::default() };
    let (inside, outside) = ("198.51.100.7".parse().unwrap(), "203.0.113.7".parse().unwrap());
    let guarded = set(&[("10.22.0.2", "rs")], rules.clone(), Scope::LoadBalancer);
    assert!(guarded.admits(inside) && !guarded.admits(outside));
    assert!(set(&[("10.22.0.2", "rs")], rules, Scope::External).admits(outside));
}

#[test]
fn state_of_an_endpoint_survives_a_change_of_others() {
    let before = set(&[("10.22.0.2", "rs"), ("10.22.0.3", "rs")], TrafficRules::default(), Scope::Internal);
    let in_use = before.pool(|| true).endpoints()[0].succeeded();
    let (entry, port) = entry(&[("10.22.0.2", "rs"), ("10.22.0.4", "rs")], TrafficRules::default());
    let node_context = NodeContext::default();
    let selection = Selection::of(&entry, &port, IpFamily::V4, Scope::Internal, &node_context);
    let after = EndpointSet::new(selection, Some(&before));
    assert_eq!(after.pool(|| true).endpoints()[0].connections(), 1);
    drop(in_use);
    assert_eq!(after.pool(|| true).endpoints()[0].connections(), 0);
}
