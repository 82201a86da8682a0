//! EDNS (RFC 6891).

use super::{Cursor, Malformed, kind};

/// Option codes.
pub(crate) mod option {
    /// Name server identifier (RFC 5001).
    pub(crate) const NSID: u16 = 3;
    /// DNS cookies (RFC 7873).
    pub(crate) const COOKIE: u16 = 10;
    /// How long an idle TCP connection is kept (RFC 7828).
    pub(crate) const TCP_KEEPALIVE: u16 = 11;
    /// Padding against traffic analysis (RFC 7830).
    pub(crate) const PADDING: u16 = 12;
    /// Extended DNS errors (RFC 8914).
    pub(crate) const EDE: u16 = 15;
}

/// The OPT record of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns<'a> {
    /// The sender's maximum datagram size.
    pub(crate) payload: u16,
    /// The high eight bits of the response code.
    pub(crate) rcode_high: u8,
    /// 0 is the only version.
    pub(crate) version: u8,
    /// The DO bit: the client accepts DNSSEC records (RFC 3225).
    pub(crate) dnssec_ok: bool,
    options: &'a [u8],
}

/// Extended DNS Error codes (RFC 8914 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub(crate) enum Ede {
    /// Another error; the text explains it.
    Other = 0,
    /// A stale answer, because there is no fresh one.
    StaleAnswer = 3,
    /// The client is not allowed to query.
    Prohibited = 18,
    /// Like `StaleAnswer`, for an NXDOMAIN.
    StaleNxdomain = 19,
    /// The server has not read its data yet.
    NotReady = 14,
    /// The server does not support it.
    NotSupported = 21,
    /// No upstream server could be reached.
    NoReachableAuthority = 22,
    /// A network error on the way to an upstream server.
    NetworkError = 23,
    /// The data of the upstream server is invalid.
    InvalidData = 24,
    /// A cached failure (RFC 9520).
    CachedError = 13,
}

impl<'a> Edns<'a> {
    /// Bytes of the record without options.
    pub(crate) const LENGTH: usize = 11;

    /// Whether a cookie, if there is one, has a valid length (RFC 7873 §5.2.2).
    pub(super) fn has_no_bad_cookie(&self) -> bool {
        self.option(option::COOKIE).is_none_or(|cookie| matches!(cookie.len(), 8 | 16..=40))
    }

    /// Parses the fields of an OPT record. Options must be complete.
    pub(super) fn parse(class: u16, ttl: u32, options: &'a [u8]) -> Result<Self, Malformed> {
        let [rcode_high, version, flags, _] = ttl.to_be_bytes();
        let edns = Self { payload: class, rcode_high, version, dnssec_ok: flags & 0x80 != 0, options };
        let mut cursor = Cursor::at(options, 0);
        while cursor.position() < options.len() {
            next_option(&mut cursor)?;
        }
        Ok(edns)
    }

    /// An OPT record without options.
    pub(crate) fn new(payload: u16, rcode: u16, dnssec_ok: bool) -> Self {
        let [rcode_high, _] = (rcode << 4).to_be_bytes();
        Self { payload, rcode_high, version: 0, dnssec_ok, options: &[] }
    }

    /// Appends the record to a message, without options.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        let [kind_high, kind_low] = kind::OPT.to_be_bytes();
        let [payload_high, payload_low] = self.payload.to_be_bytes();
        let flags = u8::from(self.dnssec_ok) << 7;
        #[rustfmt::skip]
        let fixed: [u8; 11] = [
            0, kind_high, kind_low, payload_high, payload_low,
            self.rcode_high, self.version, flags, 0, 0, 0,
        ];
        out.extend_from_slice(&fixed);
    }

    /// Iterates over the options of an OPT record: code and content.
    pub(crate) fn split(options: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut cursor = Cursor::at(options, 0);
        std::iter::from_fn(move || next_option(&mut cursor).ok())
    }

    /// The first option with this code.
    pub(crate) fn option(&self, code: u16) -> Option<&'a [u8]> {
        Self::split(self.options).find(|(found, _)| *found == code).map(|(_, content)| content)
    }

    /// Whether there are any options.
    pub(crate) fn has_options(&self) -> bool {
        !self.options.is_empty()
    }
}

fn next_option<'a>(cursor: &mut Cursor<'a>) -> Result<(u16, &'a [u8]), Malformed> {
    let code = cursor.u16()?;
    let length = cursor.u16()?;
    Ok((code, cursor.take(usize::from(length))?))
}
