//! UDP flows whose endpoints change: the upstream "Conntrack" tests, and further known problems of connection
//! tracking.

use super::*;
use crate::agnhost::{Agnhost, Flow, Location, Protocol, agnhost};
use crate::granular_checks::{expect_hosts, expect_refused};

const PORTS: &str =
    "  type: NodePort\n  ports: [{port: 90, targetPort: 8080, protocol: UDP, nodePort: 30092}]";

/// Repeats a request from the same port until `name` answers.
fn expect_answer(flow: &Flow, name: &str) {
    wait_for(&format!("an answer of {name}"), || {
        let answer = flow.try_ask("hostname")?;
        ensure!(answer == name, "{answer}");
        Ok(())
    })
    .unwrap();
}

fn open(from: Location<'_>, address: &str) -> Flow {
    from.run(|| Flow::open(address)).unwrap()
}

/// Replaces the pod of the Service while the client keeps its port.
fn expect_udp_after_pod_replacement(cluster: &Cluster, client: Location<'_>, address: &str) {
    let (pod, server) = agnhost(cluster, "server-1", "web");
    let flow = open(client, address);
    expect_answer(&flow, "server-1");
    cluster.network.remove(&pod).unwrap();
    drop(server);
    cluster.delete("pod-server-1.yaml").unwrap();
    let (pod, _server) = agnhost(cluster, "server-2", "web");
    expect_answer(&flow, "server-2");
    for _ in 0..20 {
        assert_eq!(flow.ask("hostname").unwrap(), "server-2");
    }
    cluster.network.remove(&pod).unwrap();
    cluster.delete("pod-server-2.yaml").unwrap();
    expect_refused(client, Protocol::Udp, address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_nodeport_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    for from in [Location::Pod(&client), Location::Outside(cluster.node.outside())] {
        expect_udp_after_pod_replacement(&cluster, from, &format!("{}:30092", cluster.node.address()));
    }
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    expect_udp_after_pod_replacement(&cluster, Location::Pod(&client), &address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service_and_client_is_host_network()
 {
    let (cluster, _client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    expect_udp_after_pod_replacement(&cluster, Location::Node(&cluster.node), &address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_loadbalancer_service() {
    let (cluster, client) = cluster();
    let spec = PORTS.replace("NodePort\n", "LoadBalancer\n");
    let status = "status: {loadBalancer: {ingress: [{ip: 203.0.113.40}]}}";
    cluster.apply("web.yaml", &service(&format!("{spec}\n{status}"))).unwrap();
    let first = agnhost(&cluster, "server-1", "web");
    let flow = open(Location::Pod(&client), "203.0.113.40:90");
    expect_answer(&flow, "server-1");
    let _second = agnhost(&cluster, "server-2", "web");
    cluster.delete("pod-server-1.yaml").unwrap();
    cluster.network.remove(&first.0).unwrap();
    expect_answer(&flow, "server-2");
}

/// The client starts before an endpoint is ready, and keeps its port.
#[test]
fn should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let unready = "status: {conditions: [{type: Ready, status: 'False'}]}\n";
    let pod = cluster.add_pod("server").unwrap();
    cluster.apply("pod-server.yaml", &pod_manifest("server", "web", unready)).unwrap();
    let _server = Agnhost::in_pod(&pod);
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Location::Pod(&client), &address);
    for _ in 0..3 {
        assert!(flow.try_ask("hostname").is_err(), "no endpoint is ready");
    }
    cluster.apply("pod-server.yaml", &pod_manifest("server", "web", "")).unwrap();
    expect_answer(&flow, "server");
}

/// Flows of a Service that was deleted or lost its endpoints must not continue to the old pod
/// (kubernetes#139628, kubernetes#141371).
#[test]
fn flows_end_with_the_last_endpoint_and_with_the_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let (pod, _server) = agnhost(&cluster, "server", "web");
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Location::Pod(&client), &address);
    for deletes_service in [false, true] {
        expect_answer(&flow, "server");
        let file = if deletes_service { "web.yaml" } else { "pod-server.yaml" };
        let text = std::fs::read_to_string(cluster.manifests().join(file)).unwrap();
        cluster.delete(file).unwrap();
        wait_for("the flow to end", || {
            // The pod still runs and would answer.
            let error = flow.try_ask("hostname").err().context("it was answered")?;
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error}");
            Ok(())
        })
        .unwrap();
        assert_eq!(cluster.proxy_metric("portolan_proxy_udp_flows").unwrap(), 0.0);
        cluster.apply(file, &text).unwrap();
    }
    expect_answer(&flow, "server");
    drop(pod);
}

/// Policies and hints apply to new flows. An open flow stays on its endpoint while that is serving.
#[test]
fn flow_stays_on_a_serving_endpoint_and_leaves_one_that_is_not_serving() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let pods = ["server-1", "server-2"].map(|name| cluster.add_pod(name).unwrap());
    let _servers = pods.each_ref().map(Agnhost::in_pod);
    let apply_slice = |first: &str, second: &str| {
        let text = slice("web-1", &[(&pods[0].ip, first), (&pods[1].ip, second)]);
        cluster.apply("slice.yaml", &text.replace("{port: 8080}", "{port: 8080, protocol: UDP}")).unwrap();
    };
    apply_slice("conditions: {ready: true}", "conditions: {ready: false}");
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Location::Pod(&client), &address);
    expect_answer(&flow, "server-1");
    // Terminating but serving: new flows use the other endpoint, this one stays.
    apply_slice("conditions: {ready: false, serving: true, terminating: true}", "conditions: {ready: true}");
    expect_hosts(Location::Pod(&client), Protocol::Udp, &address, &["server-2"]);
    for _ in 0..10 {
        assert_eq!(flow.ask("hostname").unwrap(), "server-1");
    }
    apply_slice("conditions: {ready: false, serving: false, terminating: true}", "conditions: {ready: true}");
    expect_answer(&flow, "server-2");
}
