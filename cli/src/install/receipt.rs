//! The receipt: the files that `portolan install` has written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Persistent, as the installed files are.
const DIRECTORY: &str = "/var/lib/portolan";
const FILE: &str = "/var/lib/portolan/install.json";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Receipt {
    /// Files by path.
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    /// Directories that `install` created.
    directories: BTreeSet<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The written text, to detect later changes; `None` for a program.
    pub(super) text: Option<String>,
}

impl Receipt {
    /// Reads the receipt; an empty one if nothing was installed.
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

    /// Creates a directory with its ancestors, and records which ones were missing.
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
        super::write_atomically(FILE.as_ref(), &text, 0o644)
            .with_context(|| format!("write {FILE} (root is needed)"))
    }

    /// Removes the receipt and the created directories that are empty, the deepest first.
    ///
    /// # Errors
    /// As removing files.
    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        match fs::remove_file(FILE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(format!("remove {FILE}")),
            _ => {}
        }
        // In a pod the kubelet created it.
        self.directories.insert(DIRECTORY.into());
        for directory in self.directories.iter().rev() {
            // A directory with files of another program is not empty and is kept.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}
