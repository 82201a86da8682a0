//! The whole path: pods from the CNI plugin, a Service from a file, its name from DNS, its virtual IP from
//! the proxy.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use testbed::{Cluster, HostnameServer, Pod, wait_for};

fn service(name: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{ports}]}}\n"
    )
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}\n"
    )
}

/// Starts a replica that answers with its name, and writes its manifest.
fn replica(cluster: &Cluster, name: &str) -> (Pod, HostnameServer) {
    let pod_handle = cluster.add_pod(name).unwrap();
    let server = HostnameServer::start(&pod_handle, 8080).unwrap();
    cluster.apply(&format!("pod-{name}.yaml"), &pod(name, "web")).unwrap();
    (pod_handle, server)
}

fn answers(client: &Pod, address: &str, count: usize) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    for _ in 0..count {
        *seen.entry(client.ask(address).unwrap()).or_insert(0) += 1;
    }
    seen
}

#[test]
fn name_resolves_to_a_virtual_ip_that_reaches_every_ready_pod() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster.apply("web.yaml", &service("web", "{port: 80, targetPort: http}")).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    let address = format!("{vip}:80");

    // Without endpoints the kernel refuses the connection.
    let refused = client.netns.run(|| TcpStream::connect(&address)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let replicas: Vec<_> = ["web-1", "web-2", "web-3"].map(|name| replica(&cluster, name)).into();
    wait_for("all replicas", || {
        let seen: HashSet<String> = answers(&client, &address, 20).into_keys().collect();
        ensure!(seen.len() == 3, "{seen:?}");
        Ok(())
    })
    .unwrap();
    let seen = answers(&client, &address, 300);
    assert!(seen.values().all(|count| (60..140).contains(count)), "evenly spread: {seen:?}");

    // By name, with the C library's resolver and the pod's resolv.conf, and with dig and curl.
    let resolved = client.shell(&cluster.node, "getent hosts web").unwrap();
    assert!(resolved.starts_with(&vip), "{resolved}");
    assert_eq!(client.shell(&cluster.node, "dig +short +search web.default").unwrap().trim(), vip);
    let answer = client.shell(&cluster.node, "curl -fsS --http0.9 -m 5 http://web/").unwrap();
    assert!(answer.starts_with("web-"), "{answer}");

    // The node reaches it too. Other ports of the address refuse.
    cluster.node.shell(&format!("curl -fsS --http0.9 -m 5 http://{vip}/")).unwrap();
    let other = client.netns.run(|| TcpStream::connect(format!("{vip}:81"))).unwrap().unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::ConnectionRefused);

    // After the last replica is removed, connections are refused again.
    for (replica, _) in &replicas {
        cluster.delete(&format!("pod-{}.yaml", replica.name)).unwrap();
        cluster.network.remove(replica).unwrap();
    }
    wait_for("refusal", || {
        let result = client.netns.run(|| TcpStream::connect(&address))?;
        ensure!(result.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused));
        Ok(())
    })
    .unwrap();
}

/// Sends 10,000 requests on an open connection and opens 5,000 connections while a replica is replaced every
/// 100 ms.
#[test]
fn no_request_fails_while_replicas_are_added_killed_and_replaced() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster.node.shell("sysctl -qw net.ipv4.tcp_tw_reuse=1").unwrap();
    client.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap()).unwrap();
    cluster.apply("web.yaml", &service("web", "{port: 80, targetPort: 8080}")).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    // One replica is kept for the open connection; the other replicas are replaced.
    let steady = cluster.add_pod("steady").unwrap();
    cluster.apply("steady.yaml", &service("steady", "{port: 80, targetPort: 9090}")).unwrap();
    cluster.apply("pod-steady.yaml", &pod("steady", "steady")).unwrap();
    let steady_address = format!("{}:80", cluster.virtual_ip("steady").unwrap());
    let listener = steady.netns.run(|| TcpListener::bind((steady.ip.as_str(), 9090))).unwrap().unwrap();
    let mut replicas: Vec<_> = (0..3).map(|n| replica(&cluster, &format!("web-{n}"))).collect();
    wait_for("the first replica", || client.ask(&address)).unwrap();

    let done = AtomicBool::new(false);
    let replacements = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&listener));
        scope.spawn(|| {
            let mut number = 3;
            while !done.load(Ordering::Relaxed) {
                replicas.push(replica(&cluster, &format!("web-{number}")));
                number += 1;
                // Killed first: the manifest is deleted after the pod.
                let (killed, server) = replicas.remove(0);
                cluster.network.remove(&killed).unwrap();
                drop(server);
                cluster.delete(&format!("pod-{}.yaml", killed.name)).unwrap();
                replacements.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let requests = scope.spawn(|| {
            let mut stream = client.netns.run(|| TcpStream::connect(&steady_address)).unwrap().unwrap();
            stream.set_nodelay(true).unwrap();
            for number in 0..10_000_u32 {
                stream.write_all(&number.to_be_bytes()).unwrap();
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(u32::from_be_bytes(answer), number);
            }
        });
        // A connection in flight to a killed replica ends with an empty answer or a reset.
        let in_flight =
            (0..5_000).filter(|_| !client.ask(&address).is_ok_and(|name| name.starts_with("web-"))).count();
        requests.join().unwrap();
        done.store(true, Ordering::Relaxed);
        let replacements = replacements.load(Ordering::Relaxed);
        assert!(in_flight <= replacements, "{in_flight} failed requests at {replacements} killed replicas");
        let unserved = cluster.proxy_metric("portolan_proxy_connect_failures_total").unwrap();
        assert_eq!(unserved, 0.0, "connections for which no replica was found: {}", cluster.logs());
    });
}

fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = [0; 4];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer).unwrap();
    }
}

#[test]
fn udp_flow_moves_at_once_when_its_endpoint_is_removed() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster
        .apply(
            "dns.yaml",
            &service("dns", "{port: 53, protocol: UDP, targetPort: 5353}, ").replace(", ]", "]"),
        )
        .unwrap();
    let vip = cluster.virtual_ip("dns").unwrap();
    let server = |name: &str| {
        let handle = cluster.add_pod(name).unwrap();
        let socket = handle.netns.run(|| UdpSocket::bind((handle.ip.as_str(), 5353))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        cluster.apply(&format!("pod-{name}.yaml"), &pod(name, "dns")).unwrap();
        (handle, socket)
    };
    let first = server("first");
    let socket = client.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.connect((vip.as_str(), 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // One socket, so one flow: 8 kB in each direction, with whichever server receives it.
    let ask = |servers: &[&UdpSocket]| -> anyhow::Result<usize> {
        socket.send(&[7; 8000])?;
        let mut buffer = [0; 9000];
        let answered = servers.iter().position(|server| {
            server
                .recv_from(&mut buffer)
                .is_ok_and(|(length, from)| server.send_to(&buffer[..length], from).is_ok())
        });
        let length = socket.recv(&mut buffer)?;
        ensure!(length == 8000, "{length} bytes");
        answered.ok_or_else(|| anyhow::anyhow!("no server received it"))
    };
    wait_for("the first server", || ask(&[&first.1])).unwrap();
    let second = server("second");
    cluster.delete("pod-first.yaml").unwrap();
    cluster.network.remove(&first.0).unwrap();
    wait_for("the second server", || ask(&[&second.1])).unwrap();
    for _ in 0..20 {
        ask(&[&second.1]).unwrap();
    }
}

#[test]
fn sigterm_drains_open_connections_and_removes_routes() {
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let server = cluster.add_pod("server").unwrap();
    cluster.apply("web.yaml", &service("web", "{port: 80, targetPort: 9090}")).unwrap();
    cluster.apply("pod.yaml", &pod("server", "web")).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
    let connect = || client.netns.run(|| TcpStream::connect((vip.as_str(), 80)));
    let mut stream = wait_for("the service", || Ok(connect()??)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let routes =
        |cluster: &Cluster| cluster.node.shell("ip route show table local | grep 10.96 || true").unwrap();
    assert!(routes(&cluster).contains("local 10.96.0.0/12 dev lo"), "{}", routes(&cluster));

    cluster.node.shell(&format!("kill -TERM {}", cluster.proxy.id())).unwrap();
    wait_for("refusal of new connections", || {
        ensure!(connect()?.is_err());
        Ok(())
    })
    .unwrap();
    stream.write_all(b"still here").unwrap();
    let mut buffer = [0; 10];
    accepted.read_exact(&mut buffer).unwrap();
    drop(accepted);
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    drop(stream);
    // This also closes connections that arrived before the signal and were never accepted.
    drop(listener);
    wait_for("the removal of the routes", || {
        ensure!(routes(&cluster).is_empty());
        Ok(())
    })
    .unwrap();
    assert!(cluster.dns.terminate().unwrap().success());
}

/// A wildcard listener includes virtual IPs and the node port. Neither prevents the other.
#[test]
fn service_port_used_by_a_node_process_is_served() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let taken = cluster.node.run(|| ["0.0.0.0:80", "0.0.0.0:30080"].map(TcpListener::bind));
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    let ports = "{port: 80, targetPort: 8080, nodePort: 30080}";
    let manifest = service("web", ports).replace("spec: {", "spec: {type: NodePort, ");
    cluster.apply("web.yaml", &manifest).unwrap();
    let _replica = replica(&cluster, "web-1");
    let vip = cluster.virtual_ip("web").unwrap();
    for address in [format!("{vip}:80"), "192.0.2.2:30080".to_owned()] {
        wait_for("the service", || {
            let answer = client.ask(&address)?;
            ensure!(answer == "web-1", "{answer}");
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(cluster.proxy_metric("portolan_proxy_frontend_failures").unwrap(), 0.0);
}

#[test]
fn should_recreate_its_rules_if_they_are_deleted() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster.apply("web.yaml", &service("web", "{port: 80, targetPort: 8080}")).unwrap();
    let _replica = replica(&cluster, "web-1");
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();
    let rules = cluster.node.shell("nft list table inet portolan-proxy").unwrap();
    cluster.node.shell("nft flush ruleset").unwrap();
    wait_for("the service again", || client.ask(&address)).unwrap();
    assert_eq!(cluster.node.shell("nft list table inet portolan-proxy").unwrap(), rules);
}
