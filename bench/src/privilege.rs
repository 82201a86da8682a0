//! The privileges that a run needs.

use anyhow::{Context as _, Result};
use netns::NetNs;

/// Checks that network namespaces can be created.
///
/// # Errors
/// When they cannot; the error says what to do.
pub fn check() -> Result<()> {
    NetNs::create_unnamed().map(|_netns| ()).context(
        "portolan-bench creates network namespaces, which needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run it \
         as root (sudo)",
    )
}
