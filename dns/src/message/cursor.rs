//! A bounds-checked position in a message.

use super::name::MAX_NAME;
use super::{Malformed, Name};

/// The two high bits of a label's length that mark a compression pointer (RFC 1035 §4.1.4).
const POINTER: u8 = 0b1100_0000;

/// Reads forward through a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at an offset of the message.
    pub(crate) fn at(message: &'a [u8], position: usize) -> Self {
        Self { message, position }
    }

    /// The offset of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The next bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.position.checked_add(count).ok_or(Malformed)?;
        let bytes = self.message.get(self.position..end).ok_or(Malformed)?;
        self.position = end;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        let bytes = self.take(1)?;
        bytes.first().copied().ok_or(Malformed)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?.try_into();
        bytes.map(u16::from_be_bytes).map_err(|_length| Malformed)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into();
        bytes.map(u32::from_be_bytes).map_err(|_length| Malformed)
    }

    /// Reads an uncompressed name, as in questions: borrowed.
    pub(crate) fn plain_name(&mut self) -> Result<Name<'a>, Malformed> {
        let start = self.position;
        loop {
            let length = self.u8()?;
            if length == 0 {
                break;
            }
            if length & POINTER != 0 {
                return Err(Malformed);
            }
            self.take(usize::from(length))?;
            // The root label still follows.
            if self.position - start >= MAX_NAME {
                return Err(Malformed);
            }
        }
        self.message.get(start..self.position).map(Name::from_wire_unchecked).ok_or(Malformed)
    }

    /// Skips a name that may be compressed, without following pointers.
    pub(crate) fn skip_name(&mut self) -> Result<(), Malformed> {
        loop {
            let length = self.u8()?;
            match length & POINTER {
                0 if length == 0 => return Ok(()),
                0 => {
                    self.take(usize::from(length))?;
                }
                POINTER => return self.u8().map(drop),
                _ => return Err(Malformed),
            }
        }
    }
}
