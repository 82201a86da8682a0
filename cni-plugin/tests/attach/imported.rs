//! `portolan-cni import`: from the reference plugin `host-local` to ours, with pods that stay.

use std::path::Path;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::{Fixture, address};

/// The conflist after the migration.
const CONFLIST: &str = "/run/10-pods.conflist";

fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipam": { "type": "host-local", "dataDir": "/run/host-local",
            "ranges": [[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]] },
    })
}

/// The same network with portolan-cni, IPAM included.
fn ours() -> Value {
    let mut config = bridge();
    config["type"] = "portolan-cni".into();
    config["ipam"].as_object_mut().unwrap().retain(|key, _| key == "ranges");
    config
}

fn run_cli(fixture: &Fixture, arguments: &str) -> anyhow::Result<String> {
    // Addresses that could not be imported make the exit code 1.
    let expect_failure = if arguments.contains("/run/old") { "&& exit 9 || test $? = 1" } else { "" };
    fixture.node().shell(&format!("{} {arguments} 2>&1 {expect_failure}", fixture.plugin.binary.display()))
}

#[test]
fn import_from_host_local_assigns_no_address_in_use() {
    let fixture = Fixture::new();
    let reference = Plugin { binary: "/usr/lib/cni/bridge".into(), node: fixture.node().clone() };
    let add = |id: &str| {
        let netns = fixture.netns(id);
        address(&reference.command("ADD", id, &netns, &bridge()).unwrap().unwrap())
    };
    let kept: Vec<String> = ["a", "b", "c"].iter().map(|id| add(id)).collect();
    assert_eq!(kept, ["10.22.0.2", "10.22.0.3", "10.22.0.4"]);
    reference.command("DEL", "b", Path::new("/run/netns/b"), &bridge()).unwrap().unwrap();
    let conflist =
        json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [ours(), { "type": "portmap" }] });
    fixture.node().run(|| std::fs::write(CONFLIST, conflist.to_string())).unwrap();

    let output = run_cli(&fixture, &format!("import {CONFLIST} --from /run/host-local")).unwrap();
    assert!(output.contains("10.22.0.2") && output.contains("fd00:22::4"), "{output}");
    assert!(
        output.contains(
            "4 addresses of network pods imported; the files in /run/host-local/pods are unchanged"
        ),
        "{output}"
    );
    // Idempotent, and the JSON output has the same.
    let json: Value = serde_json::from_str(
        &run_cli(&fixture, &format!("import {CONFLIST} --from /run/host-local --json")).unwrap(),
    )
    .unwrap();
    let first = json!({ "address": "10.22.0.2", "containerID": "a", "ifname": "eth0" });
    assert_eq!((&json["network"], &json["addresses"][0]), (&json!("pods"), &first));
    assert_eq!(fixture.node().shell("ls /run/host-local/pods | grep -c 10.22").unwrap(), "2\n");

    // Assignment continues where host-local stopped and wraps around: only the addresses of a and c are
    // skipped.
    let next = fixture.add("d", &ours());
    assert_eq!(address(&next), "10.22.0.5");
    let requested = |ip: &str| {
        let mut config = ours();
        config["runtimeConfig"] = json!({ "ips": [ip] });
        config
    };
    fixture.netns("e");
    for taken in ["10.22.0.2", "fd00:22::4"] {
        let (_, text) = fixture.refused("ADD", "e", "/run/netns/e", &requested(taken));
        assert!(text.contains("is taken"), "{text}");
    }
    // The released address of b is free. d and a reach each other on the bridge that both plugins use.
    fixture.try_call("ADD", "e", "/run/netns/e", &requested("10.22.0.3")).unwrap();
    fixture.node().shell("ip netns exec d ping -c1 -W2 10.22.0.2").unwrap();
    // DEL of an imported pod releases its addresses.
    fixture.quiet("DEL", "a", &ours());
    fixture.netns("f");
    fixture.try_call("ADD", "f", "/run/netns/f", &requested("10.22.0.2")).unwrap();
    // c has nothing but a reservation. If cleanup removed it, another pod would be assigned its address.
    for id in ["d", "e", "f"] {
        fixture.quiet("DEL", id, &ours());
    }
    let refused = run_cli(&fixture, "cleanup").unwrap_err().to_string();
    assert!(refused.contains("c (network pods)"), "{refused}");
}

#[test]
fn addresses_that_cannot_be_imported_are_reported_and_the_rest_is_imported() {
    let fixture = Fixture::new();
    // In the format of old versions, truncated by a crash, outside of every range, and assigned to another
    // pod meanwhile.
    let script = "mkdir -p /run/old/pods; cd /run/old/pods; printf old > 10.22.0.9; touch 10.22.0.10; \
                  printf 'far\\r\\neth1' > 10.99.0.1; \
                  printf 'late\\r\\neth0' > 10.22.0.1; printf 10.22.0.9 > last_reserved_ip.0; touch lock";
    fixture.node().shell(script).unwrap();
    let mut config = ours();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.22.0.0/24", "gateway": "10.22.0.254" }]]);
    assert_eq!(address(&fixture.add("first", &config)), "10.22.0.1");
    fixture.node().run(|| std::fs::write(CONFLIST, config.to_string())).unwrap();
    let missing = run_cli(&fixture, &format!("import {CONFLIST}")).unwrap_err().to_string();
    assert!(
        missing
            .contains("/var/lib/cni/networks/pods is not there: name the directory that has it with --from"),
        "{missing}"
    );
    let output = run_cli(&fixture, &format!("import {CONFLIST} --from /run/old")).unwrap();
    for expected in [
        "10.22.0.10 is empty",
        "10.22.0.1 of late is first's here",
        "2 addresses of network pods",
        "10.99.0.1",
        "10.22.0.9",
    ] {
        assert!(output.contains(expected), "{expected} is not in {output}");
    }
    assert_eq!(address(&fixture.add("next", &config)), "10.22.0.10");
    // GC removes the reservations of containers that no longer exist.
    let keep = json!({ "cni.dev/valid-attachments": [
        { "containerID": "first", "ifname": "eth0" },
        { "containerID": "old", "ifname": "eth0" },
    ] });
    config["cniVersion"] = "1.1.0".into();
    fixture.quiet("GC", "x", &crate::fixture::merge(config, keep));
    assert_eq!(
        fixture.node().shell("ls /run/portolan/ipam/pods/owners /run/portolan/ipam/pods/far").unwrap(),
        "/run/portolan/ipam/pods/far:\n\n/run/portolan/ipam/pods/owners:\nfirst-eth0\nold-eth0\n"
    );
    let help = run_cli(&fixture, "--help").unwrap();
    assert!(help.contains("portolan-cni import CONFLIST [--from DIR] [--json]"), "{help}");
}
