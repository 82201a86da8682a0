//! The records of a full node.

use attachment::{Attachment, PortMapping, Store};
use serde_json::{Value, json};

use crate::fixture::{Fixture, config, merge};

const PODS: u16 = 400;

/// Writes records of that many pods of the network, each with two addresses and a host port.
fn record_pods(fixture: &Fixture, network: &str, bridge: Option<&str>) {
    fixture.node().run(|| {
        let store = Store::new(attachment::DEFAULT_DIRECTORY);
        for number in 0..PODS {
            let [high, low] = number.to_be_bytes();
            let port = PortMapping {
                host_port: 10_000 + number,
                container_port: 80,
                protocol: "udp".into(),
                host_ip: None,
                range: 1,
            };
            store
                .write(&Attachment {
                    network: network.into(),
                    container_id: format!("pod-{number}"),
                    ifname: "eth0".into(),
                    netns: String::new(),
                    ips: vec![[10, 30, high, low].into(), format!("fd00:30::{number:x}").parse().unwrap()],
                    mac: format!("02:00:00:00:{high:02x}:{low:02x}"),
                    host_interface: format!("ptl{number}"),
                    bridge: bridge.map(str::to_owned),
                    pod: None,
                    labels: std::collections::BTreeMap::new(),
                    port_mappings: vec![port],
                    reserved_ports: None,
                })
                .unwrap();
        }
    });
}

/// The number of elements of a set or map.
fn elements(fixture: &Fixture, kind: &str, family: &str, name: &str) -> usize {
    let listed = fixture.json(&format!("nft -j list {kind} {family} portolan {name}"));
    listed["nftables"][1][kind]["elem"].as_array().map_or(0, Vec::len)
}

fn assert_all_there(fixture: &Fixture, network: &str, more: usize) {
    let pods = usize::from(PODS);
    assert_eq!(elements(fixture, "set", "inet", &format!("pods-v4-{network}")), pods + more);
    assert_eq!(elements(fixture, "set", "inet", &format!("pods-v6-{network}")), pods);
    for map in ["ports-v4", "ports-v6"] {
        assert_eq!(elements(fixture, "map", "inet", map), pods);
    }
}

#[test]
fn tables_of_a_full_node_are_rewritten_and_a_retired_network_is_removed() {
    let fixture = Fixture::new();
    let ranges = json!([[{ "subnet": "10.23.0.0/24" }]]);
    let retired = merge(config("1.1.0"), json!({ "name": "retired", "ipam": { "ranges": ranges } }));
    fixture.add("r", &retired);
    fixture.add("a", &config("1.1.0"));
    record_pods(&fixture, "pods", None);
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.add("b", &config("1.1.0"));
    assert_all_there(&fixture, "pods", 2);
    // A change of the network's settings.
    let ranges = json!([[{ "subnet": "10.22.0.0/23" }]]);
    fixture.add("c", &merge(config("1.1.0"), json!({ "ipam": { "ranges": ranges } })));
    assert_all_there(&fixture, "pods", 3);
    fixture.quiet("DEL", "r", &retired);
    fixture.quiet("GC", "x", &merge(retired, json!({ "cni.dev/valid-attachments": [] })));
    let networks = fixture.node().shell("ls /run/portolan/networks; nft list table inet portolan").unwrap();
    assert!(!networks.contains("retired"), "{networks}");
    assert_all_there(&fixture, "pods", 3);
}

#[test]
fn tables_of_a_full_bridge_are_rewritten() {
    let fixture = Fixture::new();
    let bridge: Value =
        json!({ "mode": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true });
    let config = merge(config("1.1.0"), bridge);
    fixture.add("a", &config);
    record_pods(&fixture, "pods", Some("br0"));
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.add("b", &config);
    assert_all_there(&fixture, "pods", 2);
    for set in ["senders", "guarded"] {
        assert_eq!(elements(&fixture, "set", "bridge", set), usize::from(PODS) + 2);
    }
}
