//! The alias of the node's end of a veth (`ip link` shows it): which attachment the interface belongs to.
//! When the state directory is missing, the plugin recovers the pods from these aliases.

use std::net::IpAddr;

use crate::ipam::Owner;
use crate::netlink::Link;

/// Longest alias that the kernel accepts, in bytes. A longer one is not set at all: a truncated alias is
/// useless.
const MAX_LENGTH: usize = 255;

/// The parsed alias of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) network: String,
    pub(crate) owner: Owner,
    pub(crate) addresses: Vec<IpAddr>,
    /// MAC address of the pod's end.
    pub(crate) mac: String,
}

impl Alias {
    /// `portolan/<network>/<containerID>/<ifname>/<address>,<address>/<mac>`. No part may contain a slash.
    pub(crate) fn format(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let Owner { container_id, ifname } = &self.owner;
        let (network, mac) = (&self.network, &self.mac);
        let text = format!("portolan/{network}/{container_id}/{ifname}/{}/{mac}", addresses.join(","));
        if text.len() > MAX_LENGTH { String::new() } else { text }
    }

    /// Parses the alias of an interface. `None` if it is not one of the plugin's.
    pub(crate) fn of(link: &Link) -> Option<Self> {
        let mut parts = link.alias.split('/');
        let (tag, network, id, ifname) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let addresses = parts.next()?.split(',').filter_map(|address| address.parse().ok()).collect();
        let mac = parts.next().unwrap_or_default().to_owned();
        let owner = Owner { container_id: id.to_owned(), ifname: ifname.to_owned() };
        (tag == "portolan").then(|| Self { network: network.to_owned(), owner, addresses, mac })
    }
}
