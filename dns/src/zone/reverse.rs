//! Reverse zones, and the Services at each address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::message::Name;

/// Entries per chunk; a chunk of twice the size is split.
const CHUNK: usize = 512;

type Entry = (IpAddr, u32);

/// The numbers of the Services by address, in the order of addresses. Zones share chunks, so that a change
/// copies only a few.
#[derive(Clone, Debug, Default)]
pub(super) struct Reverse(Vec<Arc<Vec<Entry>>>);

/// A parsed reverse name: an address, or its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReverseName {
    first: IpAddr,
    last: IpAddr,
    /// Whether there are labels before the address. Such names do not exist.
    is_below: bool,
}

impl Reverse {
    pub(super) fn insert(&mut self, address: IpAddr, number: u32) {
        let entry = (address, number);
        if self.0.is_empty() {
            self.0.push(Arc::default());
        }
        let index = self.chunk_of(&entry);
        let chunk = Arc::make_mut(&mut self.0[index]);
        let Err(at) = chunk.binary_search(&entry) else { return };
        chunk.insert(at, entry);
        if chunk.len() >= 2 * CHUNK {
            let tail = chunk.split_off(CHUNK);
            self.0.insert(index + 1, Arc::new(tail));
        }
    }

    pub(super) fn remove(&mut self, address: IpAddr, number: u32) {
        let entry = (address, number);
        if self.0.is_empty() {
            return;
        }
        let index = self.chunk_of(&entry);
        let chunk = Arc::make_mut(&mut self.0[index]);
        if let Ok(at) = chunk.binary_search(&entry) {
            chunk.remove(at);
        }
        if chunk.is_empty() {
            self.0.remove(index);
        }
    }

    /// The numbers of all Services with the address.
    pub(super) fn get(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        self.from(address).take_while(move |(found, _)| *found == address).map(|(_, number)| number)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.get(address).next().is_some()
    }

    fn from(&self, address: IpAddr) -> impl Iterator<Item = Entry> + '_ {
        let index = if self.0.is_empty() { 0 } else { self.chunk_of(&(address, 0)) };
        let entries = self.0.iter().skip(index).flat_map(|chunk| chunk.iter().copied());
        entries.skip_while(move |(found, _)| *found < address)
    }

    /// The last chunk whose first entry is not after this entry.
    fn chunk_of(&self, entry: &Entry) -> usize {
        self.0.partition_point(|chunk| chunk.first().is_some_and(|first| first <= entry)).saturating_sub(1)
    }
}

impl ReverseName {
    /// Parses `1.0.96.10.in-addr.arpa` and its parents (RFC 1035 §3.5), and the nibbles of `ip6.arpa` (RFC
    /// 3596 §2.5).
    pub(super) fn parse(lower: Name<'_>) -> Option<Self> {
        // Labels from the right: a name has at most 127.
        let mut labels: [&[u8]; 128] = [&[]; 128];
        let mut count = 0;
        let wire = lower.wire();
        if !wire.ends_with(b"\x04arpa\x00") {
            return None;
        }
        for label in lower.labels() {
            *labels.get_mut(count)? = label;
            count += 1;
        }
        let labels = &labels[..count];
        match labels {
            [digits @ .., b"in-addr", b"arpa"] => Self::parse_v4(digits),
            [digits @ .., b"ip6", b"arpa"] => Self::parse_v6(digits),
            _ => None,
        }
    }

    fn parse_v4(digits: &[&[u8]]) -> Option<Self> {
        let (mut first, mut last) = ([0; 4], [255; 4]);
        for (index, digits) in digits.iter().rev().take(4).enumerate() {
            let text =
                std::str::from_utf8(digits).ok().filter(|text| text.len() == 1 || !text.starts_with('0'))?;
            let octet: u8 = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())??;
            first[index] = octet;
            last[index] = octet;
        }
        let (first, last) = (Ipv4Addr::from(first).into(), Ipv4Addr::from(last).into());
        Some(Self { first, last, is_below: digits.len() > 4 })
    }

    fn parse_v6(digits: &[&[u8]]) -> Option<Self> {
        let (mut first, mut last) = (0_u128, u128::MAX);
        for (index, digit) in digits.iter().rev().take(32).enumerate() {
            let [digit] = digit else { return None };
            let nibble = u128::from(char::from(*digit).to_digit(16)?);
            let shift = 124 - 4 * index;
            first |= nibble << shift;
            last = last & !(0xf << shift) | nibble << shift;
        }
        let (first, last) = (Ipv6Addr::from(first).into(), Ipv6Addr::from(last).into());
        Some(Self { first, last, is_below: digits.len() > 32 })
    }

    /// The address, if it is complete.
    pub(super) fn address(&self) -> Option<IpAddr> {
        (self.first == self.last && !self.is_below).then_some(self.first)
    }

    /// Whether all addresses with these bits are in a range.
    pub(super) fn is_within(&self, cidr: &IpNetwork) -> bool {
        cidr.contains(self.first) && cidr.contains(self.last)
    }

    /// Whether there is an address with these first bits.
    pub(super) fn exists(&self, reverse: &Reverse) -> bool {
        !self.is_below && reverse.from(self.first).next().is_some_and(|(found, _)| found <= self.last)
    }
}

/// Bytes of the name of a range's reverse zone, at the end of a name in it: complete octets or nibbles, as
/// zones are delegated.
pub(super) fn apex_length(cidr: &IpNetwork, name: Name<'_>) -> usize {
    let prefix = usize::from(cidr.prefix());
    let keep = 2 + if cidr.is_ipv4() { prefix.div_ceil(8) } else { prefix.div_ceil(4) };
    let skip = name.labels().count().saturating_sub(keep);
    let skipped: usize = name.labels().take(skip).map(|label| label.len() + 1).sum();
    name.wire().len() - skipped
}
