//! TCP semantics of a connection through a virtual IP: data, half-close, reset, keepalive.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use testbed::{Cluster, Pod, wait_for};

const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 9090}]}\n---\napiVersion: v1\nkind: Pod\n\
    metadata: {name: server, labels: {app: web}}\nspec: {containers: []}\n";

/// Time after which the proxy resets an idle connection to an unreachable peer, if the client sends no
/// keepalive probes.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(300);

/// A client, a listener of the test, and the virtual IP between them.
struct Path {
    cluster: Cluster,
    client: Pod,
    server: Pod,
    listener: TcpListener,
    address: String,
}

impl Path {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With a proxy that has these flags.
    fn with(flags: &[&str]) -> Self {
        let cluster = Cluster::start_with(flags).unwrap();
        let client = cluster.add_pod("client").unwrap();
        let server = cluster.add_pod("server").unwrap();
        let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
        cluster.apply("web.yaml", MANIFEST).unwrap();
        let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
        Self { cluster, client, server, listener, address }
    }

    /// Returns both ends of a new connection.
    fn open(&self) -> (TcpStream, TcpStream) {
        let connect = || Ok(self.client.netns.run(|| TcpStream::connect(&self.address))??);
        self.both_ends(wait_for("the service", connect).unwrap())
    }

    /// As [`Path::open`], without retries.
    fn open_at_once(&self) -> (TcpStream, TcpStream) {
        SockRef::from(&self.listener).set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.both_ends(self.client.netns.run(|| TcpStream::connect(&self.address)).unwrap().unwrap())
    }

    fn both_ends(&self, client: TcpStream) -> (TcpStream, TcpStream) {
        let (server, _) = self.listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        }
        (client, server)
    }
}

fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Returns the error that ends reading.
fn read_error(mut stream: &TcpStream) -> ErrorKind {
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => panic!("an orderly close instead of a reset"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

#[test]
fn half_closed_connection_carries_data_in_the_open_direction() {
    let path = Path::new();
    let (mut client, mut server) = path.open();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server), b"question");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(read_all(&client), b"answer");

    let (mut client, mut server) = path.open();
    server.write_all(b"greeting").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), b"greeting");
    client.write_all(b"reply").unwrap();
    drop(client);
    assert_eq!(read_all(&server), b"reply");
    let open = "portolan_proxy_connections_opened_total";
    let closed = "portolan_proxy_connections_closed_total";
    wait_for("both connections to close", || {
        let (open, closed) = (path.cluster.proxy_metric(open)?, path.cluster.proxy_metric(closed)?);
        anyhow::ensure!(open == closed, "{open} opened, {closed} closed");
        Ok(())
    })
    .unwrap();
}

#[test]
fn reset_from_one_side_is_a_reset_on_the_other_side() {
    let path = Path::new();
    for from_server in [true, false] {
        let (mut client, mut server) = path.open();
        // Data first, so that a reset is not mistaken for a refused connection.
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let (sender, receiver) = if from_server { (server, client) } else { (client, server) };
        SockRef::from(&sender).set_linger(Some(Duration::ZERO)).unwrap();
        drop(sender);
        assert_eq!(read_error(&receiver), ErrorKind::ConnectionReset, "from the server: {from_server}");
    }
}

/// Returns how many of 30 clients with a long request receive the complete reply of a server that replies
/// early. The server sends `reply` and closes the connection with most of the request unread.
fn complete_early_replies(path: &Path, address: &str, reply: &[u8]) -> usize {
    let exchange = |listener: &TcpListener| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut server, _) = listener.accept().unwrap();
                server.read_exact(&mut [0; 1000]).unwrap();
                server.write_all(reply).unwrap();
            });
            let mut client = path.client.netns.run(|| TcpStream::connect(address)).unwrap().unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let block = [b'x'; 16 << 10];
            // The client stops at the reset.
            while client.write_all(&block).is_ok() {}
            let mut received = Vec::new();
            // Reading ends with the reset after the reply.
            let _ = client.read_to_end(&mut received);
            received == reply
        })
    };
    (0..30).filter(|_| exchange(&path.listener)).count()
}

#[test]
fn reply_before_the_end_of_the_request_is_complete() {
    let path = Path::new();
    drop(path.open());
    let direct = format!("{}:9090", path.server.ip);
    // Replies that fit into the first round trip: the server's kernel discards the rest when it resets.
    for length in [100, 10_000] {
        let reply = vec![b'r'; length];
        assert_eq!(
            complete_early_replies(&path, &direct, &reply),
            30,
            "{length} bytes over a direct connection"
        );
        assert_eq!(complete_early_replies(&path, &path.address, &reply), 30, "{length} bytes");
    }
}

#[test]
fn bytes_before_a_reset_are_delivered_in_both_directions() {
    let path = Path::new();
    for from_server in [true, false] {
        for _ in 0..30 {
            let (client, server) = path.open();
            let (mut sender, mut receiver) = if from_server { (server, client) } else { (client, server) };
            sender.write_all(&[7; 5000]).unwrap();
            SockRef::from(&sender).set_linger(Some(Duration::ZERO)).unwrap();
            drop(sender);
            let mut received = Vec::new();
            let end = receiver.read_to_end(&mut received).map_err(|error| error.kind());
            assert_eq!((end, received.len()), (Err(ErrorKind::ConnectionReset), 5000), "{from_server}");
        }
    }
}

/// A read stops before an urgent byte, also if more data has arrived.
#[test]
fn urgent_byte_and_following_data_are_delivered_at_once_in_both_directions() {
    let path = Path::new();
    let (client, server) = path.open();
    for (mut sender, mut receiver) in [(&client, &server), (&server, &client)] {
        for _ in 0..20 {
            SockRef::from(sender).send_out_of_band(b"before!").unwrap();
            let mut received = [0; 7];
            receiver.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"before!");
            SockRef::from(sender).send_out_of_band(b"!").unwrap();
            sender.write_all(b"after").unwrap();
            let mut received = [0; 6];
            receiver.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"!after");
        }
    }
}

#[test]
fn simultaneous_streams_arrive_complete_and_in_order() {
    const TOTAL: usize = 64 << 20;
    let path = Path::new();
    let (client, server) = path.open();
    // The period divides no buffer size, so that a lost, duplicated or swapped block is detected.
    let pattern: Vec<u8> = (0..=250).collect();
    let send = |mut stream: &TcpStream| {
        let block = pattern.repeat(257);
        let mut left = TOTAL;
        while left > 0 {
            let length = left.min(block.len());
            stream.write_all(&block[..length]).unwrap();
            left -= length;
        }
        stream.shutdown(Shutdown::Write).unwrap();
    };
    let receive = |mut stream: &TcpStream| {
        let (mut buffer, mut position) = (vec![0; 1 << 16], 0);
        loop {
            let length = stream.read(&mut buffer).unwrap();
            if length == 0 {
                return position;
            }
            let expected = (position..position + length).map(|at| pattern[at % pattern.len()]);
            assert!(buffer[..length].iter().copied().eq(expected), "wrong bytes after {position}");
            position += length;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&client));
        scope.spawn(|| send(&server));
        let there = scope.spawn(|| receive(&server));
        assert_eq!((receive(&client), there.join().unwrap()), (TOTAL, TOTAL));
    });
}

#[test]
fn connections_above_the_limit_are_reset_and_open_ones_continue() {
    let path = Path::with(&["--max-connections", "2"]);
    let open: Vec<_> = (0..2).map(|_| path.open()).collect();
    let (client, server) = (&open[0].0, &open[0].1);
    let shed = "portolan_proxy_connections_shed_total";
    let before = path.cluster.proxy_metric(shed).unwrap();
    let more = path.client.netns.run(|| TcpStream::connect(&path.address)).unwrap();
    // The reset may arrive before or after `connect` returns.
    assert!(more.is_err() || read_error(&more.unwrap()) == ErrorKind::ConnectionReset);
    assert_eq!(path.cluster.proxy_metric(shed).unwrap(), before + 1.0);
    let (mut client, mut server) = (client, server);
    client.write_all(b"still here").unwrap();
    server.read_exact(&mut [0; 10]).unwrap();
    drop(open);
    wait_for("a free connection", || {
        let mut stream = path.client.netns.run(|| TcpStream::connect(&path.address))??;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let end = stream.read(&mut [0]);
        anyhow::ensure!(end.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{end:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn connection_of_a_client_has_tcp_keepalive() {
    let path = Path::new();
    let _open = path.open();
    let sockets = path.cluster.node.shell("ss -Htno state established").unwrap();
    let probed = sockets.lines().find(|line| line.contains(&path.address)).unwrap();
    assert!(probed.contains("timer:(keepalive,"), "{probed}");
}

#[test]
fn connection_to_an_endpoint_on_this_node_has_tcp_keepalive() {
    let path = Path::new();
    let _open = path.open();
    let script = format!("ss -Htno state established dst {}:9090", path.server.ip);
    let sockets = path.cluster.node.shell(&script).unwrap();
    assert!(sockets.contains("timer:(keepalive,"), "{sockets}");
}

/// Opens a connection of a client with keepalive probes every second, and drops all packets to the endpoint.
/// Returns the time until the client's read fails.
fn detection_time(path: &Path, sends_data: bool) -> Duration {
    let (mut client, mut server) = path.open();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let second = Duration::from_secs(1);
    let probes = TcpKeepalive::new().with_time(second).with_interval(second).with_retries(3);
    SockRef::from(&client).set_tcp_keepalive(&probes).unwrap();
    let cut =
        "nft 'add table ip cut; add chain ip cut in { type filter hook input priority 0; policy drop; }'";
    path.server.shell(&path.cluster.node, cut).unwrap();
    let started = Instant::now();
    if sends_data {
        client.write_all(b"unacknowledged").unwrap();
    }
    client.set_read_timeout(Some(DEFAULT_KEEPALIVE)).unwrap();
    let end = client.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    started.elapsed()
}

/// A direct connection needs 4 seconds. The limit also holds on a busy machine.
#[test]
fn client_with_keepalive_detects_an_unreachable_endpoint() {
    let path = Path::new();
    let after = detection_time(&path, false);
    assert!(after < DEFAULT_KEEPALIVE / 2, "{after:?}");
}

/// A direct connection needs 15 minutes: the kernel sends no keepalive probes during retransmissions.
#[test]
fn client_with_keepalive_and_unacknowledged_data_detects_an_unreachable_endpoint() {
    let path = Path::new();
    let after = detection_time(&path, true);
    assert!(after < DEFAULT_KEEPALIVE / 2, "{after:?}");
}

#[test]
fn lost_syn_to_the_only_endpoint_is_retransmitted() {
    let path = Path::new();
    drop(path.open());
    // Drops every second SYN, beginning with the next one.
    let lossy = "nft 'add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; add \
        rule ip lossy in tcp flags syn / syn,ack numgen inc mod 2 0 drop'";
    path.server.shell(&path.cluster.node, lossy).unwrap();
    for _ in 0..3 {
        let (client, server) = path.open_at_once();
        drop(server);
        assert_eq!(read_all(&client), b"");
    }
}

#[test]
fn connection_to_an_endpoint_outside_the_node_has_tcp_keepalive() {
    let path = Path::new();
    let outside = path.cluster.node.outside_address();
    let listener = path.cluster.node.outside().run(|| TcpListener::bind((outside, 9090))).unwrap().unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: far}}\n\
         spec: {{clusterIP: 10.96.0.77, ports: [{{port: 80, targetPort: 9090}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: far, labels: {{kubernetes.io/service-name: far}}}}\naddressType: IPv4\n\
         ports: [{{port: 9090}}]\nendpoints: [{{addresses: [{outside}]}}]\n"
    );
    path.cluster.apply("far.yaml", &manifest).unwrap();
    let connect = || Ok(path.client.netns.run(|| TcpStream::connect("10.96.0.77:80"))??);
    let _client: TcpStream = wait_for("the service", connect).unwrap();
    let _server = listener.accept().unwrap();
    wait_for("the timer", || {
        let sockets = path.cluster.node.shell(&format!("ss -Htno state established dst {outside}:9090"))?;
        anyhow::ensure!(sockets.contains("timer:(keepalive,"), "{sockets}");
        Ok(())
    })
    .unwrap();
}
