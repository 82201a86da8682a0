//! DEL and GC with another configuration than that of ADD.

use serde_json::{Value, json};

use crate::fixture::{Fixture, NOTHING, config, merge};

/// Configurations that users change between.
fn configurations() -> Vec<(&'static str, Value)> {
    let with = |patch: Value| merge(config("1.0.0"), patch);
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }]]);
    let host_local =
        |directory: &str| json!({ "type": "host-local", "dataDir": directory, "ranges": ranges });
    let fixed = json!({ "type": "static", "addresses": [{ "address": "10.22.0.99/24" }] });
    vec![
        ("built in", with(json!({}))),
        ("elsewhere", with(json!({ "ipam": { "dataDir": "/run/kept", "ranges": ranges } }))),
        ("host-local", with(json!({ "ipam": host_local("/run/host-local") }))),
        ("host-local elsewhere", with(json!({ "ipam": host_local("/run/host-local-2") }))),
        ("static", with(json!({ "ipam": fixed }))),
        ("br0", with(json!({ "bridge": "br0", "isGateway": true, "macspoofchk": true }))),
        ("br1", with(json!({ "bridge": "br1", "ipMasq": true, "ipam": host_local("/run/host-local") }))),
    ]
}

/// Reservations of any kind.
fn reserved(fixture: &Fixture) -> String {
    let script = "find /run/portolan /run/kept /run/host-local /run/host-local-2 -path '*/owners/*' -o -name '10.22.*' 2>/dev/null || true";
    fixture.node().shell(script).unwrap()
}

#[test]
fn del_with_another_configuration_than_add_leaves_nothing() {
    let fixture = Fixture::new();
    for (from, old) in &configurations() {
        for (to, new) in &configurations() {
            let id = format!("{from}-{to}").replace(' ', "");
            fixture.add(&id, old);
            assert_ne!(reserved(&fixture), "", "{from}");
            fixture.quiet("DEL", &id, new);
            assert_eq!(reserved(&fixture), "", "{from}, then {to}");
            assert_eq!(
                fixture.node().shell("ip -o link | grep -c ptl || true").unwrap(),
                NOTHING,
                "{from}, then {to}"
            );
        }
    }
}

#[test]
fn gc_with_another_configuration_than_add_leaves_nothing() {
    let fixture = Fixture::new();
    for (from, old) in &configurations() {
        for (to, new) in &configurations() {
            let id = format!("{from}-{to}").replace(' ', "");
            fixture.add(&id, old);
            // Another pod with the new configuration: its record does not hide the former ones.
            if new["ipam"]["type"] != "static" || old["ipam"]["type"] != "static" {
                fixture.add(&format!("{id}-2"), new);
            }
            let all = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] });
            let collected = fixture.try_call("GC", "x", "", &merge(new.clone(), all));
            // The reference plugins have no GC.
            assert_eq!(
                collected.is_err(),
                new["ipam"]["type"].is_string(),
                "{from}, then {to}: {collected:?}"
            );
            assert_eq!(reserved(&fixture), "", "{from}, then {to}");
            assert_eq!(fixture.traces_of_pods(), NOTHING, "{from}, then {to}");
            let bridges = fixture.node().shell("ip -o link show type bridge").unwrap();
            assert_eq!(bridges, "", "{from}, then {to}");
        }
    }
}

#[test]
fn del_and_gc_after_an_import_from_host_local_leave_nothing() {
    let fixture = Fixture::new();
    let all = configurations();
    let (old, new) = (&all[2].1, &all[0].1);
    for id in ["a", "b"] {
        fixture.add(id, old);
    }
    fixture.node().run(|| std::fs::write("/run/pods.conflist", new.to_string())).unwrap();
    let import =
        format!("{} import /run/pods.conflist --from /run/host-local", fixture.plugin.binary.display());
    fixture.node().shell(&import).unwrap();
    fixture.add("c", new);
    fixture.quiet("DEL", "a", new);
    assert!(!reserved(&fixture).contains("/a-eth0"), "{}", reserved(&fixture));
    let no_attachments = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] });
    fixture.quiet("GC", "x", &merge(new.clone(), no_attachments));
    assert_eq!(reserved(&fixture), "");
    fixture.assert_nothing_left();
}
