//! The name that the plugin is called by: a link to the binary with the name of a reference plugin replaces
//! that plugin.

use std::ffi::OsStr;
use std::path::Path;

/// By the name of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Any other name. `mode` applies.
    #[default]
    Portolan,
    /// `bridge`: `mode` defaults to `bridge`.
    Bridge,
    /// `ptp`: mode `routed`, without masquerading by default.
    Ptp,
    /// `host-local`: IPAM only, for another plugin.
    HostLocal,
    /// `loopback`: the pod's `lo`.
    Loopback,
}

impl Role {
    /// Returns the role for the path that the program was called by.
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
