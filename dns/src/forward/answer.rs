//! Reads an upstream server's answer and keeps of it only what answers the question.
//!
//! What else a message carries (records of other names, name servers, addresses of targets) is dropped unseen: it
//! can poison nothing (RFC 2181 §5.4.1, RFC 5452 §6). Aliases count as long as they lead on from the question's name.

use super::asked::Asked;
use super::entry::{Contents, Entry};
use super::ttl::Limits;
use crate::message::{
    Answer, CLASS_IN, Cursor, Encoder, Header, Malformed, Name, NameBuf, Question, Record, Section, flag,
    kind, option, rcode, records,
};

/// Aliases that are followed; CoreDNS and unbound follow about as many.
const MAX_ALIASES: usize = 16;

/// Proofs of absence (RFC 4034 §4, RFC 5155 §3).
const NSEC: u16 = 47;
const NSEC3: u16 = 50;

/// Why a message that answers our query is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Useless {
    /// It did not fit; ask by TCP.
    Truncated,
    /// The server cannot or will not answer. With the reason it gives, if any (RFC 8914).
    Code(u16, Option<u16>),
    /// It points at other servers: it is no resolver.
    Referral,
    /// It contradicts itself, or is no message.
    Malformed,
}

impl From<Malformed> for Useless {
    fn from(_malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// A record with its owner's name written out.
struct Owned<'m> {
    owner: NameBuf,
    record: Record<'m>,
}

/// Whether a message answers this query: QR, id, opcode, and the question octet for octet, but for case unless that
/// must match as well (RFC 5452 §9.1; draft-vixie-dnsext-dns0x20).
pub(super) fn is_answer_to(query: &[u8], message: &[u8], exact_case: bool) -> bool {
    let (Ok(asked), Ok(header)) = (Header::parse(query), Header::parse(message)) else { return false };
    let question = |message| Question::parse(&mut Cursor::at(message, Header::LENGTH)).ok();
    let (Some(ours), Some(theirs)) = (question(query), question(message)) else { return false };
    let same_name = if exact_case { ours.name == theirs.name } else { ours.name.eq_ignore_case(theirs.name) };
    let same_type = (ours.kind, ours.class) == (theirs.kind, theirs.class);
    header.questions == 1 && responds(asked, header) && same_name && same_type
}

/// Whether a server turned our message down for its form, perhaps without repeating the question: one that does not
/// know EDNS may (RFC 6891 §7).
pub(super) fn is_form_error_to(query: &[u8], message: &[u8]) -> bool {
    let (Ok(asked), Ok(header)) = (Header::parse(query), Header::parse(message)) else { return false };
    let names_it = header.questions == 0 || is_answer_to(query, message, false);
    responds(asked, header) && header.rcode() == rcode::FORMERR && names_it
}

fn responds(asked: Header, header: Header) -> bool {
    header.has(flag::QR) && header.id == asked.id && header.opcode() == asked.opcode()
}

/// Makes an entry of an answer.
pub(super) fn read(message: &[u8], asked: &Asked<'_>, limits: &Limits) -> Result<Entry, Useless> {
    let answer = Answer::parse(message)?;
    let reason = answer.edns.and_then(|edns| edns.option(option::EDE));
    let reason = reason.and_then(|content| Cursor::at(content, 0).u16().ok());
    let code = answer.rcode();
    if answer.header.has(flag::TC) {
        return Err(Useless::Truncated);
    }
    if code != rcode::NOERROR && code != rcode::NXDOMAIN {
        return Err(Useless::Code(code, reason));
    }
    let (answers, authorities) = sections(message, &answer)?;
    let (kept, last) = chain(&answers, asked)?;
    let is_positive = kept.iter().any(|record| is_wanted(record, asked.kind, last.as_name()));
    if is_positive && code == rcode::NXDOMAIN {
        return Err(Useless::Malformed);
    }
    let limit = limits.range(asked.kind, is_positive);
    let limited = |ttl: u32| ttl.clamp(*limit.start(), *limit.end());
    let mut ttl = kept.iter().map(|owned| limited(owned.record.ttl)).min().unwrap_or(u32::MAX);
    let mut proofs = Vec::new();
    if !is_positive {
        let negative_ttl = absence(&authorities, asked, last.as_name(), answers.is_empty(), &mut proofs)?;
        // Without a SOA it is true now, but nobody said for how long (RFC 2308 §5).
        ttl = ttl.min(negative_ttl.map_or(0, limited));
    }
    let mut out = Vec::with_capacity(message.len());
    // The code goes into the reply's header, which is the client's.
    let mut encoder = Encoder::new(&mut out, usize::from(u16::MAX), 0, flag::QR);
    encoder.question(answer.question).map_err(|_full| Useless::Malformed)?;
    for owned in &kept {
        let copied = encoder.copy(Section::Answer, &owned.record, limited(owned.record.ttl))?;
        copied.map_err(|_full| Useless::Malformed)?;
    }
    for owned in proofs {
        let copied = encoder.copy(Section::Authority, &owned.record, owned.record.ttl.min(ttl))?;
        copied.map_err(|_full| Useless::Malformed)?;
    }
    encoder.finish();
    let contents = Contents { code, is_authentic: answer.header.has(flag::AD), is_positive, reason, ttl };
    Entry::new(out, asked, contents).map_err(Useless::from)
}

/// Whether a record is what was asked for, at the end of the aliases.
fn is_wanted(owned: &Owned<'_>, kind: u16, last: Name<'_>) -> bool {
    owned.owner.as_name().eq_ignore_case(last) && (owned.record.kind == kind || kind == kind::ANY)
}

type Sections<'m> = (Vec<Owned<'m>>, Vec<Owned<'m>>);

/// ANSWER and AUTHORITY.
fn sections<'m>(message: &'m [u8], answer: &Answer<'m>) -> Result<Sections<'m>, Malformed> {
    let (mut answers, mut authorities) = (Vec::new(), Vec::new());
    for record in records(message, answer.header, answer.behind_question) {
        let record = record?;
        let section = match record.section {
            Section::Answer => &mut answers,
            Section::Authority => &mut authorities,
            Section::Additional => break,
        };
        if record.class == CLASS_IN {
            let mut owner = NameBuf::default();
            record.owner().name(&mut owner)?;
            section.push(Owned { owner, record });
        }
    }
    Ok((answers, authorities))
}

/// What answers the question, aliases first, and the name they end at.
fn chain<'a, 'm>(
    answers: &'a [Owned<'m>],
    asked: &Asked<'_>,
) -> Result<(Vec<&'a Owned<'m>>, NameBuf), Useless> {
    let mut kept: Vec<&Owned<'m>> = Vec::new();
    let mut current = asked.name.to_buf();
    for _ in 0..MAX_ALIASES {
        let name = current.as_name();
        let set = |kept: &mut Vec<&'a Owned<'m>>, set: Vec<&'a Owned<'m>>| {
            let first = set.first().copied();
            kept.extend(set);
            if let Some(first) = first.filter(|_| asked.dnssec_ok && asked.kind != kind::ANY) {
                kept.extend(answers.iter().filter(|owned| signs(owned, first)));
            }
        };
        let wanted: Vec<_> = answers.iter().filter(|owned| is_wanted(owned, asked.kind, name)).collect();
        let is_alias = |owned: &&Owned<'_>| {
            owned.record.kind == kind::CNAME && owned.owner.as_name().eq_ignore_case(name)
        };
        let Some(alias) = answers.iter().find(is_alias).filter(|_| wanted.is_empty()) else {
            set(&mut kept, wanted);
            return Ok((kept, current));
        };
        let redirect = answers.iter().find(|owned| is_redirect(owned, name));
        if let Some(redirect) = redirect.filter(|new| !kept.iter().any(|old| std::ptr::eq(*old, *new))) {
            set(&mut kept, vec![redirect]);
        }
        set(&mut kept, vec![alias]);
        let mut target = NameBuf::default();
        alias.record.content().name(&mut target)?;
        current = target;
    }
    Err(Useless::Malformed)
}

/// Collects the SOA of a zone above the name with the proofs that came along, and says for how long they hold
/// (RFC 2308 §5).
fn absence<'a, 'm>(
    authorities: &'a [Owned<'m>],
    asked: &Asked<'_>,
    last: Name<'_>,
    is_empty: bool,
    proofs: &mut Vec<&'a Owned<'m>>,
) -> Result<Option<u32>, Useless> {
    let is_soa = |owned: &&Owned<'_>| owned.record.kind == kind::SOA && last.is_within(owned.owner.as_name());
    let Some(soa) = authorities.iter().find(is_soa) else {
        let is_referral = is_empty && authorities.iter().any(|owned| owned.record.kind == kind::NS);
        return if is_referral { Err(Useless::Referral) } else { Ok(None) };
    };
    let minimum = soa.record.data.last_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(Malformed)?;
    proofs.push(soa);
    if asked.dnssec_ok {
        let is_proof = |owned: &&Owned<'_>| {
            matches!(owned.record.kind, NSEC | NSEC3 | kind::RRSIG)
                && owned.owner.as_name().is_within(soa.owner.as_name())
        };
        proofs.extend(authorities.iter().filter(is_proof));
    }
    Ok(Some(soa.record.ttl.min(minimum)))
}

/// Whether a DNAME leads away from a name above this one (RFC 6672 §2.2).
fn is_redirect(owned: &Owned<'_>, name: Name<'_>) -> bool {
    let owner = owned.owner.as_name();
    owned.record.kind == kind::DNAME && name.is_within(owner) && !name.eq_ignore_case(owner)
}

/// Whether an RRSIG covers the set that `covered` belongs to (RFC 4034 §3.1.1).
fn signs(signature: &Owned<'_>, covered: &Owned<'_>) -> bool {
    signature.record.kind == kind::RRSIG
        && signature.owner.as_name().eq_ignore_case(covered.owner.as_name())
        && signature.record.data.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
            == Some(covered.record.kind)
}

#[cfg(test)]
mod tests;
