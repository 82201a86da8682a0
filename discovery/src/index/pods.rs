//! Pods with their addresses: manifests joined with attachment records, and records without a manifest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use attachment::{Attachment, PortRange};

use super::claims::Claims;
use crate::derive;
use crate::event::Origin;
use crate::model::{NamespacedName, Pod};

/// The join, updated per pod.
#[derive(Debug, Default)]
pub(super) struct Pods {
    attachments: BTreeMap<NamespacedName, BTreeMap<Arc<Origin>, Arc<Attachment>>>,
    addressed: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Pods whose manifest or attachments may have changed.
    touched: BTreeSet<NamespacedName>,
    /// Whether a pod has changed since the last query.
    changed: bool,
}

impl Pods {
    pub(super) fn touch(&mut self, name: NamespacedName) {
        self.touched.insert(name);
    }

    pub(super) fn attach(&mut self, origin: Arc<Origin>, attachment: &Arc<Attachment>) {
        let name = derive::pod_name(attachment);
        self.attachments.entry(name.clone()).or_default().insert(origin, Arc::clone(attachment));
        self.touched.insert(name);
    }

    pub(super) fn detach(&mut self, origin: &Origin, name: NamespacedName) {
        if let Some(attached) = self.attachments.get_mut(&name) {
            attached.remove(origin);
            if attached.is_empty() {
                self.attachments.remove(&name);
            }
        }
        self.touched.insert(name);
    }

    /// Joins the changed pods. Returns the earlier and the current state of each.
    pub(super) fn join(&mut self, manifests: &Claims<NamespacedName, Pod>) -> Vec<Arc<Pod>> {
        let mut changed = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let attached = self.attachments.get(&name).into_iter().flat_map(BTreeMap::values);
            let manifest = manifests.get(&name).map(|claim| &claim.value);
            let now = derive::addressed_pod(&name, manifest, attached).map(Arc::new);
            let before = match &now {
                Some(pod) => self.addressed.insert(name, Arc::clone(pod)),
                None => self.addressed.remove(&name),
            };
            if before != now {
                self.changed = true;
                changed.extend(before.into_iter().chain(now));
            }
        }
        changed
    }

    /// The pods of a namespace.
    pub(super) fn of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        let first = NamespacedName::new(Arc::clone(namespace), "");
        let all = self.addressed.range(first..);
        all.take_while(move |(name, _)| name.namespace == *namespace).map(|(_, pod)| &**pod)
    }

    /// Whether a pod has changed since the last call.
    pub(super) fn have_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The namespaces of the pods at each address, except pods that have finished.
    pub(super) fn namespaces(&self) -> HashMap<IpAddr, Vec<Arc<str>>> {
        let mut found: HashMap<IpAddr, Vec<Arc<str>>> = HashMap::new();
        for (name, pod) in self.addressed.iter().filter(|(_, pod)| !pod.finished) {
            for ip in &pod.ips {
                let namespaces = found.entry(*ip).or_default();
                if !namespaces.contains(&name.namespace) {
                    namespaces.push(Arc::clone(&name.namespace));
                }
            }
        }
        found
    }

    /// Every address that is attached to this node.
    pub(super) fn attached_addresses(&self) -> HashMap<IpAddr, Option<PortRange>> {
        let attachments = self.attachments.values().flat_map(BTreeMap::values);
        attachments.flat_map(|a| a.ips.iter().map(|ip| (*ip, a.reserved_ports))).collect()
    }

    /// The namespace of every such address whose pod is known.
    pub(super) fn attached_namespaces(&self) -> HashMap<IpAddr, Arc<str>> {
        let attachments = self.attachments.values().flat_map(BTreeMap::values);
        let named = attachments.filter_map(|a| Some((&a.ips, Arc::from(a.pod.as_ref()?.namespace.as_str()))));
        named.flat_map(|(ips, namespace)| ips.iter().map(move |ip| (*ip, Arc::clone(&namespace)))).collect()
    }
}
