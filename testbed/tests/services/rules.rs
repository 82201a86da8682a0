//! What the proxy keeps in the kernel while other programs, and other proxies, change it.

use super::*;

/// Waits until the proxy has looked after its part of the kernel once more: what was deleted is back.
pub(crate) fn wait_for_check(cluster: &Cluster) {
    cluster.node.shell("nft delete table inet portolan-virtual").unwrap();
    wait_for("the next check", || cluster.node.shell("nft list table inet portolan-virtual")).unwrap();
}
