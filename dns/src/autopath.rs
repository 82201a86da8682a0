//! Search-path completion: a pod that looks for `example.com` first queries
//! `example.com.<namespace>.svc.cluster.local`, and so on through its search list (`ndots:5`), for A and AAAA
//! each. With `--autopath` the first query gets the answer of the last: an alias to the name that exists, and
//! its records.
//!
//! The namespace of a pod comes from the attachment record that `portolan-cni` wrote before the pod had its
//! address, so an address that has passed to another pod never has the old pod's namespace (CoreDNS's
//! autopath has that race). If nothing is found the client gets the regular NXDOMAIN, and continues by
//! itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::message::{Malformed, Name, NameBuf, Query, kind};

/// The namespaces of pods.
#[derive(Debug)]
pub(crate) struct Autopath {
    /// The suffixes after the namespace: `svc.cluster.local`, then `cluster.local`.
    domains: [NameBuf; 2],
    namespaces: ArcSwap<HashMap<IpAddr, Arc<str>>>,
}

impl Autopath {
    /// Creates it for a cluster's domain, without pods.
    pub(crate) fn new(domain: Name<'_>) -> Result<Self, Malformed> {
        let mut services = NameBuf::default();
        services.push_label(b"svc")?;
        services.push_name(domain)?;
        Ok(Self { domains: [services, domain.to_buf()], namespaces: ArcSwap::default() })
    }

    /// Sets the current pods.
    pub(crate) fn update(&self, namespaces: &Arc<HashMap<IpAddr, Arc<str>>>) {
        self.namespaces.store(Arc::clone(namespaces));
    }

    /// Returns the names that the client will query next, in order, if this is the first of its search list.
    /// `node` are the search domains of the node, which the kubelet appends to those of the cluster.
    pub(crate) fn search_names(
        &self,
        client: IpAddr,
        query: &Query<'_>,
        node: &[NameBuf],
    ) -> Option<Vec<NameBuf>> {
        if !matches!(query.question.kind, kind::A | kind::AAAA) {
            return None;
        }
        let namespaces = self.namespaces.load();
        let namespace = namespaces.get(&client)?;
        let mut own = NameBuf::default();
        own.push_label(namespace.as_bytes()).ok()?;
        own.push_name(self.domains[0].as_name()).ok()?;
        let name = query.question.name;
        if !name.is_within(own.as_name()) {
            return None;
        }
        let labels = name.labels().count().checked_sub(own.as_name().labels().count())?;
        let below = |suffix: Option<&NameBuf>| {
            let mut candidate = NameBuf::default();
            for label in name.labels().take(labels) {
                candidate.push_label(label).ok()?;
            }
            match suffix {
                Some(suffix) => candidate.push_name(suffix.as_name()).ok()?,
                None => candidate.push_label(b"").ok()?,
            }
            Some(candidate)
        };
        let suffixes = self.domains.iter().chain(node).map(Some).chain([None]);
        // A name that is too long with one suffix may exist with another.
        (labels > 0).then(|| suffixes.filter_map(below).collect())
    }
}

/// The same query for another name and type.
pub(crate) fn query_for<'q>(query: &Query<'q>, name: Name<'q>, kind: u16) -> Query<'q> {
    let mut other = *query;
    (other.question.name, other.question.kind) = (name, kind);
    other
}

/// The other address type.
pub(crate) fn other_family(kind: u16) -> u16 {
    if kind == kind::A { kind::AAAA } else { kind::A }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.22.0.7";

    fn autopath() -> Autopath {
        let domain = NameBuf::from_text("cluster.local").unwrap();
        let autopath = Autopath::new(domain.as_name()).unwrap();
        autopath.update(&Arc::new(HashMap::from([(POD.parse().unwrap(), "shop".into())])));
        autopath
    }

    fn search_names(client: &str, name: &str, kind: u16) -> Option<Vec<String>> {
        let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(NameBuf::from_text(name).unwrap().as_name().wire());
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        let query = Query::parse(&message).unwrap();
        let node = [NameBuf::from_text("corp.example").unwrap()];
        let names = autopath().search_names(client.parse().unwrap(), &query, &node)?;
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn first_name_of_a_pods_search_list_leads_to_the_others_in_order() {
        let expected = ["x.org.svc.cluster.local.", "x.org.cluster.local.", "x.org.corp.example.", "x.org."];
        assert_eq!(search_names(POD, "x.org.shop.svc.cluster.local", kind::A).unwrap(), expected);
        assert_eq!(search_names(POD, "x.org.SHOP.svc.cluster.LOCAL", kind::AAAA).unwrap(), expected);
        for (client, name, kind) in [
            (POD, "x.org.shop.svc.cluster.local", kind::SRV),
            (POD, "shop.svc.cluster.local", kind::A),
            (POD, "x.org.svc.cluster.local", kind::A),
            (POD, "x.org.default.svc.cluster.local", kind::A),
            ("10.22.0.8", "x.org.shop.svc.cluster.local", kind::A),
        ] {
            assert_eq!(search_names(client, name, kind), None, "{client} {name} {kind}");
        }
    }
}
