//! Conntrack: ADD and DEL of a pod change the flows of its own host ports, and no others.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::Fixture;
use crate::killed::traced;
use crate::ports::with_ports;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The flows of a busy node.
pub(crate) const TRACKED: u32 = 50_000;

/// A host port over TCP and UDP.
fn both(port: u16) -> Value {
    with_ports(json!([
        { "hostPort": port, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": port, "containerPort": 80, "protocol": "udp" },
    ]))
}

fn inside<T: Send>(fixture: &Fixture, pod: &str, work: impl FnOnce() -> T + Send) -> T {
    fixture.node().netns(Path::new(&format!("/run/netns/{pod}"))).unwrap().run(work).unwrap()
}

fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Makes the node track that many flows, of datagrams from outside to ports without a listener.
pub(crate) fn track(fixture: &Fixture, count: u32) {
    // Masquerading makes the node track connections. Unanswered flows would expire after 30 s.
    fixture.node().shell("echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout").unwrap();
    let outside = fixture.node().outside();
    outside
        .run(|| {
            for source in 0..count.div_ceil(30_000) {
                let socket = UdpSocket::bind(("192.0.2.1", 0)).unwrap();
                for port in 0..30_000.min(count - source * 30_000) {
                    let port = u16::try_from(20_000 + port).unwrap();
                    // It reports the ICMP error (port unreachable) of an earlier one: nothing listens.
                    let _ = socket.send_to(b"x", ("192.0.2.2", port));
                }
            }
        })
        .unwrap();
    let tracked = "cat /proc/sys/net/netfilter/nf_conntrack_count";
    let tracked: u32 = fixture.node().shell(tracked).unwrap().trim().parse().unwrap();
    assert!(tracked > count / 10 * 9, "{tracked} flows are tracked");
}

/// Exchanges data over each connection. Fails if one is broken.
fn exchange(pairs: &mut [(TcpStream, TcpStream)], when: &str) {
    for (number, (client, server)) in pairs.iter_mut().enumerate() {
        // The server sends first, so that the node has to know the connection of the packet.
        for (from, to) in [(&*server, &*client), (&*client, &*server)] {
            let (mut from, mut to) = (from, to);
            from.write_all(b"x").unwrap();
            let read = to.read_exact(&mut [0]);
            assert!(read.is_ok(), "connection {number} {when}: {read:?}");
        }
    }
}

/// Connections from the pod to a port outside.
fn connect(fixture: &Fixture, pod: &str, to: &str, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = fixture.node().outside().run(|| TcpListener::bind(to).unwrap()).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let pair = |_| {
        let client = inside(fixture, pod, || TcpStream::connect_timeout(&address, TIMEOUT).unwrap());
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        (client, server)
    };
    (0..count).map(pair).collect()
}

#[test]
fn outgoing_connections_to_a_port_survive_add_and_del_of_a_pod_with_that_host_port() {
    let fixture = Fixture::new();
    fixture.add("client", &with_ports(json!([])));
    track(&fixture, TRACKED);
    let mut connections = connect(&fixture, "client", "192.0.2.1:443", 20);
    // QUIC has the same port.
    let server = fixture.node().outside().run(|| udp("192.0.2.1:443")).unwrap();
    let client = inside(&fixture, "client", || udp("0.0.0.0:0"));
    client.send_to(b"x", "192.0.2.1:443").unwrap();
    let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
    for round in ["first", "second"] {
        fixture.add(round, &both(443));
        exchange(&mut connections, &format!("after the {round} ADD"));
        server.send_to(b"y", peer).unwrap();
        client.recv_from(&mut [0; 8]).unwrap_or_else(|e| panic!("after the {round} ADD: {e}"));
        fixture.quiet("DEL", round, &both(443));
        exchange(&mut connections, &format!("after the {round} DEL"));
        server.send_to(b"y", peer).unwrap();
        client.recv_from(&mut [0; 8]).unwrap_or_else(|e| panic!("after the {round} DEL: {e}"));
    }
}

/// Two pods have the same port of two addresses. The node has other flows that look similar.
#[test]
fn udp_flows_of_other_pods_on_the_same_port_survive_add_and_del() {
    let fixture = Fixture::new();
    fixture.node().shell("ip address add 192.0.2.3/24 dev uplink0").unwrap();
    let at = |host_ip: &str| {
        let port = json!({ "hostPort": 5353, "containerPort": 80, "protocol": "udp", "hostIP": host_ip });
        with_ports(json!([port]))
    };
    fixture.add("a", &at("192.0.2.2"));
    let server = inside(&fixture, "a", || udp("0.0.0.0:80"));
    let client = fixture.node().outside().run(|| udp("192.0.2.1:4444")).unwrap();
    client.send_to(b"x", "192.0.2.2:5353").unwrap();
    let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
    // From the pod itself to that port of another machine, and from a machine to that port of the pod's own
    // address.
    server.send_to(b"x", "192.0.2.1:5353").unwrap();
    let address = fixture.json("ip -j -n a -4 address show eth0")[0]["addr_info"][0]["local"].clone();
    let address = address.as_str().unwrap().to_owned();
    fixture.node().run(|| udp("0.0.0.0:0").send_to(b"x", (&*address, 5353)).unwrap());
    let flows = || {
        let listed = fixture.node().shell("grep dport=5353 /proc/net/nf_conntrack").unwrap();
        // Without the fields that change by themselves.
        let ends = |line: &str| {
            let ends =
                line.split_whitespace().filter(|word| word.contains("src=") || word.contains("dport="));
            ends.collect::<Vec<_>>().join(" ")
        };
        let mut flows: Vec<String> = listed.lines().map(ends).collect();
        flows.sort();
        flows
    };
    let before = flows();
    assert_eq!(before.len(), 3, "{before:?}");
    fixture.add("b", &at("192.0.2.3"));
    assert_eq!(flows(), before, "after ADD");
    let other = inside(&fixture, "b", || udp("0.0.0.0:80"));
    client.send_to(b"x", "192.0.2.3:5353").unwrap();
    other.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(flows().len(), 4);
    fixture.quiet("DEL", "b", &at("192.0.2.3"));
    assert_eq!(flows(), before, "after DEL");
    server.send_to(b"y", peer).unwrap();
    client.recv_from(&mut [0; 8]).unwrap();
    fixture.quiet("DEL", "a", &at("192.0.2.2"));
    assert_eq!(flows().len(), 2, "those that no port of the node has led anywhere stay");
}

/// The kernel lists no flows. The test fails the sockets of the lists, not their requests: the number of
/// earlier requests depends on how often ADD checks whether an IPv6 address is usable.
#[test]
fn add_and_del_succeed_if_conntrack_cannot_be_listed() {
    let fixture = Fixture::new();
    fixture.add("b", &with_ports(json!([])));
    fixture.netns("a");
    for command in ["ADD", "DEL"] {
        let call = |options: &str| {
            let plugin = traced(&fixture, &format!("-e trace=connect,sendto -o /run/trace {options}"));
            plugin.command(command, "a", Path::new("/run/netns/a"), &both(5353)).unwrap().unwrap();
            fixture.node().shell("cat /run/trace").unwrap()
        };
        let undo = if command == "ADD" { "DEL" } else { "ADD" };
        let trace = call("");
        let before = trace.split("IPCTNL_MSG_CT_GET").next().unwrap();
        assert!(before.len() < trace.len(), "{command} lists no flows: {trace}");
        let first = before.lines().filter(|line| line.starts_with("connect(")).count();
        fixture.try_call(undo, "a", "/run/netns/a", &both(5353)).unwrap();
        let trace = call(&format!("-e inject=connect:error=EINVAL:when={first}..{}", first + 1));
        assert!(trace.contains("(INJECTED)"), "{trace}");
        assert!(!trace.contains("IPCTNL_MSG_CT_GET"), "{trace}");
    }
    fixture.quiet("DEL", "b", &both(5353));
    fixture.assert_nothing_left();
}
