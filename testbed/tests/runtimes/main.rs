//! portolan-cni with real container runtimes: podman, containerd through its CRI, and libcni itself.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod chains;
mod chart;
mod containerd;
mod kubelet;
mod libcni;
mod load;
mod podman;

use std::path::Path;

use testbed::{Binaries, Node};

/// Asserts that no attachment is left: interfaces, elements of the plugin's nft tables, routes, records,
/// reservations. The table itself is removed by `portolan-cni cleanup`.
fn assert_nothing_left(node: &Node) {
    let plugin = Binaries::find().unwrap().path("portolan-cni");
    let left = node
        .shell(&format!(
            "ip -o link | grep -E 'ptl|ptb|veth|bwp' || true; for table in 'inet portolan' 'bridge \
             portolan'; do nft list table $table 2>/dev/null | grep -A3 elements || true; done; (ip route; \
             ip -6 route) | grep -E '10.22|10.40|fd00:22' || true; tc qdisc show | grep -E 'tbf|ingress' || \
             true; find /run/portolan/attachments /run/portolan/ipam -type f -name '*-eth*' || true; \
             (iptables-save; ip6tables-save) 2>/dev/null | grep -E 'CNI-(DN|SN)|10.22|10.40|fd00:22' || \
             true; {} cleanup; nft list tables | grep 'inet portolan$' || true",
            plugin.display()
        ))
        .unwrap();
    assert_eq!(left, "");
}

/// Creates a directory with portolan-cni and the reference plugins.
fn link_plugins(node: &Node, directory: &Path) {
    let plugin = Binaries::find().unwrap().path("portolan-cni");
    let (plugin, directory) = (plugin.display(), directory.display());
    let reference = "portmap bandwidth tuning firewall";
    // portolan-cni also replaces `loopback`, which containerd calls for every sandbox.
    node.shell(&format!(
        "mkdir -p {directory}; for name in portolan-cni loopback; do ln -s {plugin} {directory}/$name; \
         done; for name in {reference}; do ln -s /usr/lib/cni/$name {directory}/; done"
    ))
    .unwrap();
}

/// Creates a root file system with busybox in `directory/root`.
fn make_root(node: &Node, directory: &Path) {
    let directory = directory.display();
    node.shell(&format!(
        "mkdir -p {directory}/root/bin; cp /bin/busybox {directory}/root/bin/; \
         for applet in sh nc sleep cat nslookup ip wget; do ln -s busybox {directory}/root/bin/$applet; done"
    ))
    .unwrap();
}
