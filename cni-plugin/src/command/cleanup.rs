//! `portolan-cni cleanup`: restores the state of the node before its first pod, once no runtime calls the
//! plugin any more.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use attachment::Store;

use crate::alias::Alias;
use crate::command::del::Node;
use crate::error::{Code, Error, Result, io, kernel};
use crate::lock::Lock;
use crate::{bridged, ipam, table};

/// What the plugin stores in the state directory. Other files there belong to the daemons.
const DIRECTORIES: [&str; 5] = ["attachments", "delegated", "ipam", "networks", "ports"];

/// Removes what remains after the last pod was deleted. Refuses while a pod is attached: its runtime has to
/// delete it first.
pub(crate) fn cleanup(state_dir: &Path) -> Result<()> {
    let mut node = Node::open()?;
    // Without a state directory there is no lock, and no process holds it.
    let is_there = state_dir.try_exists().map_err(io("look for", state_dir))?;
    let lock = is_there.then(|| Lock::acquire(state_dir)).transpose()?;
    let attached = attached(&mut node, state_dir)?;
    if !attached.is_empty() {
        let message = format!(
            "attached are still: {}; have their runtime remove them, then clean up",
            attached.join(", ")
        );
        return Err(Error::new(Code::Conflict, message));
    }
    table::remove_all(&mut node.netlink, &node.netfilter)?;
    bridged::collect(&mut node.netlink, None)?;
    for name in DIRECTORIES {
        let directory = state_dir.join(name);
        match fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", &directory)(e)),
            _ => {}
        }
    }
    if lock.is_some() {
        let _ = fs::remove_file(state_dir.join("lock"));
        // A daemon may still have files there.
        let _ = fs::remove_dir(state_dir);
    }
    drop(lock);
    node.close();
    Ok(())
}

/// Lists what has a record, an interface or a reservation, for the user.
fn attached(node: &mut Node, state_dir: &Path) -> Result<Vec<String>> {
    let named = |network: &str, container: &str| format!("{container} (network {network})");
    let links = node.netlink.links().map_err(kernel("list interfaces"))?;
    let aliases = links.iter().filter_map(Alias::of);
    let mut attached: Vec<String> =
        aliases.map(|alias| named(&alias.network, &alias.owner.container_id)).collect();
    let store = Store::new(state_dir.join("attachments"));
    for network in fs::read_dir(store.directory()).into_iter().flatten().flatten() {
        let network = network.file_name().to_string_lossy().into_owned();
        attached.extend(store.list(&network).0.iter().map(|record| named(&network, &record.container_id)));
    }
    // A container with only an address, assigned by another plugin or imported, is found here only.
    for kind in ["ipam", "delegated"] {
        for network in fs::read_dir(state_dir.join(kind)).into_iter().flatten().flatten() {
            let (owners, _) = ipam::Store::new(network.path(), 0).owners();
            let network = network.file_name().to_string_lossy().into_owned();
            attached.extend(owners.iter().map(|owner| named(&network, &owner.container_id)));
        }
    }
    attached.sort();
    attached.dedup();
    Ok(attached)
}
