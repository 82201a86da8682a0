//! Names that are answered without an upstream server: those of a hosts file, and special names of this
//! machine (RFC 6761 §6.3, §6.4; RFC 6303 §4.2 for the reverse names of local addresses).
//!
//! hickory-resolver's `Hosts` was tried: for a PTR query it iterates over all names of the file, it has no
//! answer for other types of a name, and its answers would have to be encoded for each query.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR};
use hickory_resolver::proto::rr::{self as message, RData, Record};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;

use super::entry::{Contents, Entry};
use super::upstream_query::UpstreamQuery;
use crate::message::{MAX_NAME, Name, NameBuf, kind, rcode};

/// Maximum records of one name and type: with the longest names that many fit a message.
const MAX_RECORDS: usize = 240;

/// The records of one name, by type.
#[derive(Debug, Default)]
struct Host {
    addresses: Vec<IpAddr>,
    pointers: Vec<NameBuf>,
}

/// Every name of a hosts file, with its answers. Other types get NODATA.
#[derive(Debug, Default)]
pub(super) struct Hosts(HashMap<NameBuf, Answers>);

#[derive(Debug)]
struct Answers {
    by_type: BTreeMap<u16, Arc<Entry>>,
    nothing: Arc<Entry>,
}

impl Hosts {
    /// Parses hosts(5): an address and its names on each line. Invalid lines are skipped, as resolvers do.
    pub(super) fn parse(text: &str, ttl: u32) -> Self {
        let mut hosts: HashMap<NameBuf, Host> = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
            for (at, mut name) in words.filter_map(|word| NameBuf::from_text(word).ok()).enumerate() {
                name.make_lower();
                // The first name is the canonical one.
                if at == 0 {
                    put(&mut hosts.entry(reverse_name(ip)).or_default().pointers, name.clone());
                }
                put(&mut hosts.entry(name).or_default().addresses, ip);
            }
        }
        let answers = hosts.into_iter().map(|(name, host)| {
            let answers = Answers::of(&name, &host, ttl);
            (name, answers)
        });
        Self(answers.collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name, in lower case, is in the file.
    pub(super) fn has(&self, lower: Name<'_>) -> bool {
        self.0.contains_key(lower.wire())
    }

    /// The answer to a question about a name of the file.
    pub(super) fn get(&self, upstream_query: &UpstreamQuery<'_>) -> Option<&Arc<Entry>> {
        let answers = self.0.get(upstream_query.name.lower(&mut [0; MAX_NAME]))?;
        Some(answers.by_type.get(&upstream_query.kind).unwrap_or(&answers.nothing))
    }
}

/// A record set contains a record once (RFC 2181 §5).
fn put<T: PartialEq>(set: &mut Vec<T>, new: T) {
    if set.len() < MAX_RECORDS && !set.contains(&new) {
        set.push(new);
    }
}

/// The fixed answer for a special name.
pub(super) fn special(upstream_query: &UpstreamQuery<'_>) -> Option<Entry> {
    let top = upstream_query.name.labels().last()?.to_ascii_lowercase();
    let localhost: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    match top.as_slice() {
        b"localhost" => {
            let addresses = localhost.into_iter().filter(|ip| kind_of(*ip) == upstream_query.kind);
            Some(answer(
                upstream_query.name,
                upstream_query.kind,
                rcode::NOERROR,
                addresses.map(address),
                u32::MAX >> 8,
            ))
        }
        b"invalid" => Some(nothing(upstream_query.name, upstream_query.kind, rcode::NXDOMAIN)),
        b"arpa" => {
            let labels: Vec<&[u8]> = upstream_query.name.labels().collect();
            let [.., net, zone, _] = labels.as_slice() else { return None };
            let is_unassigned =
                zone.eq_ignore_ascii_case(b"in-addr") && [&b"0"[..], b"127", b"255"].contains(net);
            is_unassigned.then(|| reverse_special(upstream_query, &labels))
        }
        _ => None,
    }
}

fn reverse_special(upstream_query: &UpstreamQuery<'_>, labels: &[&[u8]]) -> Entry {
    let is_localhost = labels.len() == 6 && labels[..4] == [&b"1"[..], b"0", b"0", b"127"];
    match (is_localhost, upstream_query.kind) {
        (true, kind::PTR) => {
            let localhost = NameBuf::from_text("localhost").expect("a label");
            answer(upstream_query.name, kind::PTR, rcode::NOERROR, [pointer(&localhost)].into_iter(), 86_400)
        }
        (true, kind) => nothing(upstream_query.name, kind, rcode::NOERROR),
        (false, kind) => nothing(upstream_query.name, kind, rcode::NXDOMAIN),
    }
}

impl Answers {
    fn of(name: &NameBuf, host: &Host, ttl: u32) -> Self {
        let make = |kind: u16, data: Vec<RData>| {
            (!data.is_empty()).then(|| {
                (kind, Arc::new(answer(name.as_name(), kind, rcode::NOERROR, data.into_iter(), ttl)))
            })
        };
        let of_kind = |kind| {
            let addresses = host.addresses.iter().filter(|ip| kind_of(**ip) == kind);
            make(kind, addresses.map(|ip| address(*ip)).collect())
        };
        let pointers = make(kind::PTR, host.pointers.iter().map(pointer).collect());
        let by_type = [of_kind(kind::A), of_kind(kind::AAAA), pointers].into_iter().flatten().collect();
        Self { by_type, nothing: Arc::new(nothing(name.as_name(), kind::A, rcode::NOERROR)) }
    }
}

fn kind_of(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { kind::A } else { kind::AAAA }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn pointer(name: &NameBuf) -> RData {
    RData::PTR(PTR(message_name(name.as_name())))
}

fn message_name(name: Name<'_>) -> message::Name {
    message::Name::from_bytes(name.wire()).expect("a name is a name")
}

fn nothing(name: Name<'_>, kind: u16, code: u16) -> Entry {
    answer(name, kind, code, [].into_iter(), 0)
}

/// An answer of this server; records that do not fit a message are left out.
fn answer(name: Name<'_>, kind: u16, code: u16, data: impl Iterator<Item = RData>, ttl: u32) -> Entry {
    let owner = message_name(name);
    let records: Vec<Record> =
        data.take(MAX_RECORDS).map(|data| Record::from_rdata(owner.clone(), ttl, data)).collect();
    let contents =
        Contents { code, is_authentic: false, is_positive: !records.is_empty(), reason: None, ttl };
    let upstream_query = UpstreamQuery { name, kind, dnssec_ok: false, checking_disabled: false };
    let with_ttl = records.iter().map(|record| (record, ttl));
    Entry::new(&upstream_query, with_ttl, [].into_iter(), contents).expect("so many records fit a message")
}

fn reverse_name(ip: IpAddr) -> NameBuf {
    NameBuf::from_text(&message::Name::from(ip).to_ascii()).expect("a reverse name is a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_and_count(entry: &Entry) -> (u16, usize) {
        (entry.contents().code, entry.records())
    }

    #[test]
    fn hosts_file_answers_both_families_forward_and_reverse_and_nodata_for_other_types() {
        let text = "# x\n192.0.2.7 Db db.corp # y\n2001:db8::7 db\nnonsense\n192.0.2.8 db\n";
        let hosts = Hosts::parse(text, 5);
        let get = |name: &str, kind: u16| {
            let name = NameBuf::from_text(name).unwrap();
            let upstream_query =
                UpstreamQuery { name: name.as_name(), kind, dnssec_ok: false, checking_disabled: false };
            hosts.get(&upstream_query).map(|entry| code_and_count(entry))
        };
        assert_eq!(get("DB", kind::A), Some((0, 2)));
        assert_eq!(get("db", kind::AAAA), Some((0, 1)));
        assert_eq!(get("db.corp", kind::AAAA), Some((0, 0)));
        assert_eq!(get("7.2.0.192.in-addr.arpa", kind::PTR), Some((0, 1)));
        assert_eq!(get("nonsense", kind::A), None);
    }

    #[test]
    fn special_names_are_never_forwarded() {
        let get = |name: &str, kind: u16| {
            let name = NameBuf::from_text(name).unwrap();
            let upstream_query =
                UpstreamQuery { name: name.as_name(), kind, dnssec_ok: false, checking_disabled: false };
            special(&upstream_query).map(|entry| code_and_count(&entry))
        };
        assert_eq!(get("localhost", kind::A), Some((0, 1)));
        assert_eq!(get("x.LOCALHOST", kind::AAAA), Some((0, 1)));
        assert_eq!(get("localhost", kind::MX), Some((0, 0)));
        assert_eq!(get("x.invalid", kind::A), Some((3, 0)));
        assert_eq!(get("1.0.0.127.in-addr.arpa", kind::PTR), Some((0, 1)));
        assert_eq!(get("2.0.0.127.in-addr.arpa", kind::PTR), Some((3, 0)));
        assert_eq!(get("1.0.0.10.in-addr.arpa", kind::PTR), None);
        assert_eq!(get("localhost.example", kind::A), None);
    }
}
