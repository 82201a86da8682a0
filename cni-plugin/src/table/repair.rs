//! What somebody else has removed is put back: the tables after a flush, the records after the state directory was emptied.

use attachment::Attachment;
use nftables::Netfilter;

use super::network;
use super::{frames, rules};
use crate::alias::Alias;
use crate::error::Result;
use crate::netconf::Header;
use crate::netlink::Link;
use crate::veth::HOST_PREFIX;

/// Writes the tables anew, for whom is recorded, if they are gone.
pub(super) fn tables(netfilter: &Netfilter, header: &Header) -> Result<()> {
    if rules::are_there(netfilter)? {
        return Ok(());
    }
    let networks = network::all(&header.state_dir)?;
    if networks.is_empty() {
        return Ok(());
    }
    frames::write(netfilter, &header.attachments(), &networks)?;
    rules::write(netfilter, header, &networks)
}

/// Records the network's pods that are not, as far as their interfaces tell of them: not by which name, labels and ports
/// Services know them.
pub(super) fn records(header: &Header, links: &[Link]) -> Result<()> {
    let store = header.attachments();
    for link in links.iter().filter(|link| link.name.starts_with(HOST_PREFIX)) {
        let Some(alias) = Alias::of(link).filter(|alias| alias.network == header.name) else { continue };
        let key = alias.owner.key(&header.name);
        // One that is not legible is none.
        if store.read(&key).is_ok_and(|record| record.is_some()) {
            continue;
        }
        let bridge = links.iter().find(|other| link.master == Some(other.index));
        store.write(&Attachment {
            network: key.network,
            container_id: key.container_id,
            ifname: key.ifname,
            netns: String::new(),
            ips: alias.addresses,
            mac: alias.mac,
            host_interface: link.name.clone(),
            bridge: bridge.map(|bridge| bridge.name.clone()),
            pod: None,
            labels: std::collections::BTreeMap::new(),
            port_mappings: Vec::new(),
            reserved_ports: None,
        })?;
    }
    Ok(())
}
