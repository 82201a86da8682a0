//! Network namespaces: open, create, enter. The only crate that calls `setns` and `unshare`.
//!
//! A thread that has entered another namespace and returns early, by `?` or by a panic, runs its next work in
//! the wrong namespace. So no thread of the caller enters a namespace: [`NetNs::run`] starts a thread for the
//! work.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace files.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The namespace of the current thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An error about a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not exist.
    #[error("network namespace {0} does not exist")]
    NotFound(PathBuf),
    /// The file is not a network namespace.
    #[error("{0} is not a network namespace")]
    NotANamespace(PathBuf),
    /// An error of the kernel.
    #[error("{operation} {path}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The path of the namespace.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An open network namespace. The namespace lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`, such as `/run/netns/web` or `/proc/1/ns/net`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotANamespace`] for any other file, or an error of the kernel.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound(path.to_owned()),
            _ => system("open", path)(source),
        })?;
        let statfs = fstatfs(&file).map_err(|e| system("examine", path)(e.into()))?;
        if statfs.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace(path.to_owned()));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(CURRENT)
    }

    /// Creates a namespace that stays at `path` until [`NetNs::remove_named`].
    ///
    /// # Errors
    /// If the path exists, or an error of the kernel. Nothing is left behind.
    pub fn create_named(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        File::create_new(path).map_err(system("create", path))?;
        let create = || -> Result<(), Errno> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(CURRENT), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        let created = on_own_thread(create).map_err(|e| system("create", path)(e.into()));
        created.and_then(|()| Self::open(path)).inspect_err(|_| {
            let _ = Self::remove_named(path);
        })
    }

    /// Creates a namespace without a path, which lives as long as the handle.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn create_unnamed() -> Result<Self, Error> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| system("create", Path::new(CURRENT))(e.into()))?;
            Self::current()
        })
    }

    /// Unmounts and removes the path. The namespace itself is deleted with its last process or handle. A
    /// missing path is fine.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn remove_named(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: a plain file that an interrupted creation left.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(system("unmount", path)(e.into())),
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(system("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// Runs `work` inside the namespace, on a new thread, and waits for it. A process that it starts is in
    /// the namespace. A panic in `work` continues in the caller.
    ///
    /// # Errors
    /// If the namespace cannot be entered: it is of another kind, or privileges are missing.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_own_thread(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "the only place, on a thread that ends afterwards"
            )]
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| match e {
                Errno::EINVAL => Error::NotANamespace(self.path.clone()),
                e => system("enter", &self.path)(e.into()),
            })?;
            Ok(work())
        })
    }

    /// Whether both handles are the same namespace.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn is_same_as(&self, other: &Self) -> Result<bool, Error> {
        let identity = |ns: &Self| {
            let metadata = ns.file.metadata().map_err(system("examine", &ns.path))?;
            Ok::<_, Error>((metadata.dev(), metadata.ino()))
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn system(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::System { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_count() -> usize {
        std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count() - 2
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside_even_after_a_panic() {
        let before = NetNs::current().unwrap();
        let ns = NetNs::create_unnamed().unwrap();
        assert!(!ns.is_same_as(&before).unwrap());
        let inside = ns.run(|| (NetNs::current().unwrap(), link_count())).unwrap();
        assert!(ns.is_same_as(&inside.0).unwrap());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ns.run(|| panic!("inside"))));
        assert!(panicked.is_err());
        assert!(before.is_same_as(&NetNs::current().unwrap()).unwrap());
    }

    #[test]
    fn files_other_than_network_namespaces_are_refused() {
        assert!(matches!(NetNs::open("/nowhere/at/all"), Err(Error::NotFound(_))));
        assert!(matches!(NetNs::open("/proc/self/status"), Err(Error::NotANamespace(_))));
        assert!(matches!(NetNs::open("/tmp"), Err(Error::NotANamespace(_))));
        let mount_namespace = NetNs::open("/proc/self/ns/mnt").unwrap();
        assert!(matches!(mount_namespace.run(|| ()), Err(Error::NotANamespace(_))));
    }

    #[test]
    fn named_namespace_is_created_once_and_removed_completely() {
        // Runs in a mount namespace of its own, so that the mount is not visible elsewhere.
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("pod");
            let ns = NetNs::create_named(&path).unwrap();
            assert!(ns.is_same_as(&NetNs::open(&path).unwrap()).unwrap());
            assert!(NetNs::create_named(&path).is_err());
            NetNs::open(&path).unwrap();
            NetNs::remove_named(&path).unwrap();
            NetNs::remove_named(&path).unwrap();
            assert!(matches!(NetNs::open(&path), Err(Error::NotFound(_))));
        });
    }
}
