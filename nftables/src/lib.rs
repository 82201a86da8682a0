//! nftables over netlink: just enough for each program to keep a table of its own, without starting `nft`.
//!
//! A [`Batch`] is one transaction: the kernel takes all of it or nothing.

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

/// `NFT_SET_TIMEOUT`, `NFT_SET_EVAL`: elements end by themselves, and rules add them.
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;

/// nft's numbers for its data types, so that `nft list` prints addresses and ports.
const TYPE_IPV4_ADDRESS: u32 = 7;
const TYPE_IPV6_ADDRESS: u32 = 8;
const TYPE_SERVICE: u32 = 13;

/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// Before everything else.
const PRIORITY_FIRST: u32 = i32::MIN as u32;

/// The priorities nft calls `raw`, `mangle`, `dstnat`, `filter` and `srcnat`.
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

    /// Creates the table unless it is there.
    pub fn add_table(&mut self) {
        self.push(NEW_TABLE, CREATE, |a| a);
    }

    /// Deletes the table and all in it.
    pub fn delete_table(&mut self) {
        self.push(DEL_TABLE, 0, |a| a);
    }

    /// A chain in which source addresses are translated as packets leave.
    pub fn add_postrouting_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", POSTROUTING, PRIORITY_SRCNAT);
    }

    /// A chain in which packets are looked at before they are routed.
    pub fn add_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_MANGLE);
    }

    /// A chain in which packets are looked at before they are routed, ahead of every other chain and hook
    /// that is there by now.
    pub fn add_first_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_FIRST);
    }

    /// A chain in which packets are looked at before conntrack sees them.
    pub fn add_raw_prerouting_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", PREROUTING, PRIORITY_RAW);
    }

    /// A chain in which the node's own packets are looked at before conntrack sees them.
    pub fn add_raw_output_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", OUTPUT, PRIORITY_RAW);
    }

    /// A chain in which destinations of packets that arrive are translated.
    pub fn add_prerouting_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", PREROUTING, PRIORITY_DSTNAT);
    }

    /// A chain in which destinations of the node's own packets are translated.
    pub fn add_output_nat_chain(&mut self, name: &str) {
        self.add_base_chain(name, "nat", OUTPUT, PRIORITY_DSTNAT);
    }

    /// A chain in which packets for this machine are accepted or refused.
    pub fn add_input_chain(&mut self, name: &str) {
        self.add_base_chain(name, "filter", INPUT, PRIORITY_FILTER);
    }

    /// A chain in which the machine's own packets are looked at; one that changes their mark has them routed
    /// again.
    pub fn add_output_route_chain(&mut self, name: &str) {
        self.add_base_chain(name, "route", OUTPUT, PRIORITY_MANGLE);
    }

    /// A chain that can have the node's own packets routed anew, by another mark, before conntrack sees them.
    pub fn add_raw_output_route_chain(&mut self, name: &str) {
        self.add_base_chain(name, "route", OUTPUT, PRIORITY_RAW);
    }

    /// A chain that others jump to.
    pub fn add_chain(&mut self, name: &str) {
        self.push(NEW_CHAIN, CREATE, |a| a.text(3, name));
    }

    fn add_base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: u32) {
        // What no rule stops is accepted (policy 1).
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

    /// A set of addresses with a port: `type ipv4_addr . inet_service`, or that of IPv6. `id` as above.
    pub fn add_socket_address_set(&mut self, name: &str, id: u32, v4: bool) {
        // Each part of a concatenation fills whole registers of 4 bytes, and 6 bits of the type.
        let (address, length) = if v4 { (TYPE_IPV4_ADDRESS, 4 + 4) } else { (TYPE_IPV6_ADDRESS, 16 + 4) };
        let kind = (address << 6) | TYPE_SERVICE;
        self.push(NEW_SET, CREATE, |a| {
            a.text(2, name).number(3, 0).number(4, kind).number(5, length).number(10, id)
        });
    }

    /// A set of flows that rules fill, each with a timeout: `type ipv4_addr . inet_service . ipv4_addr .
    /// inet_service`, or that of IPv6. There are `size` at most.
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

    /// Adds addresses with ports; those that are in the set already are fine.
    pub fn add_socket_addresses(&mut self, set: &str, addresses: &[std::net::SocketAddr]) {
        for chunk in addresses.chunks(1000) {
            self.push(NEW_SET_ELEMENT, CREATE, |a| keys(a, set, chunk.iter().map(socket_address_key)));
        }
    }

    /// Removes addresses with ports; the whole batch fails if one is not in the set.
    pub fn delete_socket_addresses(&mut self, set: &str, addresses: &[std::net::SocketAddr]) {
        for chunk in addresses.chunks(1000) {
            self.push(DEL_SET_ELEMENT, 0, |a| keys(a, set, chunk.iter().map(socket_address_key)));
        }
    }

    /// Makes the whole batch fail with `NotFound` if the set is not there.
    pub fn expect_set(&mut self, set: &str) {
        self.push(NEW_SET_ELEMENT, CREATE, |a| keys(a, set, std::iter::empty()));
    }

    /// Adds elements; those that are in the set already are fine.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        // An attribute's length has 16 bits, and an element takes some 60 to 300 bytes.
        for chunk in elements.chunks(200) {
            self.push(NEW_SET_ELEMENT, CREATE, |a| write_elements(a, set, chunk, Element::write));
        }
    }

    /// Removes elements; the whole batch fails if one is not in the set.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(200) {
            self.push(DEL_SET_ELEMENT, 0, |a| write_elements(a, set, chunk, Element::write_key));
        }
    }

    /// Removes an element; the whole batch fails if it is not in the set.
    pub fn delete_element(&mut self, set: &str, key: Key) {
        self.delete_elements(set, &[Element::Key(key)]);
    }

    /// The same by their keys.
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

    /// How many rules it appends, by their chains.
    pub fn rules(&self) -> &BTreeMap<String, usize> {
        &self.rules
    }

    /// Applies everything, or nothing.
    ///
    /// # Errors
    /// The kernel's first: `NotFound` for a table, chain, set or element that is not there.
    pub fn commit(mut self, netfilter: &Netfilter) -> io::Result<()> {
        // Errors are told anyway, and an answer to each message may be more than a socket holds.
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

/// Address, port, two bytes to fill the register.
fn socket_address_key(address: &std::net::SocketAddr) -> Vec<u8> {
    let mut key = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    key.extend(address.port().to_be_bytes());
    key.extend([0, 0]);
    key
}
