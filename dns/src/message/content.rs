//! Names inside the content of records, which may refer to the rest of their message (RFC 3597 §4).

use super::{Malformed, NameBuf, Record, kind};

/// A stretch of a record's content.
#[derive(Debug)]
pub(super) enum Part<'a> {
    /// The same in any message.
    Bytes(&'a [u8]),
    /// To be written anew.
    Name(NameBuf),
}

/// Bytes before the names, the number of names, and bytes behind them.
type Layout = (usize, usize, usize);

/// Where a type has names that may be compressed: those of RFC 1035, and the few that RFC 3597 §4 tells receivers to expand.
fn layout(kind: u16) -> Option<Layout> {
    const MD_MF: std::ops::RangeInclusive<u16> = 3..=4;
    const MB_MG_MR: std::ops::RangeInclusive<u16> = 7..=9;
    const MINFO: u16 = 14;
    const RP: u16 = 17;
    const AFSDB: u16 = 18;
    const RT: u16 = 21;
    const PX: u16 = 26;
    const KX: u16 = 36;
    match kind {
        kind::NS | kind::CNAME | kind::PTR | kind::DNAME => Some((0, 1, 0)),
        kind if MD_MF.contains(&kind) || MB_MG_MR.contains(&kind) => Some((0, 1, 0)),
        kind::SOA => Some((0, 2, 20)),
        MINFO | RP => Some((0, 2, 0)),
        kind::MX | AFSDB | RT | KX => Some((2, 1, 0)),
        PX => Some((2, 2, 0)),
        kind::SRV => Some((6, 1, 0)),
        _ => None,
    }
}

/// Whether a sender may compress the names: only where every receiver knows the type (RFC 3597 §4).
pub(super) fn compresses(kind: u16) -> bool {
    matches!(kind, kind::NS | kind::CNAME | kind::PTR | kind::SOA | kind::MX)
}

/// The content in stretches, names written out.
pub(super) fn expand<'a>(record: &Record<'a>) -> Result<Vec<Part<'a>>, Malformed> {
    let Some((before, names, behind)) = layout(record.kind) else {
        return Ok(vec![Part::Bytes(record.data)]);
    };
    let mut cursor = record.content();
    let mut parts = vec![Part::Bytes(cursor.take(before)?)];
    for _ in 0..names {
        let mut name = NameBuf::default();
        cursor.name(&mut name)?;
        parts.push(Part::Name(name));
    }
    parts.push(Part::Bytes(cursor.take(behind)?));
    // The length must say what is there.
    if cursor.position() == record.end { Ok(parts) } else { Err(Malformed) }
}
