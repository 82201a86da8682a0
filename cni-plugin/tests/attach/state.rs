//! Empty and truncated files, and files with unusual names.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, config, merge, small};
use crate::ports::with_ports;
use crate::ranges::range;

fn call(fixture: &Fixture, command: &str, id: &str, ifname: &str, config: &Value) -> Result<Value, Value> {
    let netns = "/run/netns/shared";
    let variables =
        [("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_NETNS", netns), ("CNI_IFNAME", ifname)];
    fixture.plugin.call(&variables, &config.to_string()).unwrap()
}

#[test]
fn empty_or_broken_files_fail_no_command_twice_and_living_pods_keep_their_addresses() {
    for file in
        ["ipam/pods/owners/a-eth0", "attachments/pods/a-eth0.json", "networks/pods.json", "ipam/pods/boot"]
    {
        for broken in ["", "{", "[]"] {
            let fixture = Fixture::new();
            let config = small("10.22.0.0/29");
            let sabotage = format!("printf '%s' '{broken}' > /run/portolan/{file}");
            let a = address(&fixture.add("a", &config));
            fixture.node().shell(&sabotage).unwrap();
            // All free addresses; none of them is a's.
            for number in 0..5 {
                assert_ne!(address(&fixture.add(&format!("pod{number}"), &config)), a, "{file} {broken:?}");
            }
            fixture.netns("next");
            assert_eq!(fixture.refused("ADD", "next", "/run/netns/next", &config).0, 50, "{file} {broken:?}");
            let keep =
                |id: &str| json!({ "cni.dev/valid-attachments": [{ "containerID": id, "ifname": "eth0" }] });
            fixture.node().shell(&sabotage).unwrap();
            // It may fail: the next GC repairs what is broken.
            let _ = fixture.try_call("GC", "x", "", &merge(config.clone(), keep("a")));
            fixture.quiet("GC", "x", &merge(config.clone(), keep("a")));
            fixture.node().shell(&format!("ping -c1 -W2 {a}")).unwrap();
            for number in 0..5 {
                let id = format!("again{number}");
                assert_ne!(address(&fixture.add(&id, &config)), a, "{file} {broken:?}");
                fixture.quiet("DEL", &id, &config);
            }
            fixture.node().shell(&sabotage).unwrap();
            fixture.quiet("DEL", "a", &config);
            let _first_reports_the_file =
                fixture.try_call("GC", "x", "", &merge(config.clone(), keep("none")));
            fixture.quiet("GC", "x", &merge(config.clone(), keep("none")));
            fixture.assert_nothing_left();
        }
    }
}

#[test]
fn orphaned_files_are_reported_once_and_removed() {
    let fixture = Fixture::new();
    fixture.add("a", &config("1.1.0"));
    let broken = "touch /run/portolan/ipam/pods/owners/old-eth0; \
                  echo '{' > /run/portolan/attachments/pods/old-eth0.json";
    fixture.node().shell(broken).unwrap();
    let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    let config = merge(config("1.1.0"), keep);
    let (_, error) = fixture.refused("GC", "x", "", &config);
    assert!(error.contains("owners/old-eth0") && error.contains("pods/old-eth0.json"), "{error}");
    fixture.quiet("GC", "x", &config);
    // Broken again: neither DEL of it nor ADD of another pod fails.
    fixture.node().shell(broken).unwrap();
    fixture.quiet("DEL", "old", &config);
    fixture.node().shell(broken).unwrap();
    fixture.add("b", &config);
    fixture.add("old", &config);
    for id in ["a", "b", "old"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}

#[test]
fn unusual_but_legal_names_do_not_collide() {
    let fixture = Fixture::new();
    fixture.netns("shared");
    let long = "c".repeat(300);
    let longer = format!("{}d", "c".repeat(299));
    let names = [
        ("a", "b-c"),
        ("a-b", "c"),
        ("x", "eth0.tmp"),
        ("x", ".new.tmp"),
        ("x", "eth0.json"),
        (&long, "long0"),
        (&longer, "long1"),
    ];
    let config = small("10.22.0.0/28");
    let add = |(id, ifname): &(&str, &str)| {
        let result = call(&fixture, "ADD", id, ifname, &config).unwrap();
        fixture.json("true");
        let checked = merge(config.clone(), json!({ "prevResult": result }));
        assert_eq!(call(&fixture, "CHECK", id, ifname, &checked), Ok(Value::Null), "{id} {ifname}");
        address(&result)
    };
    let mut given: HashSet<String> = names.iter().map(add).collect();
    assert_eq!(given.len(), names.len());
    // After a recount all of them still have owners.
    let valid: Vec<Value> =
        names.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
    fixture.quiet("GC", "x", &merge(config.clone(), json!({ "cni.dev/valid-attachments": valid })));
    for number in 0..14 - names.len() {
        assert!(given.insert(address(&fixture.add(&format!("pod{number}"), &config))), "{given:?}");
    }
    for (number, (id, ifname)) in names.iter().enumerate() {
        assert_eq!(call(&fixture, "DEL", id, ifname, &config), Ok(Value::Null));
        let left = fixture.node().shell("ls /run/portolan/ipam/pods/owners | wc -l").unwrap();
        assert_eq!(left.trim(), (14 - 1 - number).to_string(), "{id} {ifname}");
    }
    (0..14 - names.len()).for_each(|number| fixture.quiet("DEL", &format!("pod{number}"), &config));
    fixture.assert_nothing_left();
}

#[test]
fn network_with_a_name_too_long_for_files_is_refused_but_del_succeeds() {
    let fixture = Fixture::new();
    fixture.netns("a");
    for length in [241, 300] {
        let config = merge(config("1.1.0"), json!({ "name": "n".repeat(length) }));
        let (code, text) = fixture.refused("ADD", "a", "/run/netns/a", &config);
        assert_eq!(code, 7, "{text}");
        fixture.quiet("DEL", "a", &config);
    }
    fixture.assert_nothing_left();
}

#[test]
fn network_with_the_longest_name_has_pods_until_del() {
    let fixture = Fixture::new();
    let config = merge(with_ports(range(20_000, 10, 20_000).into()), json!({ "name": "n".repeat(240) }));
    let checked = merge(config.clone(), json!({ "prevResult": fixture.add("a", &config) }));
    fixture.quiet("CHECK", "a", &checked);
    fixture.quiet("DEL", "a", &config);
    fixture.assert_nothing_left();
}
