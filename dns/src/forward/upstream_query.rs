//! The upstream query: a question in the form by which its answer is cached.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::message::{MAX_NAME, Name, NameBuf, Query, Question, flag};

/// A question with the two bits that affect the answer of an upstream server.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamQuery<'q> {
    pub(super) name: Name<'q>,
    pub(super) kind: u16,
    /// DO: the client wants signatures (RFC 3225).
    pub(super) dnssec_ok: bool,
    /// CD: the client accepts answers that fail validation (RFC 4035 §3.2.2).
    pub(super) checking_disabled: bool,
}

/// An owned query, which outlives the client's message.
#[derive(Clone, Debug)]
pub(super) struct UpstreamRequest {
    name: NameBuf,
    kind: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl UpstreamRequest {
    pub(super) fn upstream_query(&self) -> UpstreamQuery<'_> {
        let Self { kind, dnssec_ok, checking_disabled, .. } = *self;
        UpstreamQuery { name: self.name.as_name(), kind, dnssec_ok, checking_disabled }
    }
}

/// A cache key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<[u8]>);

impl<'q> UpstreamQuery<'q> {
    pub(super) fn by(query: &Query<'q>) -> Self {
        let Question { name, kind, .. } = query.question;
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        Self { name, kind, dnssec_ok, checking_disabled: query.header.has(flag::CD) }
    }

    /// The same name with another type.
    pub(super) fn with_kind(self, kind: u16) -> Self {
        Self { kind, ..self }
    }

    /// The same for every spelling (RFC 4343), and keyed, so that clients cannot choose colliding names.
    pub(super) fn hash(&self, keys: &RandomState) -> u64 {
        let mut hasher = keys.build_hasher();
        hasher.write(self.name.lower(&mut [0; MAX_NAME]));
        hasher.write_u32(u32::from(self.kind) << 2 | u32::from(self.bits()));
        hasher.finish()
    }

    pub(super) fn to_owned_request(self) -> UpstreamRequest {
        let Self { name, kind, dnssec_ok, checking_disabled } = self;
        UpstreamRequest { name: name.to_buf(), kind, dnssec_ok, checking_disabled }
    }

    /// Bytes that are equal exactly if the queries are.
    pub(super) fn key(&self) -> Key {
        let mut key = self.name.wire().to_ascii_lowercase();
        key.extend(self.kind.to_be_bytes());
        key.push(self.bits());
        Key(key.into())
    }

    fn bits(&self) -> u8 {
        u8::from(self.dnssec_ok) << 1 | u8::from(self.checking_disabled)
    }
}
