//! What UDP through a virtual IP keeps: every datagram, its size, its client's address, and word of a refusal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use nix::sys::socket::{setsockopt, sockopt};
use testbed::{Cluster, NameServer, Pod, wait_for};

const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec: {selector: {app: echo}, ports: [{port: 53, targetPort: 5353, protocol: UDP}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: server, labels: {app: echo}}\nspec: {containers: []}\n";

/// A client, a server that answers by hand, and the virtual IP between them.
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

    /// A client's socket whose flow is open.
    fn connected(&self) -> UdpSocket {
        let socket = bind(&self.client, "0.0.0.0:0");
        socket.connect(&self.address).unwrap();
        wait_for("the first answer", || {
            // Before the proxy knows the Service, the kernel refuses.
            socket.send(b"first")?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            self.answer()?;
            Ok(socket.recv(&mut [0; 16])?)
        })
        .map_err(|error| error.context(self.cluster.logs()))
        .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// The server answers one datagram with itself.
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
fn a_refusal_of_the_endpoint_reaches_the_client_as_one_of_the_virtual_ip() {
    let mut path = Path::with(&[]);
    let client = path.connected();
    let listening = format!("{}:5353", path.server.ip);
    // Nobody listens in the pod any more.
    path.socket = bind(&path.server, "0.0.0.0:0");
    client.send(b"anybody there?").unwrap();
    assert_eq!(client.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // As soon as somebody does, the same socket is served.
    path.socket = bind(&path.server, &listening);
    client.send(b"and now?").unwrap();
    path.answer().unwrap();
    let mut buffer = [0; 16];
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"and now?");
}

#[test]
fn bursts_and_large_datagrams_arrive_whole_and_replies_come_from_the_virtual_ip() {
    const BURST: u16 = 100;
    let path = Path::with(&[]);
    let client = path.connected();
    for size in [8 * 1024, 60_000] {
        let large: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        client.send(&large).unwrap();
        path.answer().unwrap();
        let mut buffer = vec![0; 65_535];
        // Connected: the kernel takes replies from the virtual IP alone.
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
    assert_eq!(seen.len(), usize::from(BURST), "each of the burst once");
    assert_eq!(path.metric("dropped_datagrams_total"), 0.0);
}

#[test]
fn a_client_that_opens_flows_without_end_does_not_take_those_of_others() {
    let path = Path::with(&["--udp-max-flows", "8"]);
    let modest = path.connected();
    let other = path.cluster.add_pod("greedy").unwrap();
    for _ in 0..30 {
        let socket = bind(&other, "0.0.0.0:0");
        socket.send_to(b"x", &path.address).unwrap();
        path.answer().unwrap();
    }
    assert_eq!(path.metric("flows"), 8.0);
    let evicted = path.metric("evicted_flows_total");
    assert!(evicted >= 22.0, "{evicted}");
    // The modest one still has the flow it had: the server sees the same source port.
    let source = |socket: &UdpSocket| {
        socket.send(b"who?").unwrap();
        let (_, from) = path.socket.recv_from(&mut [0; 16]).unwrap();
        path.socket.send_to(b"you", from).unwrap();
        socket.recv(&mut [0; 16]).unwrap();
        from
    };
    assert_eq!(source(&modest), source(&modest));
    assert_eq!(path.metric("evicted_flows_total"), evicted, "and needs no new one");
}

#[test]
fn a_silent_flow_is_forgotten() {
    let path = Path::with(&["--udp-idle-timeout", "1"]);
    let _client = path.connected();
    assert!(path.metric("flows") >= 1.0);
    wait_for("the flows to be forgotten", || {
        let flows = path.metric("flows");
        ensure!(flows == 0.0, "{flows}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_series_of_a_service_go_with_it_though_no_other_service_changes() {
    let path = Path::with(&[]);
    let series = r#"portolan_proxy_service_connections_opened_total{namespace="default",port="",protocol="udp",service="echo"}"#;
    // One by TCP, so that workers look connections up among what is open now.
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
    wait_for("the series to go", || {
        // And not the page with it.
        path.cluster.proxy_metric("portolan_proxy_frontends")?;
        ensure!(path.cluster.proxy_metric(series).is_err());
        Ok(())
    })
    .unwrap();
}

/// One worker carries both.
#[test]
fn a_flood_of_datagrams_leaves_time_for_everybody_else() {
    let path = Path::with(&["--workers", "1"]);
    let _web = NameServer::start(&path.server, 8080).unwrap();
    let web = MANIFEST
        .replace("name: echo", "name: web")
        .replace("targetPort: 5353, protocol: UDP", "targetPort: 8080");
    let (service, _) = web.split_once("---\n").unwrap();
    path.cluster.apply("web.yaml", service).unwrap();
    let address = format!("{}:53", path.cluster.virtual_ip("web").unwrap());
    wait_for("the other service", || path.client.ask(&address)).unwrap();
    // Before there is a flood: in one, a flow that is answered may not be had.
    let sockets = [path.connected(), path.connected()];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for socket in &sockets {
            let done = &done;
            // The kernel makes sixty datagrams of each: quicker than the proxy can take them.
            setsockopt(socket, sockopt::UdpGsoSegment, &16).unwrap();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // A full queue is what this is about, and a refusal no end of it.
                    drop(socket.send(&[0; 60 * 16]));
                }
            });
        }
        let answers: Vec<_> = (0..10).map(|_| path.client.ask(&address)).collect();
        done.store(true, Ordering::Relaxed);
        let lost = answers.iter().filter(|answer| answer.is_err()).count();
        assert_eq!(lost, 0, "{answers:?}");
    });
}
