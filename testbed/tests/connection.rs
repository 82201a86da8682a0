//! What a connection through a virtual IP keeps of TCP: every byte, half-closes, resets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use testbed::{Cluster, Pod, wait_for};

const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 9090}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: server, labels: {app: web}}\nspec: {containers: []}\n";

/// After this an idle peer that does not answer counts as lost, if the client does not probe on its own.
const USUAL: Duration = Duration::from_secs(300);

/// A client, a server that accepts by hand, and the virtual IP between them.
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

    /// Through a proxy with these flags.
    fn with(flags: &[&str]) -> Self {
        let cluster = Cluster::start_with(flags).unwrap();
        let client = cluster.add_pod("client").unwrap();
        let server = cluster.add_pod("server").unwrap();
        let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
        cluster.apply("web.yaml", MANIFEST).unwrap();
        let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
        Self { cluster, client, server, listener, address }
    }

    /// Both ends of a new connection.
    fn open(&self) -> (TcpStream, TcpStream) {
        let connect = || Ok(self.client.netns.run(|| TcpStream::connect(&self.address))??);
        self.both_ends(wait_for("the service", connect).unwrap())
    }

    /// The same, without a second attempt.
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

/// The error that reading ends with.
fn read_error(mut stream: &TcpStream) -> ErrorKind {
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => panic!("an orderly end where a reset was expected"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

#[test]
fn a_half_closed_connection_still_answers_in_either_direction() {
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
    wait_for("both connections to be over", || {
        let (open, closed) = (path.cluster.proxy_metric(open)?, path.cluster.proxy_metric(closed)?);
        anyhow::ensure!(open == closed, "{open} opened, {closed} closed");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_reset_travels_on_as_a_reset_from_either_side() {
    let path = Path::new();
    for from_server in [true, false] {
        let (mut client, mut server) = path.open();
        // Some bytes each way first, so that a reset cannot be taken for a refused connection.
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let (breaks, notices) = if from_server { (server, client) } else { (client, server) };
        SockRef::from(&breaks).set_linger(Some(Duration::ZERO)).unwrap();
        drop(breaks);
        assert_eq!(read_error(&notices), ErrorKind::ConnectionReset, "from the server: {from_server}");
    }
}

/// How many of 30 clients that send a long request get the whole reply of a server that replies after the first bytes of it.
/// `reply` is sent and then the connection is closed, with most of the request unread.
fn whole_early_replies(path: &Path, address: &str, reply: &[u8]) -> usize {
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
            // A reset is what tells such a client that the server has stopped reading.
            while client.write_all(&block).is_ok() {}
            let mut received = Vec::new();
            drop(client.read_to_end(&mut received));
            received == reply
        })
    };
    (0..30).filter(|_| exchange(&path.listener)).count()
}

#[test]
fn reply_before_the_end_of_the_request_arrives_whole() {
    let path = Path::new();
    drop(path.open());
    let direct = format!("{}:9090", path.server.ip);
    // What fits into the first round trip: the server's kernel discards the rest when it resets.
    for length in [100, 10_000] {
        let reply = vec![b'r'; length];
        assert_eq!(
            whole_early_replies(&path, &direct, &reply),
            30,
            "{length} bytes over a direct connection"
        );
        assert_eq!(whole_early_replies(&path, &path.address, &reply), 30, "{length} bytes");
    }
}

#[test]
fn bytes_before_a_reset_arrive_from_either_side() {
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

/// A read ends before an urgent byte, also where more has arrived.
#[test]
fn urgent_byte_and_what_follows_it_arrive_at_once_from_either_side() {
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
fn every_byte_arrives_in_order_both_ways_at_once() {
    const TOTAL: usize = 64 << 20;
    let path = Path::new();
    let (client, server) = path.open();
    // A period that is no multiple of any buffer, so that a lost, doubled or swapped block shows.
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
fn connections_beyond_the_limit_are_reset_and_those_that_are_open_go_on() {
    let path = Path::with(&["--max-connections", "2"]);
    let open: Vec<_> = (0..2).map(|_| path.open()).collect();
    let (client, server) = (&open[0].0, &open[0].1);
    let shed = "portolan_proxy_connections_shed_total";
    let before = path.cluster.proxy_metric(shed).unwrap();
    let more = path.client.netns.run(|| TcpStream::connect(&path.address)).unwrap();
    // Reset after the handshake, or before the client looks.
    assert!(more.is_err() || read_error(&more.unwrap()) == ErrorKind::ConnectionReset);
    assert_eq!(path.cluster.proxy_metric(shed).unwrap(), before + 1.0);
    let (mut client, mut server) = (client, server);
    client.write_all(b"still here").unwrap();
    server.read_exact(&mut [0; 10]).unwrap();
    drop(open);
    wait_for("room again", || {
        let mut stream = path.client.netns.run(|| TcpStream::connect(&path.address))??;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let end = stream.read(&mut [0]);
        anyhow::ensure!(end.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{end:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_silent_client_is_asked_whether_it_is_still_there() {
    let path = Path::new();
    let _open = path.open();
    let sockets = path.cluster.node.shell("ss -Htno state established").unwrap();
    let probed = sockets.lines().find(|line| line.contains(&path.address)).unwrap();
    assert!(probed.contains("timer:(keepalive,"), "{probed}");
}

#[test]
fn endpoint_of_this_node_is_asked_whether_it_is_still_there() {
    let path = Path::new();
    let _open = path.open();
    let script = format!("ss -Htno state established dst {}:9090", path.server.ip);
    let sockets = path.cluster.node.shell(&script).unwrap();
    assert!(sockets.contains("timer:(keepalive,"), "{sockets}");
}

/// Opens a connection of a client that probes every second, cuts the endpoint's network, and returns after how long the client
/// notices.
fn noticed_after(path: &Path, ask: bool) -> Duration {
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
    if ask {
        client.write_all(b"is anybody there?").unwrap();
    }
    client.set_read_timeout(Some(USUAL)).unwrap();
    let end = client.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    started.elapsed()
}

/// Over a direct connection it would be 4 seconds. It is less than half the usual time, also on a busy machine.
#[test]
fn client_that_probes_notices_an_endpoint_that_is_gone_without_a_word() {
    let path = Path::new();
    let after = noticed_after(&path, false);
    assert!(after < USUAL / 2, "{after:?}");
}

/// Over a direct connection it would be a quarter of an hour: probes do not go beside what is sent again.
#[test]
fn client_that_probes_and_waits_for_an_answer_notices_it_too() {
    let path = Path::new();
    let after = noticed_after(&path, true);
    assert!(after < USUAL / 2, "{after:?}");
}

#[test]
fn a_lost_first_packet_to_the_only_endpoint_is_sent_again() {
    let path = Path::new();
    drop(path.open());
    // Every second segment that asks for a connection is lost, beginning with the next one.
    let lossy = "nft 'add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; add rule ip lossy in tcp flags syn / syn,ack numgen inc mod 2 0 drop'";
    path.server.shell(&path.cluster.node, lossy).unwrap();
    for _ in 0..3 {
        let (client, server) = path.open_at_once();
        drop(server);
        assert_eq!(read_all(&client), b"");
    }
}

#[test]
fn an_endpoint_of_elsewhere_is_asked_whether_it_is_still_there() {
    let path = Path::new();
    let outside = path.cluster.node.outside_address();
    let listener = path.cluster.node.outside().run(|| TcpListener::bind((outside, 9090))).unwrap().unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: far}}\nspec: {{clusterIP: 10.96.0.77, ports: [{{port: 80, targetPort: 9090}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: far, labels: {{kubernetes.io/service-name: far}}}}\naddressType: IPv4\nports: [{{port: 9090}}]\nendpoints: [{{addresses: [{outside}]}}]\n"
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
