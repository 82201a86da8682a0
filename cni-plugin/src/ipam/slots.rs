//! Which addresses of a range set are assigned or in cooldown: four bytes per address.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::RangeSet;

/// Name of the temporary file. The lock admits one writer.
pub(super) const TEMPORARY: &str = "slots-new.tmp";

/// The file begins with the position at which the next search starts.
const HEADER: u64 = 4;

const SLOT: usize = 4;

/// Any other value of a slot is the second at which the address was released.
const FREE: u32 = 0;
const TAKEN: u32 = u32::MAX;

/// Slots per read. The next free one is nearly always among them.
const WINDOW: u32 = 256;

/// The slots of one range set. The file is sparse: pages that were never used take no memory.
pub(super) struct Slots {
    file: File,
    size: u32,
}

impl Slots {
    /// Opens the file at `path` if it exists and is long enough: the file names of very long sets are
    /// truncated.
    pub(super) fn open(path: &Path, set: &RangeSet) -> io::Result<Option<Self>> {
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let slots = Self { file, size: set.len() };
        Ok((slots.file.metadata()?.len() >= offset(slots.size)).then_some(slots))
    }

    /// Creates the file at `path` with these positions assigned. The file appears atomically: a half-written
    /// one would show the other addresses as free.
    pub(super) fn create(path: &Path, set: &RangeSet, taken: impl Iterator<Item = u32>) -> io::Result<Self> {
        let temporary = path.with_file_name(TEMPORARY);
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&temporary)?;
        let slots = Self { file, size: set.len() };
        let sized = slots.file.set_len(offset(slots.size));
        let created = sized.and_then(|()| slots.rebuild(taken)).and_then(|()| fs::rename(&temporary, path));
        if created.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        created.map(|()| slots)
    }

    /// Opens the file of any set.
    pub(super) fn open_existing(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let slots = file.metadata()?.len().saturating_sub(HEADER) / SLOT as u64;
        Ok(Self { file, size: u32::try_from(slots).unwrap_or(u32::MAX) })
    }

    /// Returns the next position after the last assigned one that is free, `is_usable` and past its cooldown
    /// of `cooldown` seconds at second `now`. If all free positions are in cooldown, returns the one that was
    /// released first.
    pub(super) fn search(
        &self,
        now: u32,
        cooldown: u32,
        mut is_usable: impl FnMut(u32) -> io::Result<bool>,
    ) -> io::Result<Option<u32>> {
        let start = self.next()?;
        let mut in_cooldown = Vec::new();
        // Search to the end, then from the beginning.
        for (from, to) in [(start, self.size), (0, start)] {
            let mut position = from;
            while position < to {
                let count = WINDOW.min(to - position);
                let mut bytes = vec![0; count as usize * SLOT];
                self.file.read_exact_at(&mut bytes, offset(position))?;
                for (slot, position) in bytes.chunks_exact(SLOT).zip(position..) {
                    let slot = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
                    if slot == TAKEN {
                        continue;
                    }
                    if slot != FREE && slot.saturating_add(cooldown) > now {
                        in_cooldown.push((slot, position));
                    } else if is_usable(position)? {
                        return Ok(Some(position));
                    }
                }
                position += count;
            }
        }
        // The sort is stable: of two positions released in the same second the next one in order comes first.
        in_cooldown.sort_by_key(|(given_back, _)| *given_back);
        for (_, position) in in_cooldown {
            if is_usable(position)? {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// Assigns this position. Returns false if it is already assigned.
    pub(super) fn take(&self, position: u32) -> io::Result<bool> {
        let mut slot = [0; SLOT];
        self.file.read_exact_at(&mut slot, offset(position))?;
        if u32::from_le_bytes(slot) == TAKEN {
            return Ok(false);
        }
        self.write(position, TAKEN)?;
        Ok(true)
    }

    /// Starts the next search after `position`.
    pub(super) fn set_next_after(&self, position: u32) -> io::Result<()> {
        self.file.write_all_at(&((position + 1) % self.size).to_le_bytes(), 0)
    }

    /// Starts the cooldown of an address at second `now`.
    pub(super) fn give_back(&self, position: u32, now: u32) -> io::Result<()> {
        if position < self.size { self.write(position, now.clamp(FREE + 1, TAKEN - 1)) } else { Ok(()) }
    }

    /// Marks exactly these positions as assigned. Cooldowns continue.
    pub(super) fn rebuild(&self, taken: impl Iterator<Item = u32>) -> io::Result<()> {
        let mut bytes = vec![0; self.size as usize * SLOT];
        self.file.read_exact_at(&mut bytes, HEADER)?;
        for slot in bytes.chunks_exact_mut(SLOT).filter(|slot| **slot == TAKEN.to_le_bytes()) {
            slot.fill(0);
        }
        for position in taken.filter(|position| *position < self.size) {
            let start = position as usize * SLOT;
            bytes[start..start + SLOT].copy_from_slice(&TAKEN.to_le_bytes());
        }
        // Write only pages that differ, so that the file stays sparse.
        for (page, offset) in bytes.chunks(4096).zip((HEADER..).step_by(4096)) {
            let mut old = vec![0; page.len()];
            self.file.read_exact_at(&mut old, offset)?;
            if old != page {
                self.file.write_all_at(page, offset)?;
            }
        }
        Ok(())
    }

    fn next(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 0)?;
        let next = u32::from_le_bytes(bytes);
        Ok(if next < self.size { next } else { 0 })
    }

    fn write(&self, position: u32, slot: u32) -> io::Result<()> {
        self.file.write_all_at(&slot.to_le_bytes(), offset(position))
    }
}

fn offset(position: u32) -> u64 {
    HEADER + u64::from(position) * SLOT as u64
}
