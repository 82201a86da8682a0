//! DNS messages for the UDP fast path: decoded in place, without allocation.
//!
//! Decoding a [`Query`] never reads outside the message, and takes a number of steps that the length of the
//! message bounds. All other messages are hickory-proto's; [`record`] converts the zone's records to its.

mod cursor;
mod edns;
mod header;
mod name;
mod query;

use hickory_server::proto::rr::rdata::NULL;
use hickory_server::proto::rr::{self, RData};
use hickory_server::proto::serialize::binary::BinDecodable as _;

use cursor::Cursor;
pub(crate) use edns::{Ede, Edns, option};
pub(crate) use header::{Header, flag};
pub(crate) use name::{MAX_NAME, Name, NameBuf};
pub(crate) use query::{Invalid, Query, Question};

/// The message is truncated or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed DNS message")]
pub(crate) struct Malformed;

/// Class IN (RFC 1035 §3.2.4).
pub(crate) const CLASS_IN: u16 = 1;

/// Response codes (RFC 1035 §4.1.1, RFC 6891 §9).
pub(crate) mod rcode {
    pub(crate) const NOERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const SERVFAIL: u16 = 2;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const YXDOMAIN: u16 = 6;
    pub(crate) const BADVERS: u16 = 16;
}

/// The record types that this server handles (RFC 1035 §3.2.2 and later).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    #[cfg(test)]
    pub(crate) const MX: u16 = 15;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Converts a name, type, TTL and RDATA from the wire to hickory's record; `None` if the name is invalid.
pub(crate) fn record(owner: Name<'_>, kind: u16, ttl: u32, content: &[u8]) -> Option<rr::Record> {
    let data = RData::Unknown { code: kind.into(), rdata: NULL::with(content.to_vec()) };
    Some(rr::Record::from_rdata(rr::Name::from_bytes(owner.wire()).ok()?, ttl, data))
}

#[cfg(test)]
mod tests;
