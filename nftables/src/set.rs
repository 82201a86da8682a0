//! Sets and maps: the types of their keys, and the encoding of their elements.

use std::net::IpAddr;

use super::message::Attributes;

/// nft's numbers of its data types. `nft list` uses them to print addresses, ports and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `ipv4_addr`
    Ipv4Address = 7,
    /// `ipv6_addr`
    Ipv6Address = 8,
    /// `ether_addr`
    HardwareAddress = 9,
    /// `inet_proto`
    Protocol = 12,
    /// `inet_service`
    Service = 13,
    /// `ifname`
    InterfaceName = 41,
}

/// A set: its keys are concatenations of these types.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// The name in the table.
    pub name: &'a str,
    /// A number that is unique within the batch.
    pub id: u32,
    /// The types of the key's parts.
    pub key: &'a [Type],
    /// The data of a map.
    pub data: Data<'a>,
}

/// What an element has beside its key.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Nothing: a set.
    None,
    /// A value of these types: a map.
    Value(&'a [Type]),
    /// A verdict: a verdict map.
    Verdict,
    /// Nothing, and a key is one end of a range ([`Element::Start`], [`Element::End`]): `flags interval`.
    Interval,
}

/// A key or a value: its parts, each padded to a register of four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// Of a set.
    Key(Key),
    /// Of a map.
    Pair(Key, Key),
    /// Of a verdict map: `goto` the chain.
    Goto(Key, String),
    /// The first key of a range.
    Start(Key),
    /// The first key after a range. A range without one extends to the last possible key.
    End(Key),
    /// Of an interval map: the first and the last key, and their common data.
    Range(Key, Key, Key),
}

/// `NFT_SET_INTERVAL`, `NFT_SET_MAP`, `NFT_SET_CONCAT`.
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const CONCATENATED: u32 = 0x80;

/// `NFT_DATA_VERDICT`, the type of a verdict.
const VERDICT: u32 = 0xffff_ff00;

/// `NFT_GOTO`.
const GOTO: u32 = -4_i32 as u32;

/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

impl Type {
    /// The length in bytes.
    fn length(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Service => 2,
            Self::Ipv4Address => 4,
            Self::HardwareAddress => 6,
            Self::Ipv6Address | Self::InterfaceName => 16,
        }
    }
}

impl Set<'_> {
    pub(super) fn write(&self, a: Attributes) -> Attributes {
        self.write_with(a, 0)
    }

    /// An interval set with concatenated keys, which needs the length of each part.
    pub(super) fn write_intervals(&self, a: Attributes) -> Attributes {
        let fields = |mut list: Attributes| {
            for part in self.key {
                list = list.nested(1, |field| field.number(1, part.length()));
            }
            list
        };
        self.write_with(a, INTERVAL | CONCATENATED).nested(9, |description| description.nested(2, fields))
    }

    fn write_with(&self, a: Attributes, flags: u32) -> Attributes {
        let (kind, length) = concatenation(self.key);
        let of_data = match self.data {
            Data::None => 0,
            Data::Interval => INTERVAL,
            Data::Value(_) | Data::Verdict => MAP,
        };
        let flags = flags | of_data;
        let a = a.text(2, self.name).number(3, flags).number(4, kind).number(5, length);
        let a = match self.data {
            Data::None | Data::Interval => a,
            Data::Verdict => a.number(6, VERDICT),
            Data::Value(types) => {
                let (kind, length) = concatenation(types);
                a.number(6, kind).number(7, length)
            }
        };
        a.number(10, self.id)
    }
}

/// The type of a concatenation has 6 bits per part; each part takes whole registers.
pub(super) fn concatenation(types: &[Type]) -> (u32, u32) {
    types.iter().fold((0, 0), |(kind, length), part| {
        ((kind << 6) | *part as u32, length + part.length().next_multiple_of(4))
    })
}

impl Key {
    /// Appends an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.part(&address.octets()),
            IpAddr::V6(address) => self.part(&address.octets()),
        }
    }

    /// Appends a transport protocol number.
    #[must_use]
    pub fn protocol(self, protocol: u8) -> Self {
        self.part(&[protocol])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes())
    }

    /// Appends an interface name of at most 15 bytes.
    #[must_use]
    pub fn interface(self, name: &str) -> Self {
        let mut padded = [0; 16];
        let length = name.len().min(15);
        padded[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.part(&padded)
    }

    /// Appends a MAC address.
    #[must_use]
    pub fn mac(self, mac: [u8; 6]) -> Self {
        self.part(&mac)
    }

    fn part(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl Element {
    pub(super) fn write(&self, element: Attributes) -> Attributes {
        let key = |a: Attributes, key: &Key| a.nested(1, |data| data.bytes(1, &key.0));
        match self {
            Self::Key(k) | Self::Start(k) => key(element, k),
            Self::End(k) => key(element, k).number(3, INTERVAL_END),
            Self::Goto(k, chain) => key(element, k)
                .nested(2, |data| data.nested(2, |verdict| verdict.number(1, GOTO).text(2, chain))),
            Self::Pair(k, value) => key(element, k).nested(2, |data| data.bytes(1, &value.0)),
            Self::Range(first, last, value) => key(element, first)
                .nested(2, |data| data.bytes(1, &value.0))
                .nested(10, |data| data.bytes(1, &last.0)),
        }
    }

    /// Like [`Element::write`], without the data of a map: for look-ups and deletions.
    pub(super) fn write_key(&self, element: Attributes) -> Attributes {
        let key = |a: Attributes, kind: u16, key: &Key| a.nested(kind, |data| data.bytes(1, &key.0));
        match self {
            Self::Key(k) | Self::Pair(k, _) | Self::Goto(k, _) | Self::Start(k) => key(element, 1, k),
            Self::End(k) => key(element, 1, k).number(3, INTERVAL_END),
            Self::Range(first, last, _) => key(key(element, 1, first), 10, last),
        }
    }
}
