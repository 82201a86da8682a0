//! IPv6, single-stack and dual-stack: "[Feature:IPv6DualStack] … Secondary IP Family".

use testbed::Fleet;

use super::*;
use crate::agnhost::{Agnhost, Location, PROTOCOLS, Protocol};
use crate::granular_checks::{expect_hosts, expect_refused};

/// A node with addresses of both families, and two pods with an additional IPv6 address each.
struct DualStack {
    fleet: Fleet,
    client: Pod,
    endpoint: Pod,
    _servers: [Agnhost; 2],
}

const CLIENT: &str = "fd00:10:22::c";
const ENDPOINT: &str = "fd00:10:22::e";
const NODE: &str = "[2001:db8:1::2]";

const PORTS: &str = "  type: NodePort\n  externalIPs: [\"2001:db8:f::1\"]\n  ports: [{name: http, port: 80, \
    targetPort: 8080, nodePort: 30098}, {name: udp, port: 90, targetPort: 8080, protocol: UDP, \
    nodePort: 30099}]";

impl DualStack {
    fn start() -> Self {
        let fleet = Fleet::start(&[0]).unwrap();
        let cluster = &fleet.members[0];
        let client = cluster.add_pod("client").unwrap();
        let endpoint = cluster.add_pod("web-1").unwrap();
        give_address(cluster, &client, CLIENT);
        give_address(cluster, &endpoint, ENDPOINT);
        let servers =
            [&endpoint.ip, ENDPOINT].map(|ip| Agnhost::start(Location::Pod(&endpoint), ip, "web-1"));
        let pod = pod_manifest(
            "web-1",
            "web",
            &format!("status: {{podIPs: [{{ip: {}}}, {{ip: \"{ENDPOINT}\"}}]}}\n", endpoint.ip),
        );
        cluster.apply("pod-web-1.yaml", &pod).unwrap();
        // With the pod CIDR the proxy recognizes the IPv6 addresses as those of local pods.
        let text = std::fs::read_to_string(fleet.manifests().join("node-1.yaml")).unwrap();
        let both = text.replace("[\"10.22.1.0/24\"]", "[\"10.22.1.0/24\", \"fd00:10:22::/64\"]");
        cluster.apply("node-1.yaml", &both).unwrap();
        Self { client, endpoint, _servers: servers, fleet }
    }

    fn cluster(&self) -> &Cluster {
        &self.fleet.members[0]
    }

    /// Returns the virtual IPs, in the form for an address with a port.
    fn virtual_ips(&self) -> [String; 2] {
        let aaaa = "dig +short +time=1 +tries=1 @10.96.0.10 AAAA web.default.svc.cluster.local";
        let v6 = wait_for("an AAAA record", || {
            let text = self.cluster().node.shell(aaaa)?.trim().to_owned();
            ensure!(text.parse::<std::net::Ipv6Addr>().is_ok(), "{text:?}");
            Ok(text)
        });
        [self.cluster().virtual_ip("web").unwrap(), format!("[{}]", v6.unwrap())]
    }
}

/// Adds an IPv6 address to a pod whose veth has IPv6 disabled: a host route to the pod, and a link-local
/// gateway.
fn give_address(cluster: &Cluster, pod: &Pod, address: &str) {
    let route = cluster.node.shell(&format!("ip -o route show {}", pod.ip)).unwrap();
    let veth = route.split_once("dev ").unwrap().1.split(' ').next().unwrap();
    let script = format!(
        "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > \
         /proc/sys/net/ipv6/conf/{veth}/disable_ipv6; ip address add fe80::1/64 dev {veth} nodad; ip route \
         add {address}/128 dev {veth}"
    );
    cluster.node.shell(&script).unwrap();
    let script =
        format!("ip address add {address}/128 dev eth0 nodad; ip route add default via fe80::1 dev eth0");
    pod.shell(&cluster.node, &script).unwrap();
}

#[test]
fn should_function_for_pod_node_and_endpoint_service_in_the_secondary_ip_family() {
    let test = DualStack::start();
    let spec = format!("  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n{PORTS}");
    test.cluster().apply("web.yaml", &service(&spec)).unwrap();
    let vips = test.virtual_ips();
    let node = &test.cluster().node;
    for (protocol, port, node_port) in [(Protocol::Http, 80, 30_098), (Protocol::Udp, 90, 30_099)] {
        let addresses = [
            format!("{}:{port}", vips[0]),
            format!("{}:{port}", vips[1]),
            format!("192.0.2.2:{node_port}"),
            format!("{NODE}:{node_port}"),
            format!("[2001:db8:f::1]:{port}"),
        ];
        for address in &addresses {
            for from in [Location::Pod(&test.client), Location::Pod(&test.endpoint), Location::Node(node)] {
                expect_hosts(from, protocol, address, &["web-1"]);
            }
        }
        expect_hosts(Location::Outside(node.outside()), protocol, &addresses[3], &["web-1"]);
        let address_seen = Location::Pod(&test.client).ask(protocol, &addresses[1], "clientip").unwrap();
        assert_eq!(address_seen, CLIENT, "the client's own address, {protocol:?}");
        let message = "42".repeat(4096);
        let echo = Location::Pod(&test.client).ask(protocol, &addresses[1], &format!("echo?msg={message}"));
        assert_eq!(echo.unwrap(), message, "{protocol:?}");
    }
}

/// "should update endpoints", "should update nodePort", "should function for client IP based session
/// affinity", "should function for service endpoints using hostNetwork", "should function for multiple
/// endpoint-Services with same selector".
#[test]
fn should_update_endpoints_and_nodeport_and_keep_clients_in_the_secondary_ip_family() {
    let test = DualStack::start();
    let (cluster, client) = (test.cluster(), Location::Pod(&test.client));
    let spec = format!("  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n{PORTS}");
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let [_, vip] = test.virtual_ips();
    // A second endpoint, with hostNetwork.
    let on_node = NODE.trim_matches(['[', ']']);
    let _host = Agnhost::start(Location::Node(&cluster.node), on_node, "host");
    let host = pod_manifest("host", "web", &format!("status: {{podIPs: [{{ip: \"{on_node}\"}}]}}\n"))
        .replace("spec: {", "spec: {hostNetwork: true, ");
    cluster.apply("pod-host.yaml", &host).unwrap();
    let protocols = |node_ports: [u16; 2]| {
        [(Protocol::Http, 80, node_ports[0]), (Protocol::Udp, 90, node_ports[1])].map(
            |(protocol, port, node_port)| {
                (protocol, [format!("{vip}:{port}"), format!("{NODE}:{node_port}")])
            },
        )
    };
    for (protocol, addresses) in protocols([30_098, 30_099]) {
        addresses.iter().for_each(|address| expect_hosts(client, protocol, address, &["web-1", "host"]));
    }
    let sticky = spec.replace("  type:", "  sessionAffinity: ClientIP\n  type:").replace("3009", "3008");
    cluster.apply("web.yaml", &service(&sticky)).unwrap();
    for (protocol, old) in [(Protocol::Http, 30_098), (Protocol::Udp, 30_099)] {
        expect_refused(client, protocol, &format!("{NODE}:{old}"));
    }
    for (protocol, addresses) in protocols([30_088, 30_089]) {
        wait_for(&format!("one endpoint by {protocol:?}"), || {
            let ask = |address: &String| client.ask(protocol, address, "hostname");
            let seen = (0..10).flat_map(|_| addresses.iter().map(ask)).collect::<Result<BTreeSet<_>>>()?;
            ensure!(seen.len() == 1, "{seen:?}");
            Ok(())
        })
        .unwrap();
    }
    let second = service(&spec).replace("{name: web}", "{name: second}").replace("3009", "3007");
    cluster.apply("second.yaml", &second.replace("db8:f::1", "db8:f::2")).unwrap();
    expect_hosts(client, Protocol::Http, "[2001:db8:f::2]:80", &["web-1", "host"]);
    cluster.delete("pod-host.yaml").unwrap();
    for (protocol, addresses) in protocols([30_088, 30_089]) {
        addresses.iter().for_each(|address| expect_hosts(client, protocol, address, &["web-1"]));
    }
    expect_hosts(client, Protocol::Http, "[2001:db8:f::2]:80", &["web-1"]);
}

#[test]
fn single_family_service_uses_its_family_and_can_change_it() {
    let test = DualStack::start();
    let with = |families: &str| {
        let spec = format!("  ipFamilies: [{families}]\n{PORTS}")
            .replace("  externalIPs: [\"2001:db8:f::1\"]\n", "");
        test.cluster().apply("web.yaml", &service(&spec)).unwrap();
    };
    with("IPv4, IPv6");
    let vips = test.virtual_ips();
    for protocol in PROTOCOLS {
        let port = if protocol == Protocol::Http { 80 } else { 90 };
        let [v4, v6] = vips.each_ref().map(|ip| format!("{ip}:{port}"));
        with("IPv6");
        expect_refused(Location::Pod(&test.client), protocol, &v4);
        expect_hosts(Location::Pod(&test.client), protocol, &v6, &["web-1"]);
        with("IPv4");
        expect_refused(Location::Pod(&test.client), protocol, &v6);
        expect_hosts(Location::Pod(&test.client), protocol, &v4, &["web-1"]);
        with("IPv4, IPv6");
        expect_hosts(Location::Pod(&test.client), protocol, &v6, &["web-1"]);
    }
}
