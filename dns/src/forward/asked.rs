//! A question in the form under which its answer is remembered.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::message::{MAX_NAME, Name, NameBuf, Query, Question, flag};

/// A question, and the two bits that change what upstream says to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'q> {
    pub(super) name: Name<'q>,
    pub(super) kind: u16,
    /// DO: signatures are wanted (RFC 3225).
    pub(super) dnssec_ok: bool,
    /// CD: answers that do not validate are welcome (RFC 4035 §3.2.2).
    pub(super) checking_disabled: bool,
}

/// A question that outlives the query it came in.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    name: NameBuf,
    kind: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Wanted {
    pub(super) fn asked(&self) -> Asked<'_> {
        let Self { kind, dnssec_ok, checking_disabled, .. } = *self;
        Asked { name: self.name.as_name(), kind, dnssec_ok, checking_disabled }
    }
}

/// A question of its own, to look up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<[u8]>);

impl<'q> Asked<'q> {
    pub(super) fn by(query: &Query<'q>) -> Self {
        let Question { name, kind, .. } = query.question;
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        Self { name, kind, dnssec_ok, checking_disabled: query.header.has(flag::CD) }
    }

    /// The same name, another type.
    pub(super) fn with_kind(self, kind: u16) -> Self {
        Self { kind, ..self }
    }

    /// The same for every spelling (RFC 4343), and not to be predicted by clients that choose names.
    pub(super) fn hash(&self, keys: &RandomState) -> u64 {
        let mut hasher = keys.build_hasher();
        hasher.write(self.name.lower(&mut [0; MAX_NAME]));
        hasher.write_u32(u32::from(self.kind) << 2 | u32::from(self.bits()));
        hasher.finish()
    }

    pub(super) fn to_wanted(self) -> Wanted {
        let Self { name, kind, dnssec_ok, checking_disabled } = self;
        Wanted { name: name.to_buf(), kind, dnssec_ok, checking_disabled }
    }

    /// The question as bytes that are equal exactly if the questions are.
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
