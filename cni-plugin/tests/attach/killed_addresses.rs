//! `kill -9` at every file change of an ADD that recounts the addresses: no address in use is assigned again.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, config, merge, small};
use crate::killed::{system_calls, traced};

/// The addresses of all pods, by reservations and interfaces.
fn addresses(fixture: &Fixture) -> Vec<String> {
    let script = "cat /run/portolan/ipam/pods/owners/*";
    let reservations = fixture.node().shell(script).unwrap();
    let reservations = serde_json::Deserializer::from_str(&reservations).into_iter::<Value>();
    reservations.map(|r| r.unwrap()["addresses"][0]["address"].as_str().unwrap().to_owned()).collect()
}

/// Three pods, then `sabotage`, then an ADD killed at one call after the other, and another ADD.
fn kill_at_each_change(sabotage: &str, new: &Value) {
    let fixture = Fixture::new();
    let old = small("10.22.0.0/28");
    let mut held: HashSet<String> =
        ["p", "q", "r"].iter().map(|id| address(&fixture.add(id, &old))).collect();
    fixture.netns("a");
    let next = fixture.netns("next");
    // Each round starts from the same state directory.
    fixture.node().shell("cp -a /run/portolan /run/kept").unwrap();
    let prepare = || {
        fixture.quiet("DEL", "a", new);
        fixture.quiet("DEL", "next", new);
        let restore = "rm -r /run/portolan/*; cp -a /run/kept/. /run/portolan/";
        fixture.node().shell(&format!("{restore}; {sabotage}")).unwrap();
    };
    prepare();
    let calls = system_calls(&fixture, "ADD", new);
    // Messages to the kernel change no file.
    for (name, nth) in calls.iter().filter(|(name, _)| name != "sendto") {
        prepare();
        let options = format!("-o /dev/null -e trace=all -e inject={name}:signal=KILL:when={nth}");
        let killed = traced(&fixture, &options).command("ADD", "a", Path::new("/run/netns/a"), new).unwrap();
        assert!(killed.is_err(), "ADD was not killed at {name} number {nth}: {killed:?}");
        let given = fixture.try_call("ADD", "next", next.to_str().unwrap(), new).unwrap();
        let why = format!("ADD killed at {name} number {nth}, then another one");
        assert!(!held.contains(&address(&given)), "{why}: {} is in use", address(&given));
        let all = addresses(&fixture);
        let different: HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{why}: {all:?}");
        held.retain(|address| all.contains(address));
        assert_eq!(held.len(), 3, "{why}: {all:?}");
    }
}

#[test]
fn add_killed_anywhere_after_a_change_of_ranges_leads_to_no_duplicate_address() {
    kill_at_each_change("true", &small("10.22.0.0/27"));
}

#[test]
fn add_killed_anywhere_with_an_emptied_state_directory_leads_to_no_duplicate_address() {
    kill_at_each_change("rm -r /run/portolan/*", &small("10.22.0.0/28"));
}

/// A disk that is full during this ADD: the slot file has its length but no content.
#[test]
fn recount_that_fails_on_a_full_disk_is_repeated_by_the_next_add() {
    let fixture = Fixture::new();
    fixture.node().shell("mkdir /run/kept; mount -t tmpfs -o size=128k tmpfs /run/kept").unwrap();
    let wide = |prefix: u8| {
        let ranges = json!([[{ "subnet": format!("10.22.0.0/{prefix}") }]]);
        merge(config("1.1.0"), json!({ "ipam": { "dataDir": "/run/kept", "cooldown": 0, "ranges": ranges } }))
    };
    let held = address(&fixture.add("a", &wide(28)));
    fixture.node().shell("dd if=/dev/zero of=/run/kept/full bs=4096 2>/dev/null || true").unwrap();
    fixture.netns("b");
    fixture.refused("ADD", "b", "/run/netns/b", &wide(27));
    fixture.node().shell("rm /run/kept/full").unwrap();
    let given = fixture.try_call("ADD", "b", "/run/netns/b", &wide(27)).unwrap();
    assert_ne!(address(&given), held);
}
