//! A place in a message that cannot leave it.

use super::name::MAX_NAME;
use super::{Malformed, Name};

/// Two high bits of a label's length that say where the name goes on instead (RFC 1035 §4.1.4).
const POINTER: u8 = 0b1100_0000;

/// Reads forward through a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// At an offset of the message, from its first byte.
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

    /// A name that is written out, as those of questions are: borrowed.
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
            // The root still follows.
            if self.position - start >= MAX_NAME {
                return Err(Malformed);
            }
        }
        self.message.get(start..self.position).map(Name::from_wire_unchecked).ok_or(Malformed)
    }

    /// Steps over a name that may be compressed, without looking where pointers lead.
    pub(crate) fn skip_name(&mut self) -> Result<(), Malformed> {
        loop {
            let length = self.u8()?;
            match length & POINTER {
                0 if length == 0 => return Ok(()),
                0 => drop(self.take(usize::from(length))?),
                POINTER => return self.u8().map(drop),
                _ => return Err(Malformed),
            }
        }
    }
}
