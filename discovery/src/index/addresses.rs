//! Every Service's virtual IPs: those it asks for, first come first served by origin; then assigned ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::claims::{Claim, Claims};
use crate::allocate;
use crate::model::{FamilyPolicy, NamespacedName, Service, ServiceKind};
use crate::problem::{Problem, Severity};
use crate::snapshot::Snapshot;

type Services = Claims<NamespacedName, Service>;

/// Who has which virtual IP.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_service: HashMap<NamespacedName, Vec<IpAddr>>,
    pub(super) owners: HashMap<IpAddr, NamespacedName>,
    /// How many Services ask for none, and have to be given some.
    assigned: usize,
    pub(super) problems: Vec<Problem>,
}

impl Addresses {
    /// Settles everything anew: an address depends on all Services, so one that comes or goes can move
    /// another one's.
    fn settle(services: &Services, cidrs: &[IpNetwork]) -> Self {
        let mut settled = Self::default();
        let owners = first_claimants(services);
        let mut wanted = BTreeMap::new();
        for (name, claim) in services.iter() {
            let ServiceKind::ClusterIp { requested, families: FamilyPolicy(families) } = &claim.value.kind
            else {
                continue;
            };
            if requested.is_empty() {
                wanted.insert(name.clone(), families.clone());
            }
            for address in requested {
                settled.request(name, claim, *address, owners[address], cidrs);
            }
        }
        let taken: HashSet<IpAddr> = owners.into_keys().collect();
        settled.assigned = wanted.len();
        let (assigned, unassigned) = allocate::assign(&wanted, &taken, cidrs);
        settled.by_service.extend(assigned);
        for (name, family) in unassigned {
            let Some(claim) = services.get(&name) else { continue };
            settled.problem(&name, claim, Severity::Error, format!(
                "no free {family} address is left in the service ranges ({}); widen --service-cidr or set spec.clusterIP",
                join(cidrs),
            ));
        }
        let owned = settled.by_service.iter();
        settled.owners = owned.flat_map(|(name, ips)| ips.iter().map(|ip| (*ip, name.clone()))).collect();
        settled
    }

    /// Takes in that these Services may not be as they were `before`, and returns all that have other
    /// addresses now for it.
    pub(super) fn follow(
        &mut self,
        changed: &BTreeSet<NamespacedName>,
        services: &Services,
        before: &Snapshot,
        cidrs: &[IpNetwork],
    ) -> Vec<NamespacedName> {
        // A contested address has a problem, which names places in files: it is settled anew whenever a
        // Service moves.
        let is_contested = !changed.is_empty() && !self.problems.is_empty();
        let mut concerns_no_other = |name: &NamespacedName| {
            let then = before.service(name).map(|entry| &entry.service.kind);
            match (then, services.get(name).map(|claim| &claim.value.kind)) {
                (then, now) if then == now => true,
                (None, Some(now)) => self.grant(name, now, cidrs),
                (Some(_), None) => self.release(name),
                _ => false,
            }
        };
        if !is_contested && changed.iter().all(&mut concerns_no_other) {
            return Vec::new();
        }
        self.settle_anew(services, cidrs)
    }

    /// Settles everything anew and returns the Services that have other addresses for it.
    pub(super) fn settle_anew(&mut self, services: &Services, cidrs: &[IpNetwork]) -> Vec<NamespacedName> {
        let settled = Self::settle(services, cidrs);
        let moved = settled.moved(self).cloned().collect();
        *self = settled;
        moved
    }

    /// Gives a new Service what it asks for, if these are unassigned addresses of the ranges.
    fn grant(&mut self, name: &NamespacedName, kind: &ServiceKind, cidrs: &[IpNetwork]) -> bool {
        let ServiceKind::ClusterIp { requested, .. } = kind else { return false };
        let is_free =
            |ip: &IpAddr| !self.owners.contains_key(ip) && cidrs.iter().any(|cidr| cidr.contains(*ip));
        let distinct: HashSet<&IpAddr> = requested.iter().collect();
        if requested.is_empty() || distinct.len() < requested.len() || !requested.iter().all(is_free) {
            return false;
        }
        self.owners.extend(requested.iter().map(|ip| (*ip, name.clone())));
        self.by_service.insert(name.clone(), requested.clone());
        true
    }

    /// Releases the addresses of a deleted Service, if no other Service's address was assigned around them.
    fn release(&mut self, name: &NamespacedName) -> bool {
        if self.assigned > 0 {
            return false;
        }
        for ip in self.by_service.remove(name).into_iter().flatten() {
            self.owners.remove(&ip);
        }
        true
    }

    /// What a Service has.
    pub(super) fn of(&self, name: &NamespacedName) -> &[IpAddr] {
        self.by_service.get(name).map_or(&[], Vec::as_slice)
    }

    /// Services that have other addresses here than there.
    fn moved<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a NamespacedName> {
        let names = self.by_service.keys().chain(before.by_service.keys());
        names.filter(|name| self.of(name) != before.of(name))
    }

    fn request(
        &mut self,
        name: &NamespacedName,
        claim: &Claim<Service>,
        address: IpAddr,
        (owner, theirs): (&NamespacedName, &Claim<Service>),
        cidrs: &[IpNetwork],
    ) {
        if owner != name {
            let at = &theirs.location;
            return self.problem(name, claim, Severity::Error, format!(
                "spec.clusterIP: {address} already belongs to Service {owner} ({at}); give it another address, or leave the field out to have one assigned",
            ));
        }
        if !cidrs.iter().any(|cidr| cidr.contains(address)) {
            self.problem(name, claim, Severity::Warning, format!(
                "spec.clusterIP: {address} is outside the service ranges ({}): it gets a route of its own and no reverse name; add its range to --service-cidr of both daemons",
                join(cidrs),
            ));
        }
        self.by_service.entry(name.clone()).or_default().push(address);
    }

    fn problem(
        &mut self,
        name: &NamespacedName,
        claim: &Claim<Service>,
        severity: Severity,
        message: String,
    ) {
        let object = Some(format!("Service {name}"));
        self.problems.push(Problem { location: claim.location.clone(), severity, object, message });
    }
}

/// Who keeps each requested address: of all that ask, the one whose origin comes first.
fn first_claimants(services: &Services) -> HashMap<IpAddr, (&NamespacedName, &Claim<Service>)> {
    let mut owners: HashMap<IpAddr, (&NamespacedName, &Claim<Service>)> = HashMap::new();
    for (name, claim) in services.iter() {
        let ServiceKind::ClusterIp { requested, .. } = &claim.value.kind else { continue };
        for address in requested {
            let owner = owners.entry(*address).or_insert((name, claim));
            if claim.rank < owner.1.rank {
                *owner = (name, claim);
            }
        }
    }
    owners
}

fn join(cidrs: &[IpNetwork]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
