//! A remembered answer: its bytes as they go out, but for id, flags, spelling and age.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, Query as Question};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinEncodable as _, BinEncoder};

use super::asked::Asked;
use crate::message::{self, Query, flag};

/// TTL of an answer that has outlived its own, in seconds (RFC 8767 §4).
const STALE_TTL: u32 = 30;

/// What an entry costs beside its bytes: the struct, its counters, two allocations.
const OVERHEAD: usize = 176;

/// Uses that are counted; more would only make an entry that was popular once hard to move.
const MAX_USES: u8 = 3;

/// Uses that make an entry worth asking for again before it expires.
const POPULAR: u8 = 2;

/// An answer is asked for again in the last tenth of its life.
const PREFETCH_SHARE: u64 = 10;

/// Answers that live shorter than this are not worth it, in milliseconds.
const PREFETCH_MIN: u64 = 10_000;

/// What is known about an answer beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    pub(super) code: u16,
    /// AD of the upstream server, which validates.
    pub(super) is_authentic: bool,
    /// Whether there are records of the type that was asked for.
    pub(super) is_positive: bool,
    /// The Extended DNS Error that came with it.
    pub(super) reason: Option<u16>,
    /// Seconds; 0 is not for keeping.
    pub(super) ttl: u32,
}

/// An answer. Times are milliseconds of the [`super::Clock`].
#[derive(Debug)]
pub(super) struct Entry {
    /// A whole message without OPT. Its question may be spelled in any case; its flags are not used.
    message: Box<[u8]>,
    /// Where the TTLs are.
    ttls: Box<[u16]>,
    /// Length of the question's name.
    name: u16,
    kind: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
    contents: Contents,
    stored: u64,
    uses: AtomicU8,
    is_refreshing: AtomicBool,
    /// The answer is given stale, without an upstream query, before then (RFC 8767 §5).
    retry: AtomicU64,
}

/// How an entry stands at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// Still good, much used, and soon over.
    Due,
    Expired,
}

impl Entry {
    /// Made of records, each with the TTL that it gets.
    ///
    /// # Errors
    /// When it is longer than a message can be.
    pub(super) fn new<'r>(
        asked: &Asked<'_>,
        mut answers: impl Iterator<Item = (&'r Record, u32)>,
        mut authorities: impl Iterator<Item = (&'r Record, u32)>,
        contents: Contents,
    ) -> Result<Self, ProtoError> {
        let (mut message, mut ttls) = (Vec::with_capacity(512), Vec::new());
        let name = Name::from_bytes(asked.name.wire())?;
        let question = Question::query(name, RecordType::from(asked.kind));
        let mut encoder = BinEncoder::new(&mut message);
        let header = encoder.place::<Header>()?;
        question.emit(&mut encoder)?;
        let mut put = |records: &mut dyn Iterator<Item = (&'r Record, u32)>| {
            let before = ttls.len();
            for (record, ttl) in records {
                ttls.push(emit(&mut encoder, &question, record, ttl)?);
            }
            u16::try_from(ttls.len() - before).map_err(|_many| ProtoError::Message("too many records"))
        };
        let mut counts = HeaderCounts { queries: 1, ..HeaderCounts::default() };
        counts.answers = put(&mut answers)?;
        counts.authorities = put(&mut authorities)?;
        // The rest of the header is the client's.
        let metadata = Metadata::new(0, MessageType::Response, OpCode::Query);
        encoder.emit_at(header, Header { metadata, counts })?;
        Ok(Self {
            message: message.into(),
            ttls: ttls.into(),
            name: u16::try_from(asked.name.wire().len()).unwrap_or_default(),
            kind: asked.kind,
            dnssec_ok: asked.dnssec_ok,
            checking_disabled: asked.checking_disabled,
            contents,
            stored: 0,
            uses: AtomicU8::new(0),
            is_refreshing: AtomicBool::new(false),
            retry: AtomicU64::new(0),
        })
    }

    /// The same answer, as of now.
    pub(super) fn stored_at(mut self, now: u64) -> Self {
        self.stored = now;
        self
    }

    /// How many records it has.
    #[cfg(test)]
    pub(super) fn records(&self) -> usize {
        self.ttls.len()
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Says NODATA in place of NXDOMAIN.
    pub(super) fn set_code(&mut self, code: u16) {
        self.contents.code = code;
    }

    /// Whether it answers this question.
    pub(super) fn is_for(&self, asked: &Asked<'_>) -> bool {
        let end = message::Header::LENGTH + usize::from(self.name);
        let name = self.message.get(message::Header::LENGTH..end).unwrap_or_default();
        self.kind == asked.kind
            && self.dnssec_ok == asked.dnssec_ok
            && self.checking_disabled == asked.checking_disabled
            && name.eq_ignore_ascii_case(asked.name.wire())
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.message.len() + self.ttls.len() * 2 + OVERHEAD
    }

    fn lifetime(&self) -> u64 {
        u64::from(self.contents.ttl) * 1000
    }

    /// The last moment at which it is good.
    pub(super) fn fresh_until(&self) -> u64 {
        self.stored + self.lifetime().saturating_sub(1)
    }

    pub(super) fn age(&self, now: u64) -> Age {
        let (age, lifetime) = (now.saturating_sub(self.stored), self.lifetime());
        if age >= lifetime {
            Age::Expired
        } else if lifetime >= PREFETCH_MIN
            && lifetime - age <= lifetime / PREFETCH_SHARE
            && self.uses.load(Relaxed) >= POPULAR
        {
            Age::Due
        } else {
            Age::Fresh
        }
    }

    /// Milliseconds since it expired.
    pub(super) fn staleness(&self, now: u64) -> u64 {
        now.saturating_sub(self.stored + self.lifetime())
    }

    /// Whether asking again has failed a moment ago.
    pub(super) fn is_given_up(&self, now: u64) -> bool {
        now < self.retry.load(Relaxed)
    }

    /// Gives it stale until then.
    pub(super) fn give_up_until(&self, then: u64) {
        self.retry.store(then, Relaxed);
        self.is_refreshing.store(false, Relaxed);
    }

    /// Whether the caller is the one to ask again.
    pub(super) fn claim_refresh(&self) -> bool {
        !self.is_refreshing.load(Relaxed) && !self.is_refreshing.swap(true, Relaxed)
    }

    /// Lets another one ask again.
    pub(super) fn release_refresh(&self) {
        self.is_refreshing.store(false, Relaxed);
    }

    /// Counts a use. Popular entries are only read, so that cores do not pass their lines around.
    pub(super) fn touch(&self) {
        let uses = self.uses.load(Relaxed);
        if uses < MAX_USES {
            self.uses.store(uses + 1, Relaxed);
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.uses.load(Relaxed) > 0
    }

    /// Takes a use away; whether there was one.
    pub(super) fn cool(&self) -> bool {
        let uses = self.uses.load(Relaxed);
        self.uses.store(uses.saturating_sub(1), Relaxed);
        uses > 0
    }

    /// Appends the reply to this query. TTLs have counted down; those of an expired answer are short.
    pub(super) fn write(&self, query: &Query<'_>, now: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.message);
        let reply = &mut out[start..];
        reply[..2].copy_from_slice(&query.header.id.to_be_bytes());
        reply[2..4].copy_from_slice(&self.flags(query).to_be_bytes());
        let name = query.question.name.wire();
        let behind_name = message::Header::LENGTH + name.len();
        reply[message::Header::LENGTH..behind_name].copy_from_slice(name);
        // One entry may stand for all types that a name does not have.
        reply[behind_name..behind_name + 2].copy_from_slice(&query.question.kind.to_be_bytes());
        let age = now.saturating_sub(self.stored);
        let is_stale = age >= self.lifetime() && self.contents.ttl > 0;
        let seconds = u32::try_from(age / 1000).unwrap_or(u32::MAX);
        for at in &self.ttls {
            let at = usize::from(*at);
            let Some(ttl) = reply.get_mut(at..at + 4).and_then(|bytes| bytes.first_chunk_mut()) else {
                continue;
            };
            let left = if is_stale { STALE_TTL } else { u32::from_be_bytes(*ttl).saturating_sub(seconds) };
            *ttl = left.to_be_bytes();
        }
    }

    fn flags(&self, query: &Query<'_>) -> u16 {
        // RFC 6840 §5.8: AD is for clients that set AD or DO.
        let knows = query.header.has(flag::AD) || self.dnssec_ok;
        let authentic = if self.contents.is_authentic && knows { flag::AD } else { 0 };
        let echoed = query.header.flags & (flag::RD | flag::CD);
        flag::QR | flag::RA | authentic | echoed | (self.contents.code & 0xF)
    }
}

/// Where the question's name begins.
const QUESTION: u16 = 0xc000 | 12;

/// Writes a record and returns where its TTL is. hickory's own way compresses 120 names and no more, which is
/// too few for a large answer: the name of the question, which most records have, is compressed here.
fn emit(
    encoder: &mut BinEncoder<'_>,
    question: &Question,
    record: &Record,
    ttl: u32,
) -> Result<u16, ProtoError> {
    if record.name == *question.name() {
        encoder.emit_u16(QUESTION)?;
    } else {
        record.name.emit(encoder)?;
    }
    record.record_type().emit(encoder)?;
    record.dns_class.emit(encoder)?;
    let at = encoder.offset();
    encoder.emit_u32(ttl)?;
    let length = encoder.place::<u16>()?;
    record.data.emit(encoder)?;
    let written = u16::try_from(encoder.len_since_place(&length));
    encoder.emit_at(length, written.map_err(|_long| ProtoError::Message("record is too long"))?)?;
    u16::try_from(at).map_err(|_long| ProtoError::Message("message is too long"))
}
