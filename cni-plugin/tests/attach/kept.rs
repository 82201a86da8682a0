//! What stays on the node after the last pod was deleted, and which commands remove it.

use serde_json::{Value, json};

use crate::fixture::{Fixture, NOTHING, config, merge};

/// The exact ruleset, so that nothing else can stay unnoticed.
const TABLE: &str = include_str!("kept.nft");

fn listed(fixture: &Fixture) -> String {
    let script = "nft list ruleset; find /run/portolan -name '*.json'; ip route show table all | grep unreachable || true";
    fixture.node().shell(script).unwrap()
}

/// All chains and their rules.
fn rules(fixture: &Fixture) -> Vec<Value> {
    let ruleset = fixture.json("nft -j list ruleset");
    let objects = ruleset["nftables"].as_array().unwrap().iter();
    objects.filter(|object| ["chain", "rule"].iter().any(|kind| object[kind].is_object())).cloned().collect()
}

#[test]
fn table_stays_empty_after_the_last_pod_and_the_next_pod_reuses_it() {
    let fixture = Fixture::new();
    let handle = || fixture.node().shell("nft -a list tables").unwrap();
    fixture.add("a", &config("1.1.0"));
    let first = handle();
    fixture.quiet("DEL", "a", &config("1.1.0"));
    assert_eq!(listed(&fixture), format!("{TABLE}/run/portolan/networks/pods.json\n"));
    fixture.quiet("DEL", "a", &config("1.1.0"));
    let without_pods = rules(&fixture);
    assert!(without_pods.len() > 10, "{without_pods:?}");
    fixture.add("b", &config("1.1.0"));
    assert_eq!(rules(&fixture), without_pods, "a pod is elements and no rule");
    assert_eq!(handle(), first, "a new table would have another handle");
    fixture.quiet("DEL", "b", &config("1.1.0"));
    assert_eq!(listed(&fixture), format!("{TABLE}/run/portolan/networks/pods.json\n"));
    fixture.assert_nothing_left();
}

#[test]
fn gc_removes_a_network_without_attachments_and_the_table_with_the_last_network() {
    let fixture = Fixture::new();
    let ranges = json!([[{ "subnet": "10.23.0.0/24" }]]);
    let other = merge(config("1.1.0"), json!({ "name": "other", "ipam": { "ranges": ranges } }));
    let collect = |config: &Value| {
        fixture.quiet("GC", "x", &merge(config.clone(), json!({ "cni.dev/valid-attachments": [] })));
    };
    fixture.add("a", &config("1.1.0"));
    fixture.add("b", &other);
    fixture.quiet("DEL", "b", &other);
    collect(&other);
    let rules = fixture.node().shell("nft list ruleset").unwrap();
    assert!(rules.contains("network-pods") && !rules.contains("network-other"), "{rules}");
    // A list with one attachment keeps the network.
    let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    fixture.quiet("GC", "x", &merge(config("1.1.0"), keep));
    assert_eq!(fixture.node().shell("nft list ruleset").unwrap(), rules);
    collect(&config("1.1.0"));
    assert_eq!(fixture.traces(), NOTHING);
}

#[test]
fn cleanup_is_refused_while_a_pod_is_attached_and_leaves_nothing_afterwards() {
    let fixture = Fixture::new();
    let cleanup = format!("{} cleanup", fixture.plugin.binary.display());
    // On a node that never had a pod.
    assert_eq!(fixture.node().shell(&cleanup).unwrap(), "");
    fixture.add("a", &config("1.1.0"));
    // Found by its record, and without records by its interface.
    for sabotage in ["true", "rm -r /run/portolan"] {
        fixture.node().shell(sabotage).unwrap();
        let refused = fixture.node().shell(&cleanup).unwrap_err().to_string();
        assert!(refused.contains("attached are still: a (network pods)"), "{refused}");
    }
    fixture.node().shell("ip -n a link show eth0").unwrap();
    fixture.quiet("DEL", "a", &config("1.1.0"));
    fixture.node().shell(&cleanup).unwrap();
    assert_eq!(fixture.traces(), NOTHING);
    let unknown = fixture.node().shell(&cleanup.replace("cleanup", "clean-up")).unwrap_err().to_string();
    assert!(unknown.contains("no such command: clean-up"), "{unknown}");
}

#[test]
fn cleanup_removes_empty_bridges_and_keeps_files_of_the_daemons() {
    let fixture = Fixture::new();
    let bridged = json!({
        "stateDir": "/run/other", "mode": "bridge", "bridge": "br0", "isGateway": true, "macspoofchk": true,
    });
    let bridged = merge(config("1.1.0"), bridged);
    fixture.add("a", &bridged);
    fixture.node().shell("touch /run/other/other.file").unwrap();
    let cleanup = format!("{} cleanup --state-dir /run/other", fixture.plugin.binary.display());
    fixture.node().shell(&cleanup).unwrap_err();
    fixture.quiet("DEL", "a", &bridged);
    fixture.node().shell(&cleanup).unwrap();
    let left = "nft list ruleset; find /run/other -type f; ip link show br0 2>/dev/null || true";
    assert_eq!(fixture.node().shell(left).unwrap(), "/run/other/other.file\n");
}
