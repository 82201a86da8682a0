//! Every connection costs two file descriptors, so the limit on open files is the limit on connections.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// `RLIMIT_NOFILE` as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What the process may open.
    pub soft: u64,
    /// What it could raise that to.
    pub hard: u64,
}

/// Raises the soft limit to the hard one and reports what holds now.
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
