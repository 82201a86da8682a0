//! Whose address an endpoint sees, and what the node is left with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::ensure;
use testbed::{Cluster, Pod, wait_for};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 9090}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: server, labels: {app: web}}\nspec: {containers: []}\n";

/// Says to each client which address it has; ends with the process.
fn tell_addresses(pod: &Pod) {
    let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), 9090))).unwrap().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            drop(stream.write_all(from.to_string().as_bytes()));
        }
    });
}

fn ask(address: &str) -> anyhow::Result<String> {
    let mut said = String::new();
    TcpStream::connect(address)?.read_to_string(&mut said)?;
    ensure!(!said.is_empty(), "nothing was said");
    Ok(said)
}

/// Without the ports of the listeners, which every run has others of.
fn node_state(cluster: &Cluster) -> String {
    let script = "ip rule; ip -6 rule; ip route show table 7061; nft list table inet portolan-proxy | sed 's/:[0-9]* accept/ accept/; s/set proxy-[0-9]*/set proxy/'";
    cluster.node.shell(script).unwrap()
}

#[test]
fn should_preserve_source_pod_ip_for_traffic_through_service_cluster_ip() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    // The strictest setting there is must not drop the diverted replies.
    cluster.node.shell("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done").unwrap();
    tell_addresses(&server);
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let said = wait_for("the service", || client.netns.run(|| ask(&address))?).unwrap();
    let (ip, port) = said.split_once(':').unwrap();
    assert_eq!(ip, client.ip, "a pod client");
    assert!(port.parse::<u16>().unwrap() < 32768, "{port} may be one of the pod's own");
    for _ in 0..200 {
        assert!(client.netns.run(|| ask(&address)).unwrap().unwrap().starts_with(&client.ip));
    }
    let said = cluster.node.run(|| ask(&address)).unwrap();
    assert!(said.starts_with(cluster.node.address()), "a node client: {said}");
    let said = server.netns.run(|| ask(&address)).unwrap().unwrap();
    assert!(!said.starts_with(&server.ip), "a pod that reaches itself: {said}");
    assert_eq!(cluster.proxy_metric("portolan_proxy_source_fallbacks_total").unwrap(), 0.0);
}

#[test]
fn what_brings_replies_back_survives_a_kill_and_goes_with_the_proxy() {
    let mut cluster = Cluster::start().unwrap();
    let state = node_state(&cluster);
    for part in ["fwmark 0x1000/0x1000 lookup 7061", "local default dev lo", "socket transparent 1"] {
        assert!(state.contains(part), "{part} in {state}");
    }
    cluster.node.shell(&format!("kill -KILL {}", cluster.proxy.id())).unwrap();
    cluster.restart_proxy().unwrap();
    assert_eq!(node_state(&cluster), state, "nothing twice");
    cluster.proxy.terminate().unwrap();
    let left = cluster.node.shell("ip rule; ip -6 rule; ip route show table all; nft list ruleset").unwrap();
    assert!(!left.contains("7061") && !left.contains("portolan-proxy"), "{left}");
}

#[test]
fn an_endpoint_that_asks_for_the_proxy_protocol_gets_a_header_before_the_first_byte() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
    let asked = "metadata: {name: web, annotations: {portolan.dev/proxy-protocol: v2}}";
    cluster.apply("web.yaml", &WEB.replacen("metadata: {name: web}", asked, 1)).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    let connect = || Ok(client.netns.run(|| TcpStream::connect((vip.as_str(), 80)))??);
    let mut stream: TcpStream = wait_for("the service", connect).unwrap();
    stream.write_all(b"hello").unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut bytes = [0; 28 + 5];
    accepted.read_exact(&mut bytes).unwrap();
    let ip = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    assert_eq!(&bytes[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!((&bytes[16..20], &bytes[20..24]), (&ip(&client.ip)[..], &ip(&vip)[..]));
    let port = u16::from_be_bytes([bytes[24], bytes[25]]);
    assert_eq!(port, stream.local_addr().unwrap().port(), "the client's own port");
    assert_eq!(&bytes[28..], b"hello");
}
