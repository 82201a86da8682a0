//! The boot that the reservations belong to, and how missing reservations are restored.

use std::fs;
use std::path::Path;

use super::Store;
use super::reservations::{Reservation, Reserved};
use crate::alias::Alias;
use crate::atomic_file;
use crate::error::{Result, io, kernel};
use crate::lock::Lock;
use crate::netlink::Netlink;

/// A new value with every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Takes the lock and removes what an earlier boot left.
    pub(super) fn open(&self) -> Result<Lock> {
        let lock = Lock::acquire(&self.directory)?;
        // An unknown one would look like another boot.
        let boot = fs::read(BOOT_ID).map_err(io("read", Path::new(BOOT_ID)))?;
        let path = self.directory.join("boot");
        // An empty file names no boot.
        let noted = fs::read(&path).ok().filter(|noted| !noted.is_empty());
        if noted.as_ref() == Some(&boot) {
            return Ok(lock);
        }
        if noted.is_some() {
            for directory in [&self.reservations.0, &self.far.0] {
                match fs::remove_dir_all(directory) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(io("remove", directory)(e));
                    }
                    _ => {}
                }
            }
            self.remove_slots(|_| true)?;
        } else {
            self.restore()?;
        }
        // A truncated ID would look like another boot.
        atomic_file::write(&path, &boot).map_err(io("write", &path))?;
        Ok(lock)
    }

    /// Restores the addresses of living pods that have no readable file, because the directory or a file was
    /// emptied: the aliases of their interfaces have them.
    pub(super) fn restore(&self) -> Result<()> {
        let network = self.directory.file_name().unwrap_or_default().to_string_lossy();
        let links = Netlink::open().and_then(|mut host| host.links()).map_err(kernel("list interfaces"))?;
        for alias in links.iter().filter_map(Alias::of).filter(|alias| alias.network == network) {
            if self.reservations.read(&alias.owner)?.is_none() {
                let addresses = alias.addresses.into_iter().map(|address| Reserved { address, slot: None });
                let addresses = addresses.collect();
                self.reservations.write(&Reservation { owner: alias.owner, addresses, delegated: None })?;
            }
        }
        Ok(())
    }
}
