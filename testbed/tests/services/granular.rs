//! "Networking Granular Checks: Services": http and udp, from pods, nodes and endpoints.

use super::*;
use crate::agnhost::{Agnhost, Place, WAYS, Way, agnhost};

/// Port 80 over TCP and 90 over UDP, both on the endpoints' port 8080.
const PORTS: &str = "  type: NodePort\n  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30090}, {name: udp, port: 90, targetPort: 8080, protocol: UDP, nodePort: 30091}]";

/// A Service `web` with endpoints `web-1` and `web-2`.
struct Granular {
    vip: String,
    client: Pod,
    endpoints: Vec<(Pod, Agnhost)>,
    cluster: Cluster,
}

impl Granular {
    fn start_with(flags: &[&str]) -> Self {
        let cluster = Cluster::start_with(flags).unwrap();
        let client = cluster.add_pod("client").unwrap();
        cluster.apply("web.yaml", &service(PORTS)).unwrap();
        let endpoints = ["web-1", "web-2"].map(|name| agnhost(&cluster, name, "web")).into();
        let vip = cluster.virtual_ip("web").unwrap();
        Self { vip, client, endpoints, cluster }
    }

    fn start() -> Self {
        Self::start_with(&[])
    }

    fn cluster_ip(&self, way: Way) -> String {
        format!("{}:{}", self.vip, if way == Way::Http { 80 } else { 90 })
    }
}

fn node_port(ip: &str, way: Way) -> String {
    format!("{ip}:{}", if way == Way::Http { 30_090 } else { 30_091 })
}

/// Waits until exactly these answer twenty questions.
pub(crate) fn expect_hosts(from: Place<'_>, way: Way, address: &str, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_for(&format!("answers of {names:?} at {address} by {way:?}"), || {
        let seen =
            (0..20).map(|_| from.ask(way, address, "hostname")).collect::<Result<BTreeSet<String>>>()?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until TCP is refused, and until a datagram is answered with port unreachable.
pub(crate) fn expect_refused(from: Place<'_>, way: Way, address: &str) {
    wait_for(&format!("refusal at {address} by {way:?}"), || {
        let error = from.ask(way, address, "hostname").err().context("it was answered")?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn should_function_for_pod_service() {
    let test = Granular::start();
    for way in WAYS {
        for address in [test.cluster_ip(way), node_port(test.cluster.node.address(), way)] {
            expect_hosts(Place::Pod(&test.client), way, &address, &["web-1", "web-2"]);
        }
    }
}

#[test]
fn should_function_for_node_service() {
    let test = Granular::start_with(&["--node-port-addresses", "192.0.2.0/24,127.0.0.0/8"]);
    for way in WAYS {
        let on_node = ["127.0.0.1", test.cluster.node.address()].map(|ip| node_port(ip, way));
        for address in on_node.iter().chain([&test.cluster_ip(way)]) {
            expect_hosts(Place::Node(&test.cluster.node), way, address, &["web-1", "web-2"]);
        }
        let outside = Place::Outside(test.cluster.node.outside());
        expect_hosts(outside, way, &on_node[1], &["web-1", "web-2"]);
    }
}

/// An endpoint reaches all of its Service, itself among them.
#[test]
fn should_function_for_endpoint_service() {
    let test = Granular::start();
    for way in WAYS {
        for address in [test.cluster_ip(way), node_port(test.cluster.node.address(), way)] {
            expect_hosts(Place::Pod(&test.endpoints[0].0), way, &address, &["web-1", "web-2"]);
        }
    }
}

#[test]
fn should_function_for_intra_pod_and_node_pod_communication() {
    let test = Granular::start();
    let (endpoint, _) = &test.endpoints[0];
    for way in WAYS {
        for from in [Place::Pod(&test.client), Place::Pod(endpoint), Place::Node(&test.cluster.node)] {
            expect_hosts(from, way, &format!("{}:8080", endpoint.ip), &["web-1"]);
        }
    }
}

/// 8 kB there and back: several segments, and datagrams that have to be cut into fragments.
#[test]
fn should_be_able_to_handle_large_requests() {
    let test = Granular::start();
    let message = "42".repeat(4096);
    let question = format!("echo?msg={message}");
    for way in WAYS {
        for address in [test.cluster_ip(way), node_port(test.cluster.node.address(), way)] {
            expect_hosts(Place::Pod(&test.client), way, &address, &["web-1", "web-2"]);
            for _ in 0..10 {
                let said = Place::Pod(&test.client).ask(way, &address, &question).unwrap();
                assert_eq!(said, message, "{way:?}");
            }
        }
    }
}

#[test]
fn should_function_for_client_ip_based_session_affinity() {
    let test = Granular::start();
    let sticky = PORTS.replace("  type:", "  sessionAffinity: ClientIP\n  type:");
    for way in WAYS {
        expect_hosts(Place::Pod(&test.client), way, &test.cluster_ip(way), &["web-1", "web-2"]);
    }
    test.cluster.apply("web.yaml", &service(&sticky)).unwrap();
    for way in WAYS {
        for address in [test.cluster_ip(way), node_port(test.cluster.node.address(), way)] {
            let ask = || Place::Pod(&test.client).ask(way, &address, "hostname");
            wait_for("one endpoint", || {
                let seen = (0..20).map(|_| ask()).collect::<Result<BTreeSet<String>>>()?;
                ensure!(seen.len() == 1, "{seen:?}");
                Ok(())
            })
            .unwrap();
        }
    }
}

#[test]
fn should_function_for_multiple_endpoint_services_with_same_selector() {
    let test = Granular::start();
    let second = service(PORTS).replace("{name: web}", "{name: second}").replace("3009", "3019");
    test.cluster.apply("second.yaml", &second).unwrap();
    let second = test.cluster.virtual_ip("second").unwrap();
    for (way, port) in [(Way::Http, 80), (Way::Udp, 90)] {
        for address in [test.cluster_ip(way), format!("{second}:{port}")] {
            expect_hosts(Place::Pod(&test.client), way, &address, &["web-1", "web-2"]);
        }
    }
    test.cluster.delete("second.yaml").unwrap();
    for (way, port) in [(Way::Http, 80), (Way::Udp, 90)] {
        expect_refused(Place::Pod(&test.client), way, &format!("{second}:{port}"));
        expect_hosts(Place::Pod(&test.client), way, &test.cluster_ip(way), &["web-1", "web-2"]);
    }
}

/// Endpoints with the node's own address, for clients in pods, on the node and outside.
#[test]
fn should_function_for_service_endpoints_using_host_network() {
    let (cluster, client) = cluster();
    let node = Place::Node(&cluster.node);
    let _server = Agnhost::start(node, cluster.node.address(), "host");
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let pod = pod_manifest("host", "web", "status: {podIP: 192.0.2.2}\n")
        .replace("spec: {", "spec: {hostNetwork: true, ");
    cluster.apply("pod-host.yaml", &pod).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    for way in WAYS {
        let cluster_ip = format!("{vip}:{}", if way == Way::Http { 80 } else { 90 });
        let node_port = node_port(cluster.node.address(), way);
        for from in [Place::Pod(&client), node] {
            expect_hosts(from, way, &cluster_ip, &["host"]);
            expect_hosts(from, way, &node_port, &["host"]);
        }
        expect_hosts(Place::Outside(cluster.node.outside()), way, &node_port, &["host"]);
    }
}

#[test]
fn should_support_basic_nodeport_udp_functionality() {
    let test = Granular::start();
    let address = node_port(test.cluster.node.address(), Way::Udp);
    for from in [
        Place::Pod(&test.client),
        Place::Node(&test.cluster.node),
        Place::Outside(test.cluster.node.outside()),
    ] {
        expect_hosts(from, Way::Udp, &address, &["web-1", "web-2"]);
    }
}

#[test]
fn should_update_endpoints() {
    let mut test = Granular::start();
    for way in WAYS {
        expect_hosts(Place::Pod(&test.client), way, &test.cluster_ip(way), &["web-1", "web-2"]);
    }
    let (gone, _server) = test.endpoints.remove(0);
    test.cluster.network.remove(&gone).unwrap();
    test.cluster.delete("pod-web-1.yaml").unwrap();
    for way in WAYS {
        expect_hosts(Place::Pod(&test.client), way, &test.cluster_ip(way), &["web-2"]);
    }
    test.endpoints.push(agnhost(&test.cluster, "web-3", "web"));
    for way in WAYS {
        expect_hosts(Place::Pod(&test.client), way, &test.cluster_ip(way), &["web-2", "web-3"]);
    }
}

#[test]
fn should_update_nodeport() {
    let test = Granular::start();
    let node = test.cluster.node.address();
    for way in WAYS {
        expect_hosts(Place::Pod(&test.client), way, &node_port(node, way), &["web-1", "web-2"]);
    }
    test.cluster.apply("web.yaml", &service(&PORTS.replace("3009", "3008"))).unwrap();
    for (way, moved) in [(Way::Http, 30_080), (Way::Udp, 30_081)] {
        expect_refused(Place::Pod(&test.client), way, &node_port(node, way));
        expect_hosts(Place::Pod(&test.client), way, &format!("{node}:{moved}"), &["web-1", "web-2"]);
    }
    test.cluster.delete("web.yaml").unwrap();
    for (way, moved) in [(Way::Http, 30_080), (Way::Udp, 30_081)] {
        expect_refused(Place::Pod(&test.client), way, &format!("{node}:{moved}"));
    }
}
