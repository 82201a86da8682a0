//! The plugin it is called as: a link to the binary by the name of a reference plugin stands in for that one.

use std::ffi::OsStr;
use std::path::Path;

/// By the name of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// By any other name: `mode` says what it is.
    #[default]
    Portolan,
    /// `bridge`: mode `bridge` unless another one is written.
    Bridge,
    /// `ptp`: mode `routed`, not masqueraded unless that is written.
    Ptp,
    /// `host-local`: addresses alone, for another plugin.
    HostLocal,
    /// `loopback`: the pod's `lo`.
    Loopback,
}

impl Role {
    /// From the path of the program, as it was called.
    pub(crate) fn of(program: &OsStr) -> Self {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some("bridge") => Self::Bridge,
            Some("ptp") => Self::Ptp,
            Some("host-local") => Self::HostLocal,
            Some("loopback") => Self::Loopback,
            _ => Self::Portolan,
        }
    }
}
