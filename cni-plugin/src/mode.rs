//! How pods are connected: what mode `routed` and mode `bridge` do differently.

use crate::error::Result;
use crate::ipam::Assignment;
use crate::netconf::NetConf;
use crate::netlink::{Netlink, Veth};
use crate::pod::Pod;
use crate::result::Attached;
use crate::routed::Routed;

/// One way to connect pods.
pub(crate) trait Mode {
    /// Creates the veth and configures both ends. Returns what the result says beside the two ends.
    fn attach<'a>(
        &'a self,
        host: &mut Netlink,
        pod: &mut Pod,
        veth: &Veth<'_>,
        conf: &NetConf,
        assignment: Assignment,
    ) -> Result<Attached<'a>>;

    /// Whether an attachment is as [`Mode::attach`] left it, by the result of ADD. Additions of other plugins
    /// are fine.
    fn check(
        &self,
        host: &mut Netlink,
        pod: &mut Netlink,
        ends: [&str; 2],
        conf: &NetConf,
        given: &Assignment,
    ) -> Result<()>;

    /// The interface by which packets of the pod behind `host_interface` arrive on the node.
    fn uplink<'a>(&'a self, host_interface: &'a str) -> &'a str;

    /// Whether the node forwards what pods send.
    fn forwards(&self, masquerade: bool) -> bool;
}

impl NetConf {
    /// How pods of the network are connected.
    pub(crate) fn mode(&self) -> &dyn Mode {
        self.bridge.as_ref().map_or(&Routed, |bridge| bridge)
    }
}
