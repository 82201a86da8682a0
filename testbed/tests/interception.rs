//! Which ports of virtual IPs, external IPs and the node the proxy intercepts.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use netns::NetNs;
use testbed::{Cluster, HostnameServer, Pod, wait_for};

/// An address of the service range that no Service has.
const UNASSIGNED: &str = "10.96.77.77";

/// An address without a host.
const EXTERNAL: &str = "203.0.113.10";

/// The location of a client.
#[derive(Clone, Copy)]
enum From<'a> {
    Pod(&'a Pod),
    Node(&'a Cluster),
    Outside(&'a Cluster),
    Network(&'a NetNs),
}

impl From<'_> {
    fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        let within = |network: &NetNs, work| network.run(work).unwrap();
        match self {
            Self::Pod(pod) => within(&pod.netns, work),
            Self::Node(cluster) => cluster.node.run(work),
            Self::Outside(cluster) => within(cluster.node.outside(), work),
            Self::Network(network) => within(network, work),
        }
    }

    fn connect(self, address: &str) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
    }

    fn ask(self, address: &str) -> Result<String> {
        let mut stream = self.connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut name = String::new();
        stream.read_to_string(&mut name)?;
        Ok(name)
    }

    fn flow(self, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        let socket = self.run(|| {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address).map(|()| socket)
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }
}

/// Disables the ICMP rate limit: these tests need more than one "port unreachable" a second.
fn unlimited_icmp(cluster: &Cluster) {
    let off = "for f in ipv4/icmp_ratelimit ipv6/icmp/ratelimit; do echo 0 > /proc/sys/net/$f; done";
    cluster.node.shell(off).unwrap();
}

/// Sends a datagram and returns the answer.
fn exchange(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Answers datagrams with its name until the test ends.
fn answer_datagrams(socket: UdpSocket, name: &str) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from); // The client may have closed its socket.
        }
    });
}

/// Answers connections with its name until the test ends.
fn answer_connections(listener: TcpListener, name: &str) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes()); // The client may have closed the connection.
        }
    });
}

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) -> Result<()> {
    let is_refused = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    ensure!(is_refused, "{result:?}");
    Ok(())
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{app: {name}}}, {spec}}}\n"
    )
}

fn pod_manifest(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{containers: []}}\n"
    )
}

/// A pod that answers with its name over TCP and UDP on port 8080, and a Service of its name.
fn serve(cluster: &Cluster, name: &str, spec: &str) -> (Pod, HostnameServer) {
    let pod = cluster.add_pod(name).unwrap();
    let server = HostnameServer::start(&pod, 8080).unwrap();
    let socket = pod.netns.run(|| UdpSocket::bind((pod.ip.as_str(), 8080))).unwrap().unwrap();
    answer_datagrams(socket, name);
    cluster.apply(&format!("{name}.yaml"), &(service(name, spec) + &pod_manifest(name))).unwrap();
    (pod, server)
}

const BOTH: &str =
    "ports: [{name: t, port: 80, targetPort: 8080}, {name: u, port: 80, targetPort: 8080, protocol: UDP}]";

/// Routes a range from the external network via the node.
fn route_outside(cluster: &Cluster, range: &str) {
    let node = cluster.node.address();
    let add = || std::process::Command::new("ip").args(["route", "add", range, "via", node]).status();
    assert!(cluster.node.outside().run(add).unwrap().unwrap().success());
}

#[test]
fn node_processes_do_not_answer_on_virtual_ips() {
    let cluster = Cluster::start().unwrap();
    unlimited_icmp(&cluster);
    let client = cluster.add_pod("client").unwrap();
    route_outside(&cluster, "10.96.0.0/12");
    cluster.node.run(|| {
        answer_connections(TcpListener::bind("0.0.0.0:2222").unwrap(), "node");
        answer_connections(TcpListener::bind("[::]:2223").unwrap(), "node");
        answer_datagrams(UdpSocket::bind("0.0.0.0:2222").unwrap(), "node");
        answer_datagrams(UdpSocket::bind("[::]:2223").unwrap(), "node");
    });
    // One Service with endpoints on another port, and one without endpoints on this port.
    let _web = serve(&cluster, "web", BOTH);
    let none = "ports: [{name: t, port: 2222}, {name: u, port: 2222, protocol: UDP}]";
    cluster.apply("none.yaml", &service("none", none)).unwrap();
    let (web, none) = (cluster.virtual_ip("web").unwrap(), cluster.virtual_ip("none").unwrap());
    wait_for("the service", || From::Pod(&client).ask(&format!("{web}:80"))).unwrap();
    for from in [From::Pod(&client), From::Node(&cluster), From::Outside(&cluster)] {
        for ip in [web.as_str(), none.as_str(), UNASSIGNED, "10.96.0.10"] {
            for port in [2222, 2223, 10256] {
                refused(from.connect(&format!("{ip}:{port}"))).unwrap();
            }
            for port in [2222, 2223] {
                refused(exchange(&from.flow(&format!("{ip}:{port}")))).unwrap();
            }
        }
    }
    let v6 = "[fd00:10:96::77]:2223";
    refused(From::Node(&cluster).connect(v6)).unwrap();
    refused(exchange(&From::Node(&cluster).flow(v6))).unwrap();
    // The node's own addresses are not intercepted, also inside a service range.
    cluster
        .node
        .shell("ip address add 10.96.5.5/32 dev lo; ip address add fd00:10:96::5/128 dev lo")
        .unwrap();
    for address in [&format!("{}:2222", cluster.node.address()), "10.96.5.5:2222"] {
        for from in [From::Pod(&client), From::Node(&cluster), From::Outside(&cluster)] {
            wait_for("the node's own address", || {
                ensure!(from.ask(address)? == "node");
                // The answer of a wildcard socket may have another source address, so the client socket is
                // not connected.
                let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                socket.send_to(b"who?", address)?;
                ensure!(socket.recv(&mut [0; 64])? == "node".len());
                Ok(())
            })
            .unwrap();
        }
    }
    wait_for("the node's own address of IPv6", || From::Node(&cluster).ask("[fd00:10:96::5]:2223")).unwrap();
    // A process bound to the virtual IP itself, portolan-dns, is reachable, also over TCP.
    client
        .shell(&cluster.node, "dig +tcp +time=2 +tries=1 @10.96.0.10 web.default.svc.cluster.local")
        .unwrap();
    refused(From::Pod(&client).connect(&format!("{UNASSIGNED}:2222"))).unwrap();
}

/// In either order.
#[test]
fn node_process_and_service_can_use_the_same_udp_port() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let listen = || answer_datagrams(cluster.node.run(|| UdpSocket::bind("0.0.0.0:5514")).unwrap(), "node");
    let spec = "type: NodePort, ports: [{port: 5514, targetPort: 8080, protocol: UDP, nodePort: 30514}]";
    let _web = serve(&cluster, "web", spec);
    let address = format!("{}:5514", cluster.virtual_ip("web").unwrap());
    let served = || {
        for from in [From::Pod(&client), From::Node(&cluster)] {
            wait_for("the service", || {
                let answer = exchange(&from.flow(&address))?;
                ensure!(answer == "web", "{answer}");
                Ok(())
            })
            .unwrap();
        }
    };
    served();
    listen();
    served();
    assert_eq!(exchange(&From::Pod(&client).flow("192.0.2.2:5514")).unwrap(), "node");
    // The other order: the process first, then the Service.
    cluster.delete("web.yaml").unwrap();
    wait_for("the removal of the service", || refused(exchange(&From::Pod(&client).flow(&address)))).unwrap();
    cluster.apply("web.yaml", &(service("web", spec) + &pod_manifest("web"))).unwrap();
    let flow = From::Pod(&client).flow(&address);
    wait_for("the service again", || Ok(exchange(&flow)?)).unwrap();
    served();
    // A node port does not reserve the port, and is served although a process is bound to it.
    let bound = cluster.node.run(|| (UdpSocket::bind("0.0.0.0:30514"), TcpListener::bind("0.0.0.0:30514")));
    bound.0.unwrap();
    bound.1.unwrap();
    for from in [From::Pod(&client), From::Node(&cluster), From::Outside(&cluster)] {
        assert_eq!(exchange(&from.flow("192.0.2.2:30514")).unwrap(), "web");
    }
}

#[test]
fn only_service_ports_of_an_external_ip_are_intercepted() {
    let cluster = Cluster::start().unwrap();
    unlimited_icmp(&cluster);
    let client = cluster.add_pod("client").unwrap();
    // A machine outside with its own servers.
    let outside = cluster.node.outside_address().to_owned();
    cluster
        .node
        .outside()
        .run(|| {
            for port in [22, 80] {
                answer_connections(TcpListener::bind(("0.0.0.0", port)).unwrap(), "outside");
                answer_datagrams(UdpSocket::bind(("0.0.0.0", port)).unwrap(), "outside");
            }
        })
        .unwrap();
    let from_here = [From::Pod(&client), From::Node(&cluster)];
    let spec = format!("externalIPs: [{outside}, {EXTERNAL}], {BOTH}");
    let _web = serve(&cluster, "web", &spec);
    route_outside(&cluster, EXTERNAL);
    for from in from_here {
        for address in [format!("{outside}:80"), format!("{EXTERNAL}:80")] {
            wait_for("the service", || {
                let answer = from.ask(&address)?;
                ensure!(answer == "web", "{answer}");
                Ok(())
            })
            .unwrap();
            assert_eq!(exchange(&from.flow(&address)).unwrap(), "web");
        }
        assert_eq!(from.ask(&format!("{outside}:22")).unwrap(), "outside");
        assert_eq!(exchange(&from.flow(&format!("{outside}:22"))).unwrap(), "outside");
    }
    assert_eq!(From::Outside(&cluster).ask(&format!("{EXTERNAL}:80")).unwrap(), "web");
    assert_eq!(exchange(&From::Outside(&cluster).flow(&format!("{EXTERNAL}:80"))).unwrap(), "web");
    // Large datagrams too. The socket is connected, so the reply has the external IP as its source.
    let large = From::Node(&cluster).flow(&format!("{EXTERNAL}:80"));
    large.send(&[7; 30_000]).unwrap();
    assert!(large.recv(&mut [0; 64]).is_ok());
    // Without endpoints connections are refused, as by kube-proxy, and not forwarded.
    cluster.apply("web.yaml", &service("web", &spec)).unwrap();
    for from in [From::Pod(&client), From::Node(&cluster), From::Outside(&cluster)] {
        let address = format!("{EXTERNAL}:80");
        wait_for("refusal", || refused(from.connect(&address))).unwrap();
        wait_for("refusal of datagrams", || match exchange(&from.flow(&address)) {
            // For senders on the node the kernel reports EPERM, as with kube-proxy.
            Err(error) if matches!(from, From::Node(_)) && error.kind() == ErrorKind::PermissionDenied => {
                Ok(())
            }
            other => refused(other),
        })
        .unwrap();
    }
    for from in from_here {
        refused(from.connect(&format!("{outside}:80"))).unwrap();
    }
    // After the Service is deleted, traffic reaches the machine outside again.
    cluster.delete("web.yaml").unwrap();
    for from in from_here {
        wait_for("the machine outside", || {
            ensure!(from.ask(&format!("{outside}:80"))? == "outside");
            ensure!(exchange(&from.flow(&format!("{outside}:80")))? == "outside");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn external_ip_equal_to_a_pod_ip_leaves_other_ports_of_the_pod_reachable() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let pod = cluster.add_pod("victim").unwrap();
    let _own = [HostnameServer::start(&pod, 8080).unwrap(), HostnameServer::start(&pod, 22).unwrap()];
    let spec = format!("externalIPs: [{}], {BOTH}", pod.ip);
    let (web, _server) = serve(&cluster, "web", &spec);
    wait_for("the service", || {
        let answer = From::Pod(&client).ask(&format!("{}:80", pod.ip))?;
        ensure!(answer == "web", "{answer}");
        Ok(())
    })
    .unwrap();
    for from in [From::Pod(&client), From::Node(&cluster)] {
        assert_eq!(from.ask(&format!("{}:22", pod.ip)).unwrap(), "victim");
        assert_eq!(from.ask(&format!("{}:8080", pod.ip)).unwrap(), "victim");
    }
    assert_eq!(From::Pod(&pod).ask(&format!("{}:8080", web.ip)).unwrap(), "web");
    pod.shell(&cluster.node, &format!("ping -c1 -W2 {}", cluster.node.outside_address())).unwrap();
}

#[test]
fn external_ips_are_ignored_when_disabled() {
    let cluster = Cluster::start_with(&["--allow-service-external-ips", "false"]).unwrap();
    let outside = cluster.node.outside_address().to_owned();
    cluster
        .node
        .outside()
        .run(|| answer_connections(TcpListener::bind("0.0.0.0:80").unwrap(), "outside"))
        .unwrap();
    let status = format!("\nstatus: {{loadBalancer: {{ingress: [{{ip: {EXTERNAL}}}]}}}}\n");
    let (_pod, _server) = serve(&cluster, "web", &format!("externalIPs: [{outside}], {BOTH}"));
    let text = service("web", &format!("type: LoadBalancer, externalIPs: [{outside}], {BOTH}"));
    cluster.apply("web.yaml", &(text.trim_end().to_owned() + &status + &pod_manifest("web"))).unwrap();
    wait_for("the load balancer's address", || From::Node(&cluster).ask(&format!("{EXTERNAL}:80"))).unwrap();
    assert_eq!(From::Node(&cluster).ask(&format!("{outside}:80")).unwrap(), "outside");
}

#[test]
fn node_ports_are_served_on_the_loopback_address_when_enabled() {
    let spec = "type: NodePort, ports: [{name: t, port: 80, targetPort: 8080, nodePort: 30080}, {name: u, \
        port: 80, targetPort: 8080, protocol: UDP, nodePort: 30080}]";
    for (addresses, elsewhere) in [("localhost", false), ("localhost,primary", true), ("all", true)] {
        let cluster = Cluster::start_with(&["--node-port-addresses", addresses]).unwrap();
        let _web = serve(&cluster, "web", spec);
        let node = From::Node(&cluster);
        wait_for("the node port", || node.ask("127.0.0.1:30080")).unwrap();
        assert_eq!(exchange(&node.flow("127.0.0.1:30080")).unwrap(), "web");
        let address = format!("{}:30080", cluster.node.address());
        for from in [node, From::Outside(&cluster)] {
            assert_eq!(from.ask(&address).is_ok(), elsewhere, "{addresses}");
            assert_eq!(exchange(&from.flow(&address)).is_ok(), elsewhere, "{addresses}");
        }
    }
}

/// For clients on the node the output rules set the mark, so they must remain until the last connection ends.
#[test]
fn drain_keeps_open_connections_to_an_external_ip_and_refuses_new_ones() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let pod = cluster.add_pod("web").unwrap();
    let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), 8080))).unwrap().unwrap();
    let spec = format!("externalIPs: [{EXTERNAL}], ports: [{{port: 80, targetPort: 8080}}]");
    cluster.apply("web.yaml", &(service("web", &spec) + &pod_manifest("web"))).unwrap();
    let address = format!("{EXTERNAL}:80");
    let mut open = Vec::new();
    for from in [From::Pod(&client), From::Node(&cluster)] {
        let stream = wait_for("the service", || Ok(from.connect(&address)?)).unwrap();
        open.push((stream, listener.accept().unwrap().0));
    }
    cluster.node.shell(&format!("kill {}", cluster.proxy.id())).unwrap();
    for from in [From::Pod(&client), From::Node(&cluster)] {
        wait_for("the drain", || refused(from.connect(&address))).unwrap();
    }
    for (client, server) in &mut open {
        let mut buffer = [0; 5];
        for _ in 0..3 {
            client.write_all(b"still").unwrap();
            server.read_exact(&mut buffer).unwrap();
            server.write_all(b"there").unwrap();
            client.read_exact(&mut buffer).unwrap();
        }
    }
}

/// Every datagram reaches either the previous or the next proxy.
#[test]
fn datagrams_are_answered_during_a_hot_restart() {
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let _web = serve(&cluster, "web", &format!("externalIPs: [{EXTERNAL}], {BOTH}"));
    let addresses = [format!("{}:80", cluster.virtual_ip("web").unwrap()), format!("{EXTERNAL}:80")];
    let flows = addresses.each_ref().map(|address| From::Pod(&client).flow(address));
    for flow in &flows {
        wait_for("the service", || Ok(exchange(flow)?)).unwrap();
    }
    for _ in 0..2 {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients = flows.each_ref().map(|flow| {
                let done = &done;
                scope.spawn(move || {
                    let mut lost = 0;
                    while !done.load(Ordering::Relaxed) {
                        lost += u32::from(exchange(flow).is_err());
                    }
                    lost
                })
            });
            let mut old = cluster.hot_restart_proxy().unwrap();
            assert!(old.wait().unwrap().success());
            done.store(true, Ordering::Relaxed);
            // One datagram of each flow may be in flight in the previous proxy when it ends.
            let lost: u32 = clients.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert!(lost <= 2, "{lost}");
        });
    }
}

/// Pods on a bridge with `br_netfilter`, as kubeadm requires.
#[test]
fn pods_on_a_bridge_are_served_with_br_netfilter() {
    let cluster = Cluster::start().unwrap();
    let _web = serve(&cluster, "web", &format!("externalIPs: [{EXTERNAL}], {BOTH}"));
    cluster
        .node
        .shell(
            "ip link add br9 type bridge; ip address add 10.77.0.1/24 dev br9; ip link set br9 up; ip \
            netns add bridged; ip link add veth9 type veth peer name eth0 netns bridged; ip link set veth9 \
            master br9 up; ip netns exec bridged sh -ec 'ip link set lo up; ip address add 10.77.0.2/24 dev \
            eth0; ip link set eth0 up; ip route add default via 10.77.0.1'; echo 1 > \
            /proc/sys/net/bridge/bridge-nf-call-iptables",
        )
        .unwrap();
    let bridged = cluster.node.netns(std::path::Path::new("/run/netns/bridged")).unwrap();
    let pod = From::Network(&bridged);
    for address in [format!("{}:80", cluster.virtual_ip("web").unwrap()), format!("{EXTERNAL}:80")] {
        wait_for("the service", || pod.ask(&address)).unwrap();
        wait_for("datagrams", || Ok(exchange(&pod.flow(&address))?)).unwrap();
    }
}

/// A host with strict reverse path filtering and connection tracking.
#[test]
fn services_work_with_strict_rp_filter_and_connection_tracking() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster
        .node
        .shell(
            "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done; nft 'add table ip \
            tracked; add chain ip tracked c { type filter hook forward priority 0; }; add rule ip tracked c \
            ct state invalid drop'; nft 'add table ip6 tracked; add chain ip6 tracked c { type nat hook \
            postrouting priority 0; }'",
        )
        .unwrap();
    let spec = format!(
        "type: NodePort, externalIPs: [{EXTERNAL}], {}",
        BOTH.replace("targetPort: 8080", "targetPort: 8080, nodePort: 30080")
    );
    let _web = serve(&cluster, "web", &spec);
    route_outside(&cluster, EXTERNAL);
    let vip = cluster.virtual_ip("web").unwrap();
    for from in [From::Pod(&client), From::Node(&cluster), From::Outside(&cluster)] {
        let mut addresses = vec![format!("{EXTERNAL}:80"), "192.0.2.2:30080".to_owned()];
        addresses.extend((!matches!(from, From::Outside(_))).then(|| format!("{vip}:80")));
        for address in &addresses {
            wait_for(address, || from.ask(address)).unwrap();
            assert_eq!(exchange(&from.flow(address)).unwrap(), "web");
        }
    }
}
