//! Host ports that lead to pods.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Fixture, config, merge};

const TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) fn with_ports(mappings: Value) -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    merge(
        config("1.1.0"),
        json!({
            "ipam": { "ranges": ranges, "cooldown": 0 }, "runtimeConfig": { "portMappings": mappings },
        }),
    )
}

fn open(fixture: &Fixture, name: &str) -> netns::NetNs {
    fixture.node().netns(Path::new(&format!("/run/netns/{name}"))).unwrap()
}

/// Sends its name to every client that connects to port 80 of the pod.
fn serve(fixture: &Fixture, name: &'static str) {
    let listener = open(fixture, name).run(|| TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::io::Write::write_all(&mut stream.unwrap(), name.as_bytes()).ok();
        }
    });
}

fn ask(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut name = String::new();
    stream.read_to_string(&mut name).ok()?;
    Some(name)
}

#[test]
fn host_port_leads_to_the_pod_from_everywhere_until_del() {
    let fixture = Fixture::new();
    let config = with_ports(json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "TCP" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.2" },
    ]));
    fixture.node().shell("ip address add fd00:1::2/64 dev uplink0 nodad").unwrap();
    let outside = fixture.node().outside();
    let command = "ip address add fd00:1::1/64 dev uplink nodad";
    outside.run(|| std::process::Command::new("sh").args(["-ec", command]).status().unwrap()).unwrap();
    let checked = merge(config.clone(), json!({ "prevResult": fixture.add("a", &config) }));
    fixture.quiet("CHECK", "a", &checked);
    fixture.add("b", &with_ports(json!([])));
    serve(&fixture, "a");
    let name = Some("a".to_owned());
    for address in ["192.0.2.2:8080", "192.0.2.2:8081", "[fd00:1::2]:8080"] {
        assert_eq!(outside.run(|| ask(address)).unwrap(), name, "from outside: {address}");
        for pod in ["a", "b"] {
            assert_eq!(open(&fixture, pod).run(|| ask(address)).unwrap(), name, "from {pod}: {address}");
        }
        assert_eq!(fixture.node().run(|| ask(address)), name, "from the node: {address}");
    }
    assert_eq!(fixture.node().run(|| ask("127.0.0.1:8080")), name, "on localhost");
    assert_eq!(fixture.node().run(|| ask("127.0.0.1:8081")), None, "another address of the node");
    fixture.node().shell("nft delete element inet portolan ports-at-v4 { 192.0.2.2 . tcp . 8081 }").unwrap();
    let (_, lost) = fixture.refused("CHECK", "a", "/run/netns/a", &checked);
    assert!(lost.contains("port 8081/tcp of the node no longer leads to it"), "{lost}");
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.add("c", &with_ports(json!([])));
    assert_eq!(outside.run(|| ask("192.0.2.2:8080")).unwrap(), name, "after a flush");
    fixture.quiet("DEL", "a", &config);
    assert_eq!(outside.run(|| ask("192.0.2.2:8080")).unwrap(), None);
    for id in ["b", "c"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}

#[test]
fn host_port_has_one_holder_and_a_second_add_is_refused() {
    let fixture = Fixture::new();
    let port = |host_ip: &str, protocol: &str| {
        with_ports(
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": protocol, "hostIP": host_ip }]),
        )
    };
    fixture.add("a", &port("", "tcp"));
    let before = fixture.node().shell("nft list ruleset; find /run/portolan").unwrap();
    fixture.netns("b");
    for host_ip in ["", "0.0.0.0", "192.0.2.2", "::"] {
        let (_, text) = fixture.refused("ADD", "b", "/run/netns/b", &port(host_ip, "tcp"));
        assert!(text.contains("port 8080/tcp of the node is taken by container a"), "{host_ip}: {text}");
    }
    assert_eq!(fixture.node().shell("nft list ruleset; find /run/portolan").unwrap(), before);
    // Other protocols and other addresses do not conflict.
    fixture.add("udp", &port("", "udp"));
    fixture.quiet("DEL", "a", &port("", "tcp"));
    fixture.add("one", &port("192.0.2.2", "tcp"));
    fixture.add("localhost", &port("127.0.0.1", "tcp"));
}

#[test]
fn udp_flows_follow_the_host_port_to_the_next_pod() {
    let fixture = Fixture::new();
    let config = with_ports(json!([{ "hostPort": 5353, "containerPort": 80, "protocol": "udp" }]));
    let client = fixture.node().outside().run(|| UdpSocket::bind("192.0.2.1:4444").unwrap()).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let receive = |name: &str| {
        let server = open(&fixture, name).run(|| UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.send_to(b"x", "192.0.2.2:5353").unwrap();
        server.recv_from(&mut [0; 8]).map(|(_, peer)| peer.ip())
    };
    // Before any pod has the port, a flow begins that leads nowhere.
    client.send_to(b"x", "192.0.2.2:5353").unwrap();
    for name in ["a", "b"] {
        fixture.add(name, &config);
        let peer = receive(name).unwrap_or_else(|e| panic!("{name} got nothing: {e}"));
        assert_eq!(peer, "192.0.2.1".parse::<IpAddr>().unwrap());
        fixture.quiet("DEL", name, &config);
    }
}

/// The node tracks connections already, for other rules.
#[test]
fn udp_flows_from_before_the_first_pod_reach_it() {
    let fixture = Fixture::new();
    fixture.node().shell("nft 'add table x; add chain x y { type filter hook input priority 0; }; add rule x y ct state new accept'").unwrap();
    let client = fixture.node().outside().run(|| UdpSocket::bind("192.0.2.1:4444").unwrap()).unwrap();
    client.send_to(b"x", "192.0.2.2:5353").unwrap();
    let flows = "grep -c dport=5353 /proc/net/nf_conntrack || true";
    assert_eq!(fixture.node().shell(flows).unwrap(), "1\n");
    fixture.add("a", &with_ports(json!([{ "hostPort": 5353, "containerPort": 80, "protocol": "udp" }])));
    let server = open(&fixture, "a").run(|| UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
    server.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.send_to(b"x", "192.0.2.2:5353").unwrap();
    server.recv_from(&mut [0; 8]).unwrap();
}

#[test]
fn pods_do_not_reach_localhost_of_the_node() {
    let fixture = Fixture::new();
    let config = with_ports(json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]));
    fixture.add("a", &config);
    let listener = fixture.node().run(|| TcpListener::bind("127.0.0.1:9999").unwrap());
    fixture.node().shell("ip -n a route add 127.0.0.0/8 via 169.254.1.1 dev eth0 table local; ip netns exec a sysctl -qw net.ipv4.conf.all.route_localnet=1").unwrap();
    assert_eq!(open(&fixture, "a").run(|| ask("127.0.0.1:9999")).unwrap(), None);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}
