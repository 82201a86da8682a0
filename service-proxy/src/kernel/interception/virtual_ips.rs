//! The addresses that belong to Services: the service ranges, and cluster IPs outside of them.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nftables::{Element, Key};

/// Sorted ranges of addresses without overlap, as first and last address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtualIps(Vec<(IpAddr, IpAddr)>);

impl VirtualIps {
    /// The addresses of the ranges, without those of the node.
    pub(crate) fn new(ranges: impl IntoIterator<Item = IpNetwork>, node: &HashSet<IpAddr>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().map(|range| (range.network(), range.broadcast())).collect();
        all.sort();
        let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if before.1 >= first && before.1.is_ipv4() == first.is_ipv4() => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        let mut node: Vec<_> = node.iter().copied().collect();
        node.sort();
        Self(node.into_iter().fold(merged, without))
    }

    /// The elements of the set of a family.
    pub(super) fn elements(&self, v4: bool) -> Vec<Element> {
        let ranges = self.0.iter().filter(|(first, _)| first.is_ipv4() == v4);
        let ends = |(first, last): &(IpAddr, IpAddr)| {
            let start = Element::Start(Key::default().address(*first));
            [Some(start), next(*last).map(|end| Element::End(Key::default().address(end)))]
        };
        ranges.flat_map(ends).flatten().collect()
    }
}

fn without(ranges: Vec<(IpAddr, IpAddr)>, address: IpAddr) -> Vec<(IpAddr, IpAddr)> {
    let split = |(first, last): (IpAddr, IpAddr)| {
        if first.is_ipv4() != address.is_ipv4() || address < first || address > last {
            return [Some((first, last)), None];
        }
        let before = previous(address).filter(|before| *before >= first).map(|before| (first, before));
        let after = next(address).filter(|after| *after <= last).map(|after| (after, last));
        [before, after]
    };
    ranges.into_iter().flat_map(split).flatten().collect()
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => ip.to_bits().checked_sub(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip.to_bits().checked_sub(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ranges: &[&str], node: &[&str]) -> Vec<String> {
        let ranges = ranges.iter().map(|range| range.parse().unwrap());
        let node = node.iter().map(|address| address.parse().unwrap()).collect();
        let found = VirtualIps::new(ranges, &node).0;
        found.iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn ranges_are_merged_without_the_addresses_of_the_node() {
        assert_eq!(
            ranges(&["10.96.0.0/12", "10.100.0.0/16", "fd00::/112"], &["192.0.2.2", "10.96.0.0", "fd00::7"]),
            ["10.96.0.1-10.111.255.255", "fd00::-fd00::6", "fd00::8-fd00::ffff"]
        );
        assert_eq!(ranges(&["10.96.0.9/32"], &["10.96.0.9"]), [""; 0]);
        assert_eq!(
            ranges(&["255.255.255.254/31"], &["255.255.255.255"]),
            ["255.255.255.254-255.255.255.254"]
        );
        assert_eq!(VirtualIps::new(["0.0.0.0/0".parse().unwrap()], &HashSet::new()).elements(true).len(), 1);
    }
}
