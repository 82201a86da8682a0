//! DEL: remove everything that ADD created, even if only a part of it is left.

use std::net::IpAddr;

use nftables::Netfilter;
use serde_json::Value;

use crate::alias::Alias;
use crate::error::{Error, Result, kernel};
use crate::ipam::{self, Allocation, Owner, Store};
use crate::netconf::Header;
use crate::netlink::Netlink;
use crate::request::Request;
use crate::trace::{Span, span};
use crate::{table, veth};

/// Detaches the container. What is already removed is fine. Every step is tried before an error is returned.
pub(super) fn del(request: &Request) -> Result<()> {
    let Request { args, header, config, .. } = request;
    if header.has_impossible_name() {
        return Ok(());
    }
    let owner = args.owner();
    let detach = |mut node: Node| {
        let errors = node.detach(request, &owner, Some(&config.value));
        node.close();
        errors
    };
    let mut errors = Node::open().map_or_else(|error| vec![error], detach);
    if let Some(kind) = &header.delegate {
        errors.extend(ipam::delegate(kind, "DEL", args, &config.text).err());
    }
    Error::combined(errors).map_or(Ok(()), Err)
}

/// The sockets that DEL needs, opened once.
pub(super) struct Node {
    pub(super) netlink: Netlink,
    pub(super) netfilter: Netfilter,
}

impl Node {
    pub(super) fn open() -> Result<Self> {
        let netlink = Netlink::open().map_err(kernel("open a netlink socket"))?;
        Ok(Self { netlink, netfilter: table::open()? })
    }

    pub(super) fn close(self) {
        table::close(self.netfilter);
    }

    /// Removes one attachment from this node: its routes, its entries in the nft table, its record, its
    /// interface, and last its addresses, so that no other pod is assigned them while they are in use.
    ///
    /// The interface is deleted after the rules, because the kernel waits some 20 ms when it deletes an
    /// interface and frees the removed rules meanwhile. A routed pod has lost its routes by then: no packet
    /// reaches it, and reverse-path filtering drops what it sends, so no packet leaves without masquerading.
    /// A bridged pod has no routes of its own: its port is set down.
    ///
    /// If the configuration has changed since ADD, the reservations may be in another place than it says.
    /// Another IPAM plugin gets its DEL with the configuration of the ADD, unless `current`, the
    /// configuration of this DEL, is the same for it.
    pub(super) fn detach(&mut self, request: &Request, owner: &Owner, current: Option<&Value>) -> Vec<Error> {
        let Request { args, header, .. } = request;
        let mut errors = Vec::new();
        let host_name = veth::host_interface(&header.name, &owner.container_id, &owner.ifname);
        let found = self.netlink.link(&host_name);
        let link = found.unwrap_or_else(|e| {
            errors.push(kernel(format!("look for interface {host_name}"))(e));
            None
        });
        // If the state directory is missing, the interface's alias has the addresses.
        let noted = link.as_ref().and_then(Alias::of).map(|alias| alias.addresses).unwrap_or_default();
        if let Some(link) = &link {
            errors.extend(veth::cut_off(&mut self.netlink, link, &noted).err());
        }
        let key = owner.key(&header.name);
        let stores = stores(header, owner);
        let given: Vec<Allocation> = stores.iter().map(|store| store.allocation(owner)).collect();
        let mut addresses: Vec<IpAddr> = given.iter().flat_map(|given| given.addresses.clone()).collect();
        if addresses.is_empty() {
            addresses = noted;
        }
        let left = table::unregister(header, &key, &addresses, &mut self.netlink, &self.netfilter);
        let has_left = left.is_empty();
        errors.extend(left);
        let ifb = veth::ifb_interface(&header.name, &owner.container_id, &owner.ifname);
        for name in [host_name, ifb] {
            let deleted = self.netlink.delete_link(&name);
            errors.extend(deleted.err().map(kernel(format!("delete interface {name}"))));
        }
        // A command that repairs missing records may have written this one again while the interface still
        // existed.
        if has_left && header.attachments().path(&key).exists() {
            errors.extend(table::unregister(header, &key, &addresses, &mut self.netlink, &self.netfilter));
        }
        for (store, given) in stores.iter().zip(given) {
            let delegated = given.delegated.filter(|delegated| !delegated.is_of(current));
            let refused = delegated.and_then(|delegated| ipam::delegate_del(&delegated, owner, args).err());
            if let Some(error) = refused {
                errors.push(error);
                // Keep the record of the delegate for the next DEL or GC.
                continue;
            }
            errors.extend(span(Span::Store, || store.release(owner)).err());
        }
        errors
    }
}

/// The stores in which the owner may have reservations: the configured one and those of earlier
/// configurations.
fn stores(header: &Header, owner: &Owner) -> Vec<Store> {
    let current = header.reservations();
    let is_there = current.has_owner(owner);
    let noted = if is_there { Vec::new() } else { table::noted_reservations(header) };
    let former = header.former_reservations(&noted).into_iter().filter(|store| store.has_owner(owner));
    [current].into_iter().chain(former).collect()
}
