//! What rules are made of.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::Ipv4Network;

use super::message::Attributes;

/// The register every expression here uses (`NFT_REG_1`), and the one a verdict goes to.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// `NFT_META_NFPROTO` and its values, `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const META_NFPROTO: u32 = 15;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NFT_META_L4PROTO` and TCP's number.
const META_L4PROTO: u32 = 16;
const TCP: u8 = 6;

/// `NFT_PAYLOAD_NETWORK_HEADER`; where headers have their addresses.
const NETWORK_HEADER: u32 = 1;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const DESTINATION_V6: u32 = 24;

/// `NFT_PAYLOAD_TRANSPORT_HEADER`; where TCP and UDP have the destination port.
const TRANSPORT_HEADER: u32 = 2;
const DESTINATION_PORT: u32 = 2;

/// The registers of 4 bytes behind an IPv4 and an IPv6 address in register 1 (`NFT_REG32_01`, `NFT_REG32_04`).
const BEHIND_IPV4: u32 = 9;
const BEHIND_IPV6: u32 = 12;

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;

/// `NFT_SOCKET_TRANSPARENT`, `NFT_SOCKET_WILDCARD`.
const SOCKET_TRANSPARENT: u32 = 0;
const SOCKET_WILDCARD: u32 = 2;

/// `NFT_RETURN`, `NF_ACCEPT`.
const RETURN: u32 = -5_i32 as u32;
const ACCEPT: u32 = 1;

/// A rule, as a list of expressions that each let a packet go on or not.
#[derive(Debug, Default)]
pub struct Rule(Vec<(&'static str, Attributes)>);

impl Rule {
    /// `ip saddr @set`
    pub fn source_in(self, set: &str) -> Self {
        self.ipv4().load(SOURCE).with("lookup", |a| a.text(1, set).number(2, REGISTER))
    }

    /// `ip daddr range`
    pub fn destination_in(self, range: Ipv4Network) -> Self {
        let data = |address: Ipv4Addr| move |data: Attributes| data.bytes(1, &address.octets());
        let zero = Ipv4Addr::UNSPECIFIED;
        self.load(DESTINATION)
            .with("bitwise", |a| {
                a.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, 4)
                    .nested(4, data(range.mask()))
                    .nested(5, data(zero))
            })
            .with("cmp", |a| a.number(1, REGISTER).number(2, 0).nested(3, data(range.network())))
    }

    /// `socket transparent 1 socket wildcard 0`: the packet is for a socket that borrows its address (`IP_TRANSPARENT`).
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

    /// `tproxy ip to address:port`, or with `ip6`: hands the packet to a local listener without changing it.
    pub fn tproxy(self, listener: SocketAddr) -> Self {
        let (family, address, next) = match listener.ip() {
            IpAddr::V4(ip) => (IPV4, ip.octets().to_vec(), BEHIND_IPV4),
            IpAddr::V6(ip) => (IPV6, ip.octets().to_vec(), BEHIND_IPV6),
        };
        self.immediate(REGISTER, &address)
            .immediate(next, &listener.port().to_be_bytes())
            .with("tproxy", |a| a.number(1, u32::from(family)).number(2, REGISTER).number(3, next))
    }

    /// `accept`: this chain has nothing more to say.
    pub fn accept(self) -> Self {
        self.verdict(ACCEPT)
    }

    /// `meta mark set meta mark | bit`. Marks are numbers of the host's byte order; other bits stay.
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

    fn ipv4(self) -> Self {
        self.meta_is(META_NFPROTO, IPV4)
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

    fn load(self, offset: u32) -> Self {
        self.payload(REGISTER, NETWORK_HEADER, offset, 4)
    }

    fn payload(self, register: u32, header: u32, offset: u32, length: u32) -> Self {
        self.with("payload", |a| a.number(1, register).number(2, header).number(3, offset).number(4, length))
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(Attributes) -> Attributes) -> Self {
        self.0.push((name, fill(Attributes::default())));
        self
    }
}
