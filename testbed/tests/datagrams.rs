//! UDP through a virtual IP: delivery, size, source address, and ICMP errors.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::HashSet;
use std::io::{ErrorKind, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use testbed::{Cluster, HostnameServer, Pod, wait_for};

const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\n\
    spec: {selector: {app: echo}, ports: [{port: 53, targetPort: 5353, protocol: UDP}]}\n---\n\
    apiVersion: v1\nkind: Pod\nmetadata: {name: server, labels: {app: echo}}\nspec: {containers: []}\n";

/// A client, a socket of the test as server, and the virtual IP between them.
struct Path {
    cluster: Cluster,
    client: Pod,
    server: Pod,
    socket: UdpSocket,
    address: String,
}

impl Path {
    fn with(flags: &[&str]) -> Self {
        let cluster = Cluster::start_with(flags).unwrap();
        let client = cluster.add_pod("client").unwrap();
        let server = cluster.add_pod("server").unwrap();
        let socket = bind(&server, &format!("{}:5353", server.ip));
        cluster.apply("echo.yaml", MANIFEST).unwrap();
        let address = format!("{}:53", cluster.virtual_ip("echo").unwrap());
        let path = Self { cluster, client, server, socket, address };
        path.connected();
        path
    }

    /// Returns a client's socket with an open flow.
    fn connected(&self) -> UdpSocket {
        let socket = bind(&self.client, "0.0.0.0:0");
        socket.connect(&self.address).unwrap();
        wait_for("the first answer", || {
            // The kernel refuses until the proxy has the Service.
            socket.send(b"first")?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            self.answer()?;
            Ok(socket.recv(&mut [0; 16])?)
        })
        .map_err(|error| error.context(self.cluster.logs()))
        .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    /// Echoes one datagram from the server.
    fn answer(&self) -> anyhow::Result<()> {
        self.socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut buffer = vec![0; 65_535];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        self.socket.send_to(&buffer[..length], from)?;
        Ok(())
    }

    fn metric(&self, name: &str) -> f64 {
        self.cluster.proxy_metric(&format!("portolan_proxy_udp_{name}")).unwrap()
    }
}

fn bind(pod: &Pod, address: &str) -> UdpSocket {
    pod.netns.run(|| UdpSocket::bind(address)).unwrap().unwrap()
}

#[test]
fn port_unreachable_from_the_endpoint_reaches_the_client_from_the_virtual_ip() {
    let mut path = Path::with(&[]);
    let client = path.connected();
    let listening = format!("{}:5353", path.server.ip);
    // The pod no longer listens on the port.
    path.socket = bind(&path.server, "0.0.0.0:0");
    client.send(b"refused").unwrap();
    assert_eq!(client.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Once it listens again, the same client socket is served.
    path.socket = bind(&path.server, &listening);
    client.send(b"and now?").unwrap();
    path.answer().unwrap();
    let mut buffer = [0; 16];
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"and now?");
}

#[test]
fn bursts_and_large_datagrams_arrive_and_replies_come_from_the_virtual_ip() {
    const BURST: u16 = 100;
    let path = Path::with(&[]);
    let client = path.connected();
    for size in [8 * 1024, 60_000] {
        let large: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        client.send(&large).unwrap();
        path.answer().unwrap();
        let mut buffer = vec![0; 65_535];
        // A connected socket accepts replies only from the virtual IP.
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], large);
    }
    for number in 0..BURST {
        client.send(&number.to_be_bytes()).unwrap();
    }
    let mut seen = HashSet::new();
    for _ in 0..BURST {
        path.answer().unwrap();
        let mut number = [0; 2];
        client.recv(&mut number).unwrap();
        seen.insert(u16::from_be_bytes(number));
    }
    assert_eq!(seen.len(), usize::from(BURST), "each datagram of the burst once");
    assert_eq!(path.metric("dropped_datagrams_total"), 0.0);
}

/// Two thousand datagrams in each direction, as many as without a proxy.
#[test]
fn a_burst_of_two_thousand_datagrams_arrives() {
    const BURST: u16 = 2000;
    let path = Path::with(&[]);
    let client = path.connected();
    for socket in [&client, &path.socket] {
        setsockopt(socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    }
    let count = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let (mut seen, mut buffer, mut sender) = (HashSet::new(), [0; 800], None);
        while seen.len() < usize::from(BURST) {
            let Ok((_, from)) = socket.recv_from(&mut buffer) else { break };
            seen.insert(u16::from_be_bytes([buffer[0], buffer[1]]));
            sender = Some(from);
        }
        (seen.len(), sender)
    };
    let datagram = |number: u16| {
        let mut datagram = [0; 800];
        datagram[..2].copy_from_slice(&number.to_be_bytes());
        datagram
    };
    for number in 0..BURST {
        client.send(&datagram(number)).unwrap();
    }
    let (seen, sender) = count(&path.socket);
    assert_eq!(seen, usize::from(BURST), "{}", path.cluster.logs());
    for number in 0..BURST {
        path.socket.send_to(&datagram(number), sender.unwrap()).unwrap();
    }
    assert_eq!(count(&client).0, usize::from(BURST));
    assert_eq!(path.metric("queue_drops_total"), 0.0);
    assert_eq!(path.metric("dropped_datagrams_total"), 0.0);
}

/// A stopped proxy does not read its queues. The drops are counted when it continues.
#[test]
fn datagrams_dropped_by_full_queues_are_counted() {
    let path = Path::with(&["--workers", "1"]);
    let client = path.connected();
    let signal =
        |name: &str| path.cluster.node.shell(&format!("kill -{name} {}", path.cluster.proxy.id())).unwrap();
    signal("STOP");
    for _ in 0..30_000 {
        client.send(&[0; 800]).unwrap();
    }
    signal("CONT");
    wait_for("the drops to be counted", || {
        let drops = path.metric("queue_drops_total");
        ensure!(drops > 1000.0, "{drops}");
        Ok(())
    })
    .unwrap();
}

/// Returns type, code and MTU of the next ICMP error in the client's error queue.
fn icmp_error(socket: &UdpSocket) -> anyhow::Result<(u8, u8, u32)> {
    wait_for("an ICMP error", || {
        let (mut space, mut datagram) = (cmsg_space!([u8; 64]), [0; 1]);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let mut slices = [IoSliceMut::new(&mut datagram)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _) => Some((error.ee_type, error.ee_code, error.ee_info)),
            _ => None,
        });
        error.ok_or_else(|| anyhow::anyhow!("no error"))
    })
}

/// Endpoints behind a router without a route, with a prohibited route, or with a small MTU: the client
/// receives the same ICMP errors as without a proxy, and the flow remains.
#[test]
fn icmp_errors_are_relayed_to_the_client_and_only_port_unreachable_ends_a_flow() {
    let path = Path::with(&[]);
    let router = [
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit",
        "ip link add narrow type veth peer name sink; ip link set sink up; ip link set narrow mtu 1280 up",
        "ip route add 198.51.100.9/32 dev narrow; ip neigh add 198.51.100.9 lladdr \
         02:00:00:00:00:09 dev narrow",
        "ip route add prohibit 198.51.100.10/32",
        "ip route add unreachable 198.51.100.11/32",
    ];
    let set_up = || std::process::Command::new("sh").args(["-ec", &router.join("; ")]).status();
    assert!(path.cluster.node.outside().run(set_up).unwrap().unwrap().success());
    let flows = path.metric("flows");
    let cases = [("far-9", 9, (3, 4, 1280)), ("far-10", 10, (3, 13, 0)), ("far-11", 11, (3, 1, 0))];
    for (number, (name, host, expected)) in cases.into_iter().enumerate() {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{ports: [{{port: 53, protocol: UDP}}]}}\n---\napiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: \
             {name}}}}}\naddressType: IPv4\nports: [{{port: 5353, protocol: UDP}}]\n\
             endpoints: [{{addresses: [198.51.100.{host}]}}]\n"
        );
        path.cluster.apply(&format!("{name}.yaml"), &text).unwrap();
        let address = format!("{}:53", path.cluster.virtual_ip(name).unwrap());
        let client = bind(&path.client, "0.0.0.0:0");
        client.connect(&address).unwrap();
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).unwrap();
        let error = wait_for("the error", || {
            let _ = client.send(&[0; 1400]); // Fails with the pending ICMP error.
            let error = icmp_error(&client)?;
            // The kernel refuses until the proxy has the Service.
            ensure!(error == expected, "{error:?}");
            Ok(error)
        });
        assert_eq!(error.unwrap(), expected, "{name}");
        // The flow remains after the errors.
        for _ in 0..3 {
            let _ = client.send(&[0; 100]); // Fails with the pending ICMP error.
        }
        let open = flows + f64::from(u32::try_from(number + 1).unwrap());
        assert_eq!(path.metric("flows"), open, "{name}");
        let series = format!(
            r#"portolan_proxy_service_connections_opened_total{{namespace="default",port="",protocol="udp",service="{name}"}}"#
        );
        assert_eq!(path.cluster.proxy_metric(&series).unwrap(), 1.0, "one flow only");
    }
}

/// The proxy is stopped meanwhile, so that it finds them all at once.
#[test]
fn error_about_one_of_many_datagrams_costs_those_behind_it_nothing() {
    const GOOD: usize = 100;
    let path = Path::with(&["--workers", "1"]);
    let script = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; nft 'add table ip picky; add chain ip picky in { type filter hook input priority 0; }; add rule ip picky in udp length 17 reject with icmp type admin-prohibited'";
    path.server.shell(&path.cluster.node, script).unwrap();
    let signal =
        |name: &str| path.cluster.node.shell(&format!("kill -{name} {}", path.cluster.proxy.id())).unwrap();
    // It is not connected: its kernel reports no errors to it.
    let client = bind(&path.client, "0.0.0.0:0");
    signal("STOP");
    for _ in 0..GOOD {
        client.send_to(&[0; 9], &path.address).unwrap();
        client.send_to(&[0; 10], &path.address).unwrap();
    }
    signal("CONT");
    path.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut received = 0;
    while received < GOOD {
        let length = path.socket.recv(&mut [0; 16]);
        received += usize::from(length.unwrap_or_else(|error| panic!("{error} after {received}")) == 10);
    }
}

#[test]
fn client_that_opens_many_flows_does_not_evict_flows_of_other_clients() {
    // 16 flows for each worker: the modest client's two are always fewer than the greedy client's.
    let path = Path::with(&["--workers", "2", "--udp-max-flows", "32"]);
    let modest = path.connected();
    let other = path.cluster.add_pod("greedy").unwrap();
    for _ in 0..120 {
        let socket = bind(&other, "0.0.0.0:0");
        socket.send_to(b"x", &path.address).unwrap();
        path.answer().unwrap();
    }
    assert_eq!(path.metric("flows"), 32.0);
    let evicted = path.metric("evicted_flows_total");
    assert!(evicted >= 88.0, "{evicted}");
    // The modest client still has its flow: the server sees the same source port.
    let source = |socket: &UdpSocket| {
        socket.send(b"who?").unwrap();
        let (_, from) = path.socket.recv_from(&mut [0; 16]).unwrap();
        path.socket.send_to(b"you", from).unwrap();
        socket.recv(&mut [0; 16]).unwrap();
        from
    };
    assert_eq!(source(&modest), source(&modest));
    assert_eq!(path.metric("evicted_flows_total"), evicted, "and no new flow is created");
}

#[test]
fn idle_flow_expires() {
    let path = Path::with(&["--udp-idle-timeout", "1"]);
    let _client = path.connected();
    assert!(path.metric("flows") >= 1.0);
    wait_for("the flows to expire", || {
        let flows = path.metric("flows");
        ensure!(flows == 0.0, "{flows}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn metrics_of_a_deleted_service_are_removed() {
    let path = Path::with(&[]);
    let series = r#"portolan_proxy_service_connections_opened_total{namespace="default",port="",protocol="udp",service="echo"}"#;
    // A TCP Service too, so that workers look up connections in the current frontends.
    let (service, pod) = MANIFEST.split_once("---\n").unwrap();
    path.cluster.apply("pod.yaml", pod).unwrap();
    path.cluster
        .apply("web.yaml", &service.replace("name: echo", "name: web").replace("UDP", "TCP"))
        .unwrap();
    wait_for("both to be open", || {
        let open = path.cluster.proxy_metric("portolan_proxy_frontends")?;
        ensure!(open == 2.0, "{open}");
        Ok(())
    })
    .unwrap();
    assert!(path.cluster.proxy_metric(series).unwrap() >= 1.0);
    path.cluster.delete("echo.yaml").unwrap();
    wait_for("the removal of the series", || {
        // The page itself remains.
        path.cluster.proxy_metric("portolan_proxy_frontends")?;
        ensure!(path.cluster.proxy_metric(series).is_err());
        Ok(())
    })
    .unwrap();
}

/// One worker serves both.
#[test]
fn flood_of_datagrams_does_not_starve_other_services() {
    let path = Path::with(&["--workers", "1"]);
    let _web = HostnameServer::start(&path.server, 8080).unwrap();
    let web = MANIFEST
        .replace("name: echo", "name: web")
        .replace("targetPort: 5353, protocol: UDP", "targetPort: 8080");
    let (service, _) = web.split_once("---\n").unwrap();
    path.cluster.apply("web.yaml", service).unwrap();
    let address = format!("{}:53", path.cluster.virtual_ip("web").unwrap());
    wait_for("the other service", || path.client.ask(&address)).unwrap();
    // Open the flows before the flood: during it, the first answer may be lost.
    let sockets = [path.connected(), path.connected()];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for socket in &sockets {
            let done = &done;
            // The kernel segments each into sixty datagrams, faster than the proxy can read them.
            setsockopt(socket, sockopt::UdpGsoSegment, &16).unwrap();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // Full queues and ICMP errors are expected.
                    let _ = socket.send(&[0; 60 * 16]);
                }
            });
        }
        let answers: Vec<_> = (0..10).map(|_| path.client.ask(&address)).collect();
        done.store(true, Ordering::Relaxed);
        let lost = answers.iter().filter(|answer| answer.is_err()).count();
        assert_eq!(lost, 0, "{answers:?}");
    });
}
