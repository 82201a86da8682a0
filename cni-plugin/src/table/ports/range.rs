//! Ranges of host ports.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use attachment::PortMapping;
use nftables::{Element, Key};
use serde::{Deserialize, Serialize};

/// Consecutive host ports that lead to as many consecutive ports of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Range {
    pub(super) protocol: String,
    /// The address of the node. Unspecified means any address of the family; `None` means any address.
    host_ip: Option<IpAddr>,
    first: u16,
    last: u16,
    /// The pod's port for the first host port.
    to: u16,
}

impl Range {
    /// The ports of a mapping.
    pub(super) fn of(mapping: &PortMapping) -> Self {
        Self {
            protocol: mapping.protocol.clone(),
            host_ip: mapping.host_ip,
            first: mapping.host_port,
            last: mapping.last_host_port(),
            to: mapping.container_port,
        }
    }

    /// Whether the range applies to that family.
    pub(super) fn is_of(&self, v4: bool) -> bool {
        self.host_ip.is_none_or(|at| at.is_ipv4() == v4)
    }

    /// The address, if the range applies to one address only.
    fn at(&self) -> Option<IpAddr> {
        self.host_ip.filter(|at| !at.is_unspecified())
    }

    /// Whether both have a port of the same address in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let same_address = self.at().is_none() || other.at().is_none() || self.at() == other.at();
        self.protocol == other.protocol
            && self.first <= other.last
            && other.first <= self.last
            && same_address
            && [true, false].iter().any(|v4| self.is_of(*v4) && other.is_of(*v4))
    }

    /// The first port that both have.
    pub(super) fn first_common_port(&self, other: &Self) -> String {
        format!("{}/{}", self.first.max(other.first), self.protocol)
    }

    /// The host port, if there is only one.
    pub(crate) fn only_port(&self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether a socket address of this node is one of these ports.
    pub(crate) fn has(&self, end: SocketAddr) -> bool {
        (self.first..=self.last).contains(&end.port())
            && self.is_of(end.is_ipv4())
            && self.at().is_none_or(|at| at == end.ip())
    }

    /// The pod's port for a host port.
    pub(crate) fn port_of_pod(&self, port: u16) -> u16 {
        self.to.wrapping_add(port.wrapping_sub(self.first))
    }

    /// The elements that lead to `address`, and their map.
    pub(super) fn elements(&self, address: IpAddr) -> (&'static str, Vec<Element>) {
        let key = |port: u16| {
            let key = self.at().map_or_else(Key::default, |at| Key::default().address(at));
            key.protocol(self.protocol_number()).port(port)
        };
        // The kernel cannot add an offset to a port: a range that leads to other numbers is one element per
        // port.
        let is_one = self.first < self.last && self.to == self.first;
        let map = map(address.is_ipv4(), self.at().is_some(), is_one);
        if is_one {
            let value = Key::default().address(address);
            return (map, vec![Element::Range(key(self.first), key(self.last), value)]);
        }
        let pair =
            |port| Element::Pair(key(port), Key::default().address(address).port(self.port_of_pod(port)));
        (map, (self.first..=self.last).map(pair).collect())
    }

    /// `IPPROTO_*`. The configuration allows no other.
    fn protocol_number(&self) -> u8 {
        match &*self.protocol {
            "udp" => 17,
            "sctp" => 132,
            _ => 6,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.only_port() {
            Some(port) => write!(f, "{port}/{}", self.protocol),
            None => write!(f, "{}-{}/{}", self.first, self.last, self.protocol),
        }
    }
}

/// The name of the map: for one port or ranges, of one address of the node or of all.
pub(super) fn map(v4: bool, at: bool, ranges: bool) -> &'static str {
    match (ranges, at, v4) {
        (false, false, true) => "ports-v4",
        (false, false, false) => "ports-v6",
        (false, true, true) => "ports-at-v4",
        (false, true, false) => "ports-at-v6",
        (true, false, true) => "ranges-v4",
        (true, false, false) => "ranges-v6",
        (true, true, true) => "ranges-at-v4",
        (true, true, false) => "ranges-at-v6",
    }
}
