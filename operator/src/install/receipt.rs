//! What `portolan install` has written on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Survives reboots, as what it names does.
const DIRECTORY: &str = "/var/lib/portolan";
const FILE: &str = "/var/lib/portolan/install.json";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Receipt {
    /// Files by path.
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    /// Directories that were not there before.
    directories: BTreeSet<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What was written, to tell whether somebody has changed it; `None` for a program.
    pub(super) text: Option<String>,
}

impl Receipt {
    /// An empty one where nothing was installed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn load() -> anyhow::Result<Self> {
        match fs::read(FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read {FILE}: it is not a receipt of `portolan install`")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).context(format!("read {FILE}")),
        }
    }

    /// Creates a directory with all above it, and notes which were not there.
    ///
    /// # Errors
    /// As creating directories.
    pub(super) fn create_directories(&mut self, directory: &Path) -> anyhow::Result<()> {
        let missing = directory.ancestors().take_while(|above| !above.exists());
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.directories.extend(missing);
        self.save()?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
    }

    /// # Errors
    /// As writing files.
    pub(super) fn save(&mut self) -> anyhow::Result<()> {
        if !Path::new(DIRECTORY).exists() {
            fs::create_dir_all(DIRECTORY).with_context(|| format!("create {DIRECTORY} (root is needed)"))?;
            self.directories.insert(DIRECTORY.into());
        }
        let text = serde_json::to_vec_pretty(self).context("write the receipt")?;
        super::write(FILE.as_ref(), &text, 0o644).with_context(|| format!("write {FILE} (root is needed)"))
    }

    /// Forgets everything: directories that were made and are empty go too, the deepest first.
    ///
    /// # Errors
    /// As removing files.
    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        match fs::remove_file(FILE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(format!("remove {FILE}")),
            _ => {}
        }
        // In a pod it was the kubelet that made it.
        self.directories.insert(DIRECTORY.into());
        for directory in self.directories.iter().rev() {
            // One that somebody else uses is not empty and stays.
            drop(fs::remove_dir(directory));
        }
        Ok(())
    }
}
