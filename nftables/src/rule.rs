//! The expressions of rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::message::Attributes;

/// The register of the expressions (`NFT_REG_1`), and the one of a verdict.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// `NFT_META_NFPROTO` and its values, `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const META_NFPROTO: u32 = 15;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NFT_META_L4PROTO` and the numbers of protocols.
const META_L4PROTO: u32 = 16;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// `NFT_PAYLOAD_LL_HEADER`, and the offset of the source MAC address in a frame.
const LINK_LAYER_HEADER: u32 = 0;
const HARDWARE_SOURCE: u32 = 6;

/// `NFT_PAYLOAD_NETWORK_HEADER`, and the offsets of addresses in IP headers.
const NETWORK_HEADER: u32 = 1;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const SOURCE_V6: u32 = 8;
const DESTINATION_V6: u32 = 24;

/// `NFT_PAYLOAD_TRANSPORT_HEADER`, and the offsets of ports in TCP and UDP headers.
const TRANSPORT_HEADER: u32 = 2;
const DESTINATION_PORT: u32 = 2;
const SOURCE_PORT: u32 = 0;

/// `NFT_DYNSET_OP_UPDATE`
const DYNSET_UPDATE: u32 = 1;

/// The 4-byte registers after an IPv4 and an IPv6 address in register 1 (`NFT_REG32_01`, `NFT_REG32_04`).
const BEHIND_IPV4: u32 = 9;
const BEHIND_IPV6: u32 = 12;

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;

/// `NFT_SOCKET_TRANSPARENT`, `NFT_SOCKET_WILDCARD`.
const SOCKET_TRANSPARENT: u32 = 0;
const SOCKET_WILDCARD: u32 = 2;

/// `NFT_REJECT_TCP_RST`, `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_PORT_UNREACH`.
const REJECT_RESET: u32 = 1;
const REJECT_UNREACHABLE: u32 = 2;
const PORT_UNREACHABLE: u8 = 1;

/// `NFT_RETURN`, `NFT_JUMP`, `NF_ACCEPT`, `NF_DROP`.
const RETURN: u32 = -5_i32 as u32;
const JUMP: u32 = -3_i32 as u32;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// `NFT_REG_2`, after 16 bytes in the first register; `NFT_REG32_00`, the first register if it has 4 bytes.
const SECOND_REGISTER: u32 = 2;
const FIRST_OF_FOUR_BYTES: u32 = 8;

/// `NFT_META_OIF`, `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_IIFKIND`.
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_IIFKIND: u32 = 26;
const META_OIFNAME: u32 = 7;

/// The index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

/// `NFT_FIB_RESULT_OIF` and `_ADDRTYPE`, `NFTA_FIB_F_SADDR`, `_DADDR`, `_IIF`, and `RTN_LOCAL`.
const FIB_OIF: u32 = 1;
const FIB_TYPE: u32 = 3;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
const FIB_IIF: u32 = 8;
const LOCAL: u32 = 2;

/// `NFT_CT_STATUS`, `IPS_DST_NAT`, `NFT_NAT_DNAT`.
const CT_STATUS: u32 = 2;
const STATUS_DNAT: u32 = 1 << 5;
const NAT_DESTINATION: u32 = 1;

/// Whether a flow is that of the packet or of its reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Reverse,
}

/// A rule: a list of expressions, each of which matches the packet or ends the rule.
#[derive(Debug, Default)]
pub struct Rule(Vec<(&'static str, Attributes)>);

impl Rule {
    /// `ip saddr @set`, or with `ip6`.
    pub fn source_in_set(self, set: &str, v4: bool) -> Self {
        let rule = if v4 {
            self.meta_is(META_NFPROTO, IPV4).payload(REGISTER, NETWORK_HEADER, SOURCE, 4)
        } else {
            self.meta_is(META_NFPROTO, IPV6).payload(REGISTER, NETWORK_HEADER, SOURCE_V6, 16)
        };
        rule.with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `ip daddr @set`, or with `ip6`.
    pub fn destination_in_set(self, set: &str, v4: bool) -> Self {
        let (family, offset, length) = if v4 { (IPV4, DESTINATION, 4) } else { (IPV6, DESTINATION_V6, 16) };
        self.meta_is(META_NFPROTO, family)
            .payload(REGISTER, NETWORK_HEADER, offset, length)
            .with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `ip daddr range`, or with `ip6`.
    pub fn destination_in(self, range: IpNetwork) -> Self {
        self.address_in(range, DESTINATION, DESTINATION_V6)
    }

    /// `ip saddr range`, or with `ip6`.
    pub fn source_in(self, range: IpNetwork) -> Self {
        self.address_in(range, SOURCE, SOURCE_V6)
    }

    fn address_in(self, range: IpNetwork, offset_v4: u32, offset_v6: u32) -> Self {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (family, offset, length) =
            if range.is_ipv4() { (IPV4, offset_v4, 4_u32) } else { (IPV6, offset_v6, 16) };
        let (network, mask) = (octets(range.network()), octets(range.mask()));
        let zero = vec![0; mask.len()];
        self.meta_is(META_NFPROTO, family)
            .payload(REGISTER, NETWORK_HEADER, offset, length)
            .with("bitwise", |a| {
                a.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, length)
                    .nested(4, |data| data.bytes(1, &mask))
                    .nested(5, |data| data.bytes(1, &zero))
            })
            .compare(EQUAL, &network)
    }

    /// `iifname "prefix*"`
    pub fn from_interfaces(self, prefix: &str) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFNAME)).compare(EQUAL, prefix.as_bytes())
    }

    /// `iifname name`
    pub fn from_interface(self, name: &str) -> Self {
        let mut padded = [0; 16];
        let length = name.len().min(15);
        padded[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFNAME)).compare(EQUAL, &padded)
    }

    /// `meta iifkind "bridge"`
    pub fn from_bridge(self) -> Self {
        let mut kind = [0; 16];
        kind[..6].copy_from_slice(b"bridge");
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFKIND)).compare(EQUAL, &kind)
    }

    /// `iifname @set`
    pub fn from_interface_in(self, set: &str) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFNAME))
            .with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `iifname . ether saddr @set`
    pub fn from_mac_in(self, set: &str) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFNAME))
            .payload(SECOND_REGISTER, LINK_LAYER_HEADER, HARDWARE_SOURCE, 6)
            .with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `iifname . oifname @set`
    pub fn interfaces_in(self, set: &str) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_IIFNAME))
            .with("meta", |a| a.number(1, SECOND_REGISTER).number(2, META_OIFNAME))
            .with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `fib saddr . iif oif 0`: the reverse path of the source does not lead to the input interface.
    pub fn without_reverse_path(self) -> Self {
        self.with("fib", |a| a.number(1, REGISTER).number(2, FIB_OIF).number(3, FIB_SOURCE | FIB_IIF))
            .compare(EQUAL, &0_u32.to_ne_bytes())
    }

    /// `fib daddr type local`
    pub fn to_local_address(self) -> Self {
        self.with("fib", |a| a.number(1, REGISTER).number(2, FIB_TYPE).number(3, FIB_DESTINATION))
            .compare(EQUAL, &LOCAL.to_ne_bytes())
    }

    /// `fib saddr type != local`
    pub fn from_foreign_address(self) -> Self {
        self.with("fib", |a| a.number(1, REGISTER).number(2, FIB_TYPE).number(3, FIB_SOURCE))
            .compare(NOT_EQUAL, &LOCAL.to_ne_bytes())
    }

    /// `oif lo`: the packet stays on this node.
    pub fn to_loopback(self) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_OIF))
            .compare(EQUAL, &LOOPBACK_INDEX.to_ne_bytes())
    }

    /// `icmpv6 type number`
    pub fn icmpv6_type(self, number: u8) -> Self {
        self.meta_is(META_NFPROTO, IPV6)
            .meta_is(META_L4PROTO, ICMPV6)
            .payload(REGISTER, TRANSPORT_HEADER, 0, 1)
            .compare(EQUAL, &[number])
    }

    /// `ct status dnat`
    pub fn destination_was_translated(self) -> Self {
        self.with("ct", |a| a.number(1, REGISTER).number(2, CT_STATUS))
            .with("bitwise", |a| {
                a.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, 4)
                    .nested(4, |mask| mask.bytes(1, &STATUS_DNAT.to_ne_bytes()))
                    .nested(5, |xor| xor.bytes(1, &[0; 4]))
            })
            .compare(NOT_EQUAL, &[0; 4])
    }

    /// `dnat to [ip daddr .] meta l4proto . th dport map @map`, or with `ip6`: to the address and port of the
    /// map.
    pub fn dnat_by(self, map: &str, v4: bool, with_address: bool) -> Self {
        self.dnat(map, v4, with_address, true)
    }

    /// Like [`Rule::dnat_by`] to the address of the map; the port stays.
    pub fn dnat_to_address_by(self, map: &str, v4: bool, with_address: bool) -> Self {
        self.dnat(map, v4, with_address, false)
    }

    fn dnat(self, map: &str, v4: bool, with_address: bool, to_port: bool) -> Self {
        let (family, offset, length, behind) =
            if v4 { (IPV4, DESTINATION, 4, BEHIND_IPV4) } else { (IPV6, DESTINATION_V6, 16, BEHIND_IPV6) };
        let rule = self.meta_is(META_NFPROTO, family);
        let (rule, protocol) = if with_address {
            (rule.payload(REGISTER, NETWORK_HEADER, offset, length), behind)
        } else {
            (rule, FIRST_OF_FOUR_BYTES)
        };
        rule.with("meta", |a| a.number(1, protocol).number(2, META_L4PROTO))
            .payload(protocol + 1, TRANSPORT_HEADER, DESTINATION_PORT, 2)
            .with("lookup", |a| a.text(1, map).number(2, REGISTER).number(3, REGISTER))
            .with("nat", |a| {
                let a = a.number(1, NAT_DESTINATION).number(2, u32::from(family)).number(3, REGISTER);
                if to_port { a.number(5, behind) } else { a }
            })
    }

    /// `jump chain`
    pub fn jump(self, chain: &str) -> Self {
        self.with("immediate", |a| {
            a.number(1, VERDICT)
                .nested(2, |data| data.nested(2, |verdict| verdict.number(1, JUMP).text(2, chain)))
        })
    }

    /// `drop`
    pub fn drop(self) -> Self {
        self.verdict(DROP)
    }

    /// `socket transparent 1 socket wildcard 0`: the packet is for a socket with a foreign address
    /// (`IP_TRANSPARENT`).
    pub fn for_transparent_socket(self) -> Self {
        self.socket(SOCKET_TRANSPARENT, 1).socket(SOCKET_WILDCARD, 0)
    }

    /// `ip daddr . tcp dport @set`, or with `ip6`.
    pub fn tcp_to(self, set: &str, v4: bool) -> Self {
        let (family, offset, length, next) =
            if v4 { (IPV4, DESTINATION, 4, BEHIND_IPV4) } else { (IPV6, DESTINATION_V6, 16, BEHIND_IPV6) };
        self.meta_is(META_NFPROTO, family)
            .meta_is(META_L4PROTO, TCP)
            .payload(REGISTER, NETWORK_HEADER, offset, length)
            .payload(next, TRANSPORT_HEADER, DESTINATION_PORT, 2)
            .with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `meta l4proto tcp`
    pub fn tcp(self) -> Self {
        self.meta_is(META_L4PROTO, TCP)
    }

    /// `meta l4proto udp`
    pub fn udp(self) -> Self {
        self.meta_is(META_L4PROTO, UDP)
    }

    /// `meta l4proto != { tcp, udp, icmp, ipv6-icmp }`
    pub fn other_protocol(self) -> Self {
        let rule = self.with("meta", |a| a.number(1, REGISTER).number(2, META_L4PROTO));
        [TCP, UDP, ICMP, ICMPV6].into_iter().fold(rule, |rule, known| rule.compare(NOT_EQUAL, &[known]))
    }

    /// `socket wildcard 1`: the packet is for a socket bound to every address of the machine.
    pub fn for_wildcard_socket(self) -> Self {
        self.socket(SOCKET_WILDCARD, 1)
    }

    /// `ip daddr . meta l4proto . th dport @set`, or with `ip6`.
    pub fn destination_port_in_set(self, set: &str, v4: bool) -> Self {
        self.destination_port(v4).with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`, or with `ip6`.
    pub fn verdict_by_destination_port(self, map: &str, v4: bool) -> Self {
        self.destination_port(v4).with("lookup", |a| a.text(1, map).number(2, REGISTER).number(3, VERDICT))
    }

    fn destination_port(self, v4: bool) -> Self {
        let (family, offset, length, next) =
            if v4 { (IPV4, DESTINATION, 4, BEHIND_IPV4) } else { (IPV6, DESTINATION_V6, 16, BEHIND_IPV6) };
        self.meta_is(META_NFPROTO, family)
            .payload(REGISTER, NETWORK_HEADER, offset, length)
            .with("meta", |a| a.number(1, next).number(2, META_L4PROTO))
            .payload(next + 1, TRANSPORT_HEADER, DESTINATION_PORT, 2)
    }

    /// `reject with tcp reset`
    pub fn reset(self) -> Self {
        self.with("reject", |a| a.number(1, REJECT_RESET))
    }

    /// `reject`, with ICMP or ICMPv6 "port unreachable".
    pub fn reject(self) -> Self {
        self.with("reject", |a| a.number(1, REJECT_UNREACHABLE).bytes(2, &[PORT_UNREACHABLE]))
    }

    /// `tproxy ip to address:port`, or with `ip6`: delivers the packet unchanged to a local listener.
    pub fn tproxy(self, listener: SocketAddr) -> Self {
        let (family, address, next) = match listener.ip() {
            IpAddr::V4(ip) => (IPV4, ip.octets().to_vec(), BEHIND_IPV4),
            IpAddr::V6(ip) => (IPV6, ip.octets().to_vec(), BEHIND_IPV6),
        };
        self.immediate(REGISTER, &address)
            .immediate(next, &listener.port().to_be_bytes())
            .with("tproxy", |a| a.number(1, u32::from(family)).number(2, REGISTER).number(3, next))
    }

    /// `notrack`: the packet bypasses conntrack and NAT.
    pub fn notrack(self) -> Self {
        self.with("notrack", |a| a)
    }

    /// `accept`: no further rule of this chain applies.
    pub fn accept(self) -> Self {
        self.verdict(ACCEPT)
    }

    /// `meta mark set meta mark | bit`. Marks are in host byte order; other bits stay.
    pub fn set_mark_bit(self, bit: u32) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_MARK))
            .with("bitwise", |a| {
                a.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, 4)
                    .nested(4, |mask| mask.bytes(1, &(!bit).to_ne_bytes()))
                    .nested(5, |xor| xor.bytes(1, &bit.to_ne_bytes()))
            })
            .with("meta", |a| a.number(3, REGISTER).number(2, META_MARK))
    }

    /// `meta mark & bit == bit`
    pub fn with_mark_bit(self, bit: u32) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_MARK))
            .with("bitwise", |a| {
                a.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, 4)
                    .nested(4, |mask| mask.bytes(1, &bit.to_ne_bytes()))
                    .nested(5, |xor| xor.bytes(1, &[0; 4]))
            })
            .compare(EQUAL, &bit.to_ne_bytes())
    }

    /// `ip saddr . th sport . ip daddr . th dport @set update @set { the same timeout … }`, or with `ip6`:
    /// the packet is of a flow in the set, whose timeout restarts.
    pub fn of_flow_in_set(self, set: &str, v4: bool, timeout: Duration) -> Self {
        self.flow(v4, Direction::Forward)
            .with("lookup", |a| a.text(1, set).number(2, FIRST_OF_FOUR_BYTES))
            .update_set(set, timeout)
    }

    /// `update @set { ip daddr . th dport . ip saddr . th sport timeout … }`, or with `ip6`: adds the flow of
    /// the replies.
    pub fn record_reverse_flow(self, set: &str, v4: bool, timeout: Duration) -> Self {
        self.flow(v4, Direction::Reverse).update_set(set, timeout)
    }

    /// Loads the addresses and ports of a TCP or UDP flow into registers.
    fn flow(self, v4: bool, direction: Direction) -> Self {
        let (family, source, destination, length) =
            if v4 { (IPV4, SOURCE, DESTINATION, 4) } else { (IPV6, SOURCE_V6, DESTINATION_V6, 16) };
        let (from, to) = ((source, SOURCE_PORT), (destination, DESTINATION_PORT));
        let (first, second) = if direction == Direction::Forward { (from, to) } else { (to, from) };
        let mut register = FIRST_OF_FOUR_BYTES;
        let mut rule = self.meta_is(META_NFPROTO, family);
        for (address, port) in [first, second] {
            rule = rule.payload(register, NETWORK_HEADER, address, length).payload(
                register + length / 4,
                TRANSPORT_HEADER,
                port,
                2,
            );
            register += length / 4 + 1;
        }
        rule
    }

    fn update_set(self, set: &str, timeout: Duration) -> Self {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.with("dynset", |a| {
            a.text(1, set)
                .number(3, DYNSET_UPDATE)
                .number(4, FIRST_OF_FOUR_BYTES)
                .bytes(6, &milliseconds.to_be_bytes())
        })
    }

    /// `return`
    pub fn stop(self) -> Self {
        self.verdict(RETURN)
    }

    /// `masquerade`
    pub fn masquerade(self) -> Self {
        self.with("masq", |a| a)
    }

    pub(super) fn write(&self, mut list: Attributes) -> Attributes {
        for (name, data) in &self.0 {
            list =
                list.nested(1, |expression| expression.text(1, name).nested(2, |inner| inner.append(data)));
        }
        list
    }

    fn compare(self, operation: u32, value: &[u8]) -> Self {
        self.with("cmp", |a| {
            a.number(1, REGISTER).number(2, operation).nested(3, |data| data.bytes(1, value))
        })
    }

    fn meta_is(self, key: u32, value: u8) -> Self {
        self.with("meta", |a| a.number(1, REGISTER).number(2, key))
            .with("cmp", |a| a.number(1, REGISTER).number(2, 0).nested(3, |data| data.bytes(1, &[value])))
    }

    fn immediate(self, register: u32, value: &[u8]) -> Self {
        self.with("immediate", |a| a.number(1, register).nested(2, |data| data.bytes(1, value)))
    }

    fn verdict(self, code: u32) -> Self {
        self.with("immediate", |a| {
            a.number(1, VERDICT).nested(2, |data| data.nested(2, |verdict| verdict.number(1, code)))
        })
    }

    fn socket(self, key: u32, value: u8) -> Self {
        self.with("socket", |a| a.number(1, key).number(2, REGISTER))
            .with("cmp", |a| a.number(1, REGISTER).number(2, 0).nested(3, |data| data.bytes(1, &[value])))
    }

    fn payload(self, register: u32, header: u32, offset: u32, length: u32) -> Self {
        self.with("payload", |a| a.number(1, register).number(2, header).number(3, offset).number(4, length))
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(Attributes) -> Attributes) -> Self {
        self.0.push((name, fill(Attributes::default())));
        self
    }
}
