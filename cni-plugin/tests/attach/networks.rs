//! What a pod reaches through each of its interfaces, from the first packet on.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Fixture, addresses, config, merge};

fn bridged(name: &str, bridge: &str, number: u8) -> Value {
    let ranges =
        json!([[{ "subnet": format!("10.{number}.0.0/24") }], [{ "subnet": format!("fd00:{number}::/64") }]]);
    merge(
        config("1.1.0"),
        json!({ "name": name, "bridge": bridge, "isDefaultGateway": true, "ipam": { "ranges": ranges, "cooldown": 0 } }),
    )
}

fn routed() -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    merge(config("1.1.0"), json!({ "ipam": { "ranges": ranges, "cooldown": 0 } }))
}

fn call(fixture: &Fixture, command: &str, pod: &str, ifname: &str, config: &Value) -> Value {
    let netns = format!("/run/netns/{pod}");
    let variables =
        [("CNI_COMMAND", command), ("CNI_CONTAINERID", pod), ("CNI_NETNS", &netns), ("CNI_IFNAME", ifname)];
    fixture.plugin.call(&variables, &config.to_string()).unwrap().unwrap()
}

fn open(fixture: &Fixture, name: &str) -> netns::NetNs {
    fixture.node().netns(Path::new(&format!("/run/netns/{name}"))).unwrap()
}

#[test]
fn pod_on_two_bridges_answers_the_neighbours_of_each_directly() {
    let fixture = Fixture::new();
    let networks = [("eth0", bridged("one", "br0", 22)), ("eth1", bridged("two", "br1", 23))];
    for (pod, order) in [("forwards", [0, 1]), ("backwards", [1, 0])] {
        fixture.netns(pod);
        let given = order.map(|index| {
            let (ifname, config) = &networks[index];
            (index, addresses(&call(&fixture, "ADD", pod, ifname, config)))
        });
        for (index, own) in given {
            let (ifname, config) = &networks[index];
            let id = format!("{pod}-neighbour{index}");
            fixture.add(&id, config);
            // Removes the gateway.
            fixture.node().shell(&format!("ip address flush dev br{index} scope global")).unwrap();
            for address in own {
                fixture.node().shell(&format!("ip netns exec {id} ping -c1 -W2 {address}")).unwrap();
                let neighbour = if address.is_ipv4() {
                    format!("10.2{}.0.200", index + 2)
                } else {
                    format!("fd00:2{}::c8", index + 2)
                };
                let way = &fixture.json(&format!("ip -n {pod} -j route get {neighbour} from {address}"))[0];
                assert_eq!((&way["dev"], &way["gateway"]), (&json!(ifname), &Value::Null), "{pod}: {way}");
            }
        }
    }
}

#[test]
fn duplicate_default_route_counts_once_and_needs_no_routing_table() {
    let fixture = Fixture::new();
    let everywhere =
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }, { "dst": "0.0.0.0/0", "gw": "10.22.0.1" }]);
    for (id, mut config) in [("bridged", bridged("one", "br0", 22)), ("routed", routed())] {
        config["ipam"]["routes"] = everywhere.clone();
        if id == "routed" {
            config["ipam"]["routes"] =
                json!([{ "dst": "0.0.0.0/0" }, { "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        }
        let result = fixture.add(id, &config);
        let destinations: Vec<&Value> =
            result["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
        assert_eq!(destinations.len(), 2, "{result}");
        let rules = fixture.node().shell(&format!("ip -n {id} rule; ip -n {id} -6 rule")).unwrap();
        assert!(!rules.contains("lookup 70"), "{rules}");
        let defaults = fixture.node().shell(&format!("ip -n {id} route show default | wc -l")).unwrap();
        assert_eq!(defaults, "1\n");
        fixture.quiet("DEL", id, &config);
    }
}

#[test]
fn ipv6_is_enabled_on_our_interface_if_the_pod_has_it_disabled() {
    let fixture = Fixture::new();
    // The node sends from an address of its own.
    fixture.node().shell("ip address add fd00:1::2/64 dev uplink0 nodad").unwrap();
    for (id, config) in [("routed", routed()), ("bridged", bridged("one", "br0", 23))] {
        fixture.netns(id);
        let disable = "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
        fixture.node().shell(&format!("ip netns exec {id} sysctl -qw {disable}")).unwrap();
        let result = fixture.try_call("ADD", id, &format!("/run/netns/{id}"), &config).unwrap();
        for address in addresses(&result) {
            fixture.node().shell(&format!("ping -c1 -W2 {address}")).unwrap();
        }
        let rules = fixture.node().shell(&format!("ip -n {id} rule; ip -n {id} -6 rule")).unwrap();
        assert!(!rules.contains("lookup 70"), "{rules}");
        fixture.quiet("CHECK", id, &merge(config.clone(), json!({ "prevResult": result })));
        fixture.quiet("DEL", id, &config);
        // A pod without an IPv6 address is not changed.
        let v4 = format!("{id}-v4");
        fixture.netns(&v4);
        fixture.node().shell(&format!("ip netns exec {v4} sysctl -qw {disable}")).unwrap();
        let mut only = config;
        only["ipam"]["ranges"].as_array_mut().unwrap().pop();
        fixture.try_call("ADD", &v4, &format!("/run/netns/{v4}"), &only).unwrap();
        let value = format!("ip netns exec {v4} sysctl -n net.ipv6.conf.eth0.disable_ipv6");
        assert_eq!(fixture.node().shell(&value).unwrap(), "1\n");
    }
}

#[test]
fn neighbours_on_a_bridge_learn_the_new_mac_address_of_a_reused_address() {
    let fixture = Fixture::new();
    let config = bridged("one", "br0", 22);
    fixture.add("other", &config);
    let fixed = merge(config.clone(), json!({ "runtimeConfig": { "ips": ["10.22.0.77", "fd00:22::77"] } }));
    let mut macs = Vec::new();
    for round in 0..3 {
        let id = format!("pod{round}");
        let result = fixture.add(&id, &fixed);
        let mac = result["interfaces"][2]["mac"].as_str().unwrap().to_owned();
        for address in addresses(&result) {
            for (who, dev, exec) in [("-n other", "eth0", "ip netns exec other"), ("", "br0", "")] {
                if round > 0 {
                    let entry = fixture.json(&format!("ip {who} -j neigh show {address} dev {dev}"));
                    assert_eq!(entry[0]["lladdr"], *mac, "{who} {address}: {entry}");
                }
                fixture.node().shell(&format!("{exec} ping -c1 -W1 {address}")).unwrap();
            }
        }
        // The announcement leaves no neighbour entry.
        let own = fixture
            .node()
            .shell(&format!("ip -n {id} neigh | grep -e 10.22.0.77 -e 22::77 || true"))
            .unwrap();
        assert_eq!(own, "");
        assert!(!macs.contains(&mac));
        macs.push(mac);
        fixture.quiet("DEL", &id, &fixed);
    }
}

/// Sends one datagram, which is not repeated if it is lost.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    to.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    from.send_to(b"x", to.local_addr().unwrap()).unwrap();
    to.recv(&mut [0]).is_ok()
}

#[test]
fn first_packet_after_add_arrives_in_both_directions_and_families() {
    let fixture = Fixture::new();
    fixture.node().shell("ip address add fd00:1::2/64 dev uplink0 nodad").unwrap();
    let mut lost = Vec::new();
    for round in 0..40 {
        let id = format!("pod{round}");
        let config = if round % 2 == 0 { routed() } else { bridged("one", "br0", 23) };
        let netns = fixture.netns(&id);
        let inside = open(&fixture, &id);
        let result = fixture.try_call("ADD", &id, netns.to_str().unwrap(), &config).unwrap();
        for own in addresses(&result) {
            let node: IpAddr = if own.is_ipv4() { "192.0.2.2" } else { "fd00:1::2" }.parse().unwrap();
            // With the first pod of a bridge both ends have to resolve each other.
            let pod = inside.run(|| UdpSocket::bind(SocketAddr::new(own, 0)).unwrap()).unwrap();
            let node = fixture.node().run(|| UdpSocket::bind(SocketAddr::new(node, 0)).unwrap());
            for (direction, from, to) in [("to", &node, &pod), ("from", &pod, &node)] {
                if !arrives(from, to) {
                    lost.push(format!("{direction} {own} ({})", config["name"]));
                }
            }
        }
        fixture.quiet("DEL", &id, &config);
        fixture.node().shell("ip link del br0 2>/dev/null || true").unwrap();
    }
    assert_eq!(lost, Vec::<String>::new());
}
