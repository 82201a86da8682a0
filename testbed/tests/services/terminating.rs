//! Pods that are not ready or terminating: `publishNotReadyAddresses`, and KEP-1669 for all frontends.

use super::*;
use crate::agnhost::{Agnhost, Location, Protocol, agnhost};
use crate::granular_checks::{expect_hosts, expect_refused};

const UNREADY: &str = "status: {conditions: [{type: Ready, status: 'False'}]}\n";

/// Starts a Service with a ready, an unready and a terminating endpoint.
fn unready_and_terminating(publish: bool) -> (Cluster, Pod, Vec<(Pod, Agnhost)>, String) {
    let (cluster, client) = cluster();
    let pods = ["ready", "unready", "leaving"].map(|name| agnhost(&cluster, name, "web"));
    cluster.apply("pod-unready.yaml", &pod_manifest("unready", "web", UNREADY)).unwrap();
    let leaving = pod_manifest("leaving", "web", UNREADY);
    let leaving =
        leaving.replace("{name: leaving,", "{name: leaving, deletionTimestamp: 2026-01-01T00:00:00Z,");
    cluster.apply("pod-leaving.yaml", &leaving).unwrap();
    let spec = format!(
        "  type: NodePort\n  publishNotReadyAddresses: {publish}\n  ports: [{{port: 80, targetPort: 8080, \
         nodePort: 30096}}]"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    (cluster, client, pods.into(), address)
}

#[test]
fn should_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_true() {
    let (cluster, client, _pods, address) = unready_and_terminating(true);
    let all = ["ready", "unready", "leaving"];
    for address in [&address, "192.0.2.2:30096"] {
        expect_hosts(Location::Pod(&client), Protocol::Http, address, &all);
        expect_hosts(Location::Outside(cluster.node.outside()), Protocol::Http, "192.0.2.2:30096", &all);
    }
}

#[test]
fn should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_false()
 {
    let (cluster, client, _pods, address) = unready_and_terminating(false);
    for address in [&address, "192.0.2.2:30096"] {
        expect_hosts(Location::Pod(&client), Protocol::Http, address, &["ready"]);
    }
    // Not without a ready endpoint either: neither of them is serving.
    cluster.delete("pod-ready.yaml").unwrap();
    for address in [&address, "192.0.2.2:30096"] {
        expect_refused(Location::Pod(&client), Protocol::Http, address);
    }
}

#[test]
fn should_create_endpoints_for_unready_pods() {
    let (cluster, client) = cluster();
    let (_pod, _server) = agnhost(&cluster, "web-1", "web");
    cluster.apply("pod-web-1.yaml", &pod_manifest("web-1", "web", UNREADY)).unwrap();
    cluster.apply("web.yaml", &service(&format!("  publishNotReadyAddresses: true\n{PORT_80}"))).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["web-1"]);
}

#[test]
fn should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints_with_external_traffic_policy_cluster()
 {
    let (cluster, client) = cluster();
    let pods = ["one", "two"].map(|name| cluster.add_pod(name).unwrap());
    let _servers = pods.each_ref().map(Agnhost::in_pod);
    let spec = "  type: NodePort\n  externalTrafficPolicy: Cluster\n  ports: [{port: 80, targetPort: 8080, \
        nodePort: 30097}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let apply_slice = |one: &str, two: &str| {
        let text = slice("web-1", &[(&pods[0].ip, one), (&pods[1].ip, two)]);
        cluster.apply("slice.yaml", &text).unwrap();
    };
    let (ready, leaving) =
        ("conditions: {ready: true}", "conditions: {ready: false, serving: true, terminating: true}");
    let terminated = "conditions: {ready: false, serving: false, terminating: true}";
    let expect = |names: &[&str]| {
        for from in [Location::Pod(&client), Location::Outside(cluster.node.outside())] {
            expect_hosts(from, Protocol::Http, "192.0.2.2:30097", names);
        }
    };
    apply_slice(leaving, ready);
    expect(&["two"]);
    apply_slice(leaving, leaving);
    expect(&["one", "two"]);
    apply_slice(leaving, terminated);
    expect(&["one"]);
    apply_slice(terminated, terminated);
    expect_refused(Location::Outside(cluster.node.outside()), Protocol::Http, "192.0.2.2:30097");
}
