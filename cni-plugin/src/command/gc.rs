//! GC: remove the resources of containers that no longer exist.

use std::collections::HashSet;

use serde_json::Value;

use crate::alias::Alias;
use crate::command::del::Node;
use crate::error::{Code, Error, Result, io, kernel};
use crate::ipam::{self, Owner, Store};
use crate::netconf::invalid;
use crate::request::Request;
use crate::{bridged, table};

/// Keys of the list of attachments to keep: the one of the specification, and the one of earlier libcni
/// versions.
const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// Removes every attachment of this network that is not listed. Never touches other networks.
pub(super) fn gc(request: &Request) -> Result<()> {
    let Request { args, header, config, .. } = request;
    let valid = valid_attachments(&config.value)?;
    let store = header.reservations();
    let mut errors = Vec::new();
    let mut known = Vec::new();
    let former = header.former_reservations(&table::noted_reservations(header));
    for store in [&store].into_iter().chain(&former) {
        errors.extend(repaired(store));
        known.extend(store.owners().0);
    }
    let bridges = table::noted_bridges(header);
    let mut node = Node::open()?;
    match node.netlink.links() {
        Ok(links) => {
            errors.extend(table::restore(header, &links, &mut node.netlink).err());
            let ours = links.iter().filter_map(Alias::of).filter(|alias| alias.network == header.name);
            known.extend(ours.map(|alias| alias.owner));
        }
        Err(e) => errors.push(kernel("list interfaces")(e)),
    }
    let (records, unreadable) = header.attachments().list(&header.name);
    for error in unreadable {
        // The records of living pods were restored above. This record has no pod.
        if let attachment::Error::Parse { path, .. } = &error {
            errors.extend(std::fs::remove_file(path).err().map(io("remove", path)));
        }
        errors.push(error.into());
    }
    known.extend(records.into_iter().map(|r| Owner { container_id: r.container_id, ifname: r.ifname }));
    let known: HashSet<Owner> = known.into_iter().collect();
    for owner in known.difference(&valid) {
        errors.extend(node.detach(request, owner, None));
    }
    let conf = request.conf().ok();
    let ranges = conf.as_ref().map(|conf| &*conf.ranges).unwrap_or_default();
    errors.extend(table::forget(header, ranges, &mut node.netlink, &node.netfilter).err());
    if let Some(kind) = &header.delegate {
        errors.extend(ipam::delegate(kind, "GC", args, &config.text).err());
    }
    let mut bridges = bridges;
    if let Some(conf) = &conf {
        errors.extend(store.recount(&conf.ranges).err());
        bridges.extend(conf.bridge.as_ref().map(|bridge| bridge.name.clone()));
    }
    for bridge in bridges {
        errors.extend(bridged::collect(&mut node.netlink, Some(&bridge)).err());
    }
    node.close();
    Error::combined(errors).map_or(Ok(()), Err)
}

/// Repairs the reservations and reports the unreadable files.
pub(crate) fn repaired(store: &Store) -> Vec<Error> {
    match store.repair() {
        Ok(removed) => {
            let removed = removed.iter().map(|path| path.display());
            let removal = |path| Error::new(Code::Io, format!("{path} was not a reservation and is removed"));
            removed.map(removal).collect()
        }
        Err(error) => vec![error],
    }
}

/// An empty list or null means that no attachment is valid. A missing list is refused: if it counted as
/// empty, GC would disconnect every container of the network.
pub(crate) fn valid_attachments(config: &Value) -> Result<HashSet<Owner>> {
    let Some((key, list)) = KEYS.iter().find_map(|key| Some((*key, config.get(*key)?))) else {
        return Err(invalid(format!("{} is missing: GC has to know what to keep", KEYS[0])));
    };
    let list = if list.is_null() { Value::Array(Vec::new()) } else { list.clone() };
    let owners: Vec<Owner> = serde_json::from_value(list).map_err(|e| invalid(format!("{key}: {e}")))?;
    Ok(owners.into_iter().collect())
}
