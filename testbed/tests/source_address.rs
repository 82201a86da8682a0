//! The source address that an endpoint sees, and the node's state for it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::ensure;
use testbed::{Cluster, Pod, wait_for};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 9090}]}\n---\napiVersion: v1\nkind: Pod\n\
    metadata: {name: server, labels: {app: web}}\nspec: {containers: []}\n";

/// Answers each client with the client's address, until the process exits.
fn answer_with_client_address(pod: &Pod) {
    let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), 9090))).unwrap().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            // The client may have closed the connection.
            let _ = stream.write_all(from.to_string().as_bytes());
        }
    });
}

fn ask(address: &str) -> anyhow::Result<String> {
    let mut answer = String::new();
    TcpStream::connect(address)?.read_to_string(&mut answer)?;
    ensure!(!answer.is_empty(), "an empty answer");
    Ok(answer)
}

/// Returns the node's rules without the listeners' ports, which differ in every run.
fn node_state(cluster: &Cluster) -> String {
    let script = "ip rule; ip -6 rule; ip route show table 7061; nft list table inet portolan-proxy | sed \
        's/:[0-9]* accept/ accept/; s/set proxy-[0-9]*/set proxy/'";
    cluster.node.shell(script).unwrap()
}

#[test]
fn should_preserve_source_pod_ip_for_traffic_through_service_cluster_ip() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    // Strict reverse path filtering must not drop the replies.
    cluster.node.shell("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done").unwrap();
    answer_with_client_address(&server);
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let answer = wait_for("the service", || client.netns.run(|| ask(&address))?).unwrap();
    let (ip, port) = answer.split_once(':').unwrap();
    assert_eq!(ip, client.ip, "a client pod");
    assert!((10_000..30_000).contains(&port.parse::<u16>().unwrap()), "{port} may be one of the pod's own");
    for _ in 0..200 {
        assert!(client.netns.run(|| ask(&address)).unwrap().unwrap().starts_with(&client.ip));
    }
    let answer = cluster.node.run(|| ask(&address)).unwrap();
    assert!(answer.starts_with(cluster.node.address()), "a node client: {answer}");
    let answer = server.netns.run(|| ask(&address)).unwrap().unwrap();
    assert!(!answer.starts_with(&server.ip), "a pod that reaches itself: {answer}");
    assert_eq!(cluster.proxy_metric("portolan_proxy_source_fallbacks_total").unwrap(), 0.0);
}

#[test]
fn policy_routing_survives_a_kill_and_is_removed_on_shutdown() {
    let mut cluster = Cluster::start().unwrap();
    let state = node_state(&cluster);
    for part in ["fwmark 0x1000/0x1000 lookup 7061", "local default dev lo", "socket transparent 1"] {
        assert!(state.contains(part), "{part} in {state}");
    }
    cluster.node.shell(&format!("kill -KILL {}", cluster.proxy.id())).unwrap();
    cluster.restart_proxy().unwrap();
    assert_eq!(node_state(&cluster), state, "no duplicates");
    cluster.proxy.terminate().unwrap();
    let left = cluster.node.shell("ip rule; ip -6 rule; ip route show table all; nft list ruleset").unwrap();
    assert!(!left.contains("7061") && !left.contains("portolan-proxy"), "{left}");
}

#[test]
fn endpoint_with_proxy_protocol_receives_the_header_first() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
    let annotated = "metadata: {name: web, annotations: {portolan.dev/proxy-protocol: v2}}";
    cluster.apply("web.yaml", &WEB.replacen("metadata: {name: web}", annotated, 1)).unwrap();
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

/// A server that sends the client's port, then echoes each byte.
struct Echo {
    address: String,
}

impl Echo {
    fn in_pod(pod: &Pod) -> Self {
        let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), 9090))).unwrap().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                // The client may have closed the connection.
                let _ = stream.write_all(&from.port().to_be_bytes());
                std::thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn(move || {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
                    })
                    .unwrap();
            }
        });
        Self { address: format!("{}:9090", pod.ip) }
    }
}

/// Opens a connection. Returns it with its source port as the server sees it.
fn open(client: &Pod, address: &str) -> (TcpStream, u16) {
    let timeout = std::time::Duration::from_secs(10);
    let connect = || TcpStream::connect_timeout(&address.parse().unwrap(), timeout);
    let mut stream = client.netns.run(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(timeout)).unwrap();
    let mut port = [0; 2];
    stream.read_exact(&mut port).unwrap();
    (stream, u16::from_be_bytes(port))
}

fn expect_alive(mut stream: &TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// kubernetes#90042, cilium#11810: the client's kernel may use nearly every port.
#[test]
fn preserved_source_never_collides_with_the_clients_own_connections() {
    const OWN: usize = 1500;
    let limit = format!("prlimit --pid {} --nofile=10000:20000", std::process::id());
    assert!(std::process::Command::new("sh").args(["-c", &limit]).status().unwrap().success());
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    client.shell(&cluster.node, "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let direct = Echo::in_pod(&server).address;
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.netns.run(|| connect_and_read(&address))?).unwrap();
    let own: Vec<_> = (0..OWN).map(|_| open(&client, &direct)).collect();
    let proxied: Vec<_> = (0..300).map(|_| open(&client, &address)).collect();
    own.iter().chain(&proxied).for_each(|(stream, _)| expect_alive(stream));
    // Ports of open connections, and of connections that were just closed.
    let mut ports: Vec<u16> = proxied.iter().map(|(_, port)| *port).collect();
    for _ in 0..300 {
        ports.push(open(&client, &address).1);
    }
    let more: Vec<_> = (0..OWN).map(|_| open(&client, &direct)).collect();
    own.iter().chain(&proxied).chain(&more).for_each(|(stream, _)| expect_alive(stream));
    let reserved = client.shell(&cluster.node, "cat /proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    assert_eq!(reserved.trim(), "10000-29999");
    assert!(ports.iter().all(|port| (10_000..30_000).contains(port)), "{ports:?}");
    let chosen: std::collections::HashSet<u16> = own.iter().chain(&more).map(|(_, port)| *port).collect();
    assert!(ports.iter().all(|port| !chosen.contains(port)));
    assert!(chosen.iter().any(|port| *port < 32_768), "the client's kernel uses the larger range");
}

/// Connects to a server that sends first.
fn connect_and_read(address: &str) -> anyhow::Result<()> {
    Ok(TcpStream::connect(address)?.read_exact(&mut [0; 2])?)
}

/// Ports that are already reserved stay reserved.
#[test]
fn ports_are_reserved_in_a_pod_in_addition_to_reserved_ones() {
    let cluster = Cluster::start().unwrap();
    let path = cluster.node.add_netns("pod").unwrap();
    let netns = cluster.node.netns(&path).unwrap();
    let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    netns.run(|| std::fs::write(file, "8080,40000-40010")).unwrap().unwrap();
    let network = &cluster.network;
    let plugin = testbed::Plugin {
        binary: testbed::Binaries::find().unwrap().path("portolan-cni"),
        node: cluster.node.clone(),
    };
    plugin.command("ADD", "pod", &path, network.config()).unwrap().unwrap();
    let reserved = netns.run(|| std::fs::read_to_string(file)).unwrap().unwrap();
    assert_eq!(reserved.trim(), "8080,10000-29999,40000-40010");
}

/// Without an attachment record, as with another CNI plugin or an older version.
#[test]
fn source_of_a_pod_of_another_plugin_is_preserved_with_ports_outside_the_ephemeral_range() {
    let cluster = Cluster::start_with(&["--pod-cidr", "10.22.0.0/16"]).unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("server").unwrap());
    cluster.node.shell("rm -r /run/portolan/attachments/pods/client-eth0.json").unwrap();
    let endpoint = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n\
         spec: {{clusterIP: 10.96.0.80, ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\nmetadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 9090}}]\nendpoints: [{{addresses: [{}]}}]\n",
        server.ip
    );
    answer_with_client_address(&server);
    cluster.apply("web.yaml", &endpoint).unwrap();
    wait_for("the service, and the removal of the record", || {
        let answer = client.netns.run(|| ask("10.96.0.80:80"))??;
        let (ip, port) = answer.split_once(':').unwrap();
        ensure!(ip == client.ip && (512..1024).contains(&port.parse::<u16>()?), "{answer}");
        Ok(())
    })
    .unwrap();
    for _ in 0..600 {
        let answer = client.netns.run(|| ask("10.96.0.80:80")).unwrap().unwrap();
        assert!(answer.starts_with(&client.ip), "{answer}");
    }
}
