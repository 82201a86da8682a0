//! "Networking Granular Checks: Services": http and udp, from pods, nodes and endpoints.

use super::*;
use crate::agnhost::{Agnhost, Location, PROTOCOLS, Protocol, agnhost};

/// Port 80 over TCP and 90 over UDP, both on the endpoints' port 8080.
const PORTS: &str = "  type: NodePort\n  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30090}, \
    {name: udp, port: 90, targetPort: 8080, protocol: UDP, nodePort: 30091}]";

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

    fn cluster_ip(&self, protocol: Protocol) -> String {
        format!("{}:{}", self.vip, if protocol == Protocol::Http { 80 } else { 90 })
    }
}

fn node_port(ip: &str, protocol: Protocol) -> String {
    format!("{ip}:{}", if protocol == Protocol::Http { 30_090 } else { 30_091 })
}

/// Waits until exactly these names answer twenty requests.
pub(crate) fn expect_hosts(from: Location<'_>, protocol: Protocol, address: &str, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_for(&format!("answers of {names:?} at {address} by {protocol:?}"), || {
        let seen =
            (0..20).map(|_| from.ask(protocol, address, "hostname")).collect::<Result<BTreeSet<String>>>()?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until TCP is refused, or a datagram is answered with port unreachable.
pub(crate) fn expect_refused(from: Location<'_>, protocol: Protocol, address: &str) {
    wait_for(&format!("refusal at {address} by {protocol:?}"), || {
        let error = from.ask(protocol, address, "hostname").err().context("it was answered")?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn should_function_for_pod_service() {
    let test = Granular::start();
    for protocol in PROTOCOLS {
        for address in [test.cluster_ip(protocol), node_port(test.cluster.node.address(), protocol)] {
            expect_hosts(Location::Pod(&test.client), protocol, &address, &["web-1", "web-2"]);
        }
    }
}

#[test]
fn should_function_for_node_service() {
    let test = Granular::start_with(&["--node-port-addresses", "192.0.2.0/24,127.0.0.0/8"]);
    for protocol in PROTOCOLS {
        let on_node = ["127.0.0.1", test.cluster.node.address()].map(|ip| node_port(ip, protocol));
        for address in on_node.iter().chain([&test.cluster_ip(protocol)]) {
            expect_hosts(Location::Node(&test.cluster.node), protocol, address, &["web-1", "web-2"]);
        }
        let outside = Location::Outside(test.cluster.node.outside());
        expect_hosts(outside, protocol, &on_node[1], &["web-1", "web-2"]);
    }
}

/// An endpoint reaches all endpoints of its Service, including itself.
#[test]
fn should_function_for_endpoint_service() {
    let test = Granular::start();
    for protocol in PROTOCOLS {
        for address in [test.cluster_ip(protocol), node_port(test.cluster.node.address(), protocol)] {
            expect_hosts(Location::Pod(&test.endpoints[0].0), protocol, &address, &["web-1", "web-2"]);
        }
    }
}

#[test]
fn should_function_for_intra_pod_and_node_pod_communication() {
    let test = Granular::start();
    let (endpoint, _) = &test.endpoints[0];
    for protocol in PROTOCOLS {
        for from in [Location::Pod(&test.client), Location::Pod(endpoint), Location::Node(&test.cluster.node)]
        {
            expect_hosts(from, protocol, &format!("{}:8080", endpoint.ip), &["web-1"]);
        }
    }
}

/// 8 kB in each direction: several segments, and fragmented datagrams.
#[test]
fn should_be_able_to_handle_large_requests() {
    let test = Granular::start();
    let message = "42".repeat(4096);
    let question = format!("echo?msg={message}");
    for protocol in PROTOCOLS {
        for address in [test.cluster_ip(protocol), node_port(test.cluster.node.address(), protocol)] {
            expect_hosts(Location::Pod(&test.client), protocol, &address, &["web-1", "web-2"]);
            for _ in 0..10 {
                let echo = Location::Pod(&test.client).ask(protocol, &address, &question).unwrap();
                assert_eq!(echo, message, "{protocol:?}");
            }
        }
    }
}

#[test]
fn should_function_for_client_ip_based_session_affinity() {
    let test = Granular::start();
    let sticky = PORTS.replace("  type:", "  sessionAffinity: ClientIP\n  type:");
    for protocol in PROTOCOLS {
        expect_hosts(Location::Pod(&test.client), protocol, &test.cluster_ip(protocol), &["web-1", "web-2"]);
    }
    test.cluster.apply("web.yaml", &service(&sticky)).unwrap();
    for protocol in PROTOCOLS {
        for address in [test.cluster_ip(protocol), node_port(test.cluster.node.address(), protocol)] {
            let ask = || Location::Pod(&test.client).ask(protocol, &address, "hostname");
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
    for (protocol, port) in [(Protocol::Http, 80), (Protocol::Udp, 90)] {
        for address in [test.cluster_ip(protocol), format!("{second}:{port}")] {
            expect_hosts(Location::Pod(&test.client), protocol, &address, &["web-1", "web-2"]);
        }
    }
    test.cluster.delete("second.yaml").unwrap();
    for (protocol, port) in [(Protocol::Http, 80), (Protocol::Udp, 90)] {
        expect_refused(Location::Pod(&test.client), protocol, &format!("{second}:{port}"));
        expect_hosts(Location::Pod(&test.client), protocol, &test.cluster_ip(protocol), &["web-1", "web-2"]);
    }
}

/// Endpoints with the node's own address, for clients in pods, on the node and outside.
#[test]
fn should_function_for_service_endpoints_using_host_network() {
    let (cluster, client) = cluster();
    let node = Location::Node(&cluster.node);
    let _server = Agnhost::start(node, cluster.node.address(), "host");
    cluster.apply("web.yaml", &service(PORTS)).unwrap();
    let pod = pod_manifest("host", "web", "status: {podIP: 192.0.2.2}\n")
        .replace("spec: {", "spec: {hostNetwork: true, ");
    cluster.apply("pod-host.yaml", &pod).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    for protocol in PROTOCOLS {
        let cluster_ip = format!("{vip}:{}", if protocol == Protocol::Http { 80 } else { 90 });
        let node_port = node_port(cluster.node.address(), protocol);
        for from in [Location::Pod(&client), node] {
            expect_hosts(from, protocol, &cluster_ip, &["host"]);
            expect_hosts(from, protocol, &node_port, &["host"]);
        }
        expect_hosts(Location::Outside(cluster.node.outside()), protocol, &node_port, &["host"]);
    }
}

#[test]
fn should_support_basic_nodeport_udp_functionality() {
    let test = Granular::start();
    let address = node_port(test.cluster.node.address(), Protocol::Udp);
    for from in [
        Location::Pod(&test.client),
        Location::Node(&test.cluster.node),
        Location::Outside(test.cluster.node.outside()),
    ] {
        expect_hosts(from, Protocol::Udp, &address, &["web-1", "web-2"]);
    }
}

#[test]
fn should_update_endpoints() {
    let mut test = Granular::start();
    for protocol in PROTOCOLS {
        expect_hosts(Location::Pod(&test.client), protocol, &test.cluster_ip(protocol), &["web-1", "web-2"]);
    }
    let (removed, _server) = test.endpoints.remove(0);
    test.cluster.network.remove(&removed).unwrap();
    test.cluster.delete("pod-web-1.yaml").unwrap();
    for protocol in PROTOCOLS {
        expect_hosts(Location::Pod(&test.client), protocol, &test.cluster_ip(protocol), &["web-2"]);
    }
    test.endpoints.push(agnhost(&test.cluster, "web-3", "web"));
    for protocol in PROTOCOLS {
        expect_hosts(Location::Pod(&test.client), protocol, &test.cluster_ip(protocol), &["web-2", "web-3"]);
    }
}

#[test]
fn should_update_nodeport() {
    let test = Granular::start();
    let node = test.cluster.node.address();
    for protocol in PROTOCOLS {
        expect_hosts(Location::Pod(&test.client), protocol, &node_port(node, protocol), &["web-1", "web-2"]);
    }
    test.cluster.apply("web.yaml", &service(&PORTS.replace("3009", "3008"))).unwrap();
    for (protocol, moved) in [(Protocol::Http, 30_080), (Protocol::Udp, 30_081)] {
        expect_refused(Location::Pod(&test.client), protocol, &node_port(node, protocol));
        expect_hosts(Location::Pod(&test.client), protocol, &format!("{node}:{moved}"), &["web-1", "web-2"]);
    }
    test.cluster.delete("web.yaml").unwrap();
    for (protocol, moved) in [(Protocol::Http, 30_080), (Protocol::Udp, 30_081)] {
        expect_refused(Location::Pod(&test.client), protocol, &format!("{node}:{moved}"));
    }
}
