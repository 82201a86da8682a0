//! The note on the node's end of a veth (`ip link` shows it as its alias): whose it is. Without the state
//! directory it is all that is left to know the pods by.

use std::net::IpAddr;

use crate::ipam::Owner;
use crate::netlink::Link;

/// The kernel takes so many bytes. A longer note would be no use cut short: it is left out.
const MAX_LENGTH: usize = 255;

/// What a note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) network: String,
    pub(crate) owner: Owner,
    pub(crate) addresses: Vec<IpAddr>,
    /// Hardware address of the pod's end.
    pub(crate) mac: String,
}

impl Alias {
    /// `portolan/<network>/<containerID>/<ifname>/<address>,<address>/<mac>`; none of them may have a slash.
    pub(crate) fn format(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let Owner { container_id, ifname } = &self.owner;
        let (network, mac) = (&self.network, &self.mac);
        let text = format!("portolan/{network}/{container_id}/{ifname}/{}/{mac}", addresses.join(","));
        if text.len() > MAX_LENGTH { String::new() } else { text }
    }

    /// Reads the note on an interface, if it has one of ours.
    pub(crate) fn of(link: &Link) -> Option<Self> {
        let mut parts = link.alias.split('/');
        let (tag, network, id, ifname) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let addresses = parts.next()?.split(',').filter_map(|address| address.parse().ok()).collect();
        let mac = parts.next().unwrap_or_default().to_owned();
        let owner = Owner { container_id: id.to_owned(), ifname: ifname.to_owned() };
        (tag == "portolan").then(|| Self { network: network.to_owned(), owner, addresses, mac })
    }
}
