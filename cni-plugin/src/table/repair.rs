//! Repairs what another program removed: the tables after a flush, the records after the state directory was
//! emptied.

use attachment::Attachment;
use nftables::Netfilter;

use super::network::{self, Network};
use super::{frames, rules};
use crate::alias::Alias;
use crate::error::Result;
use crate::netconf::Header;
use crate::netlink::{Link, Netlink};
use crate::veth::HOST_PREFIX;

/// Rewrites the tables from the records if they were removed, or if another version of the plugin wrote them:
/// that version may store host ports in other elements than this one removes.
pub(super) fn tables(netfilter: &Netfilter, header: &Header) -> Result<()> {
    let former = Network::read(header)?.filter(|network| !network.is_current());
    if former.is_none() && rules::exist(netfilter)? {
        return Ok(());
    }
    let networks = network::all(&header.state_dir)?;
    if networks.is_empty() {
        return Ok(());
    }
    frames::write(netfilter, &header.attachments(), &networks)?;
    rules::write(netfilter, header, &networks)?;
    former.map_or(Ok(()), |network| network.into_current().write(header))
}

/// Restores missing records of the network's pods from their interfaces. The names, labels and ports by which
/// Services select pods are lost.
///
/// A concurrent DEL may delete an interface of `links`. It then removes the record that it finds; a record
/// that is written later is removed here.
pub(super) fn records(header: &Header, links: &[Link], netlink: &mut Netlink) -> Result<()> {
    let store = header.attachments();
    for link in links.iter().filter(|link| link.name.starts_with(HOST_PREFIX)) {
        let Some(alias) = Alias::of(link).filter(|alias| alias.network == header.name) else { continue };
        let key = alias.owner.key(&header.name);
        // An unreadable record counts as missing.
        if store.read(&key).is_ok_and(|record| record.is_some()) {
            continue;
        }
        let bridge = links.iter().find(|other| link.master == Some(other.index));
        store.write(&Attachment {
            network: key.network.clone(),
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
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
        if super::has_no_interface(netlink, &key)? {
            store.remove(&key)?;
        }
    }
    Ok(())
}
