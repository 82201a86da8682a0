//! Upstream tests that need several nodes: traffic distribution, traffic policies, source addresses across
//! nodes.

use testbed::Fleet;

use super::*;
use crate::agnhost::{Agnhost, Location, Protocol};
use crate::granular_checks::{expect_hosts, expect_refused};

const TYPES: &str = "  type: LoadBalancer\n  ports: [{port: 80, targetPort: 8080, nodePort: 30095}]";

/// Starts a node in each of these zones, all on one link.
fn fleet(zones: &[&str]) -> Fleet {
    let fleet = Fleet::start(&vec![0; zones.len()]).unwrap();
    fleet.route_pods().unwrap();
    for (index, zone) in zones.iter().enumerate() {
        let name = format!("node-{}", index + 1);
        let file = format!("{name}.yaml");
        let text = std::fs::read_to_string(fleet.manifests().join(&file)).unwrap();
        let zoned = format!("{{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}");
        fleet.members[0].apply(&file, &text.replace(&format!("{{name: {name}}}"), &zoned)).unwrap();
    }
    fleet
}

/// Starts a replica of `web` on a node.
fn replica(fleet: &Fleet, index: usize, name: &str) -> (Pod, Agnhost) {
    let pod = fleet.members[index].add_pod(name).unwrap();
    let server = Agnhost::in_pod(&pod);
    describe(fleet, index, name, &pod.ip);
    (pod, server)
}

/// Starts a replica with `hostNetwork: true`.
fn host_replica(fleet: &Fleet, index: usize, name: &str) -> Agnhost {
    let node = &fleet.members[index].node;
    describe(fleet, index, name, node.address());
    Agnhost::start(Location::Node(node), node.address(), name)
}

fn describe(fleet: &Fleet, index: usize, name: &str, ip: &str) {
    let manifest = pod_manifest(name, "web", &format!("status: {{podIP: {ip}}}\n"));
    let placed = manifest.replace("spec: {", &format!("spec: {{nodeName: node-{}, ", index + 1));
    fleet.members[index].apply(&format!("{name}.yaml"), &placed).unwrap();
}

/// Returns the virtual IP, and asserts that it is the same on every node.
fn virtual_ip(fleet: &Fleet) -> String {
    let all: BTreeSet<String> = fleet.members.iter().map(|m| m.virtual_ip("web").unwrap()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    format!("{}:80", all.first().unwrap())
}

/// Checks which replicas answer a pod of each node.
fn expect_from_each(fleet: &Fleet, clients: &[Pod], expected: &[&[&str]]) {
    let address = virtual_ip(fleet);
    for (client, names) in clients.iter().zip(expected) {
        expect_hosts(Location::Pod(client), Protocol::Http, &address, names);
    }
}

fn clients(fleet: &Fleet) -> Vec<Pod> {
    let add = |(index, member): (usize, &Cluster)| member.add_pod(&format!("client-{index}")).unwrap();
    fleet.members.iter().enumerate().map(add).collect()
}

fn distributed(value: &str) -> String {
    service(&format!("  trafficDistribution: {value}\n{PORT_80}"))
}

#[test]
fn should_route_traffic_to_an_endpoint_in_the_same_zone_when_using_prefer_close_or_prefer_same_zone() {
    let fleet = fleet(&["a", "a", "b"]);
    let _replicas = [replica(&fleet, 0, "in-a"), replica(&fleet, 2, "in-b")];
    let clients = clients(&fleet);
    for value in ["PreferClose", "PreferSameZone"] {
        fleet.members[0].apply("web.yaml", &service(PORT_80)).unwrap();
        expect_from_each(&fleet, &clients, &[&["in-a", "in-b"][..]; 3]);
        fleet.members[0].apply("web.yaml", &distributed(value)).unwrap();
        expect_from_each(&fleet, &clients, &[&["in-a"], &["in-a"], &["in-b"]]);
    }
    // After a zone loses its only endpoint, its clients use endpoints of other zones.
    fleet.members[0].delete("in-b.yaml").unwrap();
    expect_from_each(&fleet, &clients, &[&["in-a"][..]; 3]);
}

#[test]
fn should_route_traffic_correctly_between_pods_on_multiple_nodes_when_using_prefer_close_or_prefer_same_zone()
{
    let fleet = fleet(&["a", "a", "b"]);
    let replicas = ["a-1", "a-2", "b-3"].iter().enumerate();
    let _replicas: Vec<_> = replicas.map(|(index, name)| replica(&fleet, index, name)).collect();
    let clients = clients(&fleet);
    for value in ["PreferClose", "PreferSameZone"] {
        fleet.members[0].apply("web.yaml", &distributed(value)).unwrap();
        expect_from_each(&fleet, &clients, &[&["a-1", "a-2"], &["a-1", "a-2"], &["b-3"]]);
    }
}

#[test]
fn should_route_traffic_to_an_endpoint_on_the_same_node_or_fall_back_to_same_zone_when_using_prefer_same_node()
 {
    let fleet = fleet(&["a", "a", "b"]);
    let _replicas = [replica(&fleet, 0, "on-1"), replica(&fleet, 2, "on-3")];
    let clients = clients(&fleet);
    fleet.members[0].apply("web.yaml", &distributed("PreferSameNode")).unwrap();
    expect_from_each(&fleet, &clients, &[&["on-1"], &["on-1"], &["on-3"]]);
    let _more = replica(&fleet, 1, "on-2");
    expect_from_each(&fleet, &clients, &[&["on-1"], &["on-2"], &["on-3"]]);
}

fn internal_local() -> String {
    service(&format!("  internalTrafficPolicy: Local\n{PORT_80}"))
}

#[test]
fn should_respect_internal_traffic_policy_local_pod_to_pod() {
    let fleet = fleet(&["a", "a"]);
    let _replica = replica(&fleet, 0, "on-1");
    fleet.members[0].apply("web.yaml", &internal_local()).unwrap();
    let (clients, address) = (clients(&fleet), virtual_ip(&fleet));
    expect_hosts(Location::Pod(&clients[0]), Protocol::Http, &address, &["on-1"]);
    expect_refused(Location::Pod(&clients[1]), Protocol::Http, &address);
}

#[test]
fn should_respect_internal_traffic_policy_local_pod_host_network_to_pod() {
    let fleet = fleet(&["a", "a"]);
    let _replica = replica(&fleet, 0, "on-1");
    fleet.members[0].apply("web.yaml", &internal_local()).unwrap();
    let address = virtual_ip(&fleet);
    expect_hosts(Location::Node(&fleet.members[0].node), Protocol::Http, &address, &["on-1"]);
    expect_refused(Location::Node(&fleet.members[1].node), Protocol::Http, &address);
}

#[test]
fn should_respect_internal_traffic_policy_local_pod_and_node_to_pod_host_network() {
    let fleet = fleet(&["a", "a"]);
    let _replica = host_replica(&fleet, 0, "host-1");
    fleet.members[0].apply("web.yaml", &internal_local()).unwrap();
    let (clients, address) = (clients(&fleet), virtual_ip(&fleet));
    for from in [Location::Pod(&clients[0]), Location::Node(&fleet.members[0].node)] {
        expect_hosts(from, Protocol::Http, &address, &["host-1"]);
    }
    for from in [Location::Pod(&clients[1]), Location::Node(&fleet.members[1].node)] {
        expect_refused(from, Protocol::Http, &address);
    }
}

/// "ESIPP should work for type=NodePort", "… should only target nodes with endpoints", "… should work from
/// pods".
#[test]
fn esipp_should_only_target_nodes_with_endpoints_and_keep_the_source() {
    let fleet = fleet(&["a", "a"]);
    let _replica = replica(&fleet, 0, "on-1");
    let status = "status: {loadBalancer: {ingress: [{ip: 198.51.100.40}]}}";
    let local =
        TYPES.replace("  ports", "  externalTrafficPolicy: Local\n  healthCheckNodePort: 32010\n  ports");
    fleet.members[0].apply("web.yaml", &service(&format!("{local}\n{status}"))).unwrap();
    let outside = Location::Outside(fleet.members[0].node.outside());
    let at = |index: usize| format!("{}:30095", fleet.members[index].node.address());
    expect_hosts(outside, Protocol::Http, &at(0), &["on-1"]);
    assert_eq!(outside.ask(Protocol::Http, &at(0), "clientip").unwrap(), "192.0.2.1");
    wait_for("the failure at the second node", || {
        ensure!(outside.ask(Protocol::Http, &at(1), "hostname").is_err());
        Ok(())
    })
    .unwrap();
    for (index, code) in [(0, "200"), (1, "503")] {
        let script = format!(
            "curl -sS -m 2 -o /dev/null -w '%{{http_code}}' http://{}:32010/",
            fleet.members[index].node.address()
        );
        assert_eq!(fleet.members[index].node.shell(&script).unwrap(), code, "node {index}");
    }
    // Pods and nodes of the cluster use any endpoint, from every node.
    let client = fleet.members[1].add_pod("client").unwrap();
    for from in [Location::Pod(&client), Location::Node(&fleet.members[1].node)] {
        expect_hosts(from, Protocol::Http, "198.51.100.40:80", &["on-1"]);
    }
    // With policy Cluster every node serves; the second one uses its own source address.
    fleet.members[0].apply("web.yaml", &service(&format!("{TYPES}\n{status}"))).unwrap();
    expect_hosts(outside, Protocol::Http, &at(1), &["on-1"]);
    assert_eq!(outside.ask(Protocol::Http, &at(1), "clientip").unwrap(), fleet.members[1].node.address());
}

#[test]
fn should_preserve_source_pod_ip_for_traffic_through_service_cluster_ip_across_nodes() {
    let fleet = fleet(&["a", "a"]);
    let _replica = replica(&fleet, 1, "on-2");
    fleet.members[0].apply("web.yaml", &service(PORT_80)).unwrap();
    let (clients, address) = (clients(&fleet), virtual_ip(&fleet));
    for client in &clients {
        expect_hosts(Location::Pod(client), Protocol::Http, &address, &["on-2"]);
        assert_eq!(Location::Pod(client).ask(Protocol::Http, &address, "clientip").unwrap(), client.ip);
    }
    let source = Location::Node(&fleet.members[0].node).ask(Protocol::Http, &address, "clientip").unwrap();
    assert_eq!(source, fleet.members[0].node.address());
}
