//! A cached answer: its encoded bytes, without ID, flags, spelling and age.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, Query as Question};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinEncodable as _, BinEncoder};

use super::upstream_query::UpstreamQuery;
use crate::message::{self, Query, flag};

/// TTL of an expired answer in seconds (RFC 8767 §4).
const STALE_TTL: u32 = 30;

/// Memory of an entry beside its bytes: the struct, its counters, two allocations.
const OVERHEAD: usize = 176;

/// Maximum use count; a higher one would only delay the eviction of an entry that was popular once.
const MAX_USES: u8 = 3;

/// Use count from which an entry is prefetched before it expires.
const POPULAR: u8 = 2;

/// Prefetching starts in the last tenth of the TTL.
const PREFETCH_SHARE: u64 = 10;

/// Answers with a shorter TTL are not prefetched, in milliseconds.
const PREFETCH_MIN: u64 = 10_000;

/// The properties of an answer beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    pub(super) code: u16,
    /// The AD bit of the upstream server, which validates.
    pub(super) is_authentic: bool,
    /// Whether there are records of the requested type.
    pub(super) is_positive: bool,
    /// The Extended DNS Error of the reply.
    pub(super) reason: Option<u16>,
    /// Seconds; 0 must not be cached.
    pub(super) ttl: u32,
}

/// An answer. Times are milliseconds of the [`super::Clock`].
#[derive(Debug)]
pub(super) struct Entry {
    /// A complete message without OPT. Its question may be in any case; its flags are not used.
    message: Box<[u8]>,
    /// The offsets of the TTLs.
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
    /// Until then the answer is served stale, without an upstream query (RFC 8767 §5).
    retry: AtomicU64,
}

/// The state of an entry at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// Fresh, popular, and about to expire.
    Due,
    Expired,
}

impl Entry {
    /// Encodes records, each with its TTL.
    ///
    /// # Errors
    /// If it is longer than a message can be.
    pub(super) fn new<'r>(
        upstream_query: &UpstreamQuery<'_>,
        mut answers: impl Iterator<Item = (&'r Record, u32)>,
        mut authorities: impl Iterator<Item = (&'r Record, u32)>,
        contents: Contents,
    ) -> Result<Self, ProtoError> {
        let (mut message, mut ttls) = (Vec::with_capacity(512), Vec::new());
        let name = Name::from_bytes(upstream_query.name.wire())?;
        let question = Question::query(name, RecordType::from(upstream_query.kind));
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
            name: u16::try_from(upstream_query.name.wire().len()).unwrap_or_default(),
            kind: upstream_query.kind,
            dnssec_ok: upstream_query.dnssec_ok,
            checking_disabled: upstream_query.checking_disabled,
            contents,
            stored: 0,
            uses: AtomicU8::new(0),
            is_refreshing: AtomicBool::new(false),
            retry: AtomicU64::new(0),
        })
    }

    /// The same answer, stored at this time.
    pub(super) fn stored_at(mut self, now: u64) -> Self {
        self.stored = now;
        self
    }

    /// The number of records.
    #[cfg(test)]
    pub(super) fn records(&self) -> usize {
        self.ttls.len()
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Turns NXDOMAIN into NODATA.
    pub(super) fn set_code(&mut self, code: u16) {
        self.contents.code = code;
    }

    /// Whether it answers this question.
    pub(super) fn is_for(&self, upstream_query: &UpstreamQuery<'_>) -> bool {
        let end = message::Header::LENGTH + usize::from(self.name);
        let name = self.message.get(message::Header::LENGTH..end).unwrap_or_default();
        self.kind == upstream_query.kind
            && self.dnssec_ok == upstream_query.dnssec_ok
            && self.checking_disabled == upstream_query.checking_disabled
            && name.eq_ignore_ascii_case(upstream_query.name.wire())
    }

    /// Memory in bytes.
    pub(super) fn size(&self) -> usize {
        self.message.len() + self.ttls.len() * 2 + OVERHEAD
    }

    fn lifetime(&self) -> u64 {
        u64::from(self.contents.ttl) * 1000
    }

    /// The time at which it expires.
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

    /// Whether a refresh has failed a moment ago.
    pub(super) fn is_refresh_suspended(&self, now: u64) -> bool {
        now < self.retry.load(Relaxed)
    }

    /// Serves it stale until then.
    pub(super) fn suspend_refresh_until(&self, then: u64) {
        self.retry.store(then, Relaxed);
        self.is_refreshing.store(false, Relaxed);
    }

    /// Whether the caller is the one to refresh it.
    pub(super) fn claim_refresh(&self) -> bool {
        !self.is_refreshing.load(Relaxed) && !self.is_refreshing.swap(true, Relaxed)
    }

    /// Allows another task to refresh it.
    pub(super) fn release_refresh(&self) {
        self.is_refreshing.store(false, Relaxed);
    }

    /// Counts a use. Entries at the maximum are only read, so that cores do not contend for the cache line.
    pub(super) fn touch(&self) {
        let uses = self.uses.load(Relaxed);
        if uses < MAX_USES {
            self.uses.store(uses + 1, Relaxed);
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.uses.load(Relaxed) > 0
    }

    /// Decrements the use count. Returns whether it was positive.
    pub(super) fn cool(&self) -> bool {
        let uses = self.uses.load(Relaxed);
        self.uses.store(uses.saturating_sub(1), Relaxed);
        uses > 0
    }

    /// Appends the reply to this query with remaining TTLs; those of an expired answer are short.
    pub(super) fn write(&self, query: &Query<'_>, now: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.message);
        let reply = &mut out[start..];
        reply[..2].copy_from_slice(&query.header.id.to_be_bytes());
        reply[2..4].copy_from_slice(&self.flags(query).to_be_bytes());
        let name = query.question.name.wire();
        let behind_name = message::Header::LENGTH + name.len();
        reply[message::Header::LENGTH..behind_name].copy_from_slice(name);
        // One entry may represent all types that a name does not have.
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

/// A pointer to the question's name.
const QUESTION: u16 = 0xc000 | 12;

/// Writes a record and returns the offset of its TTL. hickory compresses at most 120 names, which is too few
/// for a large answer: the name of the question, which most records have, is compressed here.
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
