//! Mode `bridge`: compared with the reference plugin `bridge` under the same configuration, and its own
//! features.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::{Fixture, address, addresses, config, merge};

const TIMEOUT: Duration = Duration::from_secs(3);

/// A plugin of a conflist as users have it, except for its type.
fn reference(patch: Value) -> Value {
    let ipam = json!({
        "type": "host-local", "dataDir": "/run/host-local", "ranges": [[{ "subnet": "10.22.0.0/24" }]],
    });
    merge(
        json!({ "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "br0", "ipam": ipam }),
        patch,
    )
}

/// Both families, with the built-in IPAM.
fn bridged(patch: Value) -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    let base = json!({
        "mode": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true,
        "ipam": { "ranges": ranges, "cooldown": 0 },
    });
    merge(merge(config("1.1.0"), base), patch)
}

fn open(fixture: &Fixture, name: &str) -> netns::NetNs {
    fixture.node().netns(Path::new(&format!("/run/netns/{name}"))).unwrap()
}

/// The client address that a listener in `to` sees when `from` connects to it; `None` if `from` cannot
/// connect.
fn seen_by(to: &netns::NetNs, listen: SocketAddr, from: &netns::NetNs) -> Option<IpAddr> {
    let listener = to.run(|| TcpListener::bind(listen).unwrap()).unwrap();
    let mut client = from.run(|| TcpStream::connect_timeout(&listen, TIMEOUT).ok()).unwrap()?;
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    Some(peer.ip())
}

/// Only these fields. Random values (MAC addresses, indexes) are left out.
fn fields(items: &Value, names: &[&str]) -> Vec<Value> {
    let of = |item: &Value| names.iter().map(|name| ((*name).to_owned(), item[name].clone())).collect();
    items.as_array().unwrap().iter().map(|item| Value::Object(of(item))).collect()
}

/// What ADD of a plugin created, without random values.
fn made(fixture: &Fixture, binary: &Path, config: &Value) -> Value {
    let netns = fixture.netns("a");
    let plugin = Plugin { binary: binary.into(), node: fixture.node().clone() };
    let mut result = plugin.command("ADD", "a", &netns, config).unwrap().unwrap();
    let host = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    for interface in result["interfaces"].as_array_mut().unwrap() {
        interface.as_object_mut().unwrap().remove("mac");
        // An empty string and an absent field mean the same.
        if interface["sandbox"] == "" {
            interface.as_object_mut().unwrap().remove("sandbox");
        }
    }
    result["interfaces"][1]["name"] = "HOST".into();
    for key in ["ips", "routes"] {
        if result[key] == json!([]) {
            result.as_object_mut().unwrap().remove(key);
        }
    }
    let addresses = |of: &str| {
        let shown = fixture.json(&format!("ip {of}"));
        let global: Vec<Value> = shown[0]["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|a| a["scope"] != "link")
            .cloned()
            .collect();
        let link = fields(&shown, &["mtu", "operstate", "flags"]);
        json!({
            "link": link,
            "addresses": fields(&global.into(), &["family", "local", "prefixlen", "broadcast", "scope"]),
        })
    };
    let routes = |of: &str| {
        let shown = fixture.json(&format!("ip {of}"));
        let mut shown = fields(&shown, &["dst", "gateway", "dev", "scope", "prefsrc", "metric", "type"]);
        shown.retain(|route| {
            route["dst"] != "fe80::/64" && route["dst"] != "multicast" && route["type"] != "multicast"
        });
        shown
    };
    let port = fixture.json(&format!("ip -j -d link show dev {host}"));
    let data = &port[0]["linkinfo"]["info_slave_data"];
    let forwarding = fixture
        .node()
        .shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
        .unwrap();
    json!({
        "result": result,
        "pod": addresses("-n a -j address show dev eth0"),
        "pod routes": [routes("-n a -j route"), routes("-n a -j -6 route")],
        "bridge": addresses("-j address show dev br0"),
        "node routes": routes("-j route show dev br0"),
        "port": [port[0]["master"], data["hairpin"], data["isolated"], data["state"], data["learning"]],
        "promiscuous": fixture.json("ip -j -d link show dev br0")[0]["flags"]
            .as_array().unwrap().contains(&json!("PROMISC")),
        "forwarding": forwarding,
    })
}

#[test]
fn bridge_and_host_local_configuration_gives_the_same_result_when_only_the_type_changes() {
    let dual = json!({
        "type": "host-local", "dataDir": "/run/host-local",
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        "ranges": [[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]] });
    let far = json!({
        "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9",
        "gateway": "10.22.0.254", "routes": [{ "dst": "10.99.0.0/16" }, { "dst": "10.98.0.0/16", "gw": "10.22.0.3" }] });
    let outside = json!({
        "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.22.0.0/24", "gateway": "10.99.0.1",
    });
    for patch in [
        json!({ "isGateway": true, "ipMasq": true, "ipam": dual }),
        json!({ "isDefaultGateway": true, "hairpinMode": true, "dns": { "nameservers": ["10.96.0.10"] } }),
        json!({ "isGateway": true, "promiscMode": true, "mtu": 1400, "ipam": far }),
        json!({ "isGateway": false }),
        json!({ "ipam": {} }),
        json!({ "isGateway": null, "mtu": null, "vlan": null, "dns": { "options": null, "nameservers": ["10.96.0.10"] } }),
        json!({ "isGateway": true, "ipam": outside }),
    ] {
        let reference = reference(patch);
        let ours = merge(reference.clone(), json!({ "type": "portolan-cni" }));
        let theirs = Fixture::new();
        // It runs iptables.
        let script = "printf '#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin exec /usr/lib/cni/bridge\n' \
                  > /run/bridge; chmod +x /run/bridge";
        theirs.node().shell(script).unwrap();
        let theirs = made(&theirs, Path::new("/run/bridge"), &reference);
        let fixture = Fixture::new();
        let made = made(&fixture, &fixture.plugin.binary, &ours);
        assert_eq!(made, theirs, "{reference:#}");
        fixture.quiet("DEL", "a", &ours);
        assert_eq!(
            fixture
                .node()
                .shell(
                    "ls /run/host-local/pods 2>/dev/null | grep 10.22 || true; ip -o link | grep ptl || true"
                )
                .unwrap(),
            ""
        );
    }
}

#[test]
fn bridged_dual_stack_pods_reach_each_other_the_node_and_the_outside() {
    let fixture = Fixture::new();
    fixture
        .node()
        .shell("ip address add fd00:1::2/64 dev uplink0 nodad && ip route add default via fd00:1::1")
        .unwrap();
    let outside = fixture.node().outside();
    let command = "ip address add fd00:1::1/64 dev uplink nodad";
    outside.run(|| std::process::Command::new("sh").args(["-ec", command]).status().unwrap()).unwrap();
    let (a, b) = (fixture.add("a", &bridged(json!({}))), fixture.add("b", &bridged(json!({}))));
    // At once: no address waits for duplicate address detection, the bridge forwards already.
    let (pod_a, pod_b) = (open(&fixture, "a"), open(&fixture, "b"));
    for (own, other) in addresses(&a).into_iter().zip(addresses(&b)) {
        assert_eq!(seen_by(&pod_b, SocketAddr::new(other, 7777), &pod_a), Some(own), "pod to pod");
        fixture.node().shell(&format!("ping -c1 -W2 {other}")).unwrap();
    }
    for (listen, seen) in [("192.0.2.1:7777", "192.0.2.2"), ("[fd00:1::1]:7777", "fd00:1::2")] {
        let own = fixture.node().netns(Path::new("/run/netns/a")).unwrap();
        assert_eq!(seen_by(outside, listen.parse().unwrap(), &own).unwrap().to_string(), seen);
    }
    let names: Vec<&Value> = a["interfaces"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
    assert_eq!(*names[0], "br0");
    assert_eq!((names[1].as_str().unwrap().starts_with("ptl"), names[2]), (true, &json!("eth0")));
    let gateways: Vec<&Value> = a["ips"].as_array().unwrap().iter().map(|ip| &ip["gateway"]).collect();
    assert_eq!(gateways, ["10.22.0.1", "fd00:22::1"]);
    // The bridge's MAC address does not change when pods are added and deleted.
    let mac = || fixture.json("ip -j link show dev br0")[0]["address"].clone();
    let before = mac();
    assert_eq!(before, a["interfaces"][0]["mac"]);
    fixture.quiet("DEL", "a", &bridged(json!({})));
    assert_eq!(mac(), before);
    // The node accepts no default route from a pod.
    assert_eq!(fixture.node().shell("cat /proc/sys/net/ipv6/conf/br0/accept_ra").unwrap(), "0\n");
    fixture.quiet("DEL", "b", &bridged(json!({})));
    let no_attachments = merge(bridged(json!({})), json!({ "cni.dev/valid-attachments": [] }));
    fixture.quiet("GC", "x", &no_attachments);
    fixture.assert_nothing_left();
    assert_eq!(
        fixture.node().shell("ip -o link show type bridge; ip -6 route | grep fd00:22 || true").unwrap(),
        ""
    );
}

#[test]
fn a_port_of_the_node_leads_to_a_bridged_pod_from_everywhere() {
    let fixture = Fixture::new();
    // By the node's port a pod reaches itself only if its port of the bridge may send back.
    let ports = json!({ "hairpinMode": true, "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } });
    fixture.add("a", &bridged(ports.clone()));
    fixture.add("b", &bridged(json!({})));
    let listener = open(&fixture, "a").run(|| TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| _ = stream.unwrap().write_all(b"a")));
    let ask = |address: &'static str| {
        move || {
            let stream = TcpStream::connect_timeout(&address.parse().unwrap(), TIMEOUT);
            stream.is_ok_and(|mut stream| stream.read_exact(&mut [0]).is_ok())
        }
    };
    assert!(fixture.node().outside().run(ask("192.0.2.2:8080")).unwrap(), "from outside");
    for pod in ["a", "b"] {
        assert!(open(&fixture, pod).run(ask("192.0.2.2:8080")).unwrap(), "from {pod}");
    }
    assert!(
        fixture.node().run(ask("192.0.2.2:8080")) && fixture.node().run(ask("127.0.0.1:8080")),
        "from the node"
    );
    // … and what the node has for itself on localhost stays its own.
    let own = fixture.node().run(|| TcpListener::bind("127.0.0.1:9999").unwrap());
    fixture.node().shell("ip -n b route add 127.0.0.0/8 via 10.22.0.1 dev eth0 table local; ip netns exec b sysctl -qw net.ipv4.conf.all.route_localnet=1").unwrap();
    assert!(!open(&fixture, "b").run(ask("127.0.0.1:9999")).unwrap());
    own.set_nonblocking(true).unwrap();
    assert!(own.accept().is_err());
    // The second pod with host ports keeps them when those of the first are removed.
    let other = json!({ "runtimeConfig": {
        "portMappings": [{ "hostPort": 8081, "containerPort": 80, "protocol": "tcp" }],
    } });
    fixture.add("c", &bridged(other.clone()));
    let listener = open(&fixture, "c").run(|| TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| _ = stream.unwrap().write_all(b"c")));
    fixture.quiet("DEL", "a", &bridged(ports));
    assert!(open(&fixture, "b").run(ask("192.0.2.2:8081")).unwrap());
    assert!(!fixture.node().outside().run(ask("192.0.2.2:8080")).unwrap());
    fixture.quiet("DEL", "c", &bridged(other));
}

#[test]
fn macspoofchk_drops_frames_from_other_mac_addresses_and_check_reports_its_loss() {
    let fixture = Fixture::new();
    let guarded = bridged(json!({ "macspoofchk": true }));
    let a = fixture.add("a", &guarded);
    let free = merge(
        bridged(json!({})),
        json!({
            "name": "free",
            "ipam": { "ranges": [[{ "subnet": "10.22.0.128/25", "gateway": "10.22.0.129" }]] },
            "isDefaultGateway": false, "isGateway": false,
        }),
    );
    fixture.add("b", &free);
    let ping = |pod: &str, to: &str| fixture.node().shell(&format!("ip netns exec {pod} ping -c1 -W1 {to}"));
    ping("a", "10.22.0.1").unwrap();
    let checked = merge(guarded.clone(), json!({ "prevResult": a }));
    fixture.quiet("CHECK", "a", &checked);
    let disguise = "link set dev eth0 down; ip -n POD link set dev eth0 address 02:00:00:00:00:77; \
                    ip -n POD link set dev eth0 up";
    for pod in ["a", "b"] {
        fixture.node().shell(&format!("ip -n POD {disguise}").replace("POD", pod)).unwrap();
    }
    fixture.node().shell("ip -n b route add default dev eth0").unwrap();
    ping("a", "10.22.0.1").unwrap_err();
    // A network without macspoofchk is not restricted.
    ping("b", "10.22.0.1").unwrap();
    let d = merge(guarded.clone(), json!({ "prevResult": fixture.add("d", &guarded) }));
    fixture.quiet("CHECK", "d", &d);
    fixture.node().shell("nft flush set bridge portolan guarded").unwrap();
    let (_, text) = fixture.refused("CHECK", "d", "/run/netns/d", &d);
    assert!(text.contains("macspoofchk"), "{text}");
    // After a flush the next ADD restores it for all pods.
    fixture.node().shell("nft flush ruleset").unwrap();
    let c = fixture.add("c", &guarded);
    fixture.quiet("CHECK", "c", &merge(guarded.clone(), json!({ "prevResult": c })));
    ping("a", "10.22.0.1").unwrap_err();
    for id in ["a", "c", "d"] {
        fixture.quiet("DEL", id, &guarded);
    }
    let listed = |what: &str| fixture.node().shell(&format!("nft list {what} || true")).unwrap();
    assert_eq!(listed("table bridge portolan | grep elements"), "");
    // The table stays for the next pod. It is removed with the network.
    fixture.quiet("GC", "x", &merge(guarded, json!({ "cni.dev/valid-attachments": [] })));
    assert_eq!(listed("tables | grep bridge"), "");
    fixture.quiet("DEL", "b", &free);
}

#[test]
fn different_address_of_the_bridge_is_refused_or_replaced_with_force_address() {
    let fixture = Fixture::new();
    fixture.node().shell("ip link add br0 type bridge; ip address add 10.99.0.1/16 dev br0").unwrap();
    fixture.netns("a");
    let (_, text) = fixture.refused("ADD", "a", "/run/netns/a", &bridged(json!({})));
    assert!(
        text.contains("bridge br0 has 10.99.0.1/16 and not 10.22.0.1/24") && text.contains("forceAddress"),
        "{text}"
    );
    let own = "ip -o -4 address show dev br0 | grep -o '10[^ ]*/[0-9]*'";
    assert_eq!(fixture.node().shell(own).unwrap(), "10.99.0.1/16\n");
    assert_eq!(
        fixture.node().shell("ip -o link | grep -c ptl || true; ls /run/portolan/ipam/pods/owners").unwrap(),
        "0\n"
    );
    fixture.add("b", &bridged(json!({ "forceAddress": true })));
    assert_eq!(fixture.node().shell(own).unwrap(), "10.22.0.1/24\n");
    // IPv6 subnets that do not overlap coexist.
    fixture.node().shell("ip address add fd00:77::1/64 dev br0 nodad").unwrap();
    fixture.add("c", &bridged(json!({})));
    assert!(fixture.node().shell("ip -6 address show dev br0").unwrap().contains("fd00:77::1"));
    // The plugin did not create the bridge, so it stays.
    for id in ["b", "c"] {
        fixture.quiet("DEL", id, &bridged(json!({})));
    }
    fixture.quiet("GC", "x", &merge(bridged(json!({})), json!({ "cni.dev/valid-attachments": [] })));
    fixture.node().shell("ip link show dev br0").unwrap();
    // An interface of that name that is not a bridge is an error.
    fixture.node().shell("ip link add other type veth peer name other0").unwrap();
    let (_, text) = fixture.refused("ADD", "a", "/run/netns/a", &bridged(json!({ "bridge": "other" })));
    assert!(text.contains("other is already there and is not a bridge"), "{text}");
}

#[test]
fn isolated_ports_reach_the_gateway_but_not_each_other() {
    let fixture = Fixture::new();
    let isolated = bridged(json!({ "portIsolation": true }));
    let (a, b) = (fixture.add("a", &isolated), fixture.add("b", &isolated));
    fixture.node().shell("ip netns exec a ping -c1 -W2 10.22.0.1").unwrap();
    fixture.node().shell(&format!("ip netns exec a ping -c1 -W1 {}", address(&b))).unwrap_err();
    let config = merge(isolated, json!({ "prevResult": a }));
    fixture.quiet("CHECK", "a", &config);
    let host = a["interfaces"][1]["name"].as_str().unwrap();
    fixture.node().shell(&format!("ip link set dev {host} type bridge_slave isolated off")).unwrap();
    assert!(fixture.refused("CHECK", "a", "/run/netns/a", &config).1.contains("portIsolation"));
}

#[test]
fn enabledad_refuses_an_address_that_another_host_has() {
    let fixture = Fixture::new();
    // The address that the pod will be assigned is on the bridge already.
    let add_duplicate = "ip link add br0 type bridge && ip link set br0 up && ip link add x0 \
        type veth peer name x1 && ip link set x0 master br0 up && ip netns add squatter && ip link set x1 netns squatter && \
        ip -n squatter link set x1 up && ip -n squatter address add fd00:22::2/64 dev x1 nodad";
    fixture.node().shell(add_duplicate).unwrap();
    fixture.netns("a");
    let (_, text) = fixture.refused("ADD", "a", "/run/netns/a", &bridged(json!({ "enabledad": true })));
    assert!(text.contains("another interface of the bridge has fd00:22::2"), "{text}");
    fixture.node().shell("ip netns del squatter").unwrap();
    let result =
        fixture.try_call("ADD", "a", "/run/netns/a", &bridged(json!({ "enabledad": true }))).unwrap();
    let shown = fixture.json("ip -n a -j -6 address show dev eth0 scope global");
    assert_eq!(shown[0]["addr_info"][0]["local"], addresses(&result)[1].to_string());
    assert!(
        shown[0]["addr_info"][0]["tentative"].is_null() && shown[0]["addr_info"][0]["nodad"].is_null(),
        "{shown}"
    );
}

#[test]
fn disabled_interface_stays_down_without_addresses() {
    let fixture = Fixture::new();
    let disabled =
        bridged(json!({ "disableContainerInterface": true, "ipam": {}, "isDefaultGateway": false }));
    let result = fixture.add("a", &disabled);
    assert_eq!(result["ips"], json!([]));
    let link = &fixture.json("ip -n a -j address show dev eth0")[0];
    assert_eq!((&link["operstate"], &link["addr_info"]), (&json!("DOWN"), &json!([])));
    fixture.quiet("CHECK", "a", &merge(disabled.clone(), json!({ "prevResult": result })));
    fixture.quiet("DEL", "a", &disabled);
    fixture.netns("b");
    let with_ipam = bridged(json!({ "disableContainerInterface": true }));
    assert_eq!(fixture.refused("ADD", "b", "/run/netns/b", &with_ipam).0, 7);
}

#[test]
fn vlans_are_refused_without_kernel_support_for_vlan_filtering() {
    let fixture = Fixture::new();
    fixture.netns("a");
    for (patch, key) in [
        (json!({ "vlan": 100 }), "vlan: 100"),
        (json!({ "vlanTrunk": [{ "id": 101 }, { "minID": 200, "maxID": 210 }] }), "vlanTrunk: "),
    ] {
        let (code, text) = fixture.refused("ADD", "a", "/run/netns/a", &bridged(patch));
        assert_eq!(code, 7);
        assert!(text.contains(key) && text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{text}");
        assert!(text.contains("use a bridge for each VLAN"), "{text}");
    }
    assert_eq!(
        fixture.node().shell("ip -o link | grep -c ptl || true; ls /run/portolan/ipam/pods/owners").unwrap(),
        "0\n"
    );
    // `vlan: 0` means none, as with the reference plugin.
    fixture.try_call("ADD", "a", "/run/netns/a", &bridged(json!({ "vlan": 0 }))).unwrap();
}

/// P34
#[test]
fn check_of_a_bridged_pod_passes_after_add_and_reports_each_loss() {
    let fixture = Fixture::new();
    for (id, sabotage, expected) in [
        ("a", "ip -n a link set eth0 down", "eth0 is down"),
        ("b", "ip -n b address del ADDRESS/24 dev eth0", "has lost its address"),
        ("c", "ip -n c route del default", "route to 0.0.0.0/0 is missing"),
        ("d", "ip link del HOST", "is not there"),
        ("e", "ip link set dev HOST nomaster", "is not a port of bridge br0"),
        ("f", "nft delete element inet portolan pods-v4-pods '{ ADDRESS }'", "not masqueraded"),
        ("g", "rm /run/portolan/ipam/pods/owners/g-eth0", "no longer reserved"),
        ("h", "ip link set dev HOST type bridge_slave hairpin off", "hairpinMode"),
        ("i", "ip -n i -6 route del default", "route to ::/0 is missing"),
        ("j", "ip address del 10.22.0.1/24 dev br0", "has lost its address 10.22.0.1"),
        ("k", "ip link del br0", "interface br0 is not there"),
    ] {
        let config = bridged(json!({ "hairpinMode": true }));
        let result = fixture.add(id, &config);
        let config = merge(config, json!({ "prevResult": result }));
        fixture.quiet("CHECK", id, &config);
        // Additions of later plugins in the chain are ignored.
        fixture
            .node()
            .shell(&format!(
                "ip -n {id} address add 10.77.0.1/32 dev eth0 && ip -n {id} link set eth0 mtu 1400"
            ))
            .unwrap();
        fixture.quiet("CHECK", id, &config);
        let host = result["interfaces"][1]["name"].as_str().unwrap();
        fixture.node().shell(&sabotage.replace("HOST", host).replace("ADDRESS", &address(&result))).unwrap();
        let (_, text) = fixture.refused("CHECK", id, &format!("/run/netns/{id}"), &config);
        assert!(text.contains(expected), "{sabotage}: {text}");
        // P33: DEL succeeds without the bridge, the rule or the file.
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}

/// P36
#[test]
fn gc_of_a_bridged_network_keeps_listed_attachments_and_removes_the_bridge_last() {
    let fixture = Fixture::new();
    let config = bridged(json!({ "macspoofchk": true }));
    for id in ["a", "b"] {
        fixture.add(id, &config);
    }
    let keep_a = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    fixture.quiet("GC", "x", &merge(config.clone(), keep_a));
    assert_eq!(
        fixture
            .node()
            .shell("ip -o link | grep -c ptl; ip netns exec a ping -c1 -W2 10.22.0.1 >/dev/null")
            .unwrap(),
        "1\n"
    );
    // Without the state directory the aliases of the interfaces name the attachments.
    fixture.node().shell("rm -r /run/portolan/*").unwrap();
    fixture.quiet("GC", "x", &merge(config, json!({ "cni.dev/valid-attachments": [] })));
    assert_eq!(fixture.node().shell("ip -o link | grep -E 'ptl|br0' || true").unwrap(), "");
}
