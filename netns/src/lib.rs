//! Network namespaces: open, create, enter. The only crate that calls `setns` and `unshare`.
//!
//! A thread that has entered another namespace and returns early, by `?` or by a panic, poisons whatever runs
//! on it next. So no thread of the caller enters: [`NetNs::run`] does the work on a thread that exists for
//! that alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC` of linux/magic.h: the file system that namespace files are on.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The namespace of the thread that looks.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// What went wrong, with which namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there.
    #[error("network namespace {0} does not exist")]
    NotFound(PathBuf),
    /// Something else is there.
    #[error("{0} is not a network namespace")]
    NotANamespace(PathBuf),
    /// The kernel refused.
    #[error("{operation} {path}: {source}")]
    System {
        /// What we tried.
        operation: &'static str,
        /// With which namespace.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`, such as `/run/netns/web` or `/proc/1/ns/net`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotANamespace`] for any other file, or what the kernel says.
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
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(CURRENT)
    }

    /// Creates a namespace that stays at `path` until [`NetNs::remove_named`].
    ///
    /// # Errors
    /// When the path exists, or what the kernel says. Nothing is left behind then.
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

    /// Creates a namespace without a name, which lives as long as the handle.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create_unnamed() -> Result<Self, Error> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| system("create", Path::new(CURRENT))(e.into()))?;
            Self::current()
        })
    }

    /// Removes the name; the namespace itself is deleted with its last process or handle. One that is missing is
    /// fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_named(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: a plain file, left when creation was cut short.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(system("unmount", path)(e.into())),
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(system("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. A process that it starts
    /// is born inside. A panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered: it is of another kind, or privileges are missing.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_own_thread(|| {
            #[expect(clippy::disallowed_methods, reason = "this is the one place, on a thread of its own")]
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| match e {
                Errno::EINVAL => Error::NotANamespace(self.path.clone()),
                e => system("enter", &self.path)(e.into()),
            })?;
            Ok(work())
        })
    }

    /// Whether both handles mean one namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_same_as(&self, other: &Self) -> Result<bool, Error> {
        let identity = |ns: &Self| {
            let metadata = ns.file.metadata().map_err(system("examine", &ns.path))?;
            Ok::<_, Error>((metadata.dev(), metadata.ino()))
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// The path it was opened by.
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
    fn what_is_not_a_network_namespace_is_told_apart() {
        assert!(matches!(NetNs::open("/nowhere/at/all"), Err(Error::NotFound(_))));
        assert!(matches!(NetNs::open("/proc/self/status"), Err(Error::NotANamespace(_))));
        assert!(matches!(NetNs::open("/tmp"), Err(Error::NotANamespace(_))));
        let mount_namespace = NetNs::open("/proc/self/ns/mnt").unwrap();
        assert!(matches!(mount_namespace.run(|| ()), Err(Error::NotANamespace(_))));
    }

    #[test]
    fn a_named_namespace_is_created_once_and_removed_for_good() {
        // The mount must not show anywhere else, so it is made in a mount namespace of this test's own.
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
