//! A lock that dies with its process.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result, io};
use crate::trace::{Span, span};

/// Well below the minute after which runtimes give up on a plugin.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often a held lock is tried. Holders keep it for well under a millisecond.
const INTERVAL: Duration = Duration::from_millis(1);

/// Holds an exclusive `flock` until dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "holding the open file is the point")] File);

impl Lock {
    /// Takes the lock of `directory`, creating both if need be. Gives up with code 11 after the deadline.
    pub(crate) fn acquire(directory: &Path) -> Result<Self> {
        span(Span::Lock, || Self::wait(directory))
    }

    fn wait(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(io("create", directory))?;
        let path = directory.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io("open", &path))?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(INTERVAL),
                Err(TryLockError::WouldBlock) => {
                    let message =
                        format!("{} has been locked by another process for {DEADLINE:?}", path.display());
                    return Err(Error::new(Code::TryAgainLater, message));
                }
                Err(TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
            }
        }
    }
}
