//! Writing a message.

use std::collections::HashMap;

use super::content::{Part, compresses, expand};
use super::{Header, Malformed, Name, NameBuf, Question, Record, Section};

/// Pointers have fourteen bits (RFC 1035 §4.1.4).
const MAX_POINTER: usize = 0x3fff;

/// Writes one message behind whatever the buffer has already.
///
/// Sections must come in their order. A record that does not fit is taken back whole, and the caller told.
#[derive(Debug)]
pub(crate) struct Encoder<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    limit: usize,
    header: Header,
    /// Where names were written: a suffix, in the case it has, to its offset.
    names: HashMap<Box<[u8]>, u16>,
    name: NameBuf,
}

/// There was no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<'b> Encoder<'b> {
    /// Starts a message of at most `limit` bytes. Counts of the header are ours to keep.
    pub(crate) fn new(out: &'b mut Vec<u8>, limit: usize, id: u16, flags: u16) -> Self {
        let start = out.len();
        let header = Header { id, flags, ..Header::default() };
        out.extend_from_slice(&header.to_wire());
        Self { out, start, limit, header, names: HashMap::new(), name: NameBuf::default() }
    }

    /// Sets aside bytes at the end, for an OPT record that must fit.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.limit = self.limit.saturating_sub(bytes);
    }

    /// Sets bits of the header.
    pub(crate) fn set(&mut self, flags: u16) {
        self.header.flags |= flags;
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Writes the question.
    pub(crate) fn question(&mut self, question: Question<'_>) -> Result<(), Full> {
        let before = self.out.len();
        self.put_name(question.name);
        self.put(&question.kind.to_be_bytes());
        self.put(&question.class.to_be_bytes());
        self.keep_or_take_back(before)?;
        self.header.questions += 1;
        Ok(())
    }

    /// Writes a record; `content` writes what it holds.
    pub(crate) fn record(
        &mut self,
        section: Section,
        owner: Name<'_>,
        (kind, class, ttl): (u16, u16, u32),
        content: impl FnOnce(&mut Self),
    ) -> Result<(), Full> {
        let before = self.out.len();
        self.put_name(owner);
        self.put(&kind.to_be_bytes());
        self.put(&class.to_be_bytes());
        self.put(&ttl.to_be_bytes());
        let length_at = self.out.len();
        self.put(&[0, 0]);
        content(self);
        // What is longer than a length can say is longer than any message, and taken back.
        let length = u16::try_from(self.out.len() - length_at - 2).map_err(|_length| Full);
        match length {
            Ok(length) => {
                if let Some(bytes) = self.out.get_mut(length_at..length_at + 2) {
                    bytes.copy_from_slice(&length.to_be_bytes());
                }
            }
            Err(full) => {
                self.take_back(before);
                return Err(full);
            }
        }
        self.keep_or_take_back(before)?;
        match section {
            Section::Answer => self.header.answers += 1,
            Section::Authority => self.header.authorities += 1,
            Section::Additional => self.header.additionals += 1,
        }
        Ok(())
    }

    /// Copies a record of another message, with the names in it written anew.
    ///
    /// # Errors
    /// `Ok(Err(Full))` when it does not fit, `Err(Malformed)` when the record's content is not what its type says.
    pub(crate) fn copy(
        &mut self,
        section: Section,
        record: &Record<'_>,
        ttl: u32,
    ) -> Result<Result<(), Full>, Malformed> {
        let mut owner = std::mem::take(&mut self.name);
        record.owner().name(&mut owner)?;
        let content = expand(record)?;
        let result = self.record(section, owner.as_name(), (record.kind, record.class, ttl), |encoder| {
            for part in &content {
                match part {
                    Part::Bytes(bytes) => encoder.put(bytes),
                    Part::Name(name) if compresses(record.kind) => encoder.put_name(name.as_name()),
                    Part::Name(name) => encoder.put(name.as_name().wire()),
                }
            }
        });
        self.name = owner;
        Ok(result)
    }

    /// Bytes as they are.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A name, as short as it can be said. Case is kept: only what is the same to the bit is referred to.
    pub(crate) fn put_name(&mut self, name: Name<'_>) {
        let mut rest = Some(name);
        while let Some(suffix) = rest.filter(|suffix| suffix.wire().len() > 1) {
            if let Some(&offset) = self.names.get(suffix.wire()) {
                self.put(&(0xc000 | offset).to_be_bytes());
                return;
            }
            let offset = self.len();
            if let Some(offset) = u16::try_from(offset).ok().filter(|_| offset <= MAX_POINTER) {
                self.names.insert(suffix.wire().into(), offset);
            }
            let label = suffix.wire().first().map_or(0, |length| usize::from(*length) + 1);
            self.out.extend_from_slice(suffix.wire().get(..label).unwrap_or_default());
            rest = suffix.parent();
        }
        self.put(&[0]);
    }

    /// Fills in the header. The message is whole.
    pub(crate) fn finish(self) {
        if let Some(bytes) = self.out.get_mut(self.start..self.start + Header::LENGTH) {
            bytes.copy_from_slice(&self.header.to_wire());
        }
    }

    fn keep_or_take_back(&mut self, before: usize) -> Result<(), Full> {
        if self.len() <= self.limit {
            return Ok(());
        }
        self.take_back(before);
        Err(Full)
    }

    fn take_back(&mut self, before: usize) {
        self.out.truncate(before);
        let end = before - self.start;
        self.names.retain(|_, offset| usize::from(*offset) < end);
    }
}
