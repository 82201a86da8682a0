//! DNS messages as they are on the wire (RFC 1035 §4), read in place and written without detours.
//!
//! Reading never allocates but for names that are compressed, never looks outside the message and ends after a number of
//! steps that the message's length bounds. A [`Query`] is what a client asked, an [`Answer`] what an upstream server said;
//! [`records`] walks the sections of either. Writing is the [`Encoder`]'s: it compresses names, and takes back what did
//! not fit.

#![expect(
    unused,
    reason = "the codec comes first; the server and the forwarder move onto it one after the other"
)]

mod answer;
mod content;
mod cursor;
mod edns;
mod encoder;
mod header;
mod name;
mod query;
mod record;

pub(crate) use answer::Answer;
pub(crate) use cursor::Cursor;
pub(crate) use edns::{Ede, Edns, option};
pub(crate) use encoder::{Encoder, Full};
pub(crate) use header::{Header, flag};
pub(crate) use name::{MAX_NAME, Name, NameBuf};
pub(crate) use query::{Invalid, Query, Question};
pub(crate) use record::{Record, Section, kind, records};

/// The message breaks off, or says something that cannot be.
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
    pub(crate) const BADCOOKIE: u16 = 23;
}

#[cfg(test)]
mod tests;
