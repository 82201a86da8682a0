//! `kill -9` at every change to files that an ADD makes while it counts anew who has which address: nobody's
//! is given out again.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, config, merge, small};
use crate::killed::{system_calls, traced};

/// What everybody has, as the reservations and interfaces say.
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
    // What DEL leaves of the pods that come and go is taken back with the rest.
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
        assert!(killed.is_err(), "ADD lived on after {name} number {nth}: {killed:?}");
        let given = fixture.try_call("ADD", "next", next.to_str().unwrap(), new).unwrap();
        let why = format!("ADD killed at {name} number {nth}, then another one");
        assert!(!held.contains(&address(&given)), "{why}: {} is somebody's", address(&given));
        let all = addresses(&fixture);
        let different: HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{why}: {all:?}");
        held.retain(|address| all.contains(address));
        assert_eq!(held.len(), 3, "{why}: {all:?}");
    }
}

#[test]
fn with_changed_ranges_an_add_killed_anywhere_lets_no_address_be_given_twice() {
    kill_at_each_change("true", &small("10.22.0.0/27"));
}

#[test]
fn with_the_state_directory_emptied_an_add_killed_anywhere_lets_no_address_be_given_twice() {
    kill_at_each_change("rm -r /run/portolan/*", &small("10.22.0.0/28"));
}

/// A full disk, as far as this ADD got: the file has its length and says nothing of anybody.
#[test]
fn with_no_room_to_count_anew_the_next_add_counts_again() {
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
