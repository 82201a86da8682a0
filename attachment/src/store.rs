//! Reading and writing records as files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Attachment;

/// Names one record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// CNI network name.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What went wrong with a record, and with which file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What we tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a record.
    #[error("{path} is not an attachment record: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// The name of a record that is not whole yet, in the folder of its network.
const TEMPORARY: &str = ".new.tmp";

/// A directory of records, one folder a network.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Attachment {
    /// The name under which this record is kept.
    pub fn key(&self) -> Key {
        Key {
            network: self.network.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// Reads a record from the contents of `path`.
    pub fn parse(path: &Path, contents: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(contents).map_err(|source| Error::Parse { path: path.to_owned(), source })
    }
}

impl Store {
    /// A store in `directory`, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory as given.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the record of `key` is kept.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(&key.network).join(format!("{}-{}.json", key.container_id, key.ifname))
    }

    /// Writes a record, replacing an older one of the same key in one step.
    pub fn write(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(&attachment.key());
        let directory = path.parent().expect("a record's path has its network's folder");
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let json = serde_json::to_vec(attachment).expect("a record has string keys only");
        // A rename is atomic. The plugin, which alone writes here, has a lock.
        let temporary = directory.join(TEMPORARY);
        let written = fs::write(&temporary, json).map_err(io_error("write", &temporary));
        let written =
            written.and_then(|()| fs::rename(&temporary, &path).map_err(io_error("rename into", &path)));
        if written.is_err() {
            // Best effort: the first error is the one to report.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    /// Removes the folder of a network that has no record left; false if it has one. Whoever writes meanwhile makes the
    /// folder anew.
    pub fn remove_network_if_empty(&self, network: &str) -> bool {
        let directory = self.directory.join(network);
        // A killed writer may have left it. Asking the kernel to remove the folder costs the same however full it is;
        // listing it does not.
        drop(fs::remove_file(directory.join(TEMPORARY)));
        fs::remove_dir(&directory).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |()| true)
    }

    /// Reads one record; `None` when there is none.
    pub fn read(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        read_file(&self.path(key))
    }

    /// Removes a record. One that is already gone is fine.
    pub fn remove(&self, key: &Key) -> Result<(), Error> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Every readable record of a network, and what was wrong with the others.
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
    fn a_written_record_is_read_back_and_listed_until_removed() {
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
    fn a_broken_record_is_reported_by_name_and_hides_no_other() {
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
