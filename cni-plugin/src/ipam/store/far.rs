//! Requested addresses so far from the beginning of their range that they have no slot: one empty file per
//! address.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::{Result, io};

/// The directory of those files.
pub(super) struct Far(pub(super) PathBuf);

impl Far {
    /// Marks the address as assigned. Returns whether it was free.
    pub(super) fn note(&self, address: IpAddr) -> Result<bool> {
        fs::create_dir_all(&self.0).map_err(io("create", &self.0))?;
        let path = self.0.join(address.to_string());
        match fs::File::create_new(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(io("create", &path)(e)),
        }
    }

    /// Marks the address as free.
    pub(super) fn forget(&self, address: IpAddr) {
        let _ = fs::remove_file(self.0.join(address.to_string()));
    }

    /// Removes the markers of all addresses that are not assigned.
    pub(super) fn retain(&self, is_taken: impl Fn(&str) -> bool) -> Result<()> {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(&is_taken) {
                fs::remove_file(entry.path()).map_err(io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}
