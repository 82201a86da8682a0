//! The pods that the CNI plugin has attached to this node, from its attachment records.

use std::net::IpAddr;
use std::path::Path;

use attachment::{Attachment, Store};

/// Returns all readable records of all networks.
pub(crate) fn all(directory: &Path) -> Vec<Attachment> {
    let store = Store::new(directory);
    let networks = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = networks.filter_map(|entry| entry.file_name().into_string().ok());
    names.flat_map(|network| store.list(&network).0).collect()
}

/// Returns `namespace/name` of the pod, or the container ID if the runtime has no pods.
pub(crate) fn name(attachment: &Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => attachment.container_id.clone(),
    }
}

/// Returns the name of the pod that has an address.
pub(crate) fn owner(records: &[Attachment], address: IpAddr) -> Option<String> {
    records.iter().find(|record| record.ips.contains(&address)).map(name)
}
