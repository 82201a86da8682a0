//! The plugin called by the name of a reference plugin: compared with the real ones, and combined with them.

use std::path::PathBuf;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::{Fixture, address, merge};

/// Links to the binary with the names of the plugins that it replaces.
const LINKS: &str = "/run/cni";

/// A node with the links in [`LINKS`].
fn linked() -> Fixture {
    let fixture = Fixture::new();
    let plugin = fixture.plugin.binary.display();
    let script = format!(
        "mkdir {LINKS}; for name in bridge ptp host-local loopback; do ln -s {plugin} {LINKS}/$name; done"
    );
    fixture.node().shell(&script).unwrap();
    fixture
}

/// Calls a plugin by its path. `path` is the `CNI_PATH` of its delegates.
fn call(
    fixture: &Fixture,
    binary: &str,
    path: &str,
    command: &str,
    id: &str,
    config: &Value,
) -> Result<Value, Value> {
    call_with(fixture, binary, path, command, id, "", config)
}

fn call_with(
    fixture: &Fixture,
    binary: &str,
    path: &str,
    command: &str,
    id: &str,
    args: &str,
    config: &Value,
) -> Result<Value, Value> {
    let plugin = Plugin { binary: PathBuf::from(binary), node: fixture.node().clone() };
    let (netns, args) = (format!("/run/netns/{id}"), format!("IgnoreUnknown=1{args}"));
    let ifname = if binary.ends_with("loopback") { "lo" } else { "eth0" };
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", &*netns),
        ("CNI_IFNAME", ifname),
        ("CNI_PATH", path),
        ("CNI_ARGS", &args),
    ];
    plugin.call(&variables, &config.to_string()).unwrap()
}

fn network(kind: &str, version: &str) -> Value {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.22.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    json!({ "cniVersion": version, "name": "pods", "type": kind, "ipam": ipam })
}

fn owners(fixture: &Fixture) -> String {
    fixture.node().shell("ls /run/portolan/ipam/pods/owners").unwrap()
}

#[test]
fn reference_plugins_bridge_ptp_and_macvlan_use_our_host_local() {
    let fixture = linked();
    // `mode` of macvlan has another meaning and is passed to IPAM too.
    let macvlan = merge(network("macvlan", "1.0.0"), json!({ "master": "uplink0", "mode": "bridge" }));
    let bridge = merge(network("bridge", "0.4.0"), json!({ "bridge": "br0", "isGateway": true }));
    for (number, config) in [bridge, network("ptp", "1.0.0"), macvlan].iter().enumerate() {
        let (id, real) =
            (format!("pod{number}"), format!("/usr/lib/cni/{}", config["type"].as_str().unwrap()));
        fixture.netns(&id);
        let result = call(&fixture, &real, LINKS, "ADD", &id, config).unwrap();
        let expected = format!("10.22.0.{}", number + 2);
        assert_eq!(
            (&*address(&result), &result["ips"][0]["gateway"]),
            (&*expected, &json!("10.22.0.1")),
            "{result}"
        );
        let shown = fixture.json(&format!("ip -n {id} -j address show dev eth0"));
        assert_eq!(
            (&shown[0]["addr_info"][0]["local"], &shown[0]["addr_info"][0]["prefixlen"]),
            (&json!(expected), &json!(24))
        );
        assert_eq!(owners(&fixture), format!("{id}-eth0\n"));
        let check = merge(config.clone(), json!({ "prevResult": result }));
        call(&fixture, &real, LINKS, "CHECK", &id, &check).unwrap();
        fixture.node().shell(&format!("rm /run/portolan/ipam/pods/owners/{id}-eth0")).unwrap();
        let error = call(&fixture, &real, LINKS, "CHECK", &id, &check).unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains("is no longer reserved"), "{error}");
        call(&fixture, &real, LINKS, "DEL", &id, config).unwrap();
        assert_eq!(owners(&fixture), "");
    }
}

#[test]
fn our_host_local_answers_as_the_reference_plugin_does() {
    let fixture = linked();
    fixture.node().shell("printf 'nameserver 10.96.0.10\\nsearch a.example b.example\\noptions ndots:5\\n' > /run/resolv.conf").unwrap();
    let ipam = |patch: Value| merge(json!({ "type": "host-local" }), patch);
    let dual = json!([[{ "subnet": "10.22.0.0/24", "rangeStart": "10.22.0.20" }], [{ "subnet": "fd00:22::/64", "gateway": "fd00:22::9" }]]);
    let two =
        json!([[{ "subnet": "10.22.0.0/30" }, { "subnet": "10.23.0.0/24", "rangeStart": "10.23.0.7" }]]);
    let cases = [
        (
            "single",
            "1.0.0",
            "",
            ipam(json!({ "subnet": "10.22.0.0/24", "rangeEnd": "10.22.0.99", "gateway": "10.22.0.254" })),
            json!({}),
        ),
        (
            "dual",
            "0.4.0",
            "",
            ipam(
                json!({ "ranges": dual, "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "fd00:99::/64", "gw": "fd00:22::9" }] }),
            ),
            json!({}),
        ),
        ("two", "0.3.1", "", ipam(json!({ "ranges": two, "resolvConf": "/run/resolv.conf" })), json!({})),
        ("requested", "1.0.0", ";IP=10.22.0.77", ipam(json!({ "subnet": "10.22.0.0/24" })), json!({})),
        (
            "args",
            "1.0.0",
            "",
            ipam(json!({ "subnet": "10.22.0.0/24" })),
            json!({ "args": { "cni": { "ips": ["10.22.0.78/24"] } } }),
        ),
        (
            "runtime",
            "1.0.0",
            "",
            ipam(json!({ "subnet": "10.22.0.0/24" })),
            json!({ "runtimeConfig": { "ips": ["10.22.0.79"] } }),
        ),
        (
            "ranges",
            "1.0.0",
            "",
            ipam(json!({})),
            json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.24.0.0/16" }]] } }),
        ),
    ];
    for (name, version, args, ipam, more) in cases {
        let config = merge(json!({ "cniVersion": version, "name": name, "type": "x", "ipam": ipam }), more);
        // Addresses are assigned in turn: a released one is not reused at once.
        for (command, id) in [
            ("ADD", "a"),
            ("ADD", "b"),
            ("DEL", "a"),
            ("ADD", "c"),
            ("DEL", "b"),
            ("DEL", "b"),
            ("DEL", "c"),
            ("DEL", "unknown"),
        ] {
            let of = |directory: &str| {
                let output = call_with(
                    &fixture,
                    &format!("{directory}/host-local"),
                    directory,
                    command,
                    id,
                    args,
                    &config,
                );
                // Error texts differ, and so may which of two errors is reported.
                output.map_err(|_error| "an error")
            };
            let (theirs, mut ours) = (of("/usr/lib/cni"), of(LINKS));
            if let Ok(ours) = &mut ours {
                // An empty string and an absent field mean the same.
                let mut empty = Vec::from(["routes"]);
                empty.retain(|key| ours[*key] == json!([]));
                empty.iter().for_each(|key| drop(ours.as_object_mut().unwrap().remove(*key)));
            }
            assert_eq!(ours, theirs, "{name}: {command} {id}");
        }
    }
}

#[test]
fn our_host_local_reports_an_exhausted_pool_and_gc_releases_addresses() {
    let fixture = linked();
    let config = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "x", "ipam": { "type": "host-local", "subnet": "10.22.0.0/29", "cooldown": 0 } });
    let ours = |command: &str, id: &str, config: &Value| {
        call(&fixture, &format!("{LINKS}/host-local"), LINKS, command, id, config)
    };
    assert_eq!(ours("STATUS", "x", &config), Ok(Value::Null));
    for id in ["a", "b", "c", "d", "e"] {
        ours("ADD", id, &config).unwrap();
    }
    assert_eq!(ours("ADD", "f", &config).unwrap_err()["code"], 50);
    assert_eq!(ours("STATUS", "x", &config).unwrap_err()["code"], 50);
    let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": "b", "ifname": "eth0" }] });
    assert_eq!(ours("GC", "x", &config).unwrap_err()["code"], 7);
    assert_eq!(ours("GC", "x", &merge(config.clone(), keep)), Ok(Value::Null));
    assert_eq!(owners(&fixture), "b-eth0\n");
    assert_eq!(ours("STATUS", "x", &config), Ok(Value::Null));
    // It ignores the result of another network; that of its own must match.
    let previous = |address: &str| {
        merge(
            config.clone(),
            json!({ "prevResult": { "ips": [{ "address": "10.99.0.1/24" }, { "address": address }] } }),
        )
    };
    assert_eq!(ours("CHECK", "b", &previous("10.22.0.3/29")), Ok(Value::Null));
    assert_eq!(ours("CHECK", "b", &previous("10.22.0.4/29")).unwrap_err()["code"], 101);
    assert_eq!(ours("CHECK", "a", &previous("10.99.0.2/24")).unwrap_err()["code"], 101);
}

#[test]
fn called_as_bridge_or_ptp_it_does_the_same_without_delegates() {
    let fixture = linked();
    // No key of the bridge plugin, and addresses of the built-in IPAM.
    for (kind, interfaces) in [("bridge", 3), ("ptp", 2)] {
        let config = network(kind, "1.0.0");
        let binary = format!("{LINKS}/{kind}");
        fixture.netns(kind);
        let result = call(&fixture, &binary, LINKS, "ADD", kind, &config).unwrap();
        assert_eq!(result["interfaces"].as_array().unwrap().len(), interfaces, "{result}");
        assert!(address(&result).starts_with("10.22.0."), "{result}");
        // Not masqueraded by default.
        let chains = fixture.node().shell("nft list chain inet portolan network-pods 2>&1 || true").unwrap();
        assert!(chains.contains("No such file"), "{chains}");
        let check = merge(config.clone(), json!({ "prevResult": result }));
        assert_eq!(call(&fixture, &binary, LINKS, "CHECK", kind, &check), Ok(Value::Null));
        for _ in 0..2 {
            assert_eq!(call(&fixture, &binary, LINKS, "DEL", kind, &config), Ok(Value::Null));
        }
        assert_eq!(owners(&fixture), "");
        assert_eq!(
            fixture
                .node()
                .shell("ls /run/portolan/delegated/pods/owners; ip -o link | grep ptl || true")
                .unwrap(),
            ""
        );
    }
    let version = call(&fixture, &format!("{LINKS}/bridge"), LINKS, "VERSION", "x", &json!({})).unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")), "{version}");
}

#[test]
fn called_as_loopback_it_sets_lo_up_as_the_reference_plugin_does() {
    let fixture = linked();
    let state = |id: &str| {
        fixture.json(&format!("ip -n {id} -j link show dev lo"))[0]["flags"]
            .as_array()
            .unwrap()
            .contains(&json!("UP"))
    };
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let config = json!({ "cniVersion": version, "name": "cni-loopback", "type": "loopback" });
        let of = |directory: &str, who: &str| {
            let id = format!("{who}{}", version.replace('.', ""));
            fixture.netns(&id);
            let binary = format!("{directory}/loopback");
            let mut result = call(&fixture, &binary, directory, "ADD", &id, &config).unwrap();
            assert!(state(&id));
            if version != "0.3.1" {
                let check = merge(config.clone(), json!({ "prevResult": result }));
                assert_eq!(call(&fixture, &binary, directory, "CHECK", &id, &check), Ok(Value::Null));
            }
            assert_eq!(call(&fixture, &binary, directory, "DEL", &id, &config), Ok(Value::Null));
            assert!(!state(&id));
            result["interfaces"][0]["sandbox"] = "".into();
            // Debian's loopback omits it, in the versions that have it.
            for ip in result["ips"].as_array_mut().unwrap() {
                ip.as_object_mut().unwrap().remove("version");
            }
            // An empty string and an absent field mean the same.
            if result["routes"] == json!([]) {
                result.as_object_mut().unwrap().remove("routes");
            }
            result
        };
        assert_eq!(of(LINKS, "ours"), of("/usr/lib/cni", "theirs"), "{version}");
    }
    let ours = format!("{LINKS}/loopback");
    let config = json!({ "cniVersion": "1.1.0", "name": "cni-loopback", "type": "loopback" });
    assert_eq!(call(&fixture, &ours, LINKS, "DEL", "deleted", &config), Ok(Value::Null));
    assert_eq!(call(&fixture, &ours, LINKS, "STATUS", "x", &config), Ok(Value::Null));
    fixture.netns("last");
    let previous = json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "eth7", "mac": "02:00:00:00:00:07", "x": 1 }], "ips": [] });
    let chained = merge(config, json!({ "prevResult": previous }));
    assert_eq!(call(&fixture, &ours, LINKS, "ADD", "last", &chained), Ok(previous));
    call(&fixture, &ours, LINKS, "CHECK", "last", &chained).unwrap();
    fixture.node().shell("ip -n last link set lo down").unwrap();
    assert_eq!(
        call(&fixture, &ours, LINKS, "CHECK", "last", &chained).unwrap_err()["msg"],
        "interface lo is down"
    );
}
