//! What rules are made of.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::message::Attributes;

/// The register every expression here uses (`NFT_REG_1`), and the one a verdict goes to.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// `NFT_META_NFPROTO` and the value that means IPv4.
const META_NFPROTO: u32 = 15;
const IPV4: u8 = 2;

/// `NFT_PAYLOAD_NETWORK_HEADER`; where an IPv4 header has its addresses.
const NETWORK_HEADER: u32 = 1;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;

/// `NFT_SOCKET_TRANSPARENT`, `NFT_SOCKET_WILDCARD`.
const SOCKET_TRANSPARENT: u32 = 0;
const SOCKET_WILDCARD: u32 = 2;

/// `NFT_RETURN`.
const RETURN: u32 = -5_i32 as u32;

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
        self.with("immediate", |a| {
            a.number(1, VERDICT).nested(2, |data| data.nested(2, |verdict| verdict.number(1, RETURN)))
        })
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
        self.with("meta", |a| a.number(1, REGISTER).number(2, META_NFPROTO))
            .with("cmp", |a| a.number(1, REGISTER).number(2, 0).nested(3, |data| data.bytes(1, &[IPV4])))
    }

    fn socket(self, key: u32, value: u8) -> Self {
        self.with("socket", |a| a.number(1, key).number(2, REGISTER))
            .with("cmp", |a| a.number(1, REGISTER).number(2, 0).nested(3, |data| data.bytes(1, &[value])))
    }

    fn load(self, offset: u32) -> Self {
        self.with("payload", |a| {
            a.number(1, REGISTER).number(2, NETWORK_HEADER).number(3, offset).number(4, 4)
        })
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(Attributes) -> Attributes) -> Self {
        self.0.push((name, fill(Attributes::default())));
        self
    }
}
