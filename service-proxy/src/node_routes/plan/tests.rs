use std::collections::BTreeMap;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn own() -> Own {
    Own {
        name: "node-1".into(),
        addresses: [ip("192.0.2.2"), ip("2001:db8:1::2")].into(),
        pod_cidrs: vec![cidr("10.22.1.0/24"), cidr("fd00:10:22:1::/64")],
        service_cidrs: vec![cidr("10.96.0.0/12")],
        underlay: Some(ip("192.0.2.2")),
    }
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Arc<Node> {
    Arc::new(Node {
        leaving: false,
        name: name.into(),
        labels: BTreeMap::new(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        external_addresses: vec![],
        pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(),
    })
}

fn paths() -> HashMap<IpAddr, Path> {
    let near = Path { on_link: true, mtu: 1500 };
    let far = Path { on_link: false, mtu: 1400 };
    [
        (ip("192.0.2.3"), near),
        (ip("2001:db8:1::3"), near),
        (ip("203.0.113.4"), far),
        (ip("2001:db8:2::4"), far),
    ]
    .into()
}

fn plan_of(nodes: &[Arc<Node>]) -> Plan {
    plan(&own(), &nodes.iter().collect::<Vec<_>>(), &paths(), true)
}

#[test]
fn nodes_on_the_link_are_reached_directly_per_family_and_others_through_a_tunnel() {
    let near = node("node-2", &["192.0.2.3", "2001:db8:1::3"], &["10.22.2.0/24", "fd00:10:22:2::/64"]);
    let far = node("node-3", &["203.0.113.4", "2001:db8:2::4"], &["10.22.3.0/24", "fd00:10:22:3::/64"]);
    let plan = plan_of(&[near, far]);
    let tunnel = NextHop::Tunnel(mac("node-3"));
    let expected = [
        ("10.22.2.0/24", NextHop::Direct(ip("192.0.2.3"))),
        ("10.22.3.0/24", tunnel),
        ("fd00:10:22:2::/64", NextHop::Direct(ip("2001:db8:1::3"))),
        ("fd00:10:22:3::/64", tunnel),
    ];
    assert_eq!(plan.routes, expected.map(|(range, next_hop)| (cidr(range), next_hop)).into());
    assert_eq!(plan.peers, [(mac("node-3"), ip("203.0.113.4"))].into(), "one underlay for both families");
    assert_eq!(plan.underlay_mtu, 1400);
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
}

#[test]
fn error_in_a_node_affects_no_other() {
    let near = |name: &str, range: &str| node(name, &["192.0.2.3"], &[range]);
    for (range, why) in [
        ("0.0.0.0/0", "overlaps 10.22.1.0/24 of this node"),
        ("10.22.0.0/16", "overlaps 10.22.1.0/24 of this node"),
        ("10.100.0.0/24", "overlaps the virtual IPs"),
        ("192.0.2.0/24", "the address 192.0.2.3 of a node"),
    ] {
        let plan = plan_of(&[near("node-2", range)]);
        assert!(plan.routes.is_empty(), "{range}");
        assert!(plan.problems[0].contains(why), "{:?}", plan.problems);
    }
    let twice = plan_of(&[near("node-2", "10.22.2.0/24"), near("node-3", "10.22.2.0/25")]);
    assert_eq!(twice.routes.len(), 1);
    assert!(twice.problems[0].contains("of node node-3: it overlaps"), "{:?}", twice.problems);
}

#[test]
fn node_on_another_link_needs_a_tunnel_and_a_route_to_its_end() {
    let far = node("node-3", &["203.0.113.4"], &["10.22.3.0/24"]);
    let direct = plan(&own(), &[&far], &paths(), false);
    assert!(direct.problems[0].contains("not on this link"), "{:?}", direct.problems);
    let lost = plan_of(&[node("node-4", &["203.0.113.9"], &["10.22.4.0/24"])]);
    assert!(lost.problems[0].contains("no route to 203.0.113.9"), "{:?}", lost.problems);
    let v6_only = plan_of(&[node("node-5", &["2001:db8:2::4"], &["fd00:10:22:5::/64"])]);
    assert!(v6_only.problems[0].contains("no InternalIP of family IPv4"), "{:?}", v6_only.problems);
}

#[test]
fn this_node_is_recognised_by_its_name_and_by_its_addresses() {
    assert!(own().is(&node("node-1", &[], &[])));
    assert!(own().is(&node("typo", &["192.0.2.2"], &[])));
    assert!(!own().is(&node("node-2", &["192.0.2.3"], &[])));
    let first = mac("node-1")[0];
    assert_eq!(first & 3, 2, "local, not multicast");
    assert_ne!(mac("node-1"), mac("node-2"));
}
