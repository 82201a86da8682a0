//! The limit on open files. Every connection takes two file descriptors.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The current `RLIMIT_NOFILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The soft limit.
    pub soft: u64,
    /// The hard limit, up to which it can be raised.
    pub hard: u64,
}

/// Raises the soft limit to the hard one. Returns the resulting limits.
pub fn raise() -> Limits {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Limits { soft: hard, hard },
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit on open files");
            Limits { soft, hard }
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} open files", self.soft)
    }
}
