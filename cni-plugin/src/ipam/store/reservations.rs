//! Who has which addresses: a file an attachment.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use attachment::Key;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result, io};

/// Under the lock there is one writer, so one name for files that are not whole yet is enough.
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
}

impl Reservation {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|reserved| reserved.address == address)
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
    pub(super) fn all(&self) -> (Vec<Reservation>, Vec<Error>) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        for path in
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_none_or(|e| e != "tmp"))
        {
            match fs::read(&path).map_err(io("read", &path)).and_then(|bytes| parse(&path, &bytes)) {
                Ok(reservation) => found.push(reservation),
                Err(error) => errors.push(error),
            }
        }
        (found, errors)
    }

    /// What `owner` has.
    pub(super) fn read(&self, owner: &Owner) -> Result<Option<Reservation>> {
        let path = self.path(owner);
        match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io("read", &path)(e)),
        }
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

    pub(super) fn remove(&self, owner: &Owner) -> Result<()> {
        let path = self.path(owner);
        fs::remove_file(&path).map_err(io("remove", &path))
    }

    /// A writer that was killed may have left it; most often there is none.
    pub(super) fn remove_temporary(&self) {
        drop(fs::remove_file(self.0.join(TEMPORARY)));
    }

    fn path(&self, owner: &Owner) -> PathBuf {
        self.0.join(format!("{}-{}", owner.container_id, owner.ifname))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Reservation> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Io, format!("{} is not a reservation: {e}", path.display())))
}
