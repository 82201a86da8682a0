//! Sets of address ranges, in the format of `host-local`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::Lease;
use crate::error::Result;
use crate::netconf::{WireRange, invalid, parse_cidr};

/// Positions beyond this are assigned only on request: no node has a million pods.
pub(crate) const MAX_POSITIONS: u32 = 1 << 20;

/// Ranges of one family, in order. A pod gets one address of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    subnet: IpNetwork,
    /// First and last address that may be assigned, as numbers.
    first: u128,
    last: u128,
    gateway: Option<IpAddr>,
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
            if range.is_v4() != ranges[0].is_v4() {
                let suggestion = "put each family into a set of its own: [[{v4}], [{v6}]]";
                return Err(invalid(format!("{field}: mixes IPv4 and IPv6; {suggestion}")));
            }
            if ranges[..index].iter().any(|other| other.overlaps(range)) {
                return Err(invalid(format!("{field}: its ranges overlap in {}", range.subnet)));
            }
        }
        Ok(Self(ranges))
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.iter().map(|range| range.subnet)
    }

    /// Sets the gateway of each subnet: by default its first address, as `host-local` does.
    pub(crate) fn with_gateways(mut self) -> Self {
        for range in &mut self.0 {
            let first = range.address(number(range.subnet.network()) + 1);
            range.gateway.get_or_insert(first);
        }
        self
    }

    /// Returns the address with its prefix and gateway, if it is of this set.
    pub(crate) fn lease(&self, address: IpAddr) -> Option<Lease> {
        let range = self.0.iter().find(|range| range.contains(address))?;
        let address =
            IpNetwork::new(address, range.subnet.prefix()).expect("a prefix of the address's family");
        Some(Lease { address, gateway: range.gateway })
    }

    /// The number of addresses that can be assigned without a request, gateways included.
    pub(crate) fn len(&self) -> u32 {
        let total = self.0.iter().fold(0, |sum: u128, range| sum.saturating_add(range.len()));
        u32::try_from(total).unwrap_or(MAX_POSITIONS).min(MAX_POSITIONS)
    }

    /// The address at a position, counted across all ranges.
    pub(crate) fn nth(&self, position: u32) -> Option<IpAddr> {
        let mut rest = u128::from(position);
        for range in &self.0 {
            if rest < range.len() {
                return Some(range.address(range.first + rest));
            }
            rest -= range.len();
        }
        None
    }

    /// The position of an address, if it can be assigned without a request.
    pub(crate) fn position(&self, address: IpAddr) -> Option<u32> {
        let mut before = 0_u128;
        for range in &self.0 {
            if range.contains(address) {
                let position = before.saturating_add(number(address) - range.first);
                return u32::try_from(position).ok().filter(|position| *position < MAX_POSITIONS);
            }
            before = before.saturating_add(range.len());
        }
        None
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == Some(address))
    }

    /// A unique name of the set, short enough for a file name.
    pub(crate) fn file_name(&self) -> String {
        let first = &self.0[0];
        let mut name = format!("{}-{}", first.address(first.first), first.address(first.last));
        for range in &self.0[1..] {
            // Many ranges would make the name too long. Their subnets do not overlap, so the first address is
            // unique.
            let hash = (range.first ^ range.last.rotate_left(64)) % 0xffff_fffb;
            name = format!("{name}+{hash:x}");
        }
        name.truncate(200);
        name
    }
}

impl Range {
    fn parse(field: &str, wire: &WireRange) -> Result<Self> {
        let field = |name: &str| format!("{field}.{name}");
        let Some(subnet) = &wire.subnet else {
            return Err(invalid(format!("{}: is missing", field("subnet"))));
        };
        let subnet = parse_cidr(&field("subnet"), subnet)?;
        let longest = if subnet.is_ipv4() { 30 } else { 126 };
        if subnet.prefix() > longest {
            let message =
                format!("{}: {subnet} is too small; the longest prefix is /{longest}", field("subnet"));
            return Err(invalid(message));
        }
        let inside = |name: &str, text: &Option<String>| -> Result<Option<IpAddr>> {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let address: Option<IpAddr> = text.parse().ok();
            match address.filter(|address| subnet.contains(*address)) {
                Some(address) => Ok(Some(address)),
                None => Err(invalid(format!("{}: {text:?} is not an address of {subnet}", field(name)))),
            }
        };
        // A pod cannot have the network address (in IPv6 the subnet-router anycast address) or the broadcast
        // address.
        let end = number(subnet.broadcast());
        let usable = (number(subnet.network()) + 1, if subnet.is_ipv4() { end - 1 } else { end });
        let first = inside("rangeStart", &wire.range_start)?.map_or(usable.0, number).max(usable.0);
        let last = inside("rangeEnd", &wire.range_end)?.map_or(usable.1, number).min(usable.1);
        if first > last {
            return Err(invalid(format!("{}: lies after rangeEnd", field("rangeStart"))));
        }
        Ok(Self { subnet, first, last, gateway: gateway(&field("gateway"), wire, subnet)? })
    }

    fn is_v4(&self) -> bool {
        self.subnet.is_ipv4()
    }

    fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4() && (self.first..=self.last).contains(&number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4() && self.first <= other.last && other.first <= self.last
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.is_v4() {
            Ipv4Addr::from_bits(u32::try_from(number).expect("the number of an IPv4 address has 32 bits"))
                .into()
        } else {
            Ipv6Addr::from_bits(number).into()
        }
    }
}

/// A gateway may be outside the subnet, as with `host-local`: the pod may have a route to it.
fn gateway(field: &str, wire: &WireRange, subnet: IpNetwork) -> Result<Option<IpAddr>> {
    let Some(text) = wire.gateway.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let address = text.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == subnet.is_ipv4());
    let family = if subnet.is_ipv4() { "IPv4" } else { "IPv6" };
    address.map(Some).ok_or_else(|| invalid(format!("{field}: {text:?} is not an address of {family}")))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self
            .0
            .iter()
            .map(|range| format!("{}-{}", range.address(range.first), range.address(range.last)));
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
    fn a_large_ipv6_range_has_a_million_positions_and_holds_the_rest_too() {
        let set = set(r#"[{"subnet": "fd00::/64"}]"#).unwrap();
        assert_eq!(set.len(), MAX_POSITIONS);
        assert_eq!(set.nth(0).unwrap().to_string(), "fd00::1");
        assert_eq!(set.position("fd00::1:0".parse().unwrap()), Some(0xffff));
        let far = "fd00::1:2:3:4".parse().unwrap();
        assert_eq!((set.position(far), set.contains(far)), (None, true));
        assert!(!set.contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn errors_name_the_field_and_the_value() {
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
                r#"[{"subnet": "fd00::/127"}]"#,
                "ipam.ranges[0].subnet: fd00::/127 is too small; the longest prefix is /126",
            ),
            (
                r#"[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]"#,
                "ipam.ranges[0]: mixes IPv4 and IPv6; put each family into a set of its own: [[{v4}], [{v6}]]",
            ),
            (
                r#"[{"subnet": "10.1.0.0/24", "gateway": "10.2.0"}]"#,
                "ipam.ranges[0].gateway: \"10.2.0\" is not an address of IPv4",
            ),
            (
                r#"[{"subnet": "10.1.0.0/24", "gateway": "fd00::1"}]"#,
                "ipam.ranges[0].gateway: \"fd00::1\" is not an address of IPv4",
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
