//! Sets of address ranges, as `host-local` writes them.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::error::Result;
use crate::netconf::{WireRange, invalid, parse_cidr};

/// Ranges from which one address is taken, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    subnet: Ipv4Network,
    /// First and last address given out, as numbers.
    first: u32,
    last: u32,
    gateway: Option<Ipv4Addr>,
}

impl RangeSet {
    pub(crate) fn parse(field: &str, wire: &[WireRange]) -> Result<Self> {
        if wire.is_empty() {
            return Err(invalid(format!("{field}: is empty")));
        }
        let numbered = wire.iter().enumerate();
        let field_of = |index| if wire.len() == 1 { field.to_owned() } else { format!("{field}[{index}]") };
        let ranges: Vec<Range> =
            numbered.map(|(index, range)| Range::parse(&field_of(index), range)).collect::<Result<_>>()?;
        for (index, range) in ranges.iter().enumerate() {
            if ranges[..index].iter().any(|other| other.first <= range.last && range.first <= other.last) {
                return Err(invalid(format!("{field}: its ranges overlap in {}", range.subnet)));
            }
        }
        Ok(Self(ranges))
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.first <= b.last && b.first <= a.last))
    }

    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.iter().map(|range| range.subnet.into())
    }

    /// How many addresses there are, gateways included.
    pub(crate) fn len(&self) -> u32 {
        self.0.iter().fold(0, |sum: u32, range| sum.saturating_add(range.len()))
    }

    /// The address at a position, counted through all ranges.
    pub(crate) fn nth(&self, position: u32) -> Option<Ipv4Addr> {
        let mut rest = position;
        for range in &self.0 {
            if rest < range.len() {
                return Some(Ipv4Addr::from_bits(range.first + rest));
            }
            rest -= range.len();
        }
        None
    }

    /// The position of an address, if it is one of the set's.
    pub(crate) fn position(&self, address: Ipv4Addr) -> Option<u32> {
        let number = address.to_bits();
        let mut before = 0;
        for range in &self.0 {
            if (range.first..=range.last).contains(&number) {
                return Some(before + (number - range.first));
            }
            before += range.len();
        }
        None
    }

    pub(crate) fn is_gateway(&self, address: Ipv4Addr) -> bool {
        self.0.iter().any(|range| range.gateway == Some(address))
    }
}

impl Range {
    fn parse(field: &str, wire: &WireRange) -> Result<Self> {
        let field = |name: &str| format!("{field}.{name}");
        let Some(subnet) = &wire.subnet else {
            return Err(invalid(format!("{}: is missing", field("subnet"))));
        };
        let IpNetwork::V4(subnet) = parse_cidr(&field("subnet"), subnet)? else {
            let message =
                format!("{}: {subnet:?} is IPv6, which routed mode does not have yet", field("subnet"));
            return Err(invalid(message));
        };
        if subnet.prefix() > 30 {
            let message = format!("{}: {subnet} is too small; the longest prefix is /30", field("subnet"));
            return Err(invalid(message));
        }
        let inside = |name: &str, text: &Option<String>| -> Result<Option<Ipv4Addr>> {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let address: Option<Ipv4Addr> = text.parse().ok();
            match address.filter(|address| subnet.contains(*address)) {
                Some(address) => Ok(Some(address)),
                None => Err(invalid(format!("{}: {text:?} is not an address of {subnet}", field(name)))),
            }
        };
        // Neither the network's own address nor the broadcast address can be a pod's.
        let usable = (subnet.network().to_bits() + 1, subnet.broadcast().to_bits() - 1);
        let first =
            inside("rangeStart", &wire.range_start)?.map_or(usable.0, Ipv4Addr::to_bits).max(usable.0);
        let last = inside("rangeEnd", &wire.range_end)?.map_or(usable.1, Ipv4Addr::to_bits).min(usable.1);
        if first > last {
            return Err(invalid(format!("{}: lies after rangeEnd", field("rangeStart"))));
        }
        Ok(Self { subnet, first, last, gateway: inside("gateway", &wire.gateway)? })
    }

    fn len(&self) -> u32 {
        self.last - self.first + 1
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self
            .0
            .iter()
            .map(|range| format!("{}-{}", Ipv4Addr::from_bits(range.first), Ipv4Addr::from_bits(range.last)));
        f.write_str(&ranges.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> std::result::Result<RangeSet, String> {
        let wire: Vec<WireRange> = serde_json::from_str(json).unwrap();
        RangeSet::parse("ipam.ranges[0]", &wire).map_err(|e| e.message)
    }

    #[test]
    fn positions_and_addresses_match_across_ranges_and_leave_out_network_and_broadcast() {
        let set = set(
            r#"[{"subnet": "10.1.0.0/29"}, {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.9", "rangeEnd": "10.2.0.10"}]"#,
        );
        let set = set.unwrap();
        let all: Vec<String> = (0..set.len()).map(|n| set.nth(n).unwrap().to_string()).collect();
        assert_eq!(
            all,
            ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.2.0.9", "10.2.0.10"]
        );
        assert!((0..set.len()).all(|n| set.position(set.nth(n).unwrap()) == Some(n)));
        assert_eq!(set.position("10.1.0.7".parse().unwrap()), None);
    }

    #[test]
    fn mistakes_name_the_field_and_the_value() {
        for (json, expected) in [
            (
                r#"[{"subnet": "10.1.0.1/24"}]"#,
                "ipam.ranges[0].subnet: \"10.1.0.1/24\" has host bits set; the range is 10.1.0.0/24",
            ),
            (
                r#"[{"subnet": "10.1.0.0/31"}]"#,
                "ipam.ranges[0].subnet: 10.1.0.0/31 is too small; the longest prefix is /30",
            ),
            (
                r#"[{"subnet": "fd00::/64"}]"#,
                "ipam.ranges[0].subnet: \"fd00::/64\" is IPv6, which routed mode does not have yet",
            ),
            (
                r#"[{"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}]"#,
                "ipam.ranges[0].gateway: \"10.2.0.1\" is not an address of 10.1.0.0/24",
            ),
            (
                r#"[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]"#,
                "ipam.ranges[0].rangeStart: lies after rangeEnd",
            ),
            (r#"[{"rangeStart": "10.1.0.9"}]"#, "ipam.ranges[0].subnet: is missing"),
            (
                r#"[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]"#,
                "ipam.ranges[0]: its ranges overlap in 10.1.0.0/25",
            ),
        ] {
            assert_eq!(set(json).unwrap_err(), expected);
        }
    }
}
