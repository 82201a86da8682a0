//! Every record of one moment, and the rules for finding them.
//!
//! Names are kept whole: a name that only has others below it (`svc.cluster.local`) has an entry without records. So
//! the three answers are three cases of one look-up: no entry is NXDOMAIN, an entry without records of the type is
//! NODATA (RFC 2308 §2, RFC 8020), and the rest is the answer.

mod build;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use discovery::Snapshot;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::{HINFO, PTR};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use ipnetwork::IpNetwork;

use crate::query::parse_reverse;

/// Aliases of aliases that are followed before giving up.
const MAX_ALIASES: usize = 8;

/// Addresses of targets that are sent along with SRV records at most; the client asks for the others.
const MAX_ADDITIONALS: usize = 16;

/// What does not change with the cluster's state.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) domain: Name,
    pub(crate) ttl: u32,
    pub(crate) service_cidrs: Vec<IpNetwork>,
    pub(crate) listen: Vec<SocketAddr>,
}

/// All names of one snapshot.
#[derive(Debug)]
pub(crate) struct Zone {
    settings: Arc<Settings>,
    /// By lower-case name with the closing dot.
    names: HashMap<String, Vec<Record>>,
    pointers: HashMap<IpAddr, Vec<Name>>,
    soa: Record,
    synced: bool,
}

/// What the zone has to say to a question.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nothing may be concluded yet.
    NotReady,
    /// Not a name of ours.
    Elsewhere,
    /// Ours.
    Ours(Box<Found>),
}

/// An answer from our own names.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// Sent along when there is no answer.
    pub(crate) soa: Option<Record>,
    /// An alias that leads out of the zone: its target has to be asked for upstream.
    pub(crate) continue_at: Option<Name>,
}

impl Zone {
    /// Builds every record of a snapshot.
    pub(crate) fn new(snapshot: &Snapshot, settings: Arc<Settings>) -> Self {
        build::build(snapshot, settings)
    }

    /// Answers a question.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let in_zone = self.settings.domain.zone_of(name);
        let reverse = parse_reverse(name).filter(|ip| self.is_ours(*ip));
        if !in_zone && reverse.is_none() {
            // While nothing is known, an endpoint's address may be anybody's.
            return if !self.synced && parse_reverse(name).is_some() {
                Answer::NotReady
            } else {
                Answer::Elsewhere
            };
        }
        if !self.synced {
            return Answer::NotReady;
        }
        Answer::Ours(Box::new(match reverse {
            Some(ip) => self.reverse(name, ip, kind),
            None => self.forward(name, kind),
        }))
    }

    fn forward(&self, name: &Name, kind: RecordType) -> Found {
        let mut found = Found::default();
        let mut current = name.clone();
        for _ in 0..MAX_ALIASES {
            let Some(records) = self.names.get(&key(&current)) else {
                return self.negative(found, ResponseCode::NXDomain);
            };
            if kind == RecordType::ANY {
                return Found { answers: vec![minimal_any(name)], ..found };
            }
            let alias = records.iter().find(|record| record.record_type() == RecordType::CNAME);
            if let Some(alias) = alias.filter(|_| kind != RecordType::CNAME) {
                found.answers.push(owned(alias, &current));
                let RData::CNAME(target) = &alias.data else { break };
                if !self.settings.domain.zone_of(&target.0) {
                    found.continue_at = Some(target.0.clone());
                    return found;
                }
                current = target.0.clone();
                continue;
            }
            let before = found.answers.len();
            let of_kind = records.iter().filter(|record| record.record_type() == kind);
            found.answers.extend(of_kind.map(|record| owned(record, &current)));
            if found.answers.len() == before {
                return self.negative(found, ResponseCode::NoError);
            }
            // Clients take the first: let it be another one each time.
            fastrand::shuffle(&mut found.answers[before..]);
            found.additionals = self.targets(&found.answers);
            return found;
        }
        self.negative(found, ResponseCode::ServFail)
    }

    fn reverse(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Found {
        let Some(targets) = self.pointers.get(&ip) else {
            return self.negative(Found::default(), ResponseCode::NXDomain);
        };
        if kind != RecordType::PTR {
            return self.negative(Found::default(), ResponseCode::NoError);
        }
        let record = |target: &Name| {
            Record::from_rdata(name.clone(), self.settings.ttl, RData::PTR(PTR(target.clone())))
        };
        Found { answers: targets.iter().map(record).collect(), ..Found::default() }
    }

    /// Whether a reverse name is ours to answer: the virtual IPs, and the endpoints we know.
    fn is_ours(&self, ip: IpAddr) -> bool {
        self.pointers.contains_key(&ip) || self.settings.service_cidrs.iter().any(|cidr| cidr.contains(ip))
    }

    fn negative(&self, found: Found, code: ResponseCode) -> Found {
        Found { code, soa: Some(self.soa.clone()), ..found }
    }

    /// Addresses of the targets of SRV records, so that one query is enough.
    fn targets(&self, answers: &[Record]) -> Vec<Record> {
        let mut seen = HashSet::new();
        let targets = answers.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(&srv.target),
            _ => None,
        });
        let new = targets.filter(|target| seen.insert(key(target)));
        let records = new.filter_map(|target| self.names.get(&key(target))).flatten();
        let addresses = records.filter(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA));
        addresses.take(MAX_ADDITIONALS).cloned().collect()
    }
}

/// Names compare without case (RFC 4343).
fn key(name: &Name) -> String {
    let mut key = name.to_ascii();
    key.make_ascii_lowercase();
    if !key.ends_with('.') {
        key.push('.');
    }
    key
}

/// The record under the name as it was asked for, whose letters may be of either case.
fn owned(record: &Record, name: &Name) -> Record {
    let mut record = record.clone();
    record.name = name.clone();
    record
}

/// ANY gets one small record (RFC 8482 §4.2).
fn minimal_any(name: &Name) -> Record {
    let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
    Record::from_rdata(name.clone(), 8482, RData::HINFO(hinfo))
}
