//! UDP flows whose endpoints come and go: the upstream "Conntrack" tests, and what users of connection tracking suffer
//! from beyond them.

use super::*;
use crate::agnhost::{Agnhost, Flow, Place, Way, agnhost};
use crate::granular::{expect_hosts, expect_refused};

const PORTS: &str =
    "  type: NodePort\n  ports: [{port: 90, targetPort: 8080, protocol: UDP, nodePort: 30092}]";

/// Waits until the flow's client gets an answer of `name`; what is lost until then is sent anew, from the same port.
fn expect_answer(flow: &Flow, name: &str) {
    wait_for(&format!("an answer of {name}"), || {
        let said = flow.try_ask("hostname")?;
        ensure!(said == name, "{said}");
        Ok(())
    })
    .unwrap();
}

fn open(from: Place<'_>, address: &str) -> Flow {
    from.run(|| Flow::open(address)).unwrap()
}

/// One client port throughout; the pod behind the Service is killed, and another one started.
fn the_server_pod_cycles(cluster: &Cluster, client: Place<'_>, address: &str) {
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
    expect_refused(client, Way::Udp, address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_nodeport_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    for from in [Place::Pod(&client), Place::Outside(cluster.node.outside())] {
        the_server_pod_cycles(&cluster, from, &format!("{}:30092", cluster.node.address()));
    }
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    the_server_pod_cycles(&cluster, Place::Pod(&client), &address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service_and_client_is_host_network()
 {
    let (cluster, _client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    the_server_pod_cycles(&cluster, Place::Node(&cluster.node), &address);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_loadbalancer_service() {
    let (cluster, client) = cluster();
    let spec = PORTS.replace("NodePort\n", "LoadBalancer\n");
    let status = "status: {loadBalancer: {ingress: [{ip: 203.0.113.40}]}}";
    cluster.apply("web.yaml", &service(&format!("{spec}\n{status}"))).unwrap();
    let first = agnhost(&cluster, "server-1", "web");
    let flow = open(Place::Pod(&client), "203.0.113.40:90");
    expect_answer(&flow, "server-1");
    let _second = agnhost(&cluster, "server-2", "web");
    cluster.delete("pod-server-1.yaml").unwrap();
    cluster.network.remove(&first.0).unwrap();
    expect_answer(&flow, "server-2");
}

/// The client begins before there is anybody, and never changes its port.
#[test]
fn should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let unready = "status: {conditions: [{type: Ready, status: 'False'}]}\n";
    let pod = cluster.add_pod("server").unwrap();
    cluster.apply("pod-server.yaml", &pod_manifest("server", "web", unready)).unwrap();
    let _server = Agnhost::in_pod(&pod);
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Place::Pod(&client), &address);
    for _ in 0..3 {
        assert!(flow.try_ask("hostname").is_err(), "no endpoint is ready");
    }
    cluster.apply("pod-server.yaml", &pod_manifest("server", "web", "")).unwrap();
    expect_answer(&flow, "server");
}

/// A Service without endpoints, or none any more, must not go on feeding whoever had the address (kubernetes#139628,
/// kubernetes#141371).
#[test]
fn flows_end_with_the_last_endpoint_and_with_the_service() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let (pod, _server) = agnhost(&cluster, "server", "web");
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Place::Pod(&client), &address);
    for service_goes in [false, true] {
        expect_answer(&flow, "server");
        let file = if service_goes { "web.yaml" } else { "pod-server.yaml" };
        let text = std::fs::read_to_string(cluster.manifests().join(file)).unwrap();
        cluster.delete(file).unwrap();
        wait_for("the flow to end", || {
            // The pod is still there and would answer.
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

/// Policies and hints are for new flows: one that is under way stays where it is as long as it is served there.
#[test]
fn a_flow_stays_with_an_endpoint_that_serves_and_leaves_one_that_does_not() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let pods = ["server-1", "server-2"].map(|name| cluster.add_pod(name).unwrap());
    let _servers = pods.each_ref().map(Agnhost::in_pod);
    let place = |first: &str, second: &str| {
        let text = slice("web-1", &[(&pods[0].ip, first), (&pods[1].ip, second)]);
        cluster.apply("slice.yaml", &text.replace("{port: 8080}", "{port: 8080, protocol: UDP}")).unwrap();
    };
    place("conditions: {ready: true}", "conditions: {ready: false}");
    let address = format!("{}:90", cluster.virtual_ip("web").unwrap());
    let flow = open(Place::Pod(&client), &address);
    expect_answer(&flow, "server-1");
    // Terminating, but serving: new flows go elsewhere, this one stays.
    place("conditions: {ready: false, serving: true, terminating: true}", "conditions: {ready: true}");
    expect_hosts(Place::Pod(&client), Way::Udp, &address, &["server-2"]);
    for _ in 0..10 {
        assert_eq!(flow.ask("hostname").unwrap(), "server-1");
    }
    place("conditions: {ready: false, serving: false, terminating: true}", "conditions: {ready: true}");
    expect_answer(&flow, "server-2");
}
