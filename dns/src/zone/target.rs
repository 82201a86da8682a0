//! The ready endpoints of a Service, and their labels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use discovery::ServiceEntry;

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// Its hostname, or its pod's name if enabled. Without one, the label is the address.
    pub(super) hostname: Option<Arc<str>>,
    pub(super) address: IpAddr,
    /// Index of its slice, which has the ports.
    pub(super) slice: u32,
}

impl Target {
    /// Its label below the Service's name.
    pub(super) fn label(&self) -> String {
        self.hostname.as_deref().map_or_else(|| dashed(self.address), str::to_owned)
    }

    /// Whether both have the same label.
    pub(super) fn shares_label(&self, other: &Self) -> bool {
        self.hostname == other.hostname && (self.hostname.is_some() || self.address == other.address)
    }
}

/// The ready endpoints of a Service, in the order of their labels.
pub(super) fn ready(entry: &ServiceEntry, by_pod: bool) -> Vec<Target> {
    let mut targets = Vec::new();
    for (index, slice) in entry.slices.iter().enumerate() {
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready) {
            // A pod's name may be too long for a label, or have dots.
            let pod = endpoint.pod.as_ref().filter(|pod| by_pod && pod.len() < 64 && !pod.contains('.'));
            let hostname = endpoint.hostname.as_ref().or(pod).cloned();
            let slice = u32::try_from(index).unwrap_or(u32::MAX);
            targets.push(Target { hostname, address: endpoint.address, slice });
        }
    }
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// The label of an endpoint without a hostname: `10-22-0-7`, `fd00-10-22--7` for `fd00:10:22::7`.
fn dashed(ip: IpAddr) -> String {
    let mut label = ip.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    if label.starts_with('-') {
        label.insert(0, '0');
    }
    label
}

/// The address of exactly this label.
pub(super) fn parse_dashed(label: &str) -> Option<IpAddr> {
    address_of(label).filter(|address| dashed(*address) == label)
}

/// The address of a label with dashes, in any notation.
pub(super) fn address_of(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    v4.or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from))
}
