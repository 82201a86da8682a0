//! Search-path completion: a pod that looks for `example.com` first asks for `example.com.<namespace>.svc.cluster.local`,
//! and so on through its search list (`ndots:5`), for A and AAAA each. With `--autopath` the first question gets the
//! answer of the last: an alias to the name that exists, and what is there.
//!
//! Which namespace a pod is in says the attachment record that `portolan-cni` wrote before the pod had its address, so an
//! address that has passed to another pod is never taken for the old one's (CoreDNS's autopath has that race).
//! When nothing is found the client gets the NXDOMAIN it would have got, and goes on by itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::message::{Malformed, Name, NameBuf, Query, kind};

/// Who is in which namespace.
#[derive(Debug)]
pub(crate) struct Autopath {
    /// Below the namespace: `svc.cluster.local`, then `cluster.local`.
    domains: [NameBuf; 2],
    namespaces: ArcSwap<HashMap<IpAddr, Arc<str>>>,
}

impl Autopath {
    /// For a cluster's domain; knows no pods yet.
    pub(crate) fn new(domain: Name<'_>) -> Result<Self, Malformed> {
        let mut services = NameBuf::default();
        services.push_label(b"svc")?;
        services.push_name(domain)?;
        Ok(Self { domains: [services, domain.to_buf()], namespaces: ArcSwap::default() })
    }

    /// Takes in which pods there are now.
    pub(crate) fn follow(&self, namespaces: &Arc<HashMap<IpAddr, Arc<str>>>) {
        self.namespaces.store(Arc::clone(namespaces));
    }

    /// The names the client will ask for next, in its order, if this is the first of its search list. `node` are the
    /// domains of the node's own list, which kubelet puts behind those of the cluster.
    pub(crate) fn walk(&self, client: IpAddr, query: &Query<'_>, node: &[NameBuf]) -> Option<Vec<NameBuf>> {
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
        // A name that would be too long with one suffix may still exist with another.
        (labels > 0).then(|| suffixes.filter_map(below).collect())
    }
}

/// The same question about another name and type.
pub(crate) fn ask<'q>(query: &Query<'q>, name: Name<'q>, kind: u16) -> Query<'q> {
    let mut other = *query;
    (other.question.name, other.question.kind) = (name, kind);
    other
}

/// The other family of addresses.
pub(crate) fn other(kind: u16) -> u16 {
    if kind == kind::A { kind::AAAA } else { kind::A }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.22.0.7";

    fn autopath() -> Autopath {
        let domain = NameBuf::from_text("cluster.local").unwrap();
        let autopath = Autopath::new(domain.as_name()).unwrap();
        autopath.follow(&Arc::new(HashMap::from([(POD.parse().unwrap(), "shop".into())])));
        autopath
    }

    fn walk(client: &str, name: &str, kind: u16) -> Option<Vec<String>> {
        let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(NameBuf::from_text(name).unwrap().as_name().wire());
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        let query = Query::parse(&message).unwrap();
        let node = [NameBuf::from_text("corp.example").unwrap()];
        let names = autopath().walk(client.parse().unwrap(), &query, &node)?;
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_name_of_a_pods_own_search_list_leads_to_the_others_in_order() {
        let expected = ["x.org.svc.cluster.local.", "x.org.cluster.local.", "x.org.corp.example.", "x.org."];
        assert_eq!(walk(POD, "x.org.shop.svc.cluster.local", kind::A).unwrap(), expected);
        assert_eq!(walk(POD, "x.org.SHOP.svc.cluster.LOCAL", kind::AAAA).unwrap(), expected);
        for (client, name, kind) in [
            (POD, "x.org.shop.svc.cluster.local", kind::SRV),
            (POD, "shop.svc.cluster.local", kind::A),
            (POD, "x.org.svc.cluster.local", kind::A),
            (POD, "x.org.default.svc.cluster.local", kind::A),
            ("10.22.0.8", "x.org.shop.svc.cluster.local", kind::A),
        ] {
            assert_eq!(walk(client, name, kind), None, "{client} {name} {kind}");
        }
    }
}
