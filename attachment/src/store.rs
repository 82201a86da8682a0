//! Reads and writes the record files.

use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};

use fnv::FnvHasher;

use crate::Attachment;

/// The key of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// CNI network name.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// Longest file name (`NAME_MAX`) without the extension.
const MAX_STEM: usize = 255 - ".json".len();

/// This many bytes of a container ID stay if the whole is too long.
const KEPT: usize = 200;

impl Key {
    /// The file name of the attachment without extension: `<containerID>-<ifname>`. With a dash in the
    /// interface name two attachments could have the same name, so then a colon separates the two; neither
    /// part may contain one. A name that is too long is truncated and contains a hash of the whole.
    pub fn file_stem(&self) -> String {
        let Self { container_id, ifname, .. } = self;
        let separator = if ifname.contains('-') { ':' } else { '-' };
        let stem = format!("{container_id}{separator}{ifname}");
        if stem.len() <= MAX_STEM {
            return stem;
        }
        // Readers compare the key in the file.
        let mut hash = FnvHasher::default();
        hash.write(container_id.as_bytes());
        format!("{}:{:016x}:{ifname}", container_id.get(..KEPT).unwrap_or_default(), hash.finish())
    }

    /// The file name that earlier versions used for an interface name with a dash.
    pub fn former_file_stem(&self) -> Option<String> {
        let Self { container_id, ifname, .. } = self;
        let stem = format!("{container_id}-{ifname}");
        (ifname.contains('-') && stem.len() <= MAX_STEM).then_some(stem)
    }
}

/// An error about a record, with its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file system error.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a record.
    #[error("{path} is not an attachment record: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
}

/// The name of a temporary file in the directory of its network.
const TEMPORARY: &str = ".new.tmp";

/// A directory of records, with one subdirectory per network.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Attachment {
    /// The key of this record.
    pub fn key(&self) -> Key {
        Key {
            network: self.network.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// Parses a record from the contents of `path`.
    pub fn parse(path: &Path, contents: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(contents).map_err(|source| Error::Parse { path: path.to_owned(), source })
    }
}

impl Store {
    /// A store in `directory`, which may not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory of the store.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of the record of `key`.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(&key.network).join(format!("{}.json", key.file_stem()))
    }

    /// The path in earlier versions, if it was different.
    fn former_path(&self, key: &Key) -> Option<PathBuf> {
        let name = format!("{}.json", key.former_file_stem()?);
        Some(self.directory.join(&key.network).join(name))
    }

    /// Writes a record atomically. Replaces an older one with the same key.
    pub fn write(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(&attachment.key());
        let directory = path.parent().expect("a record's path has its network's folder");
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let json = serde_json::to_vec(attachment).expect("a record has string keys only");
        // rename(2) is atomic. The plugin is the only writer, and holds a lock.
        let temporary = directory.join(TEMPORARY);
        let written = fs::write(&temporary, json).map_err(io_error("write", &temporary));
        let written =
            written.and_then(|()| fs::rename(&temporary, &path).map_err(io_error("rename into", &path)));
        if written.is_err() {
            // Best effort: the first error is returned.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes the directory of a network without records. Returns false if there are records. A writer
    /// creates the directory again.
    pub fn remove_network_if_empty(&self, network: &str) -> bool {
        let directory = self.directory.join(network);
        // A killed writer may have left it. Removing the directory costs the same however full it is; listing
        // it does not.
        let _ = fs::remove_file(directory.join(TEMPORARY));
        fs::remove_dir(&directory).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |()| true)
    }

    /// Reads one record. Returns `None` if there is none.
    pub fn read(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        let is_of_key = |record: &Attachment| record.key() == *key;
        let found = read_file(&self.path(key))?.filter(is_of_key);
        match self.former_path(key).filter(|_| found.is_none()) {
            Some(former) => Ok(read_file(&former)?.filter(is_of_key)),
            None => Ok(found),
        }
    }

    /// Removes a record. A missing one is fine.
    pub fn remove(&self, key: &Key) -> Result<(), Error> {
        // A file name of earlier versions may belong to another attachment.
        let is_of_key = |path: &PathBuf| {
            let record = read_file(path).ok().flatten();
            record.is_some_and(|record| record.key() == *key)
        };
        for path in [Some(self.path(key)), self.former_path(key).filter(is_of_key)].into_iter().flatten() {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Every readable record of a network, and the errors of the others.
    pub fn list(&self, network: &str) -> (Vec<Attachment>, Vec<Error>) {
        let directory = self.directory.join(network);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return (Vec::new(), Vec::new()),
            Err(e) => return (Vec::new(), vec![io_error("list", &directory)(e)]),
        };
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json"))
        {
            match read_file(&path) {
                Ok(record) => records.extend(record),
                Err(e) => errors.push(e),
            }
        }
        (records, errors)
    }
}

fn read_file(path: &Path) -> Result<Option<Attachment>, Error> {
    match fs::read(path) {
        Ok(contents) => Attachment::parse(path, &contents).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path)(e)),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Attachment {
        Attachment {
            network: "pods".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/c1".into(),
            ips: vec!["10.22.0.2".parse().unwrap()],
            mac: "02:00:00:00:00:01".into(),
            host_interface: "ptl0".into(),
            bridge: None,
            pod: None,
            labels: [("app".to_owned(), "web".to_owned())].into(),
            port_mappings: Vec::new(),
            reserved_ports: None,
        }
    }

    #[test]
    fn written_record_is_read_back_and_listed_until_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("attachments"));
        let key = record().key();
        assert_eq!(store.read(&key).unwrap(), None);
        store.write(&record()).unwrap();
        store.write(&record()).unwrap();
        assert_eq!(store.read(&key).unwrap(), Some(record()));
        assert_eq!(store.list("pods").0, vec![record()]);
        store.remove(&key).unwrap();
        store.remove(&key).unwrap();
        assert_eq!(store.list("pods").0, Vec::new());
    }

    #[test]
    fn legal_names_never_share_a_file_and_long_ones_fit() {
        let key = |container_id: &str, ifname: &str| Key {
            network: "pods".into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
        };
        let long = "c".repeat(300);
        let other = format!("{}d", "c".repeat(299));
        let keys = [
            key("a", "b-c"),
            key("a-b", "c"),
            key("a", "b-c.json"),
            key("a", ".new.tmp"),
            key("a.new", "tmp"),
            key(&long, "eth0"),
            key(&other, "eth0"),
            key(&long, "a-b"),
        ];
        let stems: std::collections::HashSet<String> = keys.iter().map(Key::file_stem).collect();
        assert_eq!(stems.len(), keys.len());
        assert!(stems.iter().all(|stem| stem.len() <= MAX_STEM && !stem.starts_with('.')), "{stems:?}");
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        for key in &keys {
            let (container_id, ifname) = (key.container_id.clone(), key.ifname.clone());
            store.write(&Attachment { container_id, ifname, ..record() }).unwrap();
        }
        assert_eq!(store.list("pods").0.len(), keys.len());
        for key in &keys {
            assert_eq!(store.read(key).unwrap().unwrap().key(), *key);
            store.remove(key).unwrap();
            assert_eq!(store.read(key).unwrap(), None);
        }
        assert_eq!(store.list("pods").0, Vec::new());
    }

    #[test]
    fn record_with_a_name_of_former_versions_is_found_and_removed_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let of = |container_id: &str, ifname: &str| Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
            ..record()
        };
        let dashed = of("a", "b-c");
        store.write(&of("x", "eth0")).unwrap();
        fs::write(directory.path().join("pods/a-b-c.json"), serde_json::to_vec(&dashed).unwrap()).unwrap();
        assert_eq!(store.read(&dashed.key()).unwrap(), Some(dashed.clone()));
        assert_eq!(store.read(&of("a-b", "c").key()).unwrap(), None);
        store.remove(&dashed.key()).unwrap();
        assert_eq!(store.list("pods").0, [of("x", "eth0")]);
        store.write(&of("a-b", "c")).unwrap();
        store.remove(&dashed.key()).unwrap();
        assert_eq!(store.list("pods").0.len(), 2);
    }

    #[test]
    fn broken_record_is_reported_by_name_and_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        store.write(&record()).unwrap();
        fs::write(directory.path().join("pods/broken-eth0.json"), "{").unwrap();
        fs::write(directory.path().join("pods/c2-eth0.tmp77"), "{").unwrap();
        let (records, errors) = store.list("pods");
        assert_eq!(records, vec![record()]);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].to_string().contains("broken-eth0.json is not an attachment record"),
            "{}",
            errors[0]
        );
    }
}
