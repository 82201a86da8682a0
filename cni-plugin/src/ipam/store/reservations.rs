//! Who has which addresses: a file an attachment.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use attachment::Key;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Code, Error, Result, io};

/// Under the lock there is one writer, so one name for files that are not whole yet is enough. No container's
/// name begins with a dot.
const TEMPORARY: &str = ".new.tmp";

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Owner {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

impl Owner {
    /// By what it is recorded on a network.
    pub(crate) fn key(&self, network: &str) -> Key {
        Key {
            network: network.to_owned(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// What a file says.
#[derive(Serialize, Deserialize)]
pub(super) struct Reservation {
    #[serde(flatten)]
    pub(super) owner: Owner,
    pub(super) addresses: Vec<Reserved>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) delegated: Option<Delegated>,
}

impl Reservation {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|reserved| reserved.address == address)
    }
}

/// An ADD of another IPAM plugin: what DEL needs to take it back by whatever configuration it is called, and
/// CHECK to ask that plugin about its own result and not about ours.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Delegated {
    /// `ipam.type`.
    pub(crate) kind: String,
    /// The configuration that it was called with.
    pub(crate) config: Value,
    /// Its result.
    pub(crate) result: Value,
}

impl Delegated {
    /// Whether the configuration calls the same plugin for the same.
    pub(crate) fn is_of(&self, config: Option<&Value>) -> bool {
        config.is_some_and(|config| config["ipam"] == self.config["ipam"])
    }
}

/// One address.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Reserved {
    pub(super) address: IpAddr,
    /// Name of the slots' file, so that a later change of the ranges does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) slot: Option<(String, u32)>,
}

/// The directory of those files.
pub(super) struct Reservations(pub(super) PathBuf);

impl Reservations {
    /// All of them, and the files that are not legible.
    ///
    /// # Errors
    /// When one cannot be read: its addresses must not count as free.
    pub(super) fn all(&self) -> Result<(Vec<Reservation>, Vec<Error>)> {
        let (mut found, mut illegible) = (Vec::new(), Vec::new());
        for path in self.paths()? {
            match fs::read(&path) {
                Ok(bytes) => match parse(&path, &bytes) {
                    Ok(reservation) => found.push(reservation),
                    Err(error) => illegible.push(error),
                },
                // It was removed since the directory was listed.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(io("read", &path)(e)),
            }
        }
        Ok((found, illegible))
    }

    /// What `owner` has. A file that is not legible says nothing.
    pub(super) fn read(&self, owner: &Owner) -> Result<Option<Reservation>> {
        for path in self.possible_paths(owner) {
            match fs::read(&path) {
                Ok(bytes) => {
                    let found = parse(&path, &bytes).ok().filter(|found| found.owner == *owner);
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(io("read", &path)(e)),
            }
        }
        Ok(None)
    }

    /// Whether `owner` has a file.
    pub(super) fn has(&self, owner: &Owner) -> bool {
        self.possible_paths(owner).any(|path| path.exists())
    }

    pub(super) fn write(&self, reservation: &Reservation) -> Result<()> {
        let path = self.path(&reservation.owner);
        fs::create_dir_all(&self.0).map_err(io("create", &self.0))?;
        let temporary = self.0.join(TEMPORARY);
        let json = serde_json::to_vec(reservation).expect("a reservation has string keys only");
        let written = fs::write(&temporary, json).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            self.remove_temporary();
        }
        written.map_err(io("write", &path))
    }

    /// Removes what `owner` has, legible or not. Nothing to remove is fine.
    pub(super) fn remove(&self, owner: &Owner) -> Result<()> {
        for path in self.possible_paths(owner) {
            // A name of former versions may be another owner's.
            if path != self.path(owner) && !is_of(&path, owner) {
                continue;
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the files that are not legible, and says which.
    pub(super) fn remove_illegible(&self) -> Result<Vec<PathBuf>> {
        let mut paths = self.paths()?;
        paths.retain(|path| fs::read(path).is_ok_and(|bytes| parse(path, &bytes).is_err()));
        for path in &paths {
            fs::remove_file(path).map_err(io("remove", path))?;
        }
        Ok(paths)
    }

    /// A writer that was killed may have left it; most often there is none.
    pub(super) fn remove_temporary(&self) {
        let _ = fs::remove_file(self.0.join(TEMPORARY));
    }

    fn paths(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<std::io::Result<Vec<_>>>),
        };
        let entries = entries.map_err(io("list", &self.0))?.into_iter();
        Ok(entries.filter(|entry| entry.file_name() != TEMPORARY).map(|entry| entry.path()).collect())
    }

    fn path(&self, owner: &Owner) -> PathBuf {
        self.0.join(owner.key("").file_stem())
    }

    /// Where the file is, and where former versions had it.
    fn possible_paths(&self, owner: &Owner) -> impl Iterator<Item = PathBuf> {
        let key = owner.key("");
        [Some(key.file_stem()), key.former_file_stem()].into_iter().flatten().map(|name| self.0.join(name))
    }
}

fn is_of(path: &Path, owner: &Owner) -> bool {
    fs::read(path).is_ok_and(|bytes| parse(path, &bytes).is_ok_and(|found| found.owner == *owner))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Reservation> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Io, format!("{} is not a reservation: {e}", path.display())))
}
