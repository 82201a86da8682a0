//! The requirements that need a container, P18 to P41.

use std::path::Path;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::{Fixture, address, config, merge, small};

/// P18, P19, P20
#[test]
fn result_has_the_format_of_the_requested_version_and_unknown_keys_are_ignored() {
    let fixture = Fixture::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let unknown =
            json!({ "x": 1, "cni.dev/x": [], "capabilities": { "x": true }, "args": { "cni": { "x": 1 } } });
        let id = format!("v{}", version.replace('.', ""));
        let result = fixture.add(&id, &merge(config(version), unknown));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"].is_string(), version.starts_with('0'), "{result}");
        assert_eq!(result["interfaces"][1]["mtu"].is_number(), version == "1.1.0", "{result}");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["interfaces"][1]["sandbox"], format!("/run/netns/{id}"));
        let pod = &fixture.json(&format!("ip -n {id} -j address show eth0"))[0];
        assert_eq!(pod["address"], result["interfaces"][1]["mac"]);
        assert_eq!(pod["operstate"], "UP");
        assert_eq!(pod["addr_info"][0]["local"], address(&result));
        assert_eq!(pod["addr_info"][0]["prefixlen"], 32);
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let route = &fixture.json(&format!("ip -j route get {}", address(&result)))[0];
        assert_eq!(route["dev"], host);
        fixture.quiet("DEL", &id, &config(version));
    }
    fixture.assert_nothing_left();
}

/// P10, P20
#[test]
fn oldest_versions_have_one_address_per_family_and_no_interfaces() {
    let fixture = Fixture::new();
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    let dual = merge(
        config("0.2.0"),
        json!({ "ipam": { "ranges": ranges }, "dns": { "nameservers": ["10.96.0.10"] } }),
    );
    let result = fixture.add("a", &dual);
    let expected = json!({
        "cniVersion": "0.2.0", "dns": { "nameservers": ["10.96.0.10"] },
        "ip4": {
            "ip": "10.22.0.1/32", "gateway": "169.254.1.1",
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
        },
        "ip6": { "ip": "fd00:22::1/128", "gateway": "fe80::1", "routes": [{ "dst": "::/0", "gw": "fe80::1" }] },
    });
    assert_eq!(result, expected);
    let mut absent = config("0.1.0");
    absent.as_object_mut().unwrap().remove("cniVersion");
    let result = fixture.add("b", &absent);
    assert_eq!((&result["cniVersion"], &result["ip4"]["ip"]), (&json!("0.1.0"), &json!("10.22.0.2/32")));
    // The reference plugin host-local answers in that format too.
    let ipam = json!({
        "name": "other",
        "ipam": { "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.30.0.0/24" },
    });
    let other = merge(config("0.2.0"), ipam);
    assert_eq!(fixture.add("c", &other)["ip4"]["ip"], "10.30.0.2/32");
    for (id, config) in [("a", &dual), ("b", &absent), ("c", &other)] {
        fixture.quiet("DEL", id, config);
    }
    fixture.assert_nothing_left();
}

/// P21, P22
#[test]
fn second_add_is_refused_but_another_interface_of_the_container_is_not() {
    let fixture = Fixture::new();
    let first = fixture.add("a", &config("1.1.0"));
    let before = fixture.traces();
    let (_, text) = fixture.refused("ADD", "a", "/run/netns/a", &config("1.1.0"));
    assert!(text.contains("already"), "{text}");
    assert_eq!(fixture.traces(), before);
    let call = |command: &str| {
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "a"),
            ("CNI_NETNS", "/run/netns/a"),
            ("CNI_IFNAME", "eth1"),
        ];
        fixture.plugin.call(&variables, &merge(config("1.1.0"), json!({ "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24" }]], "routes": [{ "dst": "10.99.0.0/16" }] } })).to_string()).unwrap()
    };
    let second = call("ADD").unwrap();
    assert_ne!(address(&first), address(&second));
    call("DEL").unwrap();
    assert_eq!(fixture.traces(), before);
}

/// P23, P24
#[test]
fn add_leaves_existing_interfaces_and_files_unchanged() {
    let fixture = Fixture::new();
    fixture.netns("a");
    fixture.node().shell("ip -n a link add eth0 type veth peer name other").unwrap();
    assert!(
        fixture
            .refused("ADD", "a", "/run/netns/a", &config("1.1.0"))
            .1
            .contains("eth0 is already in the pod")
    );
    fixture.node().shell("ip -n a link show other && touch /run/plain").unwrap();
    for netns in ["/run/netns/none", "/run/plain", "/run", "/proc/self/ns/net", "/proc/self/ns/mnt"] {
        assert_eq!(fixture.refused("ADD", "b", netns, &config("1.1.0")).0, 3, "{netns}");
    }
    fixture.assert_nothing_left();
}

/// P25, P40
#[test]
fn exhausted_pool_fails_add_and_status_with_code_50() {
    let fixture = Fixture::new();
    let config = small("10.22.0.0/30");
    fixture.quiet("STATUS", "x", &config);
    let first = fixture.add("a", &config);
    let second = fixture.add("b", &config);
    assert_ne!(address(&first), address(&second));
    fixture.netns("c");
    assert_eq!(fixture.refused("ADD", "c", "/run/netns/c", &config).0, 50);
    assert_eq!(fixture.refused("STATUS", "x", "", &config).0, 50);
    fixture.quiet("DEL", "a", &config);
    fixture.quiet("STATUS", "x", &config);
    assert_eq!(address(&fixture.try_call("ADD", "c", "/run/netns/c", &config).unwrap()), address(&first));
}

/// P26
#[test]
fn add_that_fails_late_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.netns("a");
    // A gateway that the pod cannot reach: the kernel refuses the route after links and addresses were
    // created.
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }]]);
    let routes =
        json!({ "ipam": { "ranges": ranges, "routes": [{ "dst": "10.9.0.0/16", "gw": "10.8.0.1" }] } });
    let (code, text) = fixture.refused("ADD", "a", "/run/netns/a", &merge(config("1.1.0"), routes));
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("add route 10.9.0.0/16 via 10.8.0.1"), "{text}");
    fixture.assert_nothing_left();
    assert!(!fixture.node().shell("ip -n a link").unwrap().contains("eth0"));
    fixture.try_call("ADD", "a", "/run/netns/a", &config("1.1.0")).unwrap();
}

/// P27, P28
#[test]
fn delegated_ipam_plugin_is_run_and_its_addresses_are_released() {
    let fixture = Fixture::new();
    let ranges = json!([[{ "subnet": "10.30.0.0/24" }]]);
    let ipam = json!({ "ipam": { "type": "host-local", "dataDir": "/run/host-local", "ranges": ranges } });
    // host-local of Debian knows the specification up to 1.0.0.
    let delegated = merge(config("1.0.0"), ipam);
    let result = fixture.add("a", &delegated);
    assert!(address(&result).starts_with("10.30.0."), "{result}");
    let taken = || fixture.node().shell("ls /run/host-local/pods | grep -c 10.30 || true").unwrap();
    assert_eq!(taken(), "1\n");
    fixture.quiet("DEL", "a", &delegated);
    assert_eq!(taken(), "0\n");
    let missing = merge(config("1.0.0"), json!({ "ipam": { "type": "no-such-plugin" } }));
    let (_, text) = fixture.refused("ADD", "a", "/run/netns/a", &missing);
    assert!(text.contains("no-such-plugin ADD: not found in CNI_PATH (/usr/lib/cni)"), "{text}");
    fixture.assert_nothing_left();
}

/// P29, P30, P31
#[test]
fn del_succeeds_whatever_is_left() {
    let fixture = Fixture::new();
    fixture.quiet("DEL", "never", &config("1.1.0"));
    fixture.add("other", &config("1.1.0"));
    let before = fixture.traces();
    for (id, netns) in [("a", ""), ("b", "/run/netns/none"), ("c", "/run/plain"), ("d", "/run/netns/other")] {
        fixture.node().shell("touch /run/plain").unwrap();
        fixture.add(id, &config("1.1.0"));
        for _ in 0..3 {
            assert_eq!(fixture.try_call("DEL", id, netns, &config("1.1.0")), Ok(Value::Null), "{netns:?}");
        }
        assert_eq!(fixture.traces(), before, "{netns:?}");
    }
    // Another version, another pool, and an invalid configuration.
    for changed in [config("0.3.1"), small("10.99.0.0/24"), merge(config("1.1.0"), json!({ "ipam": {} }))] {
        fixture.add("e", &config("1.1.0"));
        fixture.quiet("DEL", "e", &changed);
        fixture.node().shell("ip netns del e").unwrap();
        assert_eq!(fixture.traces(), before);
    }
    fixture.node().shell("ip -n other link show eth0").unwrap();
}

/// P29
#[test]
fn concurrent_dels_of_one_container_succeed() {
    let fixture = Fixture::new();
    for _ in 0..3 {
        fixture.add("a", &config("1.1.0"));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| fixture.quiet("DEL", "a", &config("1.1.0")));
            }
        });
        fixture.node().shell("ip netns del a").unwrap();
    }
    // Without the variable CNI_NETNS.
    let variables = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")];
    assert_eq!(fixture.plugin.call(&variables, &config("1.1.0").to_string()).unwrap(), Ok(Value::Null));
    fixture.assert_nothing_left();
}

/// P29
#[test]
fn concurrent_adds_get_different_addresses_and_concurrent_dels_leave_nothing() {
    let fixture = Fixture::new();
    let ids: Vec<String> = (0..50).map(|n| format!("pod{n}")).collect();
    for id in &ids {
        fixture.netns(id);
    }
    let at_once = |command: &'static str| -> Vec<Value> {
        std::thread::scope(|scope| {
            let fixture = &fixture;
            let call = |id: &String| {
                fixture.try_call(command, id, &format!("/run/netns/{id}"), &config("1.1.0")).unwrap()
            };
            let threads: Vec<_> = ids.iter().map(|id| scope.spawn(move || call(id))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let addresses: std::collections::HashSet<String> = at_once("ADD").iter().map(address).collect();
    assert_eq!(addresses.len(), ids.len());
    at_once("DEL");
    fixture.assert_nothing_left();
}

/// P32
#[test]
fn late_del_does_not_release_an_address_that_was_reassigned() {
    let fixture = Fixture::new();
    let config = small("10.22.0.0/30");
    let first = fixture.add("a", &config);
    fixture.quiet("DEL", "a", &config);
    fixture.add("b", &config);
    let third = fixture.add("c", &config);
    assert_eq!(address(&first), address(&third));
    let before = fixture.traces();
    fixture.quiet("DEL", "a", &config);
    assert_eq!(fixture.traces(), before);
}

/// P33
#[test]
fn del_succeeds_after_a_flushed_ruleset_and_the_next_add_restores_it() {
    let fixture = Fixture::new();
    let first = fixture.add("a", &config("1.1.0"));
    fixture.add("b", &config("1.1.0"));
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.quiet("DEL", "b", &config("1.1.0"));
    let third = fixture.add("c", &config("1.1.0"));
    let set = fixture.node().shell("nft list set inet portolan pods-v4-pods").unwrap();
    assert!(set.contains(&address(&first)) && set.contains(&address(&third)), "{set}");
}

/// P34
#[test]
fn check_passes_after_add_and_reports_each_loss() {
    let fixture = Fixture::new();
    for (id, sabotage, expected) in [
        ("a", "ip -n a link set eth0 down", "is down"),
        ("b", "ip -n b address flush dev eth0", "has lost its address"),
        ("c", "ip -n c route del default", "route to 0.0.0.0/0 is missing"),
        ("d", "ip link del HOST", "is not there"),
        ("e", "ip route del ADDRESS", "does not lead to"),
        ("f", "nft flush set inet portolan pods-v4-pods", "not masqueraded"),
        ("g", "rm /run/portolan/ipam/pods/owners/g-eth0", "no longer reserved"),
        ("i", "rm /run/portolan/attachments/pods/i-eth0.json", "record is missing"),
        ("j", "nft flush table inet portolan", "chain masquerade"),
        ("h", "ip -n h link set eth0 address 02:00:00:00:00:07", "another hardware address"),
    ] {
        let result = fixture.add(id, &config("1.1.0"));
        let config = merge(config("1.1.0"), json!({ "prevResult": result }));
        fixture.quiet("CHECK", id, &config);
        // Additions of later plugins in the chain are ignored.
        fixture
            .node()
            .shell(&format!(
                "ip -n {id} address add 10.77.0.1/32 dev eth0 && ip -n {id} link set eth0 mtu 1400"
            ))
            .unwrap();
        fixture.quiet("CHECK", id, &config);
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        fixture.node().shell(&sabotage.replace("HOST", host).replace("ADDRESS", &address(&result))).unwrap();
        let (_, text) = fixture.refused("CHECK", id, &format!("/run/netns/{id}"), &config);
        assert!(text.contains(expected), "{sabotage}: {text}");
    }
}

/// P34, P35: CHECK of another IPAM plugin gets that plugin's own result, not the one that mode `routed` made
/// of it.
#[test]
fn check_by_the_plugin_static_passes_in_both_modes() {
    let fixture = Fixture::new();
    let address = json!({ "address": "10.30.0.5/24", "gateway": "10.30.0.1" });
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.30.0.1" }]);
    let fixed = json!({ "ipam": { "type": "static", "addresses": [address], "routes": routes } });
    for (id, mode) in [("routed", json!({})), ("bridged", json!({ "bridge": "br0", "isGateway": true }))] {
        let config = merge(merge(config("1.0.0"), fixed.clone()), mode);
        let result = fixture.add(id, &config);
        let checked = merge(config.clone(), json!({ "prevResult": result }));
        fixture.quiet("CHECK", id, &checked);
        let other = json!([{ "address": "10.30.0.5/24", "gateway": "10.30.0.9" }]);
        let changed = json!({ "ipam": { "type": "static", "addresses": other } });
        let (_, text) = fixture.refused("CHECK", id, &format!("/run/netns/{id}"), &merge(checked, changed));
        assert!(text.contains("IPAM plugin static CHECK"), "{text}");
        fixture.quiet("DEL", id, &config);
    }
    fixture.node().shell("ip link del br0").unwrap();
    fixture.assert_nothing_left();
}

/// P34: `nft flush table` leaves chains, sets and their elements.
#[test]
fn check_reports_flushed_rules_and_the_next_add_restores_them() {
    let fixture = Fixture::new();
    let guarded = json!({
        "name": "guarded", "bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true,
        "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }]] } });
    let networks = [config("1.1.0"), merge(config("1.1.0"), guarded)];
    let [a, b] = ["a", "b"].map(|id| {
        let config = &networks[usize::from(id == "b")];
        merge(config.clone(), json!({ "prevResult": fixture.add(id, config) }))
    });
    let flushes = ["table inet portolan", "table bridge portolan", "chain inet portolan own-addresses"];
    for (number, flush) in flushes.iter().enumerate() {
        fixture.node().shell(&format!("nft flush {flush}")).unwrap();
        let (_, text) = fixture.refused("CHECK", "b", "/run/netns/b", &b);
        assert!(text.contains("has lost rules") || text.contains("macspoofchk"), "{flush}: {text}");
        fixture.add(&format!("c{number}"), &networks[1]);
        fixture.quiet("CHECK", "b", &b);
        fixture.quiet("CHECK", "a", &a);
    }
    // A DEL repairs it too.
    fixture.node().shell("nft flush table inet portolan").unwrap();
    fixture.quiet("DEL", "c0", &networks[1]);
    fixture.quiet("CHECK", "a", &a);
    fixture.node().shell("nft flush chain inet portolan network-pods").unwrap();
    let (_, text) = fixture.refused("CHECK", "a", "/run/netns/a", &a);
    assert!(text.contains("chain network-pods of nft table inet portolan has lost rules"), "{text}");
}

/// P36, P37, P38
#[test]
fn gc_removes_unlisted_attachments_of_this_network_only() {
    let fixture = Fixture::new();
    let other = merge(small("10.23.0.0/24"), json!({ "name": "other" }));
    for id in ["a", "b"] {
        fixture.add(id, &config("1.1.0"));
    }
    fixture.add("c", &other);
    let links = || fixture.node().shell("ip -o link | grep -c ptl || true").unwrap();
    assert_eq!(fixture.refused("GC", "x", "", &config("1.1.0")).0, 7);
    assert_eq!(links(), "3\n");
    let keep_a = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        fixture.quiet("GC", "x", &merge(config("1.1.0"), json!({ (key): keep_a })));
        assert_eq!(links(), "2\n");
    }
    fixture.node().shell("ip -n a link show eth0 && ip -n c link show eth0").unwrap();
    fixture.node().shell("echo '{' > /run/portolan/ipam/pods/owners/broken-eth0").unwrap();
    assert!(
        fixture
            .refused("GC", "x", "", &merge(config("1.1.0"), json!({ "cni.dev/valid-attachments": null })))
            .1
            .contains("broken-eth0")
    );
    // The error is reported once: the file was removed.
    fixture.quiet("GC", "x", &merge(config("1.1.0"), json!({ "cni.dev/valid-attachments": null })));
    assert_eq!(links(), "1\n");
    fixture.node().shell("ip -n c link show eth0").unwrap();
}

/// P41
#[test]
fn add_in_a_chain_appends_to_the_previous_result() {
    let fixture = Fixture::new();
    fixture.netns("a");
    let tuning = Plugin { binary: "/usr/lib/cni/loopback".into(), node: fixture.node().clone() };
    let loopback = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "loopback" });
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "lo"),
        ("CNI_PATH", "/usr/lib/cni"),
    ];
    let mut before = tuning.call(&variables, &loopback.to_string()).unwrap().unwrap();
    before["interfaces"][0]["unknown"] = json!({ "to": "us" });
    let count = before["interfaces"].as_array().unwrap().len();
    let result = fixture
        .try_call("ADD", "a", "/run/netns/a", &merge(config("1.0.0"), json!({ "prevResult": before })))
        .unwrap();
    assert_eq!(
        result["interfaces"].as_array().unwrap()[..count],
        before["interfaces"].as_array().unwrap()[..]
    );
    assert_eq!(result["interfaces"][count + 1]["name"], "eth0");
    let ours = result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .find(|ip| ip["address"].as_str().unwrap().starts_with("10.22"))
        .unwrap();
    assert_eq!(ours["interface"], count + 1);
    let tuning = Plugin { binary: "/usr/lib/cni/tuning".into(), node: fixture.node().clone() };
    let config =
        json!({ "cniVersion": "1.0.0", "name": "pods", "type": "tuning", "mtu": 1300, "prevResult": result });
    tuning.command("ADD", "a", Path::new("/run/netns/a"), &config).unwrap().unwrap();
    assert_eq!(fixture.json("ip -n a -j link show eth0")[0]["mtu"], 1300);
}

#[test]
fn only_traffic_to_outside_the_pod_network_is_masqueraded() {
    let fixture = Fixture::new();
    let a = address(&fixture.add("a", &config("1.1.0")));
    let b = address(&fixture.add("b", &config("1.1.0")));
    fixture
        .node()
        .shell("for p in a b; do ip -n $p link set lo up; done; ping -c1 -W2 192.0.2.1 >/dev/null")
        .unwrap();
    let seen_by = |netns: &netns::NetNs, listen: &str, from: &str| {
        let listener = netns.run(|| std::net::TcpListener::bind((listen, 7777)).unwrap()).unwrap();
        let client = fixture.node().netns(Path::new(&format!("/run/netns/{from}"))).unwrap();
        let _stream = client.run(|| std::net::TcpStream::connect((listen, 7777)).unwrap()).unwrap();
        listener.accept().unwrap().1.ip().to_string()
    };
    assert_eq!(
        seen_by(fixture.node().outside(), fixture.node().outside_address(), "a"),
        fixture.node().address()
    );
    let pod_b = fixture.node().netns(Path::new("/run/netns/b")).unwrap();
    assert_eq!(seen_by(&pod_b, &b, "a"), a);
    // The address of a deleted pod refuses connections at once.
    fixture.quiet("DEL", "b", &config("1.1.0"));
    let pod_a = fixture.node().netns(Path::new("/run/netns/a")).unwrap();
    let refused = pod_a.run(|| std::net::TcpStream::connect((b.as_str(), 7777)).unwrap_err()).unwrap();
    assert_eq!(refused.kind(), std::io::ErrorKind::HostUnreachable);
}
