//! A file lock, which the kernel releases when the process ends.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Code, Error, Result, io};
use crate::trace::{Span, span};

/// Below the minute after which runtimes give up on a plugin.
const DEADLINE: Duration = Duration::from_secs(20);

/// Holds an exclusive `flock` until dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "holding the open file is the point")] File);

impl Lock {
    /// Takes the lock of `directory`, and creates both if necessary. Fails with code 11 after the deadline.
    pub(crate) fn acquire(directory: &Path) -> Result<Self> {
        span(Span::Lock, || Self::wait(directory))
    }

    fn wait(directory: &Path) -> Result<Self> {
        let path = directory.join("lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = match open() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(directory).map_err(io("create", directory))?;
                open()
            }
            other => other,
        };
        let file = file.map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
        }
        // The kernel wakes waiters one by one, in order. A separate thread makes the deadline possible.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(file.lock().map(|()| file));
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(locked) => locked.map(Self).map_err(io("lock", &path)),
            Err(_) => {
                let message =
                    format!("{} has been locked by another process for {DEADLINE:?}", path.display());
                Err(Error::new(Code::TryAgainLater, message))
            }
        }
    }
}
