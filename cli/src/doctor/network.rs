//! Overlapping ranges and MTU.

use std::net::IpAddr;

use serde_json::Value;

use super::{Args, Finding};
use crate::command;
use crate::conflist::{self, Conflist};

/// Interface of the tunnel.
const TUNNEL: &str = "portolan-vxlan";

pub(super) fn check(args: &Args) -> Vec<Finding> {
    let links = match command::json("ip", &["-j", "link"]) {
        Ok(links) => links,
        Err(error) => return vec![Finding::warning("network", error.to_string(), "apt install iproute2")],
    };
    let own = conflist::list(&args.conf_dir).into_iter().find(Conflist::is_ours);
    let mut findings = vec![mtu(&links, own.as_ref())];
    findings.extend(own.map(|own| overlaps(&own)));
    findings
}

fn mtu(links: &Value, own: Option<&Conflist>) -> Finding {
    let uplink = command::json("ip", &["-j", "route", "show", "default"]).unwrap_or_default();
    let Some(uplink) = uplink[0]["dev"].as_str() else {
        return Finding::warning(
            "MTU",
            "the node has no default route: the MTU of pods cannot be compared",
            "ip route add default via ADDR",
        );
    };
    let mtu_of = |name: &str| links.as_array()?.iter().find(|link| link["ifname"] == name)?["mtu"].as_u64();
    let outside = mtu_of(TUNNEL).or_else(|| mtu_of(uplink)).unwrap_or_default();
    let through = if mtu_of(TUNNEL).is_some() { TUNNEL } else { uplink };
    let pods = links
        .as_array()
        .into_iter()
        .flatten()
        .filter(|link| link["ifname"].as_str().is_some_and(|name| name.starts_with("ptl")));
    let longest = pods.filter_map(|link| link["mtu"].as_u64()).chain(own.and_then(Conflist::mtu)).max();
    match longest {
        Some(longest) if longest > outside => Finding::warning(
            "MTU",
            format!(
                "pods send packets of up to {longest} bytes, {through} carries {outside}: larger ones rely \
                 on path MTU discovery"
            ),
            format!("\"mtu\": {outside} in the portolan-cni entry of the conflist; new pods get it"),
        ),
        _ => Finding::ok("MTU", format!("{through} carries {outside} bytes, enough for the pods")),
    }
}

/// Checks that no route of the node overlaps a pod range: the pods would hide the route's destination.
fn overlaps(own: &Conflist) -> Finding {
    let routes = [["-4", "-j", "route"], ["-6", "-j", "route"]];
    let routes: Vec<Value> = routes.iter().filter_map(|line| command::json("ip", line).ok()).collect();
    let routes = routes.iter().filter_map(Value::as_array).flatten();
    let conflicts = |route: &&Value| {
        let is_ours = route["dev"].as_str().is_some_and(|dev| dev.starts_with("ptl") || dev == TUNNEL)
            || route["type"] == "unreachable"
            || route["protocol"] == "113";
        let destination = route["dst"].as_str().unwrap_or_default();
        !is_ours
            && destination != "default"
            && own.subnets().iter().any(|subnet| overlap(subnet, destination))
    };
    match routes.into_iter().find(conflicts) {
        None => Finding::ok("ranges", format!("{} have no other route", own.subnets().join(", "))),
        Some(route) => Finding::error(
            "ranges",
            format!(
                "pods get addresses of {}, and {} leads to {}",
                own.subnets().join(", "),
                route["dst"].as_str().unwrap_or_default(),
                route["dev"].as_str().unwrap_or_default()
            ),
            format!("choose another ipam.ranges in {}", own.path.display()),
        ),
    }
}

fn overlap(one: &str, other: &str) -> bool {
    let (Some(one), Some(other)) = (range(one), range(other)) else { return false };
    let shorter = one.2.min(other.2);
    one.1 == other.1 && one.0.checked_shr(one.1 - shorter) == other.0.checked_shr(one.1 - shorter)
}

/// Returns the address as a number, the number of bits of its family, and the prefix length.
fn range(text: &str) -> Option<(u128, u32, u32)> {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let (value, bits) = match address.parse().ok()? {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    Some((value, bits, length.parse().unwrap_or(bits)))
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn ranges_overlap_when_one_contains_the_other() {
        assert!(overlap("10.22.0.0/16", "10.22.3.0/24"));
        assert!(overlap("10.22.3.7", "10.22.0.0/16"));
        assert!(overlap("0.0.0.0/0", "10.0.0.0/8"));
        assert!(!overlap("10.22.0.0/16", "10.23.0.0/16"));
        assert!(!overlap("fd00::/64", "10.22.0.0/16"));
    }
}
