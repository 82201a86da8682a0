//! Extracts from an upstream server's reply only what answers the question.
//!
//! Other content of a message (records of other names, name servers, addresses of targets) is ignored, so it
//! cannot poison the cache (RFC 2181 §5.4.1, RFC 5452 §6). Aliases count as long as they continue the chain
//! from the question's name, and proofs in AUTHORITY count for validating clients (RFC 4035 §3.1.3).

use hickory_resolver::proto::op::{DnsRequest, DnsResponse, Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::DecodeError;

use super::entry::{Contents, Entry};
use super::legacy_rdata;
use super::ttl::Limits;
use super::upstream::unshield;
use super::upstream_query::UpstreamQuery;
use crate::message::{option, rcode};

/// Maximum length of a chain of aliases, about as in CoreDNS and unbound.
const MAX_ALIASES: usize = 16;

const NSEC: u16 = 47;
const NSEC3: u16 = 50;
const RRSIG: u16 = 46;

/// Why a reply to our query is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidReply {
    /// It is truncated, even over TCP.
    Truncated,
    /// The server cannot or will not answer. With its Extended DNS Error, if any (RFC 8914).
    Code(u16, Option<u16>),
    /// It is a referral: the server is not a resolver.
    Referral,
    /// It is contradictory or malformed.
    Malformed,
}

impl From<DecodeError> for InvalidReply {
    fn from(_malformed: DecodeError) -> Self {
        Self::Malformed
    }
}

/// The part of a message that answers its question.
struct Relevant<'m> {
    answers: Vec<&'m Record>,
    authorities: Vec<&'m Record>,
    is_positive: bool,
    /// The TTL of a negative answer (RFC 2308 §5); `None` without a SOA record.
    negative_ttl: Option<u32>,
}

/// Failing servers may omit the question. Any other reply must repeat it: otherwise an attacker would have to
/// guess only port and ID.
pub(super) fn may_omit_question(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::FormErr | ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
    )
}

/// Checks whether the reply is valid, before it is processed.
///
/// # Errors
/// If it is invalid.
pub(super) fn check(response: &DnsResponse, request: &DnsRequest) -> Result<(), InvalidReply> {
    let code = u16::from(response.response_code);
    // A failing server may omit the question.
    let is_ours = response.queries == request.queries
        || response.queries.is_empty() && may_omit_question(response.response_code);
    if !is_ours || response.op_code != OpCode::Query {
        return Err(InvalidReply::Malformed);
    }
    match code {
        // YXDOMAIN: an alias became too long (RFC 6672 §2.2).
        rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN => {
            let query = request.original_query().or_else(|| request.queries.first());
            let query = query.ok_or(InvalidReply::Malformed)?;
            relevant(response, code, query.name(), query.query_type().into(), false).map(drop)
        }
        _ => Err(InvalidReply::Code(code, reason(response))),
    }
}

/// The code of the reply's Extended DNS Error.
fn reason(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.option(EdnsCode::from(option::EDE))? {
        EdnsOption::Unknown(_, content) => content.first_chunk().map(|code| u16::from_be_bytes(*code)),
        _ => None,
    }
}

/// Converts a reply that [`check`] has accepted to a cache entry.
pub(super) fn read(
    response: DnsResponse,
    upstream_query: &UpstreamQuery<'_>,
    limits: &Limits,
) -> Result<Entry, InvalidReply> {
    let (mut message, wire) = response.into_parts();
    legacy_rdata::expand(&mut message, &wire)?;
    let code = unshield(message.response_code);
    let query = message.queries.first().ok_or(InvalidReply::Malformed)?;
    let found = relevant(&message, code, query.name(), upstream_query.kind, upstream_query.dnssec_ok)?;
    let limit = limits.range(upstream_query.kind, found.is_positive);
    let limited = |ttl: u32| ttl.clamp(*limit.start(), *limit.end());
    let mut ttl = found.answers.iter().map(|record| limited(record.ttl)).min().unwrap_or(u32::MAX);
    if !found.is_positive {
        // Without a SOA record it is valid now, but has no TTL (RFC 2308 §5).
        ttl = ttl.min(found.negative_ttl.map_or(0, limited));
    }
    let answers = found.answers.iter().map(|record| (*record, limited(record.ttl)));
    let authorities = found.authorities.iter().map(|record| (*record, record.ttl.min(ttl)));
    let contents = Contents {
        code,
        is_authentic: message.authentic_data,
        is_positive: found.is_positive,
        reason: reason(&message),
        ttl,
    };
    Entry::new(upstream_query, answers, authorities, contents).map_err(|_too_long| InvalidReply::Malformed)
}

fn relevant<'m>(
    message: &'m Message,
    code: u16,
    name: &Name,
    kind: u16,
    dnssec_ok: bool,
) -> Result<Relevant<'m>, InvalidReply> {
    let of_class = |records: &'m [Record]| records.iter().filter(|record| record.dns_class == DNSClass::IN);
    let all: Vec<_> = of_class(&message.answers).collect();
    let (answers, last) = chain(&all, name, kind, dnssec_ok)?;
    let is_positive = answers.iter().any(|record| is_wanted(record, kind, last));
    if is_positive && code == rcode::NXDOMAIN {
        return Err(InvalidReply::Malformed);
    }
    let mut found = Relevant { answers, authorities: Vec::new(), is_positive, negative_ttl: None };
    let authorities: Vec<_> = of_class(&message.authorities).collect();
    if !is_positive {
        let soa = authorities
            .iter()
            .find(|record| record.record_type() == RecordType::SOA && record.name.zone_of(last));
        match soa.map(|record| (record, &record.data)) {
            Some((record, RData::SOA(soa))) => {
                found.negative_ttl = Some(record.ttl.min(soa.minimum));
                found.authorities.push(record);
            }
            // The server neither has the zone nor does it recurse (RFC 2308 §2.2).
            _ if is_referral(message, code, &authorities) => return Err(InvalidReply::Referral),
            _ => {}
        }
    }
    if dnssec_ok {
        found.authorities.extend(authorities.iter().filter(|record| is_proof(record)));
    }
    Ok(found)
}

fn is_referral(message: &Message, code: u16, authorities: &[&Record]) -> bool {
    code == rcode::NOERROR
        && !message.authoritative
        && !message.recursion_available
        && message.answers.is_empty()
        && authorities.iter().any(|record| record.record_type() == RecordType::NS)
}

/// Proofs of non-existence, including those for wildcards, and the signatures of these and of the SOA (RFC
/// 4035 §3.1.3, RFC 5155 §7.2).
fn is_proof(record: &Record) -> bool {
    match record.record_type().into() {
        NSEC | NSEC3 => true,
        RRSIG => matches!(covered(record), Some(NSEC | NSEC3 | 6)),
        _ => false,
    }
}

/// The type that an RRSIG covers (RFC 4034 §3.1.1).
fn covered(signature: &Record) -> Option<u16> {
    match &signature.data {
        RData::Unknown { rdata, .. } => rdata.anything.first_chunk().map(|kind| u16::from_be_bytes(*kind)),
        _ => None,
    }
}

/// Whether a record is of the requested type, at the end of the aliases.
fn is_wanted(record: &Record, kind: u16, last: &Name) -> bool {
    const ANY: u16 = 255;
    record.name == *last && (u16::from(record.record_type()) == kind || kind == ANY)
}

/// The records that answer the question, aliases first, and the name at the end of the aliases.
fn chain<'m, 'n>(
    answers: &[&'m Record],
    name: &'n Name,
    kind: u16,
    dnssec_ok: bool,
) -> Result<(Vec<&'m Record>, &'n Name), InvalidReply>
where
    'm: 'n,
{
    let mut kept: Vec<&'m Record> = Vec::new();
    let mut name: &'n Name = name;
    let add = |kept: &mut Vec<&'m Record>, set: Vec<&'m Record>| {
        let Some(first) = set.first().copied() else { return };
        kept.extend(set);
        // Those of an ANY query are answers themselves.
        if dnssec_ok && first.record_type() != RecordType::from(RRSIG) {
            let signs = |record: &&&Record| {
                record.record_type() == RecordType::from(RRSIG)
                    && record.name == first.name
                    && covered(record) == Some(first.record_type().into())
            };
            let new: Vec<_> = answers.iter().filter(signs).copied().collect();
            kept.extend(new.into_iter().filter(|record| kind != 255 || record.name != first.name));
        }
    };
    for _ in 0..MAX_ALIASES {
        let wanted: Vec<_> = answers.iter().filter(|record| is_wanted(record, kind, name)).copied().collect();
        let is_alias = |record: &&&Record| record.record_type() == RecordType::CNAME && record.name == *name;
        let Some(alias) = answers.iter().find(is_alias).filter(|_| wanted.is_empty()) else {
            add(&mut kept, wanted);
            return Ok((kept, name));
        };
        // A DNAME redirects names below its owner (RFC 6672 §2.2).
        let redirect = answers.iter().find(|record| {
            record.record_type() == RecordType::DNAME && record.name.zone_of(name) && record.name != *name
        });
        if let Some(redirect) = redirect.filter(|new| !kept.iter().any(|old| std::ptr::eq(*old, **new))) {
            add(&mut kept, vec![redirect]);
        }
        add(&mut kept, vec![alias]);
        let RData::CNAME(target) = &alias.data else { return Err(InvalidReply::Malformed) };
        name = &target.0;
    }
    Err(InvalidReply::Malformed)
}

#[cfg(test)]
mod tests;
