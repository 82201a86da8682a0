//! The message header (RFC 1035 §4.1.1).

use super::{Cursor, Malformed};

/// Bits of the second word.
pub(crate) mod flag {
    /// The message is a response.
    pub(crate) const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub(crate) const AA: u16 = 0x0400;
    /// The message is truncated.
    pub(crate) const TC: u16 = 0x0200;
    /// Recursion desired.
    pub(crate) const RD: u16 = 0x0100;
    /// Recursion available.
    pub(crate) const RA: u16 = 0x0080;
    /// Authentic data (RFC 4035 §3.1.6).
    pub(crate) const AD: u16 = 0x0020;
    /// Checking disabled (RFC 4035 §3.1.6).
    pub(crate) const CD: u16 = 0x0010;
}

/// The header of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u16,
    /// The complete second word: see [`flag`], [`Header::opcode`], [`Header::rcode`].
    pub(crate) flags: u16,
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Header {
    /// Bytes on the wire.
    pub(crate) const LENGTH: usize = 12;

    /// Reads the header of a message.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::at(message, 0);
        Ok(Self {
            id: cursor.u16()?,
            flags: cursor.u16()?,
            questions: cursor.u16()?,
            answers: cursor.u16()?,
            authorities: cursor.u16()?,
            additionals: cursor.u16()?,
        })
    }

    /// The bytes on the wire.
    pub(crate) fn to_wire(self) -> [u8; Self::LENGTH] {
        let words = [self.id, self.flags, self.questions, self.answers, self.authorities, self.additionals];
        let mut wire = [0; Self::LENGTH];
        for (bytes, word) in wire.chunks_exact_mut(2).zip(words) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        wire
    }

    /// The opcode; 0 is a standard query.
    pub(crate) fn opcode(self) -> u8 {
        (self.flags >> 11) as u8 & 0xf
    }

    /// Whether a bit is set.
    pub(crate) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}
