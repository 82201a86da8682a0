//! nftables over netlink: what each program needs to manage its own table, without starting `nft`.
//!
//! A [`Batch`] is one transaction: the kernel applies all of it or nothing.

pub mod conntrack;
mod message;
mod netfilter;
mod rule;
mod set;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

pub use message::Family;
use message::{Attributes, Message};
pub use netfilter::Netfilter;
pub use rule::Rule;
pub use set::{Data, Element, Key, Set, Type};

/// Message types of `linux/netfilter/nf_tables.h`.
const NEW_TABLE: u8 = 0;
const DEL_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const DEL_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const NEW_SET_ELEMENT: u8 = 12;
const DEL_SET_ELEMENT: u8 = 14;

/// `NLM_F_CREATE`, `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NFT_SET_TIMEOUT`, `NFT_SET_EVAL`: elements expire, and rules add them.
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;

/// nft's numbers of its data types. `nft list` uses them to print addresses and ports.
const TYPE_IPV4_ADDRESS: u32 = 7;
const TYPE_IPV6_ADDRESS: u32 = 8;
const TYPE_SERVICE: u32 = 13;

/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// The lowest priority, before all other chains.
const PRIORITY_FIRST: u32 = i32::MIN as u32;

/// The priorities that nft calls `raw`, `mangle`, `dstnat`, `filter` and `srcnat`.
const PRIORITY_RAW: u32 = -300_i32 as u32;
const PRIORITY_MANGLE: u32 = -150_i32 as u32;
const PRIORITY_DSTNAT: u32 = -100_i32 as u32;
const PRIORITY_FILTER: u32 = 0;
const PRIORITY_SRCNAT: u32 = 100;

/// Changes to one table, applied together.
#[derive(Debug)]
pub struct Batch<'a> {
    family: Family,
    table: &'a str,
    messages: Vec<Message>,
    rules: BTreeMap<String, usize>,
}

impl<'a> Batch<'a> {
    /// An empty transaction on `table`, family `inet`.
    pub fn new(table: &'a str) -> Self {
        Self::of(Family::Inet, table)
    }

    /// An empty transaction on `table` of that family.
    pub fn of(family: Family, table: &'a str) -> Self {
        Self { family, table, messages: Vec::new(), rules: BTreeMap::new() }
    }

    /// Creates the table unless it exists.
    pub fn add_table(&mut self) {
        self.push(NEW_TABLE, CREATE, |a| a);
    }

    /// Deletes the table with its content.
    pub fn delete_table(&mut self) {
        self.push(DEL_TABLE, 0, |a| a);
    }

    /// Adds a chain of type nat at postrouting, priority srcnat.
    pub fn add_postrouting_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", POSTROUTING, PRIORITY_SRCNAT);
    }

    /// Adds a chain of type filter at prerouting, priority mangle.
    pub fn add_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_MANGLE);
    }

    /// Adds a chain of type filter at prerouting with the lowest priority, before every other chain and hook.
    pub fn add_first_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_FIRST);
    }

    /// Adds a chain of type filter at prerouting, priority raw: before conntrack.
    pub fn add_raw_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_RAW);
    }

    /// Adds a chain of type filter at output, priority raw: before conntrack.
    pub fn add_raw_output_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", OUTPUT, PRIORITY_RAW);
    }

    /// Adds a chain of type nat at prerouting, priority dstnat.
    pub fn add_prerouting_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", PREROUTING, PRIORITY_DSTNAT);
    }

    /// Adds a chain of type nat at output, priority dstnat.
    pub fn add_output_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", OUTPUT, PRIORITY_DSTNAT);
    }

    /// Adds a chain of type filter at input.
    pub fn add_input_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", INPUT, PRIORITY_FILTER);
    }

    /// Adds a chain of type route at output, for the machine's own packets. A packet whose mark changes is
    /// routed again.
    pub fn add_output_route_chain(&mut self, name: &str) {
        self.add_base_chain(name, "route", OUTPUT, PRIORITY_MANGLE);
    }

    /// Adds a chain of type route at output, priority raw: it can reroute packets by mark before conntrack.
    pub fn add_raw_output_route_chain(&mut self, name: &str) {
        self.add_base_chain(name, "route", OUTPUT, PRIORITY_RAW);
    }

    /// Adds a chain without a hook, for `jump`.
    pub fn add_chain(&mut self, name: &str) {
        self.push(NEW_CHAIN, CREATE, |a| a.text(3, name));
    }

    fn add_base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: u32) {
        // The policy is accept (1).
        self.push(NEW_CHAIN, CREATE, |a| {
            a.text(3, name).nested(4, |at| at.number(1, hook).number(2, priority)).number(5, 1).text(7, kind)
        });
    }

    /// Creates a set or map.
    pub fn add_set(&mut self, set: &Set<'_>) {
        self.push(NEW_SET, CREATE, |a| set.write(a));
    }

    /// Creates a set or map whose keys are intervals.
    pub fn add_interval_set(&mut self, set: &Set<'_>) {
        self.push(NEW_SET, CREATE, |a| set.write_intervals(a));
    }

    /// Adds a set of addresses with ports: `type ipv4_addr . inet_service`, or of IPv6. `id` as in [`Set`].
    pub fn add_socket_address_set(&mut self, name: &str, id: u32, v4: bool) {
        // Each part of a concatenation takes whole registers of 4 bytes, and 6 bits of the type.
        let (address, length) = if v4 { (TYPE_IPV4_ADDRESS, 4 + 4) } else { (TYPE_IPV6_ADDRESS, 16 + 4) };
        let kind = (address << 6) | TYPE_SERVICE;
        self.push(NEW_SET, CREATE, |a| {
            a.text(2, name).number(3, 0).number(4, kind).number(5, length).number(10, id)
        });
    }

    /// Adds a set of flows that rules fill, each with a timeout: `type ipv4_addr . inet_service . ipv4_addr .
    /// inet_service`, or of IPv6. `size` is the maximum number of elements.
    pub fn add_flow_set(&mut self, name: &str, id: u32, v4: bool, size: u32) {
        let address = if v4 { Type::Ipv4Address } else { Type::Ipv6Address };
        let (kind, length) = set::concatenation(&[address, Type::Service, address, Type::Service]);
        self.push(NEW_SET, CREATE, |a| {
            a.text(2, name)
                .number(3, SET_TIMEOUT | SET_EVAL)
                .number(4, kind)
                .number(5, length)
                .nested(9, |description| description.number(1, size))
                .number(10, id)
        });
    }

    /// Adds addresses with ports. Existing elements are fine.
    pub fn add_socket_addresses(&mut self, set: &str, addresses: &[std::net::SocketAddr]) {
        for chunk in addresses.chunks(1000) {
            self.push(NEW_SET_ELEMENT, CREATE, |a| keys(a, set, chunk.iter().map(socket_address_key)));
        }
    }

    /// Removes addresses with ports. The whole batch fails if one is missing.
    pub fn delete_socket_addresses(&mut self, set: &str, addresses: &[std::net::SocketAddr]) {
        for chunk in addresses.chunks(1000) {
            self.push(DEL_SET_ELEMENT, 0, |a| keys(a, set, chunk.iter().map(socket_address_key)));
        }
    }

    /// Makes the whole batch fail with `NotFound` if the set does not exist.
    pub fn expect_set(&mut self, set: &str) {
        self.push(NEW_SET_ELEMENT, CREATE, |a| keys(a, set, std::iter::empty()));
    }

    /// Adds elements. Existing elements are fine.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        // The length of an attribute has 16 bits, and an element takes some 60 to 300 bytes.
        for chunk in elements.chunks(200) {
            self.push(NEW_SET_ELEMENT, CREATE, |a| write_elements(a, set, chunk, Element::write));
        }
    }

    /// Removes elements. The whole batch fails if one is missing.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(200) {
            self.push(DEL_SET_ELEMENT, 0, |a| write_elements(a, set, chunk, Element::write_key));
        }
    }

    /// Removes an element. The whole batch fails if it is missing.
    pub fn delete_element(&mut self, set: &str, key: Key) {
        self.delete_elements(set, &[Element::Key(key)]);
    }

    /// Removes elements by their keys. The whole batch fails if one is missing.
    pub fn delete_keys(&mut self, set: &str, keys: impl IntoIterator<Item = Key>) {
        let elements: Vec<_> = keys.into_iter().map(Element::Key).collect();
        self.delete_elements(set, &elements);
    }

    /// Removes every element of a set.
    pub fn flush_set(&mut self, set: &str) {
        self.push(DEL_SET_ELEMENT, 0, |a| a.text(2, set));
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        *self.rules.entry(chain.to_owned()).or_default() += 1;
        self.push(NEW_RULE, CREATE | APPEND, |a| a.text(2, chain).nested(4, |list| rule.write(list)));
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.push(DEL_RULE, 0, |a| a.text(2, name));
    }

    /// The number of rules that the batch appends, by chain.
    pub fn rules(&self) -> &BTreeMap<String, usize> {
        &self.rules
    }

    /// Applies everything, or nothing.
    ///
    /// # Errors
    /// The first error of the kernel: `NotFound` if a table, chain, set or element is missing.
    pub fn commit(mut self, netfilter: &Netfilter) -> io::Result<()> {
        // Errors are reported anyway, and acknowledgements of all messages may overflow the socket's buffer.
        if let Some(last) = self.messages.last_mut() {
            last.flags |= message::ACK;
        }
        let mut bytes = message::batch_begin();
        for (message, sequence) in self.messages.iter().zip(1..) {
            message.write(&mut bytes, sequence);
        }
        bytes.extend(message::batch_end());
        netfilter.exchange(&bytes)
    }

    fn push(&mut self, kind: u8, flags: u16, fill: impl FnOnce(Attributes) -> Attributes) {
        let attributes = fill(Attributes::default().text(1, self.table));
        self.messages.push(Message { kind, flags, family: self.family, attributes });
    }
}

fn write_elements(
    attributes: Attributes,
    set: &str,
    elements: &[Element],
    write: impl Fn(&Element, Attributes) -> Attributes,
) -> Attributes {
    attributes.text(2, set).nested(3, |mut list| {
        for element in elements {
            list = list.nested(1, |inner| write(element, inner));
        }
        list
    })
}

fn keys(attributes: Attributes, set: &str, keys: impl Iterator<Item = Vec<u8>>) -> Attributes {
    attributes.text(2, set).nested(3, |mut list| {
        for key in keys {
            list = list.nested(1, |element| element.nested(1, |data| data.bytes(1, &key)));
        }
        list
    })
}

/// Address, port, and two bytes of padding.
fn socket_address_key(address: &std::net::SocketAddr) -> Vec<u8> {
    let mut key = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    key.extend(address.port().to_be_bytes());
    key.extend([0, 0]);
    key
}
