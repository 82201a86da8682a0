//! DEL: take back all that ADD gave, whatever is left of it.

use attachment::Key;
use serde_json::Value;

use crate::alias::Alias;
use crate::args::Args;
use crate::error::{Error, Result, kernel};
use crate::ipam::{self, Owner};
use crate::netconf::Header;
use crate::netlink::Netlink;
use crate::trace::{Span, span};
use crate::{table, veth};

/// Detaches the container. Things that are gone already are fine; everything is tried before an error is reported.
pub(crate) fn del(args: &Args, header: &Header, raw: &Value) -> Result<()> {
    let owner = Owner { container_id: args.container_id.clone(), ifname: args.ifname.clone() };
    let mut errors = detach(header, &owner);
    if let Some(kind) = &header.delegate {
        errors.extend(ipam::delegate(kind, "DEL", args, raw).err());
    }
    Error::combined(errors).map_or(Ok(()), Err)
}

/// Removes what one attachment has on this node: its interface (and with it the routes and the pod's end), its
/// place in the node's rules, its record, and last its addresses, so that nobody gets them while they are in use.
pub(super) fn detach(header: &Header, owner: &Owner) -> Vec<Error> {
    let mut errors = Vec::new();
    let host_name = veth::host_interface(&header.name, &owner.container_id, &owner.ifname);
    // Its note has the addresses where the state directory is gone.
    let mut noted = Vec::new();
    let deleted = Netlink::open().and_then(|mut host| {
        noted = host
            .link(&host_name)?
            .as_ref()
            .and_then(Alias::of)
            .map(|alias| alias.addresses)
            .unwrap_or_default();
        host.delete_link(&host_name)?;
        host.delete_link(&veth::detour_interface(&header.name, &owner.container_id, &owner.ifname))
    });
    errors.extend(deleted.err().map(kernel(format!("delete interface {host_name}"))));
    let key = Key {
        network: header.name.clone(),
        container_id: owner.container_id.clone(),
        ifname: owner.ifname.clone(),
    };
    let store = header.reservations();
    // An illegible reservation does not keep the rest from being taken back.
    let mut addresses = store.addresses(owner).unwrap_or_default();
    if addresses.is_empty() {
        addresses = noted;
    }
    errors.extend(table::leave(header, &key, &addresses));
    errors.extend(span(Span::Store, || store.release(owner)).err());
    errors
}
