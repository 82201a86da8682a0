//! Host ports that lead to a pod. Consecutive ports are one mapping.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

/// Consecutive host ports that the runtime maps to as many ports of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The first host port.
    pub host_port: u16,
    /// The pod's port for the first host port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`, lower case.
    pub protocol: String,
    /// The node address; absent means all.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The number of consecutive ports; absent means one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub range: u16,
}

/// Two mappings lead one host port to different ports of the pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    port: u16,
    protocol: String,
    to: [u16; 2],
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, protocol, to: [one, other] } = self;
        write!(f, "port {port}/{protocol} of the node cannot lead to the pod's ports {one} and {other}")
    }
}

impl std::error::Error for Conflict {}

impl PortMapping {
    /// The last host port.
    pub fn last_host_port(&self) -> u16 {
        self.host_port.saturating_add(self.range.saturating_sub(1))
    }

    /// The pod's port for a host port.
    pub fn port_of_pod(&self, host_port: u16) -> u16 {
        self.container_port.wrapping_add(host_port.wrapping_sub(self.host_port))
    }

    /// Merges the mappings into as few as possible. A duplicate port counts once.
    ///
    /// # Errors
    /// If one port of one address leads to two ports of the pod.
    pub fn merge(mut mappings: Vec<Self>) -> Result<Vec<Self>, Conflict> {
        // Sort mappings of every address first: they may contain those of every IPv4 or IPv6 address.
        mappings.sort_by(|one, other| one.order().cmp(&other.order()));
        let mut merged: Vec<Self> = Vec::new();
        for next in mappings {
            if next.host_ip.is_some_and(|address| address.is_unspecified()) {
                let of_every_address = |other: &&Self| other.host_ip.is_none() && other.has_port_of(&next);
                if let Some(every) = merged.iter().find(of_every_address) {
                    every.check_same_end(&next)?;
                    if next.last_host_port() <= every.last_host_port() {
                        continue;
                    }
                }
            }
            match merged.last_mut().filter(|last| last.host_ip == next.host_ip) {
                Some(last) if last.has_port_of(&next) => {
                    last.check_same_end(&next)?;
                    last.extend_to(next.last_host_port());
                }
                Some(last) if last.is_continued_by(&next) => last.extend_to(next.last_host_port()),
                _ => merged.push(next),
            }
        }
        Ok(merged)
    }

    fn order(&self) -> (&str, Option<IpAddr>, u16, u16) {
        (&self.protocol, self.host_ip, self.host_port, self.container_port)
    }

    /// Whether the first host port of `other` is one of these, whatever the addresses.
    fn has_port_of(&self, other: &Self) -> bool {
        self.protocol == other.protocol && (self.host_port..=self.last_host_port()).contains(&other.host_port)
    }

    fn check_same_end(&self, other: &Self) -> Result<(), Conflict> {
        let (port, to) = (other.host_port, [self.port_of_pod(other.host_port), other.container_port]);
        if to[0] == to[1] { Ok(()) } else { Err(Conflict { port, protocol: self.protocol.clone(), to }) }
    }

    fn is_continued_by(&self, next: &Self) -> bool {
        self.protocol == next.protocol
            && self.last_host_port().checked_add(1) == Some(next.host_port)
            && self.port_of_pod(self.last_host_port()).checked_add(1) == Some(next.container_port)
    }

    fn extend_to(&mut self, last_host_port: u16) {
        self.range = self.range.max(last_host_port - self.host_port + 1);
    }
}

/// Reads the mappings of a record. Earlier versions wrote one mapping per port.
pub(crate) fn read_merged<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortMapping>, D::Error> {
    let mappings = Vec::<PortMapping>::deserialize(deserializer)?;
    // ADD accepts no conflict. A file of another writer is used as it is.
    Ok(PortMapping::merge(mappings.clone()).unwrap_or(mappings))
}

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn is_one(range: &u16) -> bool {
    *range == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: u16, container_port: u16, range: u16) -> PortMapping {
        PortMapping {
            host_port,
            container_port,
            protocol: "tcp".into(),
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
            range,
        }
    }

    #[test]
    fn consecutive_ports_are_merged_and_duplicates_count_once() {
        let single = (0..3000).rev().map(|port| mapping("", 20_000 + port, 20_000 + port, 1));
        let others = [mapping("", 23_000, 80, 1), mapping("192.0.2.2", 20_000, 81, 1)];
        let merged = PortMapping::merge(single.clone().chain(others.clone()).chain(single).collect());
        let expected = [mapping("", 20_000, 20_000, 3000), others[0].clone(), others[1].clone()];
        assert_eq!(merged.unwrap(), expected);
        let all = PortMapping::merge((1..=u16::MAX).map(|port| mapping("", port, port, 1)).collect());
        assert_eq!(all.unwrap(), [mapping("", 1, 1, u16::MAX)]);
    }

    #[test]
    fn port_of_every_address_and_of_every_ipv4_address_must_lead_to_one_port_of_the_pod() {
        for (one, other) in [("", ""), ("", "0.0.0.0"), ("", "::"), ("0.0.0.0", "0.0.0.0")] {
            let pair = |to: u16| vec![mapping(one, 80, 8080, 1), mapping(other, 80, to, 1)];
            assert_eq!(PortMapping::merge(pair(8080)).unwrap(), [mapping(one, 80, 8080, 1)]);
            let conflict = PortMapping::merge(pair(8081)).unwrap_err().to_string();
            assert_eq!(
                conflict, "port 80/tcp of the node cannot lead to the pod's ports 8080 and 8081",
                "{one:?} and {other:?}"
            );
        }
        for (one, other) in [("0.0.0.0", "::"), ("", "192.0.2.2"), ("0.0.0.0", "192.0.2.2")] {
            let pair = vec![mapping(one, 80, 8080, 1), mapping(other, 80, 8081, 1)];
            assert_eq!(PortMapping::merge(pair.clone()).map(|merged| merged.len()), Ok(2), "{pair:?}");
        }
    }

    #[test]
    fn one_mapping_per_port_as_in_former_versions_is_read_as_ranges() {
        #[derive(Deserialize)]
        struct File(#[serde(deserialize_with = "read_merged")] Vec<PortMapping>);
        let single = |port: u16| format!(r#"{{"hostPort":{port},"containerPort":{port},"protocol":"tcp"}}"#);
        let read = serde_json::from_str::<File>(&format!("[{},{},{}]", single(80), single(81), single(82)));
        let File(mappings) = read.unwrap();
        assert_eq!(mappings, [mapping("", 80, 80, 3)]);
        let written = serde_json::to_string(&mappings).unwrap();
        assert_eq!(written, r#"[{"hostPort":80,"containerPort":80,"protocol":"tcp","range":3}]"#);
        assert_eq!(serde_json::from_str::<File>(&written).unwrap().0, mappings);
    }
}
