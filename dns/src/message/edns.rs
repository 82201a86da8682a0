//! EDNS: what does not fit the header (RFC 6891).

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
    /// The largest datagram the sender can take, as it says.
    pub(crate) payload: u16,
    /// The high eight bits of the response code.
    pub(crate) rcode_high: u8,
    /// 0 is the only one there is.
    pub(crate) version: u8,
    /// DNSSEC records are welcome (RFC 3225).
    pub(crate) dnssec_ok: bool,
    options: &'a [u8],
}

/// Why there is no answer, or not a better one (RFC 8914 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub(crate) enum Ede {
    /// Something else; the text says what.
    Other = 0,
    /// An answer that has outlived its TTL, for want of a fresh one.
    StaleAnswer = 3,
    /// The client may not ask.
    Prohibited = 18,
    /// As `StaleAnswer`, for a name that did not exist.
    StaleNxdomain = 19,
    /// The server has not read its data yet.
    NotReady = 14,
    /// The server does not do that.
    NotSupported = 21,
    /// No upstream server could be reached.
    NoReachableAuthority = 22,
    /// A network error on the way to an upstream server.
    NetworkError = 23,
    /// What upstream sent cannot be used.
    InvalidData = 24,
    /// It failed a moment ago and is not tried again yet (RFC 9520).
    CachedError = 13,
}

impl<'a> Edns<'a> {
    /// Bytes of the record without options.
    pub(crate) const LENGTH: usize = 11;

    /// Whether a cookie, if there is one, has a length that cookies have (RFC 7873 §5.2.2).
    pub(super) fn has_no_bad_cookie(&self) -> bool {
        self.option(option::COOKIE).is_none_or(|cookie| matches!(cookie.len(), 8 | 16..=40))
    }

    /// From the fields of an OPT record. Options must be whole.
    pub(super) fn parse(class: u16, ttl: u32, options: &'a [u8]) -> Result<Self, Malformed> {
        let [rcode_high, version, flags, _] = ttl.to_be_bytes();
        let edns = Self { payload: class, rcode_high, version, dnssec_ok: flags & 0x80 != 0, options };
        let mut cursor = Cursor::at(options, 0);
        while cursor.position() < options.len() {
            next_option(&mut cursor)?;
        }
        Ok(edns)
    }

    /// Without options.
    pub(crate) fn new(payload: u16, rcode: u16, dnssec_ok: bool) -> Self {
        let [rcode_high, _] = (rcode << 4).to_be_bytes();
        Self { payload, rcode_high, version: 0, dnssec_ok, options: &[] }
    }

    /// Appends the record to a message, for now without options.
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

    /// Every option of the data of an OPT record: code and content.
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
