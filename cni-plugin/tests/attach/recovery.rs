//! What a killed process, an emptied directory and a reboot leave, and who repairs it.

use serde_json::json;

use crate::fixture::{Fixture, address, config, merge};

#[test]
fn with_the_state_directory_emptied_nobody_gets_an_address_in_use_and_del_still_works() {
    let fixture = Fixture::new();
    let a = address(&fixture.add("a", &config("1.1.0")));
    fixture.node().shell("rm -r /run/portolan/*").unwrap();
    let b = address(&fixture.add("b", &config("1.1.0")));
    assert_ne!(a, b);
    fixture.quiet("DEL", "a", &config("1.1.0"));
    fixture.quiet("DEL", "b", &config("1.1.0"));
    fixture.assert_nothing_left();
}

#[test]
fn with_the_state_directory_emptied_gc_finds_the_pods_by_their_interfaces() {
    let fixture = Fixture::new();
    for id in ["a", "b"] {
        fixture.add(id, &config("1.1.0"));
    }
    fixture.add(
        "c",
        &merge(
            config("1.1.0"),
            json!({ "name": "other", "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }]] } }),
        ),
    );
    fixture.node().shell("rm -r /run/portolan/*").unwrap();
    let keep_a = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    fixture.quiet("GC", "x", &merge(config("1.1.0"), keep_a));
    let links = fixture
        .node()
        .shell("ip -n a link show eth0 && ip -n c link show eth0 && ip -o link | grep -c ptl")
        .unwrap();
    assert!(links.ends_with("\n2\n"), "{links}");
}

#[test]
fn reservations_of_an_earlier_boot_mean_nothing() {
    let fixture = Fixture::new();
    let config = merge(
        config("1.1.0"),
        json!({ "ipam": { "dataDir": "/run/kept", "ranges": [[{ "subnet": "10.22.0.0/30" }]] } }),
    );
    fixture.add("a", &config);
    fixture.add("b", &config);
    // The machine goes down: what is in memory is gone, what is on disk stays.
    fixture.node().shell("rm -r /run/portolan/*; nft flush ruleset; for p in a b; do ip netns del $p; done; ip link | grep -o 'ptl[0-9a-f]*' | xargs -rn1 ip link del 2>/dev/null || true; echo other > /run/boot; mount --bind /run/boot /proc/sys/kernel/random/boot_id").unwrap();
    fixture.add("c", &config);
    fixture.add("d", &config);
    for id in ["a", "b", "c", "d"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}
