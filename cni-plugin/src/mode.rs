//! The modes `routed` and `bridge`: what they do differently.

use crate::error::Result;
use crate::ipam::Assignment;
use crate::netconf::NetConf;
use crate::netlink::{Netlink, Veth};
use crate::pod::Pod;
use crate::result::Attached;
use crate::routed::Routed;

/// One way to connect pods.
pub(crate) trait Mode {
    /// Creates the veth and configures both ends. Returns what the result contains beside the two ends.
    fn attach<'a>(
        &'a self,
        host: &mut Netlink,
        pod: &mut Pod,
        veth: &Veth<'_>,
        conf: &NetConf,
        assignment: Assignment,
    ) -> Result<Attached<'a>>;

    /// Checks the attachment against the result of ADD. Additions of other plugins are fine.
    fn check(
        &self,
        host: &mut Netlink,
        pod: &mut Netlink,
        ends: [&str; 2],
        conf: &NetConf,
        given: &Assignment,
    ) -> Result<()>;

    /// The interface on which packets of the pod behind `host_interface` arrive at the node.
    fn uplink<'a>(&'a self, host_interface: &'a str) -> &'a str;

    /// Whether the node forwards the pods' packets.
    fn forwards(&self, masquerade: bool) -> bool;
}

impl NetConf {
    /// The mode of the network.
    pub(crate) fn mode(&self) -> &dyn Mode {
        self.bridge.as_ref().map_or(&Routed, |bridge| bridge)
    }
}
