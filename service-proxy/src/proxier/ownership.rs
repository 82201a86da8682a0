//! The owner of an address and port that several Services claim.
//!
//! The owner depends on the objects only: not on which Service existed first, and not on endpoints. So a
//! restarted proxy and the proxies of other nodes have the same owners. The other Services wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use discovery::Precedence;
use discovery::model::NamespacedName;

use crate::frontend::FrontendKey;

/// The kind of a claim. The first kind in this order wins: what the API server allocates, then what a cloud
/// controller writes, then what any user may write into a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClaimKind {
    /// `clusterIPs`.
    ClusterIp,
    /// `nodePort`, `healthCheckNodePort`.
    NodePort,
    /// `status.loadBalancer`.
    LoadBalancerIp,
    /// `externalIPs`.
    ExternalIp,
}

/// All claims to all addresses and ports.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    /// In order: the first claim owns it.
    by_key: HashMap<FrontendKey, BTreeSet<Claim>>,
    by_service: HashMap<NamespacedName, Claims>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    kind: ClaimKind,
    precedence: Precedence,
    service: NamespacedName,
}

/// The claims of one Service.
#[derive(Debug, PartialEq, Eq)]
struct Claims {
    precedence: Precedence,
    kinds: BTreeMap<FrontendKey, ClaimKind>,
}

impl Ownership {
    /// Replaces the claims of a Service. Returns the other Services that gain or lose by it, or that now lose
    /// to another one.
    pub(super) fn set(
        &mut self,
        service: &NamespacedName,
        precedence: &Precedence,
        kinds: BTreeMap<FrontendKey, ClaimKind>,
    ) -> BTreeSet<NamespacedName> {
        let claims = Claims { precedence: precedence.clone(), kinds };
        let mut affected = BTreeSet::new();
        if self.by_service.get(service) == Some(&claims) {
            return affected;
        }
        let before = self.by_service.remove(service);
        let old = before.iter().flat_map(|before| before.kinds.keys());
        let keys: BTreeSet<FrontendKey> = old.chain(claims.kinds.keys()).copied().collect();
        for key in keys {
            let contenders = self.by_key.entry(key).or_default();
            let owner = contenders.first().map(|claim| claim.service.clone());
            contenders.retain(|claim| claim.service != *service);
            if let Some(kind) = claims.kinds.get(&key) {
                let precedence = precedence.clone();
                contenders.insert(Claim { kind: *kind, precedence, service: service.clone() });
            }
            if owner.as_ref() != contenders.first().map(|claim| &claim.service) {
                affected.extend(contenders.iter().map(|claim| claim.service.clone()));
            }
            if contenders.is_empty() {
                self.by_key.remove(&key);
            }
        }
        affected.remove(service);
        if !claims.kinds.is_empty() {
            self.by_service.insert(service.clone(), claims);
        }
        affected
    }

    /// The owner of an address and port.
    pub(super) fn owner(&self, key: &FrontendKey) -> Option<&NamespacedName> {
        self.by_key.get(key)?.first().map(|claim| &claim.service)
    }

    /// What a Service owns.
    pub(super) fn owned<'o>(&'o self, service: &'o NamespacedName) -> impl Iterator<Item = FrontendKey> + 'o {
        let claimed = self.by_service.get(service).into_iter().flat_map(|claims| claims.kinds.keys());
        claimed.filter(move |key| self.owner(key) == Some(service)).copied()
    }

    /// What a Service claims and another one owns, with the owner.
    pub(super) fn lost<'o>(
        &'o self,
        service: &'o NamespacedName,
    ) -> impl Iterator<Item = (FrontendKey, &'o NamespacedName)> {
        let claimed = self.by_service.get(service).into_iter().flat_map(|claims| claims.kinds.keys());
        let owned = claimed.filter_map(|key| Some((*key, self.owner(key)?)));
        owned.filter(move |(_, owner)| *owner != service)
    }
}

#[cfg(test)]
mod tests {
    use discovery::model::Protocol;

    use super::*;

    const KINDS: [ClaimKind; 4] =
        [ClaimKind::ClusterIp, ClaimKind::NodePort, ClaimKind::LoadBalancerIp, ClaimKind::ExternalIp];

    fn key(port: u16) -> FrontendKey {
        FrontendKey { protocol: Protocol::Tcp, address: ([192, 0, 2, 1], port).into() }
    }

    fn any_claims() -> BTreeMap<FrontendKey, ClaimKind> {
        let claim = |_| (key(fastrand::u16(1..4)), *fastrand::choice(&KINDS).unwrap());
        (0..fastrand::usize(..4)).map(claim).collect()
    }

    /// The owner of each port, and the losers.
    fn picture(ownership: &Ownership, names: &[NamespacedName]) -> Vec<String> {
        let owners = (1..4).map(|port| format!("{port}: {:?}", ownership.owner(&key(port))));
        let lost = names.iter().map(|name| format!("{name}: {:?}", ownership.lost(name).collect::<Vec<_>>()));
        owners.chain(lost).collect()
    }

    #[test]
    fn owners_depend_on_the_claims_only() {
        let names: Vec<_> = ["a", "b", "c"].map(|name| NamespacedName::new("shop", name)).into();
        let none = Precedence::default();
        for seed in 0..500 {
            fastrand::seed(seed);
            let mut ownership = Ownership::default();
            let mut claims: BTreeMap<NamespacedName, BTreeMap<FrontendKey, ClaimKind>> = BTreeMap::new();
            for _ in 0..20 {
                let name = fastrand::choice(&names).unwrap();
                let now = if fastrand::u8(..3) == 0 { BTreeMap::new() } else { any_claims() };
                let before = picture(&ownership, &names);
                let mut affected = ownership.set(name, &none, now.clone());
                affected.insert(name.clone());
                claims.insert(name.clone(), now);
                let mut fresh = Ownership::default();
                let mut order = names.clone();
                fastrand::shuffle(&mut order);
                for name in &order {
                    fresh.set(name, &none, claims.get(name).cloned().unwrap_or_default());
                }
                let after = picture(&ownership, &names);
                assert_eq!(after, picture(&fresh, &names), "seed {seed}");
                // The picture ends with a line per Service, in order.
                for (place, name) in names.iter().enumerate().filter(|(_, name)| !affected.contains(name)) {
                    assert_eq!(before[3 + place], after[3 + place], "seed {seed}: {name} was not named");
                }
            }
        }
    }

    #[test]
    fn allocated_address_wins_over_an_external_ip_and_then_the_first_by_name() {
        let (tenant, dns) = (NamespacedName::new("a", "a"), NamespacedName::new("kube-system", "kube-dns"));
        let mut ownership = Ownership::default();
        let none = Precedence::default();
        ownership.set(&tenant, &none, [(key(53), ClaimKind::ExternalIp)].into());
        let affected = ownership.set(&dns, &none, [(key(53), ClaimKind::ClusterIp)].into());
        assert_eq!(affected, [tenant.clone()].into());
        assert_eq!(ownership.owner(&key(53)), Some(&dns));
        ownership.set(&dns, &none, [(key(53), ClaimKind::ExternalIp)].into());
        assert_eq!(ownership.owner(&key(53)), Some(&tenant));
        assert_eq!(ownership.set(&tenant, &none, BTreeMap::new()), [dns.clone()].into());
        assert_eq!(ownership.owner(&key(53)), Some(&dns));
    }
}
