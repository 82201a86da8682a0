//! The cases of kube-proxy's `TestCategorizeEndpoints` in a notation: an endpoint is its last octet and
//! letters: r ready, s serving, t terminating, l on this node, a and b for a hint for that zone, n and m for
//! a hint for node n (this one) or m.

use discovery::model::{Conditions, Hints};

use super::*;

fn endpoint(text: &str) -> (u8, Endpoint, bool) {
    let (octet, marks) = text.split_at(1);
    let has = |mark: char| marks.contains(mark);
    let names = |all: &[char]| -> Vec<Arc<str>> {
        all.iter().filter(|name| has(**name)).map(|name| name.to_string().into()).collect()
    };
    let endpoint = Endpoint {
        address: format!("10.1.2.{octet}").parse().unwrap(),
        conditions: Conditions { ready: has('r'), serving: has('s'), terminating: has('t') },
        hostname: None,
        pod: None,
        node_name: None,
        zone: None,
        hints: Some(Hints { nodes: names(&['n', 'm']), zones: names(&['a', 'b']) }.into()),
    };
    (octet.parse().unwrap(), endpoint, has('l'))
}

/// `c` cluster, `l` local and `!` for any, as in `c12 l1 !`.
fn sorted(endpoints: &str, policy: &str, zone: Option<&str>) -> String {
    let endpoints: Vec<_> = endpoints.split(' ').filter(|text| !text.is_empty()).map(endpoint).collect();
    let candidates: Vec<_> = endpoints
        .iter()
        .map(|(_, endpoint, is_local)| Candidate {
            address: SocketAddr::new(endpoint.address, 80),
            endpoint,
            is_local: *is_local,
        })
        .collect();
    let policy = Policy {
        internal_local: policy.contains('i'),
        external_local: policy.contains('e'),
        externally_accessible: policy.contains('x'),
    };
    let location = Location { node: "n".into(), zone: zone.map(Into::into) };
    let found = categorize(&candidates, policy, &location);
    let octets = |addresses: &[SocketAddr]| -> String {
        let last = |address: &SocketAddr| address.ip().to_string().rsplit('.').next().unwrap().to_owned();
        addresses.iter().map(last).collect()
    };
    let any = if found.has_any { " !" } else { "" };
    format!("c{} l{}{any}", octets(&found.cluster), octets(&found.local))
}

#[test]
fn categorize_endpoints() {
    let zone_a = Some("a");
    // endpoints, policy (i internalTrafficPolicy Local, e external…Local, x reachable from outside), zone,
    // expected
    let cases = [
        // No policy: every ready endpoint.
        ("", "", zone_a, "c l"),
        ("1rs 2rs 3rs", "", zone_a, "c123 l !"),
        ("1rs 2s 3", "", zone_a, "c1 l !"),
        // Hints by zone.
        ("1rsa 2rsb 3rsb 4rsa", "", zone_a, "c14 l !"),
        ("1rsa 2rsb 3rsb 4rsa", "", None, "c1234 l !"),
        ("1rsa 2rsb 3rsb 4rsa", "", Some("c"), "c1234 l !"),
        ("1rsa 2rs 3rsb 4rsa", "", zone_a, "c1234 l !"),
        ("1rsab 2rsb 3rsab", "", zone_a, "c13 l !"),
        // Hints of endpoints that are not ready are ignored.
        ("1rsa 2rsb 3st", "", zone_a, "c1 l !"),
        // Hints by node take precedence, and fall back to those by zone.
        ("1rsna 2rsma 3rsmb", "", zone_a, "c1 l !"),
        ("1rsma 2rsma 3rsmb", "", zone_a, "c12 l !"),
        ("1rsn 2rs 3rsm", "", zone_a, "c123 l !"),
        // A policy that is local everywhere needs no other endpoints.
        ("1rsl 2rs", "i", zone_a, "c l1 !"),
        ("1rs 2rs", "i", zone_a, "c l !"),
        ("", "i", zone_a, "c l"),
        // externalTrafficPolicy Local applies only if external clients can reach the Service.
        ("1rsl 2rs", "e", zone_a, "c12 l !"),
        ("1rsl 2rs", "ex", zone_a, "c12 l1 !"),
        ("1rs 2rs", "ex", zone_a, "c12 l !"),
        ("1rsl 2rs", "iex", zone_a, "c12 l1 !"),
        ("1rsl 2rs", "ix", zone_a, "c12 l1 !"),
        // Hints do not restrict local endpoints.
        ("1rslb 2rsa", "ex", zone_a, "c2 l1 !"),
        // Terminating endpoints serve if no ready one is in scope (KEP-1669).
        ("1st 2t", "", zone_a, "c1 l !"),
        ("1stl 2rs", "", zone_a, "c2 l !"),
        ("1stl 2rs", "ex", zone_a, "c2 l1 !"),
        ("1stl 2st", "ex", zone_a, "c12 l1 !"),
        ("1stl 2rsl", "ex", zone_a, "c2 l2 !"),
        ("1tl 2t", "ex", zone_a, "c l"),
        ("1st 2st", "i", zone_a, "c l !"),
        // Neither ready nor terminating: not used, whatever its other conditions.
        ("1s 2", "ex", zone_a, "c l"),
    ];
    for (endpoints, policy, zone, expected) in cases {
        assert_eq!(
            sorted(endpoints, policy, zone),
            expected,
            "endpoints {endpoints:?}, policy {policy:?}, {zone:?}"
        );
    }
}
