//! IPv6, dual stack, and pods with two networks.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, addresses, config, merge};
use crate::killed::traced;

fn dual() -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    merge(config("1.1.0"), json!({ "ipam": { "ranges": ranges } }))
}

fn v6(prefix: &str) -> Value {
    merge(config("1.1.0"), json!({ "ipam": { "ranges": [[{ "subnet": prefix }]] } }))
}

/// The client address that a listener in `to` sees when `from` connects to it.
fn seen_by(to: &netns::NetNs, listen: SocketAddr, from: &netns::NetNs) -> IpAddr {
    let listener = to.run(|| TcpListener::bind(listen).unwrap()).unwrap();
    let mut client =
        from.run(|| TcpStream::connect_timeout(&listen, Duration::from_secs(5)).unwrap()).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    peer.ip()
}

fn open(fixture: &Fixture, name: &str) -> netns::NetNs {
    fixture.node().netns(Path::new(&format!("/run/netns/{name}"))).unwrap()
}

/// P20
#[test]
fn dual_stack_pod_can_use_both_addresses_at_once() {
    let fixture = Fixture::new();
    let a = fixture.add("a", &dual());
    // Within the second that duplicate address detection would take.
    let shown = fixture.json("ip -n a -j -6 address show dev eth0 scope global");
    assert_eq!(shown[0]["addr_info"][0]["local"], addresses(&a)[1].to_string());
    assert!(shown[0]["addr_info"][0]["tentative"].is_null(), "{shown}");
    let b = fixture.add("b", &dual());
    for (own, other) in addresses(&a).into_iter().zip(addresses(&b)) {
        assert_eq!(seen_by(&open(&fixture, "b"), SocketAddr::new(other, 7777), &open(&fixture, "a")), own);
    }
    let gateways: Vec<_> = a["ips"].as_array().unwrap().iter().map(|ip| ip["gateway"].clone()).collect();
    assert_eq!(gateways, ["169.254.1.1", "fe80::1"]);
    for version in ["0.3.1", "0.4.0"] {
        let old = fixture.add(&version.replace('.', "-"), &merge(dual(), json!({ "cniVersion": version })));
        let families: Vec<_> =
            old["ips"].as_array().unwrap().iter().map(|ip| ip["version"].clone()).collect();
        assert_eq!(families, ["4", "6"]);
    }
    let config = merge(dual(), json!({ "prevResult": a }));
    fixture.quiet("CHECK", "a", &config);
    let refused = || fixture.refused("CHECK", "a", "/run/netns/a", &config).1;
    fixture.node().shell("ip -n a -6 route del default").unwrap();
    assert!(refused().contains("route to ::/0 is missing"), "{}", refused());
    fixture.node().shell("ip -n a -6 neigh del fe80::1 dev eth0").unwrap();
    assert!(refused().contains("has lost its entry for the gateway fe80::1"), "{}", refused());
    for id in ["a", "b", "0-3-1", "0-4-0"] {
        fixture.quiet("DEL", id, &dual());
    }
    fixture.assert_nothing_left();
    assert_eq!(fixture.node().shell("ip -6 route | grep fd00:22 || true").unwrap(), "");
}

/// Whenever an interface with IPv6 comes up, the kernel walks every IPv6 route, so each route slows down the
/// ADD of every pod.
#[test]
fn pod_adds_only_the_necessary_ipv6_routes_to_the_node() {
    let fixture = Fixture::new();
    let limits = json!({ "runtimeConfig": { "bandwidth": { "egressRate": 8_000_000 } } });
    let ranges = json!([[{ "subnet": "10.23.0.0/24" }], [{ "subnet": "fd00:23::/64" }]]);
    let bridge =
        json!({ "name": "bridged", "bridge": "br0", "isDefaultGateway": true, "ipam": { "ranges": ranges } });
    for (id, config, expected) in [
        ("ipv4", merge(config("1.1.0"), limits), json!([])),
        ("dual", dual(), json!(["fd00:22::1", "multicast"])),
        ("port", merge(dual(), bridge), json!([])),
    ] {
        fixture.add(id, &config);
        let routes = fixture.json("ip -j -6 route show table all");
        let of_pod = |route: &&Value| route["dev"].as_str().is_some_and(|dev| dev.starts_with("pt"));
        let destination = |route: &Value| match &route["type"] {
            Value::String(kind) => json!(kind),
            _ => route["dst"].clone(),
        };
        let routes: Value = routes.as_array().unwrap().iter().filter(of_pod).map(destination).collect();
        assert_eq!(routes, expected, "{id}");
        fixture.quiet("DEL", id, &config);
    }
}

/// P20
#[test]
fn ipv6_only_pod_works_with_and_without_masquerading() {
    let fixture = Fixture::new();
    fixture
        .node()
        .shell("ip address add fd00:1::2/64 dev uplink0 nodad && ip route add default via fd00:1::1")
        .unwrap();
    let outside = fixture.node().outside();
    let set = |command: &'static str| {
        let shell = || std::process::Command::new("sh").args(["-ec", command]).status().unwrap().success();
        assert!(outside.run(shell).unwrap(), "{command}");
    };
    set("ip address add fd00:1::1/64 dev uplink nodad && ip route add fd00:33::/64 via fd00:1::2");
    let listen: SocketAddr = "[fd00:1::1]:7777".parse().unwrap();
    fixture.add("a", &v6("fd00:22::/64"));
    assert_eq!(seen_by(outside, listen, &open(&fixture, "a")).to_string(), "fd00:1::2");
    let own = merge(v6("fd00:33::/64"), json!({ "name": "own", "ipMasq": false }));
    let b = fixture.add("b", &own);
    assert_eq!(seen_by(outside, listen, &open(&fixture, "b")), addresses(&b)[0]);
    let except = merge(v6("fd00:33::/64"), json!({ "name": "own", "nonMasqueradeCIDRs": ["fd00:1::/64"] }));
    let c = fixture.add("c", &except);
    assert_eq!(seen_by(outside, listen, &open(&fixture, "c")), addresses(&c)[0]);
}

#[test]
fn pod_cannot_send_from_a_foreign_address() {
    let fixture = Fixture::new();
    let a = address(&fixture.add("a", &config("1.1.0")));
    let b = address(&fixture.add("b", &config("1.1.0")));
    fixture.node().shell("ip -n a address add 10.22.0.200/32 dev eth0").unwrap();
    let receiver = open(&fixture, "b").run(|| UdpSocket::bind((b.as_str(), 7777)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = |from: &str| {
        let bind = || UdpSocket::bind((from, 0)).unwrap();
        let sender = open(&fixture, "a").run(bind).unwrap();
        sender.send_to(from.as_bytes(), (b.as_str(), 7777)).unwrap();
    };
    // What is sent after the spoofed packet arrives; the spoofed packet does not.
    send("10.22.0.200");
    send(&a);
    let mut bytes = [0; 64];
    let length = receiver.recv(&mut bytes).unwrap();
    assert_eq!(std::str::from_utf8(&bytes[..length]).unwrap(), a);
}

#[test]
fn eth0_has_the_default_route_in_any_order_of_attachment_and_each_interface_answers_itself() {
    let fixture = Fixture::new();
    let ranges = json!([[{ "subnet": "10.23.0.0/24" }], [{ "subnet": "fd00:23::/64" }]]);
    let other = merge(dual(), json!({ "name": "other", "ipam": { "ranges": ranges, "cooldown": 0 } }));
    let networks = [("eth0", dual()), ("eth1", other)];
    // The node sends from an address of its own.
    fixture.node().shell("ip address add fd00:1::2/64 dev uplink0 nodad").unwrap();
    let call = |command: &str, pod: &str, (ifname, config): &(&str, Value)| {
        let netns = format!("/run/netns/{pod}");
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", pod),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", ifname),
        ];
        fixture.plugin.call(&variables, &config.to_string()).unwrap().unwrap()
    };
    for (pod, order) in [("forwards", [0, 1]), ("backwards", [1, 0])] {
        fixture.netns(pod);
        let given = order.map(|index| call("ADD", pod, &networks[index]));
        for family in ["-4", "-6"] {
            let anywhere = if family == "-4" { "198.51.100.1" } else { "2001:db8:5::1" };
            let way = fixture.json(&format!("ip -n {pod} -j {family} route get {anywhere}"));
            assert_eq!(way[0]["dev"], "eth0", "{pod} {family}: {way}");
        }
        for address in given.iter().flat_map(addresses) {
            fixture.node().shell(&format!("ping -c1 -W2 {address}")).unwrap();
        }
        // Without the first network, the default route is that of the second one.
        call("DEL", pod, &networks[0]);
        let way = fixture.json(&format!("ip -n {pod} -j route get 198.51.100.1"));
        assert_eq!(way[0]["dev"], "eth1", "{pod}: {way}");
        call("DEL", pod, &networks[1]);
    }
    fixture.assert_nothing_left();
}

/// Sends a router advertisement (RFC 4861 §4.2) with a lifetime of half an hour. The kernel fills in the
/// checksum.
const ADVERTISE: &str = "import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex('eth0'))
s.sendto(struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0), ('ff02::1', 0))";

#[test]
fn pod_does_not_become_the_router_of_the_node() {
    let fixture = Fixture::new();
    // As on a node that forwards and still accepts router advertisements.
    fixture.node().shell("echo 2 > /proc/sys/net/ipv6/conf/default/accept_ra").unwrap();
    fixture.add("a", &dual());
    // The node ignores advertisements until the pod's link-local address is usable.
    fixture.node().shell("for n in $(seq 100); do ip -n a -6 address show dev eth0 | grep -q tentative || break; sleep 0.1; done").unwrap();
    let advertise = || fixture.node().shell(&format!("ip netns exec a python3 -c \"{ADVERTISE}\"")).unwrap();
    let routes = || fixture.node().shell("sleep 0.3; ip -6 route show default | grep ptl || true").unwrap();
    advertise();
    assert_eq!(routes(), "");
    // Without the rules the node accepts it.
    fixture.node().shell("nft flush chain inet portolan own-addresses").unwrap();
    advertise();
    assert!(routes().contains("proto ra"), "{}", routes());
}

/// Counts netlink and nfnetlink requests. Waits for kernel workers repeat a request after each sleep.
#[test]
fn add_beside_another_pod_sends_nine_requests_and_one_more_for_the_second_family() {
    let fixture = Fixture::new();
    fixture.netns("a");
    let v4 = json!({ "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24" }]] } });
    let both =
        json!({ "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }], [{ "subnet": "fd00:23::/64" }]] } });
    for (number, (ipam, requests)) in [(v4, 9), (both, 10)].into_iter().enumerate() {
        let config = merge(config("1.1.0"), merge(ipam, json!({ "name": format!("pods{number}") })));
        fixture.add(&format!("beside{number}"), &config);
        let plugin = traced(&fixture, "-e trace=sendto,clock_nanosleep -o /run/trace");
        plugin.command("ADD", "a", Path::new("/run/netns/a"), &config).unwrap().unwrap();
        let trace = fixture.node().shell("cat /run/trace").unwrap();
        let count = |call: &str| trace.lines().filter(|line| line.starts_with(call)).count();
        assert_eq!(count("sendto(") - count("clock_nanosleep("), requests, "{trace}");
        fixture.quiet("DEL", "a", &config);
    }
}
