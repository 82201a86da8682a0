//! Assigns virtual IPs to Services without one.
//!
//! Without an API server there is no allocator of cluster IPs, and the proxy and the DNS server must agree
//! without communication. So an address is a pure function of the existing Services: a hash of
//! `namespace/name` selects it. On a collision, which is rare, the later Service by name gets the next free
//! address.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fnv::FnvHasher;
use ipnetwork::IpNetwork;

use crate::model::{IpFamily, NamespacedName};

/// Services without an address, with the family.
pub(crate) type Unassigned = Vec<(NamespacedName, IpFamily)>;

/// Assigns one address for each requested family of each Service. `taken` are addresses in use.
pub(crate) fn assign(
    wanted: &BTreeMap<NamespacedName, Vec<IpFamily>>,
    taken: &HashSet<IpAddr>,
    cidrs: &[IpNetwork],
) -> (HashMap<NamespacedName, Vec<IpAddr>>, Unassigned) {
    let mut taken = taken.clone();
    let mut assigned: HashMap<NamespacedName, Vec<IpAddr>> = HashMap::new();
    let mut unassigned = Vec::new();
    for (name, families) in wanted {
        for &family in families {
            let range = cidrs.iter().find(|cidr| IpFamily::of(cidr.ip()) == family);
            match range.and_then(|cidr| free_address(name, cidr, &taken)) {
                Some(address) => {
                    taken.insert(address);
                    assigned.entry(name.clone()).or_default().push(address);
                }
                None => unassigned.push((name.clone(), family)),
            }
        }
    }
    (assigned, unassigned)
}

fn free_address(name: &NamespacedName, cidr: &IpNetwork, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let host_bits = if cidr.is_ipv4() { 32 } else { 128 } - u32::from(cidr.prefix());
    // More than 2^32 addresses are of no use, and the arithmetic stays within 64 bits.
    let size = 1_u64 << host_bits.min(32);
    // Skip the low band, which is for addresses that users choose, as the API server does (KEP-3070). The
    // last address is the broadcast address of IPv4.
    let reserved = (size / 16).clamp(16, 256);
    let candidates = size.checked_sub(reserved + 1)?;
    let start = hash(name) % candidates.max(1);
    (0..candidates)
        .map(|step| nth(cidr, reserved + (start + step) % candidates))
        .find(|address| !taken.contains(address))
}

fn nth(cidr: &IpNetwork, offset: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).expect("an IPv4 range has at most 2^32 addresses");
            Ipv4Addr::from_bits(base.to_bits() + offset).into()
        }
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(offset)).into(),
    }
}

/// The result must be the same in all releases and on all machines.
fn hash(name: &NamespacedName) -> u64 {
    let mut hash = FnvHasher::default();
    hash.write(name.to_string().as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs() -> Vec<IpNetwork> {
        vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()]
    }

    fn wanting(names: &[&str]) -> BTreeMap<NamespacedName, Vec<IpFamily>> {
        names.iter().map(|n| (NamespacedName::new("default", *n), vec![IpFamily::V4])).collect()
    }

    #[test]
    fn address_depends_on_the_name_only() {
        let alone = assign(&wanting(&["web"]), &HashSet::new(), &cidrs()).0;
        let among_others = assign(&wanting(&["api", "db", "web"]), &HashSet::new(), &cidrs()).0;
        let web = NamespacedName::new("default", "web");
        assert_eq!(alone[&web], among_others[&web]);
        // Pinned: a release with another result would move the Services of every user.
        assert_eq!(alone[&web], ["10.99.114.190".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn taken_address_is_skipped_and_both_families_are_assigned() {
        let web = NamespacedName::new("default", "web");
        let wanted = BTreeMap::from([(web.clone(), vec![IpFamily::V6, IpFamily::V4])]);
        let first = assign(&wanted, &HashSet::new(), &cidrs()).0.remove(&web).unwrap();
        assert!(first[0].is_ipv6() && first[1].is_ipv4(), "{first:?}");
        let second = assign(&wanted, &first.iter().copied().collect(), &cidrs()).0.remove(&web).unwrap();
        assert!(second.iter().all(|a| !first.contains(a)), "{first:?} {second:?}");
    }

    #[test]
    fn exhausted_range_reports_the_services_without_an_address() {
        let tiny = vec!["10.96.0.0/27".parse().unwrap()];
        let names: Vec<String> = (0..20).map(|n| format!("s{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (assigned, unassigned) = assign(&wanting(&names), &HashSet::new(), &tiny);
        let distinct: HashSet<IpAddr> = assigned.values().flatten().copied().collect();
        assert_eq!((distinct.len(), unassigned.len()), (15, 5));
        assert!(distinct.iter().all(|a| tiny[0].contains(*a)));
    }
}
