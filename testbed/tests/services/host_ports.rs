//! Host ports and Services on the same port: each uses its own addresses, in any order.

use serde_json::json;
use testbed::{Binaries, Network, Plugin};

use super::*;

const NODE: &str = "192.0.2.2";
const EXTERNAL: &str = "203.0.113.10";

/// Starts a dual-stack pod with these host ports for its port 8080.
fn publish(cluster: &Cluster, name: &str, ports: &[u16]) -> Replica {
    let mappings: Vec<_> = ["tcp", "udp"]
        .iter()
        .flat_map(|protocol| ports.iter().map(move |port| (port, protocol)))
        .map(|(port, protocol)| json!({ "hostPort": port, "containerPort": 8080, "protocol": protocol }))
        .collect();
    let config = json!({
        "cniVersion": "1.1.0", "name": "published", "type": "portolan-cni",
        "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }], [{ "subnet": "fd00:23::/64" }]] },
        "runtimeConfig": { "portMappings": mappings },
    });
    let plugin =
        Plugin { binary: Binaries::find().unwrap().path("portolan-cni"), node: cluster.node.clone() };
    let pod = Network::with_config(plugin, config).add(name).unwrap();
    let server = HostnameServer::start(&pod, 8080).unwrap();
    Replica { pod, _server: server }
}

/// Applies a dual-stack Service with an external IP. Returns its virtual IPs.
fn apply_service(cluster: &Cluster) -> [String; 2] {
    let addresses = ["10.96.7.7", "fd00:10:96::77"];
    let spec = format!(
        "  ipFamilyPolicy: RequireDualStack\n  clusterIPs: [{}, \"{}\"]\n  externalIPs: [{EXTERNAL}]\n\
         {PORT_80}",
        addresses[0], addresses[1]
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    addresses.map(str::to_owned)
}

/// Returns whether a connection is refused in the network namespace of the calling thread.
fn is_refused(address: &str) -> bool {
    let connected = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(10));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Checks that port 80 of the Service's addresses reaches its pod, 81 is refused, and the node's ports reach
/// the host port's pod.
fn expect_service_and_host_ports(cluster: &Cluster, client: &Pod, virtual_ips: &[String; 2]) {
    let node = &cluster.node;
    expect_answers(client, &format!("{EXTERNAL}:80"), &["web-1"]);
    assert_eq!(node.run(|| ask(&format!("{EXTERNAL}:80"))).unwrap(), "web-1", "from the node");
    let other = format!("{EXTERNAL}:81");
    assert!(client.netns.run(|| ask(&other)).unwrap().is_err(), "{other} from a pod");
    assert!(node.run(|| ask(&other)).is_err(), "{other} from the node");
    let address = &virtual_ips[0];
    expect_answers(client, &format!("{address}:80"), &["web-1"]);
    assert_eq!(node.run(|| ask(&format!("{address}:80"))).unwrap(), "web-1", "from the node");
    expect_refusal(client, &format!("{address}:81"));
    assert!(node.run(|| is_refused(&format!("{address}:81"))), "{address}:81 from the node");
    assert!(node.run(|| is_refused(&format!("[{}]:81", virtual_ips[1]))), "{}:81", virtual_ips[1]);
    for port in [80, 81] {
        let address = format!("{NODE}:{port}");
        expect_answers(client, &address, &["published"]);
        assert_eq!(node.run(|| ask(&address)).unwrap(), "published");
        assert_eq!(node.run(|| ask(&format!("127.0.0.1:{port}"))).unwrap(), "published");
        assert_eq!(node.outside().run(|| ask(&address)).unwrap().unwrap(), "published");
    }
    for transport in ["", "+tcp"] {
        let lookup =
            format!("dig +short +time=2 +tries=1 {transport} @10.96.0.10 web.default.svc.cluster.local");
        assert!(client.shell(node, &lookup).unwrap().contains(&virtual_ips[0]), "{lookup} from a pod");
        assert!(node.shell(&lookup).unwrap().contains(&virtual_ips[0]), "{lookup} from the node");
    }
}

#[test]
fn host_port_added_beside_services_takes_addresses_of_the_node_only() {
    let (cluster, client) = cluster();
    let virtual_ips = apply_service(&cluster);
    let _replica = replica(&cluster, "web-1", "web");
    expect_answers(&client, &format!("{}:80", virtual_ips[0]), &["web-1"]);
    let _published = publish(&cluster, "published", &[53, 80, 81]);
    expect_service_and_host_ports(&cluster, &client, &virtual_ips);
}

#[test]
fn proxy_started_after_a_host_port_serves_its_services_on_that_port() {
    let (mut cluster, client) = cluster();
    cluster.proxy.terminate().unwrap();
    let _published = publish(&cluster, "published", &[53, 80, 81]);
    let virtual_ips = apply_service(&cluster);
    let _replica = replica(&cluster, "web-1", "web");
    cluster.restart_proxy().unwrap();
    expect_service_and_host_ports(&cluster, &client, &virtual_ips);
    // A killed proxy leaves its rules, the next one reuses them, and restores them after a flush.
    cluster.restart_proxy().unwrap();
    expect_service_and_host_ports(&cluster, &client, &virtual_ips);
    cluster.node.shell("nft flush ruleset").unwrap();
    wait_for("the proxy to repair its rules", || {
        ensure!(cluster.node.shell("nft list tables")?.contains("portolan-virtual"));
        Ok(())
    })
    .unwrap();
    let _other = publish(&cluster, "other", &[82]);
    expect_service_and_host_ports(&cluster, &client, &virtual_ips);
    // A stopped proxy leaves no rules that exclude packets from conntrack.
    cluster.proxy.terminate().unwrap();
    let left = cluster.node.shell("nft list tables").unwrap();
    assert!(!left.contains("portolan-virtual") && !left.contains("portolan-proxy"), "{left}");
}

#[test]
fn service_keeps_its_ports_of_an_address_of_the_node_that_host_ports_have_too() {
    let (cluster, client) = cluster();
    let _published = publish(&cluster, "published", &[80, 81, 30080]);
    let spec = format!(
        "  type: NodePort\n  externalIPs: [{NODE}]\n  ports: [{{port: 80, targetPort: 8080, \
         nodePort: 30080}}]"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    for port in [80, 30080] {
        let address = format!("{NODE}:{port}");
        expect_answers(&client, &address, &["web-1"]);
        assert_eq!(cluster.node.outside().run(|| ask(&address)).unwrap().unwrap(), "web-1");
    }
    expect_answers(&client, &format!("{NODE}:81"), &["published"]);
}

/// netavark, Docker and the reference portmap translate all addresses that are local to the node.
#[test]
fn dnat_rules_of_other_programs_do_not_apply_to_virtual_ips() {
    let (cluster, client) = cluster();
    let virtual_ips = apply_service(&cluster);
    let _replica = replica(&cluster, "web-1", "web");
    let other = replica(&cluster, "other", "other");
    let rule = |chain: &str, hook: &str| {
        format!(
            "add chain ip nat {chain} {{ type nat hook {hook} priority -110; }}; \
             add rule ip nat {chain} fib daddr type local tcp dport {{ 80, 81 }} dnat to {}:8080",
            other.pod.ip
        )
    };
    let rules = format!("add table ip nat; {}; {}", rule("pre", "prerouting"), rule("out", "output"));
    cluster.node.shell(&format!("nft '{rules}'")).unwrap();
    let address = &virtual_ips[0];
    expect_answers(&client, &format!("{address}:80"), &["web-1"]);
    assert_eq!(cluster.node.run(|| ask(&format!("{address}:80"))).unwrap(), "web-1");
    expect_refusal(&client, &format!("{address}:81"));
    expect_answers(&client, &format!("{NODE}:80"), &["other"]);
}
