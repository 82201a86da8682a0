//! Attacks on others, or on this machine, by way of the server.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";

/// A query for the A records of `web`.
fn query() -> Vec<u8> {
    let name = b"\x03web\x07default\x03svc\x07cluster\x05local\x00";
    [b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".as_slice(), name, b"\x00\x01\x00\x01"].concat()
}

fn ask(socket: &UdpSocket, message: &[u8]) -> Option<Vec<u8>> {
    socket.send(message).unwrap();
    let mut reply = vec![0; 65_535];
    let length = socket.recv(&mut reply).ok()?;
    reply.truncate(length);
    Some(reply)
}

/// On a node of its own: ports of the machine may be in use, and its loopback is busy.
fn on_a_node(test: impl FnOnce() + Send) {
    testbed::Node::new().unwrap().run(test);
}

#[test]
fn two_servers_cannot_be_made_to_query_each_other() {
    on_a_node(replies_end_at_the_server);
}

fn replies_end_at_the_server() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    // Another name server, by its port.
    let other = UdpSocket::bind("127.53.0.7:53").unwrap();
    other.connect(server.address).unwrap();
    other.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let malformed = &query()[..20];
    for message in [&query(), malformed] {
        let reply = ask(&other, message).expect("a query from port 53 is answered");
        assert_eq!(ask(&other, &reply), None, "a reply is the end of it");
    }
}

#[test]
fn source_port_0_is_not_answered() {
    on_a_node(port_0_is_nobody);
}

fn port_0_is_nobody() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    // The server's own port, and all packets to port 0.
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
    raw.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (from, to) = (0_u16, server.address.port());
    let length = u16::try_from(8 + query().len()).unwrap();
    let header = [from, to, length, 0].map(u16::to_be_bytes).concat();
    raw.send_to(&[header, query()].concat(), &SockAddr::from(server.address)).unwrap();
    let polite = UdpSocket::bind("127.0.0.1:0").unwrap();
    polite.connect(server.address).unwrap();
    polite.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(ask(&polite, &query()).is_some());
    // Replies are sent in the order of queries: the one to the good client is the first from the server.
    let polite_port = polite.local_addr().unwrap().port();
    loop {
        let mut packet = [0; 2048];
        let length = (&raw).read(&mut packet).unwrap();
        // After an IPv4 header of five words: ports.
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        assert!(length >= 28);
        if port(20) == to {
            assert_eq!(port(22), polite_port);
            return;
        }
    }
}

/// Unused addresses of the link, like those of deleted pods with pending queries.
const UNREACHABLE: std::ops::Range<u8> = 100..108;

#[test]
fn unreachable_clients_do_not_delay_others() {
    let node = testbed::Node::new().unwrap();
    let address: SocketAddr = format!("{}:5300", node.address()).parse().unwrap();
    let listen = format!("--listen={address}");
    let _server = node.run(|| Server::start(&[("web.yaml", WEB)], &[&listen, "--workers=1"]));
    let unreachable =
        UNREACHABLE.map(|host| format!("ip address add 192.0.2.{host}/32 dev lo")).collect::<Vec<_>>();
    // Queries can be sent from there, but address resolution is not answered.
    let quiet = "cd /proc/sys/net/ipv4/conf/uplink && echo 1 > arp_ignore && echo 2 > arp_announce";
    let outside = |work: &(dyn Fn() + Sync)| node.outside().run(work).unwrap();
    outside(&|| {
        let script = format!("{quiet} && {}", unreachable.join(" && "));
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        let polite = UdpSocket::bind("192.0.2.1:0").unwrap();
        polite.connect(address).unwrap();
        polite.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert!(ask(&polite, &query()).is_some());
        for host in UNREACHABLE {
            let socket = UdpSocket::bind(format!("192.0.2.{host}:0")).unwrap();
            for _ in 0..500 {
                socket.send_to(&query(), address).unwrap();
            }
        }
        let begun = Instant::now();
        for _ in 0..20 {
            assert!(ask(&polite, &query()).is_some(), "no reply after {:?}", begun.elapsed());
        }
    });
}

/// A malformed query gets no more bytes than it has, and a valid one at most the 512 of RFC 1035 §4.2.1.
#[test]
fn reply_to_a_message_without_edns_is_not_much_larger() {
    let services: String = (0..40)
        .map(|n| format!("- {{addresses: [10.4.0.{}], hostname: a-host-of-some-length-{n}}}\n", n + 1))
        .collect();
    let slice = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 80}}]\nendpoints:\n{services}"
    );
    let server = Server::start(&[("web.yaml", &slice)], &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let end = query().len();
    // Every known type, including ANY and AXFR.
    for kind in (1..=65).chain(249..=257) {
        let mut message = query();
        message[end - 4..end - 2].copy_from_slice(&u16::to_be_bytes(kind));
        let reply = ask(&socket, &message).unwrap();
        assert!(reply.len() <= 512, "type {kind}: {} bytes", reply.len());
        if kind == 255 || kind == 252 {
            assert!(reply.len() <= message.len() + 32, "type {kind}: {} bytes", reply.len());
        }
    }
}

#[test]
fn flood_of_noise_leaves_no_memory_behind() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    let mut flood = || {
        for _ in 0..5000 {
            let mut message = query();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..message.len());
                message[at] = random.u8(..);
            }
            message.truncate(random.usize(1..message.len() * 2));
            socket.send(&message).unwrap();
        }
        for _ in 0..50 {
            let mut stream = TcpStream::connect(server.address).unwrap();
            let noise: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
            // A frame that never ends, usually; the server may have closed the connection.
            let _ = stream.write_all(&noise);
        }
        while ask(&socket, &query()).is_none_or(|reply| reply[..2] != [0x12, 0x34]) {}
    };
    // The allocator's arenas and the tables of connections reach their size within the first floods.
    for _ in 0..4 {
        flood();
    }
    let before = server.memory("VmRSS");
    for _ in 0..5 {
        flood();
    }
    let grown = server.memory("VmRSS").saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB more than after the first floods ({before} KiB)");
}
