//! What a run needs of the machine before it starts.

use anyhow::{Context as _, Result};
use netns::NetNs;

/// Whether network namespaces can be made.
///
/// # Errors
/// When they cannot: with the way out.
pub fn check() -> Result<()> {
    NetNs::create_unnamed().map(drop).context(
        "portolan-bench makes network namespaces, which needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root (sudo)",
    )
}
