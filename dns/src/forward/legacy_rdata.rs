//! Decompresses names in the RDATA of old record types (RFC 3597 §4).
//!
//! These types may have compressed names. hickory passes their RDATA on as bytes, including pointers, which
//! are wrong in another message.

use hickory_resolver::proto::op::{Header, Message, Query};
use hickory_resolver::proto::rr::rdata::NULL;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{
    BinDecodable as _, BinDecoder, BinEncodable as _, BinEncoder, NameEncoding,
};

use super::answer::InvalidReply;

/// The bytes before the names in the RDATA of a type, and the number of names. More data may follow.
fn layout(kind: RecordType) -> Option<(usize, usize)> {
    match u16::from(kind) {
        // MD, MF; MB, MG, MR; NXT; DNAME
        3 | 4 | 7..=9 | 30 | 39 => Some((0, 1)),
        // MINFO, RP
        14 | 17 => Some((0, 2)),
        // AFSDB, RT, KX
        18 | 21 | 36 => Some((2, 1)),
        // SIG, PX
        24 => Some((18, 1)),
        26 => Some((2, 2)),
        _ => None,
    }
}

fn is_old(record: &Record) -> bool {
    matches!(record.data, RData::Unknown { .. }) && layout(record.record_type()).is_some()
}

/// Decompresses the names in ANSWER and AUTHORITY of a message that was read from `wire`.
///
/// # Errors
/// If the RDATA of a record is malformed.
pub(super) fn expand(message: &mut Message, wire: &[u8]) -> Result<(), InvalidReply> {
    let Message { queries, answers, authorities, .. } = message;
    if !answers.iter().chain(authorities.iter()).any(is_old) {
        return Ok(());
    }
    let mut decoder = BinDecoder::new(wire);
    Header::read(&mut decoder)?;
    for _ in queries {
        Query::read(&mut decoder)?;
    }
    for record in answers.iter_mut().chain(authorities) {
        Name::read(&mut decoder)?;
        // Type, class, TTL.
        decoder.read_slice(8)?;
        let length = usize::from(decoder.read_u16()?.unverified());
        let end = decoder.index() + length;
        match layout(record.record_type()).filter(|_| is_old(record)) {
            None => _ = decoder.read_slice(length)?,
            Some(layout) => {
                let data = NULL::with(written_out(&mut decoder, layout, end)?);
                record.data = RData::Unknown { code: record.record_type(), rdata: data };
            }
        }
    }
    Ok(())
}

fn written_out(
    decoder: &mut BinDecoder<'_>,
    (before, names): (usize, usize),
    end: usize,
) -> Result<Vec<u8>, InvalidReply> {
    let mut data = decoder.read_vec(before)?.unverified();
    for _ in 0..names {
        let name = Name::read(decoder)?;
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_name_encoding(NameEncoding::Uncompressed);
        name.emit(&mut encoder).map_err(|_long| InvalidReply::Malformed)?;
        data.extend(bytes);
    }
    let rest = end.checked_sub(decoder.index()).ok_or(InvalidReply::Malformed)?;
    data.extend(decoder.read_slice(rest)?.unverified());
    Ok(data)
}
