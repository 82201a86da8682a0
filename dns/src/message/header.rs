//! The first twelve bytes (RFC 1035 §4.1.1).

use super::{Cursor, Malformed};

/// Bits of the second word.
pub(crate) mod flag {
    /// It is a response.
    pub(crate) const QR: u16 = 0x8000;
    /// The server is an authority for the name.
    pub(crate) const AA: u16 = 0x0400;
    /// There was more than fits.
    pub(crate) const TC: u16 = 0x0200;
    /// The client asks for the whole answer.
    pub(crate) const RD: u16 = 0x0100;
    /// The server can give it.
    pub(crate) const RA: u16 = 0x0080;
    /// The data are authentic (RFC 4035 §3.1.6).
    pub(crate) const AD: u16 = 0x0020;
    /// No checking, please (RFC 4035 §3.1.6).
    pub(crate) const CD: u16 = 0x0010;
}

/// The header of any message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u16,
    /// The second word whole: see [`flag`], [`Header::opcode`], [`Header::rcode`].
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

    /// What kind of query; 0 is the usual one.
    pub(crate) fn opcode(self) -> u8 {
        (self.flags >> 11) as u8 & 0xf
    }

    /// Whether a bit is set.
    pub(crate) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}
