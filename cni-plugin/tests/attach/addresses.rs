//! Networks with the same ranges, and addresses that are already in use.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::fixture::{Fixture, addresses, config, merge};

fn dual(name: &str) -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/24" }], [{ "subnet": "fd00:22::/64" }]]);
    merge(config("1.1.0"), json!({ "name": name, "ipam": { "ranges": ranges } }))
}

fn requesting(config: &Value, address: &str) -> Value {
    merge(config.clone(), json!({ "runtimeConfig": { "ips": [address] } }))
}

/// The interface by which the node reaches an address.
fn device(fixture: &Fixture, address: &IpAddr) -> Value {
    fixture.json(&format!("ip -j route get {address}"))[0]["dev"].clone()
}

#[test]
fn network_with_the_same_ranges_or_a_new_name_does_not_reassign_addresses_in_use() {
    let fixture = Fixture::new();
    // The node sends from an address of its own.
    fixture.node().shell("ip address add fd00:1::2/64 dev uplink0 nodad").unwrap();
    let a = fixture.add("a", &dual("pods"));
    let b = fixture.add("b", &dual("renamed"));
    assert!(addresses(&a).iter().all(|address| !addresses(&b).contains(address)), "{a} {b}");
    for (result, id) in [(&a, "a"), (&b, "b")] {
        for address in addresses(result) {
            assert_eq!(device(&fixture, &address), result["interfaces"][0]["name"]);
            fixture.node().shell(&format!("ip netns exec {id} ip address show | grep {address}")).unwrap();
            fixture.node().shell(&format!("ping -c1 -W2 {address}")).unwrap();
        }
    }
    fixture.netns("c");
    for address in addresses(&a) {
        let wanted = requesting(&dual("renamed"), &address.to_string());
        let (code, text) = fixture.refused("ADD", "c", "/run/netns/c", &wanted);
        assert_eq!(code, 101, "{text}");
        assert!(text.contains(&format!("{address} is in use")), "{text}");
    }
    // The pool stays unreachable while the other network has a pod.
    fixture.quiet("DEL", "b", &dual("renamed"));
    let unreachable = "ip route show type unreachable; ip -6 route show type unreachable | grep fd00:22";
    let routes = fixture.node().shell(unreachable).unwrap();
    assert!(routes.contains("10.22.0.0/24") && routes.contains("fd00:22::/64"), "{routes}");
    fixture.quiet("DEL", "a", &dual("pods"));
    fixture.assert_nothing_left();
}

#[test]
fn concurrent_adds_of_two_networks_with_the_same_ranges_get_different_addresses() {
    let fixture = Fixture::new();
    let ids: Vec<String> = (0..16).map(|number| format!("pod{number}")).collect();
    ids.iter().for_each(|id| drop(fixture.netns(id)));
    let network = |number: usize| dual(["pods", "renamed"][number % 2]);
    let add = |(number, id): (usize, &String)| {
        let result = fixture.try_call("ADD", id, &format!("/run/netns/{id}"), &network(number)).unwrap();
        for address in addresses(&result) {
            assert_eq!(device(&fixture, &address), result["interfaces"][0]["name"]);
        }
        addresses(&result)
    };
    let given: Vec<IpAddr> = std::thread::scope(|scope| {
        let threads: Vec<_> = ids.iter().enumerate().map(|pod| scope.spawn(move || add(pod))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let different: HashSet<&IpAddr> = given.iter().collect();
    assert_eq!(different.len(), 2 * ids.len(), "{given:?}");
    ids.iter().enumerate().for_each(|(number, id)| fixture.quiet("DEL", id, &network(number)));
    fixture.assert_nothing_left();
}

#[test]
fn pod_gets_neither_the_gateway_address_nor_one_of_the_node() {
    let fixture = Fixture::new();
    fixture.node().shell("ip address add 10.22.0.3/32 dev lo; ip address add fd00:22::3/128 dev lo").unwrap();
    for (mode, taken) in
        [(json!({ "bridge": "br0", "isGateway": true }), 1), (json!({ "name": "routed" }), 0)]
    {
        let config = merge(dual("pods"), mode);
        for pod in 0..3 {
            let id = format!("{}{pod}", config["name"].as_str().unwrap());
            for address in addresses(&fixture.add(&id, &config)) {
                let text = address.to_string();
                assert!(!text.ends_with(".3") && !text.ends_with(":3"), "{text}");
                assert!(taken == 0 || (!text.ends_with(".1") && !text.ends_with(":1")), "{text}");
            }
        }
        fixture.netns("asking");
        let mut refused = vec!["10.22.0.3", "fd00:22::3"];
        if taken == 1 {
            refused.extend(["10.22.0.1", "fd00:22::1"]);
        }
        for address in refused {
            let wanted = requesting(&config, address);
            let (_, text) = fixture.refused("ADD", "asking", "/run/netns/asking", &wanted);
            assert!(text.contains(address), "{text}");
        }
        let both = merge(config.clone(), json!({ "runtimeConfig": { "ips": ["10.22.0.77", "10.22.0.78"] } }));
        let (code, text) = fixture.refused("ADD", "asking", "/run/netns/asking", &both);
        assert_eq!(code, 7);
        assert!(text.contains("10.22.0.77 and 10.22.0.78 are requested"), "{text}");
        (0..3).for_each(|pod| {
            fixture.quiet("DEL", &format!("{}{pod}", config["name"].as_str().unwrap()), &config)
        });
        fixture.node().shell("ip netns del asking; ip link del br0 2>/dev/null || true").unwrap();
    }
}

/// The reference plugin has no cooldown: podman restarts a container of a small network at once.
#[test]
fn pool_with_all_free_addresses_in_cooldown_still_assigns() {
    let fixture = Fixture::new();
    let config = merge(config("1.1.0"), json!({ "ipam": { "ranges": [[{ "subnet": "10.22.0.0/30" }]] } }));
    let given = |id: &str| addresses(&fixture.add(id, &config))[0].to_string();
    assert_eq!([given("a"), given("b")], ["10.22.0.1", "10.22.0.2"]);
    for id in ["b", "a"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.quiet("STATUS", "x", &config);
    let mut again = [given("c"), given("d")];
    again.sort();
    assert_eq!(again, ["10.22.0.1", "10.22.0.2"]);
    fixture.netns("e");
    assert_eq!(fixture.refused("ADD", "e", "/run/netns/e", &config).0, 50);
}
