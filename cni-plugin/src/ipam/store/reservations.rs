//! The owners of addresses: one file per attachment.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use attachment::Key;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Code, Error, Result, io};

/// The lock admits one writer, so one name for temporary files is enough. No container ID begins with a dot.
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
    /// The key of the attachment's record.
    pub(crate) fn key(&self, network: &str) -> Key {
        Key {
            network: network.to_owned(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// The content of a file.
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

/// An ADD of another IPAM plugin. DEL needs it to call that plugin with the configuration of the ADD, and
/// CHECK to pass that plugin its own result.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Delegated {
    /// `ipam.type`.
    pub(crate) kind: String,
    /// The configuration that the plugin was called with.
    pub(crate) config: Value,
    /// The plugin's result.
    pub(crate) result: Value,
}

impl Delegated {
    /// Whether the configuration calls the same plugin with the same `ipam`.
    pub(crate) fn is_of(&self, config: Option<&Value>) -> bool {
        config.is_some_and(|config| config["ipam"] == self.config["ipam"])
    }
}

/// One address.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Reserved {
    pub(super) address: IpAddr,
    /// Name of the slot file, which a later change of the ranges does not affect.
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

    /// The reservation of `owner`. An unreadable file counts as none.
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

    /// Removes the file of `owner`, readable or not. A missing file is fine.
    pub(super) fn remove(&self, owner: &Owner) -> Result<()> {
        for path in self.possible_paths(owner) {
            // A file in the naming scheme of an earlier version may belong to another owner.
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

    /// Removes the unreadable files and returns their paths.
    pub(super) fn remove_illegible(&self) -> Result<Vec<PathBuf>> {
        let mut paths = self.paths()?;
        paths.retain(|path| fs::read(path).is_ok_and(|bytes| parse(path, &bytes).is_err()));
        for path in &paths {
            fs::remove_file(path).map_err(io("remove", path))?;
        }
        Ok(paths)
    }

    /// Removes the temporary file of a killed writer. Usually there is none.
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

    /// The path of the file, and its path in earlier versions.
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
