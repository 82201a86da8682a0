//! The records of a message, walked in place.

use super::{Cursor, Header, Malformed};

/// Record types that mean something to us (RFC 1035 §3.2.2 and later).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const MX: u16 = 15;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const DNAME: u16 = 39;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const DS: u16 = 43;
    pub(crate) const RRSIG: u16 = 46;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The three sections after the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Answer,
    Authority,
    Additional,
}

/// One record. Its name may be compressed: read it with [`Record::owner`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    message: &'a [u8],
    pub(crate) section: Section,
    /// Offset of the owner's name.
    pub(crate) start: usize,
    /// Offset of the TTL's four bytes.
    pub(crate) ttl_at: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// Seconds.
    pub(crate) ttl: u32,
    /// The content as it stands; names in it may be compressed.
    pub(crate) data: &'a [u8],
    /// Offset behind the last byte.
    pub(crate) end: usize,
}

impl<'a> Record<'a> {
    /// A cursor at the owner's name.
    pub(crate) fn owner(&self) -> Cursor<'a> {
        Cursor::at(self.message, self.start)
    }

    /// A cursor at the content, which may follow pointers out of it.
    pub(crate) fn content(&self) -> Cursor<'a> {
        Cursor::at(self.message, self.end - self.data.len())
    }
}

/// Walks all records behind the question section. Ends after the first that is malformed.
pub(crate) fn records<'a>(
    message: &'a [u8],
    header: Header,
    behind_question: usize,
) -> impl Iterator<Item = Result<Record<'a>, Malformed>> + use<'a> {
    let sections = [
        (Section::Answer, header.answers),
        (Section::Authority, header.authorities),
        (Section::Additional, header.additionals),
    ];
    let mut cursor = Cursor::at(message, behind_question);
    let mut sections = sections.into_iter().flat_map(|(section, count)| (0..count).map(move |_| section));
    let mut failed = false;
    std::iter::from_fn(move || {
        let section = sections.next().filter(|_| !failed)?;
        let record = next(&mut cursor, message, section);
        failed = record.is_err();
        Some(record)
    })
}

fn next<'a>(cursor: &mut Cursor<'a>, message: &'a [u8], section: Section) -> Result<Record<'a>, Malformed> {
    let start = cursor.position();
    cursor.skip_name()?;
    let kind = cursor.u16()?;
    let class = cursor.u16()?;
    let ttl_at = cursor.position();
    let ttl = cursor.u32()?;
    let length = cursor.u16()?;
    let data = cursor.take(usize::from(length))?;
    Ok(Record { message, section, start, ttl_at, kind, class, ttl, data, end: cursor.position() })
}
