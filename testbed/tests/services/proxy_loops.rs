//! Endpoints that are frontends of a proxy: a connection is proxied once, as by kube-proxy, or refused; it
//! never loops.

use std::time::Instant;

use testbed::Fleet;

use super::*;
use crate::agnhost::{Agnhost, Location, PROTOCOLS, Protocol};
use crate::granular_checks::expect_hosts;

pub(crate) const NODE: &str = "192.0.2.2";
const OPENED: &str = "portolan_proxy_connections_opened_total";
const REFUSED: &str = "portolan_proxy_loops_refused_total";

/// Returns a Service without a selector, and an EndpointSlice with one endpoint.
pub(crate) fn manual(name: &str, spec: &str, endpoint: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{port: {port}}}]\nendpoints: [{{addresses: [{endpoint}]}}]\n"
    )
}

/// Connects once and expects a reset.
fn expect_reset(client: &Pod, address: &str) {
    let connect = || TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(20));
    let Ok(mut stream) = client.netns.run(connect).unwrap() else { return };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let end = stream.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{address}");
}

/// Waits until the proxy serves an address.
pub(crate) fn wait_until_served(cluster: &Cluster, address: &str) {
    wait_for(address, || {
        let page = cluster.node.shell("curl -fsS http://127.0.0.1:10249/debug/services?format=json")?;
        ensure!(page.contains(address), "{page}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn endpoint_that_is_a_virtual_ip_is_refused_and_no_connection_multiplies() {
    let (cluster, client) = cluster();
    let own = manual("own", "clusterIP: 10.96.0.61, ports: [{port: 80}]", "10.96.0.61", 80);
    let one = manual("one", "clusterIP: 10.96.0.62, ports: [{port: 80}]", "10.96.0.63", 80);
    let other = manual("other", "clusterIP: 10.96.0.63, ports: [{port: 80}]", "10.96.0.62", 80);
    let port = manual(
        "port",
        "type: NodePort, clusterIP: 10.96.0.64, ports: [{port: 80, nodePort: 30064}]",
        NODE,
        30064,
    );
    cluster.apply("loops.yaml", &[own, one, other, port].join("---\n")).unwrap();
    let addresses =
        ["10.96.0.61:80", "10.96.0.62:80", "10.96.0.63:80", "10.96.0.64:80", &format!("{NODE}:30064")];
    for (address, count) in addresses.iter().zip(1_u8..) {
        wait_until_served(&cluster, address);
        expect_reset(&client, address);
        assert_eq!(cluster.proxy_metric(OPENED).unwrap(), f64::from(count), "{address}");
        assert!(cluster.proxy_metric(REFUSED).unwrap() >= f64::from(count), "{address}");
    }
    // The log is rate-limited to one line in ten seconds.
    let (warning, began) = ("an endpoint is itself served by this proxy", Instant::now());
    for _ in 0..30 {
        expect_reset(&client, addresses[0]);
    }
    let own =
        cluster.logs().lines().filter(|line| line.contains(warning) && line.contains("default/own")).count();
    let limit = 2 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
    assert!((1..=limit).contains(&own), "{own} lines: {}", cluster.logs());
}

#[test]
fn datagram_to_an_endpoint_that_is_a_virtual_ip_is_refused_and_does_not_multiply() {
    let (cluster, client) = cluster();
    let udp = |name: &str, ip: &str, to: &str| {
        let spec = format!("clusterIP: {ip}, ports: [{{port: 80, protocol: UDP}}]");
        manual(name, &spec, to, 80).replace("ports: [{port: 80}]", "ports: [{port: 80, protocol: UDP}]")
    };
    let own = udp("own", "10.96.0.71", "10.96.0.71");
    let one = udp("one", "10.96.0.72", "10.96.0.73");
    let other = udp("other", "10.96.0.73", "10.96.0.72");
    cluster.apply("loops.yaml", &[own, one, other].join("---\n")).unwrap();
    let sent = "portolan_proxy_udp_sent_datagrams_total";
    for (address, count) in ["10.96.0.71:80", "10.96.0.72:80", "10.96.0.73:80"].iter().zip(1_u8..) {
        wait_until_served(&cluster, address);
        let socket = client.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.send(b"x").unwrap();
        let end = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionRefused, "{address}");
        assert_eq!(cluster.proxy_metric(sent).unwrap(), f64::from(count), "{address}");
    }
}

#[test]
fn external_ip_that_is_the_nodes_address_leads_to_a_server_of_the_node() {
    let spec = "externalIPs: [192.0.2.2], clusterIP: 10.96.0.65, ports: [{port: 8080}]";
    let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}}\n---\n";
    let both = manual("host", spec, NODE, 8080).replacen("---\n", status, 1);
    for server_first in [true, false] {
        let (cluster, client) = cluster();
        let start = || Agnhost::start(Location::Node(&cluster.node), NODE, "on-the-node");
        let early = server_first.then(start);
        cluster.apply("host.yaml", &both).unwrap();
        wait_until_served(&cluster, "10.96.0.65:8080");
        let _server = early.unwrap_or_else(start);
        for address in ["10.96.0.65:8080", "192.0.2.2:8080"] {
            for from in [
                Location::Pod(&client),
                Location::Outside(cluster.node.outside()),
                Location::Node(&cluster.node),
            ] {
                if matches!(from, Location::Outside(_)) && address.starts_with("10.") {
                    continue;
                }
                expect_hosts(from, Protocol::Http, address, &["on-the-node"]);
            }
        }
        assert_eq!(cluster.proxy_metric(REFUSED).unwrap(), 0.0);
    }
}

#[test]
fn server_of_the_node_sees_the_address_of_its_client() {
    let cluster = Cluster::start_with(&["--node-name", "node-1"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let ports =
        "[{name: tcp, port: 80, nodePort: 30080}, {name: udp, port: 80, nodePort: 30080, protocol: UDP}]";
    let spec = format!("type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.0.66, ports: {ports}");
    let manifest = manual("host", &spec, NODE, 8080)
        .replace(
            "ports: [{port: 8080}]",
            "ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]",
        )
        .replace("{addresses: [192.0.2.2]}", "{addresses: [192.0.2.2], nodeName: node-1}");
    let _server = Agnhost::start(Location::Node(&cluster.node), NODE, "on-the-node");
    cluster.apply("host.yaml", &manifest).unwrap();
    wait_until_served(&cluster, "10.96.0.66:80");
    let (pod, outside) = (Location::Pod(&client), Location::Outside(cluster.node.outside()));
    let node_port = format!("{NODE}:30080");
    for protocol in PROTOCOLS {
        for (from, address, expected) in [
            (pod, "10.96.0.66:80", client.ip.as_str()),
            (pod, &node_port, &client.ip),
            (outside, &node_port, cluster.node.outside_address()),
            (Location::Node(&cluster.node), "10.96.0.66:80", NODE),
        ] {
            for _ in 0..10 {
                assert_eq!(
                    from.ask(protocol, address, "clientip").unwrap(),
                    expected,
                    "{protocol:?} {address}"
                );
            }
        }
        // Connections that bypass the proxy are answered as before.
        for from in [pod, outside] {
            expect_hosts(from, protocol, &format!("{NODE}:8080"), &["on-the-node"]);
        }
    }
    assert_eq!(cluster.proxy_metric("portolan_proxy_source_fallbacks_total").unwrap(), 0.0);
}

/// Two nodes with a node port each that leads to the other one's. Returns them, a client, and the address of the
/// first node port.
fn node_port_loop(protocol: &str) -> (Fleet, Pod, String) {
    let fleet = Fleet::start(&[0, 0]).unwrap();
    let address = |index: usize| fleet.members[index].node.address().to_owned();
    let service = |name: &str, port: u16, to: &str, next: u16| {
        let spec = format!("type: NodePort, ports: [{{port: 80, protocol: {protocol}, nodePort: {port}}}]");
        let ports = format!("ports: [{{port: {next}}}]");
        let with_protocol = format!("ports: [{{port: {next}, protocol: {protocol}}}]");
        manual(name, &spec, to, next).replace(&ports, &with_protocol)
    };
    let there = service("there", 30071, &address(1), 30072);
    let back = service("back", 30072, &address(0), 30071);
    fleet.members[0].apply("circle.yaml", &format!("{there}---\n{back}")).unwrap();
    for member in &fleet.members {
        wait_until_served(member, ":30072");
    }
    let client = fleet.members[0].add_pod("client").unwrap();
    let address = format!("{}:30071", address(0));
    (fleet, client, address)
}

/// Like the TTL of packets, a connection that passed too many proxies is dropped.
#[test]
fn connection_loop_between_two_nodes_ends() {
    let (fleet, client, address) = node_port_loop("TCP");
    expect_reset(&client, &address);
    let opened: f64 = fleet.members.iter().map(|member| member.proxy_metric(OPENED).unwrap()).sum();
    let refused: f64 = fleet.members.iter().map(|member| member.proxy_metric(REFUSED).unwrap()).sum();
    assert!(opened <= 64.0, "{opened} connections of one");
    assert_eq!(refused, 1.0);
    for member in &fleet.members {
        assert!(!member.logs().contains("loops between proxies"), "{}", member.logs());
    }
}

#[test]
fn datagram_loop_between_two_nodes_ends() {
    let (fleet, client, address) = node_port_loop("UDP");
    let socket = client.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.send_to(b"x", &address).unwrap();
    let sum =
        |name: &str| -> Result<f64> { fleet.members.iter().map(|member| member.proxy_metric(name)).sum() };
    wait_for("the end of the loop", || {
        let (refused, sent) = (sum(REFUSED)?, sum("portolan_proxy_udp_sent_datagrams_total")?);
        assert!(sent <= 64.0, "{sent} datagrams of one");
        ensure!(refused == 1.0, "{refused}, after {sent} datagrams");
        Ok(())
    })
    .unwrap();
    let flows = sum("portolan_proxy_udp_flows").unwrap();
    assert!((2.0..=64.0).contains(&flows), "{flows}");
}
