//! The virtual IPs of every Service: first the requested ones, where the first origin wins; then assigned
//! ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::claims::{Claim, Claims};
use crate::allocate;
use crate::model::{FamilyPolicy, NamespacedName, Service, ServiceKind};
use crate::problem::{Problem, Severity};
use crate::snapshot::Snapshot;

type Services = Claims<NamespacedName, Service>;

/// The owners of virtual IPs.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_service: HashMap<NamespacedName, Vec<IpAddr>>,
    pub(super) owners: HashMap<IpAddr, NamespacedName>,
    /// The number of Services without a requested address, which need assigned ones.
    assigned: usize,
    pub(super) problems: Vec<Problem>,
}

impl Addresses {
    /// Computes all addresses. An address depends on all Services: a new or deleted one can change another
    /// one's.
    fn compute(services: &Services, cidrs: &[IpNetwork]) -> Self {
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
            settled.problem(
                &name,
                claim,
                Severity::Error,
                format!(
                    "no free {family} address is left in the service ranges ({}); \
                 widen --service-cidr or set spec.clusterIP",
                    join(cidrs),
                ),
            );
        }
        let owned = settled.by_service.iter();
        settled.owners = owned.flat_map(|(name, ips)| ips.iter().map(|ip| (*ip, name.clone()))).collect();
        settled
    }

    /// Updates the addresses after a change of these Services, which were `before`. Returns all Services
    /// whose addresses changed.
    pub(super) fn update(
        &mut self,
        changed: &BTreeSet<NamespacedName>,
        services: &Services,
        before: &Snapshot,
        cidrs: &[IpNetwork],
    ) -> Vec<NamespacedName> {
        // A conflict has a problem with file locations: recompute everything whenever a Service changes.
        let is_contested = !changed.is_empty() && !self.problems.is_empty();
        let mut concerns_no_other = |name: &NamespacedName| {
            let then = before.service(name).map(|entry| &entry.service.kind);
            match (then, services.get(name).map(|claim| &claim.value.kind)) {
                (then, now) if then == now => true,
                (None, Some(now)) => self.try_assign(name, now, cidrs),
                (Some(_), None) => self.release(name),
                _ => false,
            }
        };
        if !is_contested && changed.iter().all(&mut concerns_no_other) {
            return Vec::new();
        }
        self.recompute(services, cidrs)
    }

    /// Recomputes all addresses. Returns the Services whose addresses changed.
    pub(super) fn recompute(&mut self, services: &Services, cidrs: &[IpNetwork]) -> Vec<NamespacedName> {
        let settled = Self::compute(services, cidrs);
        let moved = settled.changed_since(self).cloned().collect();
        *self = settled;
        moved
    }

    /// Gives a new Service its requested addresses, if they are unassigned and in the ranges.
    fn try_assign(&mut self, name: &NamespacedName, kind: &ServiceKind, cidrs: &[IpNetwork]) -> bool {
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

    /// Releases the addresses of a deleted Service, unless the assignment of another Service depended on
    /// them.
    fn release(&mut self, name: &NamespacedName) -> bool {
        if self.assigned > 0 {
            return false;
        }
        for ip in self.by_service.remove(name).into_iter().flatten() {
            self.owners.remove(&ip);
        }
        true
    }

    /// The addresses of a Service.
    pub(super) fn of(&self, name: &NamespacedName) -> &[IpAddr] {
        self.by_service.get(name).map_or(&[], Vec::as_slice)
    }

    /// Services with other addresses than before.
    fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a NamespacedName> {
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
            return self.problem(
                name,
                claim,
                Severity::Error,
                format!(
                    "spec.clusterIP: {address} already belongs to Service {owner} ({at}); give it another \
                     address, or leave the field out to have one assigned",
                ),
            );
        }
        if !cidrs.iter().any(|cidr| cidr.contains(address)) {
            self.problem(name, claim, Severity::Warning, format!(
                "spec.clusterIP: {address} is outside the service ranges ({}): it gets a route of its own \
                     and no reverse name; add its range to --service-cidr of both daemons",
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

/// The owner of each requested address: of all that request it, the one with the first origin.
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
