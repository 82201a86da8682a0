//! Changes of Services in use, and the reported conditions.

use std::io::Write as _;
use std::time::Instant;

use super::*;
use crate::agnhost::{Agnhost, Location, PROTOCOLS, Protocol, agnhost};
use crate::granular_checks::{expect_hosts, expect_refused};

/// Waits until `/readyz?verbose` contains a text.
fn expect_condition(cluster: &Cluster, what: &str) {
    wait_for(what, || {
        let page = cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose")?;
        ensure!(page.contains(what), "{page}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn should_serve_a_basic_endpoint_from_pods() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_refused(Location::Pod(&client), Protocol::Http, &address);
    let _one = agnhost(&cluster, "one", "web");
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["one"]);
    let _two = agnhost(&cluster, "two", "web");
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["one", "two"]);
    cluster.delete("pod-one.yaml").unwrap();
    cluster.apply("pod-one.yaml", &pod_manifest("one", "none", "")).unwrap();
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["two"]);
    cluster.apply("pod-two.yaml", &pod_manifest("two", "none", "")).unwrap();
    expect_refused(Location::Pod(&client), Protocol::Http, &address);
}

/// `kubernetes.default` has no selector; its EndpointSlice names the node's address.
#[test]
fn should_provide_secure_master_service() {
    let (cluster, client) = cluster();
    let _server = Agnhost::start(Location::Node(&cluster.node), cluster.node.address(), "apiserver");
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes}\n\
        spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, targetPort: 8080}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}\naddressType: IPv4\n\
        ports: [{name: https, port: 8080}]\nendpoints: [{addresses: [192.0.2.2]}]\n";
    cluster.apply("kubernetes.yaml", text).unwrap();
    for from in [Location::Pod(&client), Location::Node(&cluster.node)] {
        expect_hosts(from, Protocol::Http, "10.96.0.1:443", &["apiserver"]);
    }
}

/// The manifest directory is removed and restored: Services keep working, and later changes are applied.
#[test]
fn should_work_after_restarting_apiserver() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["web-1"]);
    let (original, away) = (cluster.manifests(), cluster.directory().join("away"));
    std::fs::rename(&original, &away).unwrap();
    expect_condition(&cluster, "cannot be read");
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["web-1"]);
    std::fs::rename(&away, &original).unwrap();
    let _second = agnhost(&cluster, "web-2", "web");
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["web-1", "web-2"]);
}

/// An API server rejects ports outside its range. The proxy serves them, since a cluster may have another
/// range, and reports them. An invalid port changes nothing.
#[test]
fn should_check_node_port_out_of_range() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    let at = |port: u32| {
        service(&format!("  type: NodePort\n  ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]"))
    };
    cluster.apply("web.yaml", &at(29_999)).unwrap();
    expect_condition(&cluster, "spec.ports[0].nodePort: 29999 is not from 30000 to 32767");
    expect_hosts(Location::Pod(&client), Protocol::Http, "192.0.2.2:29999", &["web-1"]);
    cluster.apply("web.yaml", &at(70_000)).unwrap();
    expect_condition(&cluster, "spec.ports[0].nodePort: 70000 is not a port (1-65535)");
    expect_hosts(Location::Pod(&client), Protocol::Http, "192.0.2.2:29999", &["web-1"]);
}

#[test]
fn should_check_kube_proxy_urls() {
    let (cluster, _client) = cluster();
    let get = |url: &str| cluster.node.shell(&format!("curl -fsS -m 2 http://{url}")).unwrap();
    assert_eq!(get("127.0.0.1:10249/proxyMode"), "userspace");
    let config: serde_json::Value = serde_json::from_str(&get("127.0.0.1:10249/configz")).unwrap();
    assert_eq!(config["portolan-proxy"]["connect-timeout"], "2", "{config}");
    get("127.0.0.1:10249/healthz");
    get("127.0.0.1:10256/healthz");
    get("192.0.2.2:10256/livez");
    assert!(get("127.0.0.1:10249/metrics").contains("portolan_build_info"));
}

#[test]
fn sctp_port_is_reported_and_other_ports_are_served() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    let ports = "  ports: [{name: s, port: 80, targetPort: 8080, protocol: SCTP}, {name: t, port: 80, \
        targetPort: 8080}]";
    cluster.apply("web.yaml", &service(ports)).unwrap();
    expect_condition(&cluster, "spec.ports[0].protocol: SCTP is not proxied");
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_hosts(Location::Pod(&client), Protocol::Http, &address, &["web-1"]);
}

#[test]
fn changed_cluster_ip_is_served_and_the_old_one_is_refused() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    for (now, before) in [("10.96.0.50", "10.96.0.51"), ("10.96.0.51", "10.96.0.50")] {
        cluster.apply("web.yaml", &service(&format!("  clusterIP: {now}\n{PORT_80}"))).unwrap();
        expect_hosts(Location::Pod(&client), Protocol::Http, &format!("{now}:80"), &["web-1"]);
        expect_refused(Location::Pod(&client), Protocol::Http, &format!("{before}:80"));
    }
    // The address moves to another Service.
    let _other = agnhost(&cluster, "other-1", "other");
    cluster.delete("web.yaml").unwrap();
    let other = service(&format!("  clusterIP: 10.96.0.51\n{PORT_80}")).replace("web", "other");
    cluster.apply("other.yaml", &other).unwrap();
    expect_hosts(Location::Pod(&client), Protocol::Http, "10.96.0.51:80", &["other-1"]);
}

/// Services are identified by namespace and name.
#[test]
fn services_of_the_same_name_in_two_namespaces_are_independent() {
    let (cluster, client) = cluster();
    let pods = ["one", "two"].map(|name| cluster.add_pod(name).unwrap());
    let _servers = pods.each_ref().map(Agnhost::in_pod);
    for (pod, ip) in pods.iter().zip(["10.96.0.61", "10.96.0.62"]) {
        let spaced =
            |text: String| text.replace("metadata: {", &format!("metadata: {{namespace: {}, ", pod.name));
        let text = service(&format!("  clusterIP: {ip}\n{PORT_80}"));
        cluster.apply(&format!("{}.yaml", pod.name), &spaced(text)).unwrap();
        let endpoints = spaced(slice("web-1", &[(&pod.ip, "conditions: {}")]));
        cluster.apply(&format!("{}-slice.yaml", pod.name), &endpoints).unwrap();
    }
    expect_hosts(Location::Pod(&client), Protocol::Http, "10.96.0.61:80", &["one"]);
    expect_hosts(Location::Pod(&client), Protocol::Http, "10.96.0.62:80", &["two"]);
}

const BOTH: &str =
    "  ports: [{name: t, port: 80, targetPort: 8080}, {name: u, port: 80, targetPort: 8080, protocol: UDP}]";

#[test]
fn should_be_able_to_update_service_type_to_nodeport_listening_on_same_port_number_but_different_protocols() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(BOTH)).unwrap();
    let vip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let open = BOTH.replace("targetPort", "nodePort: 30070, targetPort");
    cluster.apply("web.yaml", &service(&format!("  type: NodePort\n{open}"))).unwrap();
    for protocol in PROTOCOLS {
        for address in [&vip, "192.0.2.2:30070"] {
            expect_hosts(Location::Pod(&client), protocol, address, &["web-1"]);
        }
    }
}

/// Without node ports (`allocateLoadBalancerNodePorts: false`, KEP-1864).
#[test]
fn should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_load_balancer() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    let spec = format!(
        "  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n  loadBalancerSourceRanges: [\" \
         10.22.0.0/16\", 192.0.2.2/32]\n{BOTH}\nstatus: {{loadBalancer: {{ingress: [{{ip: 203.0.113.50}}]}}}}"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let vip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    for protocol in PROTOCOLS {
        for address in [&vip, "203.0.113.50:80"] {
            // The node too: its connections have the node's address, not the virtual IP, as their source.
            for from in [Location::Pod(&client), Location::Node(&cluster.node)] {
                expect_hosts(from, protocol, address, &["web-1"]);
            }
        }
    }
    let listening = cluster.node.shell("ss -Hltnu").unwrap();
    assert!(!listening.contains(":30"), "no node port: {listening}");
}

/// Open connections stay with their endpoint when it is removed from the slices and when the Service is
/// deleted.
#[test]
fn open_connections_survive_removal_of_their_endpoint_and_service() {
    let (cluster, client) = cluster();
    let server = cluster.add_pod("web-1").unwrap();
    let listener =
        server.netns.run(|| std::net::TcpListener::bind((server.ip.as_str(), 8080))).unwrap().unwrap();
    cluster.apply("pod-web-1.yaml", &pod_manifest("web-1", "web", "")).unwrap();
    cluster.apply("web.yaml", &service(&format!("  externalIPs: [203.0.113.60]\n{PORT_80}"))).unwrap();
    let vip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let open: Vec<(TcpStream, TcpStream)> = [vip.as_str(), "203.0.113.60:80"]
        .into_iter()
        .map(|address| {
            let connect = || Ok(client.netns.run(|| TcpStream::connect(address))??);
            (wait_for(address, connect).unwrap(), listener.accept().unwrap().0)
        })
        .collect();
    let exchange = || {
        for (client, server) in &open {
            for (mut from, mut to) in [(client, server), (server, client)] {
                to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                from.write_all(b"still here").unwrap();
                to.read_exact(&mut [0; 10]).unwrap();
            }
        }
    };
    exchange();
    cluster.delete("pod-web-1.yaml").unwrap();
    cluster.apply("slice.yaml", &slice("web-1", &[])).unwrap();
    expect_refused(Location::Pod(&client), Protocol::Http, &vip);
    exchange();
    cluster.delete("web.yaml").unwrap();
    wait_for("the removal of the external IP", || {
        let routes = cluster.node.shell("ip route show table local")?;
        ensure!(!routes.contains("203.0.113.60"), "{routes}");
        Ok(())
    })
    .unwrap();
    exchange();
}

/// Upstream requires that a new Service with one endpoint is served within 20 s at the median and 50 s at
/// p90. The limits are upstream's, since other tests run at the same time.
#[test]
fn service_endpoints_latency_should_not_be_very_high() {
    let (cluster, client) = cluster();
    let _web = agnhost(&cluster, "web-1", "web");
    let mut latencies: Vec<Duration> = (0..50)
        .map(|number| {
            let ip = format!("10.96.1.{number}");
            let text = service(&format!("  clusterIP: {ip}\n{PORT_80}"));
            let text = text.replace("{name: web}", &format!("{{name: latency-{number}}}"));
            let started = Instant::now();
            cluster.apply(&format!("latency-{number}.yaml"), &text).unwrap();
            let address = format!("{ip}:80");
            wait_for(&address, || Location::Pod(&client).ask(Protocol::Http, &address, "hostname")).unwrap();
            started.elapsed()
        })
        .collect();
    latencies.sort();
    assert!(latencies[25] < Duration::from_secs(20), "half of them took longer than {:?}", latencies[25]);
    assert!(latencies[45] < Duration::from_secs(50), "a tenth took longer than {:?}", latencies[45]);
}

/// Sends a segment outside the window: `SOURCE PORT DESTINATION PORT`.
const STRAY_SEGMENT: &str = r#"
import socket, struct, sys
source, sport, destination, dport = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
header = struct.pack('!HHIIBBHHH', sport, dport, 0x7fffffff, 0x7ffffff0, 5 << 4, 0x10, 502, 0, 0) + b'boom'
pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack('!BBH', 0, 6, len(header))
total = sum(struct.unpack(f'!{len(pseudo + header) // 2}H', pseudo + header))
total = (total >> 16) + (total & 0xffff)
checksum = ~(total + (total >> 16)) & 0xffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.sendto(header[:16] + struct.pack('!H', checksum) + header[18:], (destination, 0))
"#;

/// With DNAT, an invalid segment of the endpoint is forwarded untranslated, and the client resets the
/// connection. With the proxy it does not reach the client.
#[test]
fn should_drop_invalid_conntrack_entries() {
    use std::io::Write as _;
    let (cluster, client) = cluster();
    let server = cluster.add_pod("web-1").unwrap();
    cluster.apply("pod-web-1.yaml", &pod_manifest("web-1", "web", "")).unwrap();
    let listener =
        server.netns.run(|| std::net::TcpListener::bind((server.ip.as_str(), 8080))).unwrap().unwrap();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let mut stream =
        wait_for("the service", || Ok(client.netns.run(|| TcpStream::connect(&address))??)).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), client.ip);
    let count = format!(
        "nft 'add table ip stray; add chain ip stray in {{ type filter hook input priority 0; }}; add rule \
         ip stray in ip saddr {} counter'",
        server.ip
    );
    client.shell(&cluster.node, &count).unwrap();
    let stray = "nft 'add table ip stray; add chain ip stray in { type filter hook prerouting priority 0; \
        }; add rule ip stray in tcp sequence 2147483647 counter'";
    cluster.node.shell(stray).unwrap();
    std::fs::write(cluster.directory().join("stray.py"), STRAY_SEGMENT).unwrap();
    for _ in 0..3 {
        let script = cluster.directory().join("stray.py");
        let send = format!("python3 {} {} 8080 {} {}", script.display(), server.ip, client.ip, peer.port());
        server.shell(&cluster.node, &send).unwrap();
        stream.write_all(b"still").unwrap();
        let mut buffer = [0; 5];
        accepted.read_exact(&mut buffer).unwrap();
        accepted.write_all(b"there").unwrap();
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"there");
    }
    let counted = client.shell(&cluster.node, "nft list table ip stray").unwrap();
    assert!(counted.contains("counter packets 0"), "no segment of the pod reaches the client: {counted}");
    let arrived = cluster.node.shell("nft list table ip stray").unwrap();
    assert!(arrived.contains("counter packets 3"), "the segments reach the proxy: {arrived}");
}
