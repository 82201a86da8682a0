//! Which addresses of a range set are taken: one bit each.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::RangeSet;

/// More addresses than this are never on one node; the file stays at 128 KiB.
const MAX_ADDRESSES: u32 = 1 << 20;

/// The file begins with the position where the next search starts.
const HEADER: usize = 4;

/// The bitmap of one range set, read whole (8 KiB for a /16) and written byte by byte.
pub(super) struct Pool {
    file: File,
    bytes: Vec<u8>,
    size: u32,
}

impl Pool {
    /// Opens or creates the bitmap at `path`.
    pub(super) fn open(path: &Path, set: &RangeSet) -> io::Result<Self> {
        let size = set.len().min(MAX_ADDRESSES);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = vec![0; HEADER + size.div_ceil(8) as usize];
        if file.metadata()?.len() < bytes.len() as u64 {
            // Its full size at once, so that every bit has its place whoever opens the file.
            file.set_len(bytes.len() as u64)?;
        }
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self { file, bytes, size })
    }

    /// Opens a bitmap whatever set it was made for.
    pub(super) fn open_existing(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let file = File::options().write(true).open(path)?;
        let bits = bytes.len().saturating_sub(HEADER) * 8;
        Ok(Self { file, bytes, size: u32::try_from(bits).unwrap_or(MAX_ADDRESSES) })
    }

    /// Takes the next free position after the one taken last, so that an address rests before it is used again.
    pub(super) fn take_next(&mut self, is_reserved: impl Fn(u32) -> bool) -> io::Result<Option<u32>> {
        let start = u32::from_le_bytes(self.bytes[..HEADER].try_into().expect("the header has four bytes"));
        let start = if start < self.size { start } else { 0 };
        let mut step = 0;
        while step < self.size {
            let position = (start + step) % self.size;
            // Eight at a time where all are taken.
            if position.is_multiple_of(8)
                && self.bytes[byte_of(position)] == u8::MAX
                && position + 8 <= self.size
            {
                step += 8;
                continue;
            }
            if !self.is_taken(position) && !is_reserved(position) {
                self.write(position, true)?;
                let next = (position + 1) % self.size;
                self.file.write_all_at(&next.to_le_bytes(), 0)?;
                return Ok(Some(position));
            }
            step += 1;
        }
        Ok(None)
    }

    /// Takes this very position, unless it is taken.
    pub(super) fn take(&mut self, position: u32) -> io::Result<bool> {
        if position >= self.size || self.is_taken(position) {
            return Ok(false);
        }
        self.write(position, true)?;
        Ok(true)
    }

    pub(super) fn give_back(&mut self, position: u32) -> io::Result<()> {
        if position < self.size && self.is_taken(position) {
            self.write(position, false)?;
        }
        Ok(())
    }

    /// Makes exactly these positions taken.
    pub(super) fn rebuild(&mut self, taken: impl Iterator<Item = u32>) -> io::Result<()> {
        self.bytes[HEADER..].fill(0);
        for position in taken.filter(|position| *position < self.size) {
            self.bytes[byte_of(position)] |= bit_of(position);
        }
        self.file.write_all_at(&self.bytes[HEADER..], HEADER as u64)
    }

    /// Whether nothing is free.
    pub(super) fn is_full(&self, is_reserved: impl Fn(u32) -> bool) -> bool {
        (0..self.size).all(|position| self.is_taken(position) || is_reserved(position))
    }

    fn is_taken(&self, position: u32) -> bool {
        self.bytes[byte_of(position)] & bit_of(position) != 0
    }

    fn write(&mut self, position: u32, taken: bool) -> io::Result<()> {
        let index = byte_of(position);
        if taken {
            self.bytes[index] |= bit_of(position);
        } else {
            self.bytes[index] &= !bit_of(position);
        }
        self.file.write_all_at(&self.bytes[index..=index], index as u64)
    }
}

fn byte_of(position: u32) -> usize {
    HEADER + (position / 8) as usize
}

fn bit_of(position: u32) -> u8 {
    1 << (position % 8)
}
