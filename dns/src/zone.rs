//! The cluster's names at one moment, and their look-up.
//!
//! No record is stored per name: a name is split into namespace, Service and the labels before, and the
//! [`Service`] answers for all names below it. So the cost of a change is that of the changed Service, and
//! every type of a name gets the same result: NXDOMAIN if the name does not exist, NODATA if it has no such
//! records (RFC 2308 §2, RFC 8020).

mod reverse;
mod service;
mod target;
mod transfer;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use discovery::model::NamespacedName;
use discovery::{ServiceEntry, SharedMap, Snapshot};
use ipnetwork::IpNetwork;

use crate::message::{Name, NameBuf, kind};
use crate::names::{self, Names};
use reverse::{Reverse, ReverseName};
use service::Service;
pub(crate) use transfer::Transfer;

/// The version of the specification, which every cluster publishes at `dns-version`, as TXT.
const SPECIFICATION: &[u8] = b"\x051.1.0";

/// Maximum labels below the cluster's domain: `_port._proto.service.namespace.svc`.
const MAX_LABELS: usize = 5;

/// The settings, which do not depend on the cluster's state.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// In lower case.
    pub(crate) domain: NameBuf,
    pub(crate) ttl: u32,
    pub(crate) names: Names,
    pub(crate) service_cidrs: Vec<IpNetwork>,
    pub(crate) listen: Vec<SocketAddr>,
}

/// All names of one snapshot. Unchanged parts are shared with the previous zone.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub(crate) settings: Arc<Settings>,
    /// The snapshot.
    snapshot: Arc<Snapshot>,
    pub(crate) synced: bool,
    /// A source has failed: the state may be out of date.
    pub(crate) is_stale: bool,
    /// The serial of the SOA record; `None` before the first state.
    serial: Option<u32>,
    /// The RDATA of the SOA record, without compression.
    pub(crate) soa: Box<[u8]>,
    /// As labels: length, then lower case.
    namespaces: Arc<HashSet<Box<[u8]>>>,
    /// By two labels, Service and namespace.
    services: SharedMap<Arc<[u8]>, Service>,
    /// The same by number. A Service keeps its number while it exists.
    numbered: SharedMap<u32, Service>,
    /// The number of the next new Service.
    next_number: u32,
    /// The numbers of the Services at each address.
    reverse: Reverse,
}

/// The result of a look-up.
#[derive(Debug)]
pub(crate) enum Found<'z> {
    /// Not in this zone.
    Elsewhere,
    /// Unknown until the first state.
    NotReady,
    /// No such name; the SOA record is that of the last bytes of the name.
    Missing(usize),
    /// A name of the zone.
    Here(Node<'z>, usize),
}

/// A name that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Node<'z> {
    /// Only names below it have records.
    Empty,
    Apex,
    Version,
    NameServer,
    Service(&'z Service),
    /// `_port._protocol` of a Service.
    Port(&'z Service, [&'z [u8]; 2]),
    /// One or more endpoints with the same label: a range of the Service's targets.
    Endpoint(&'z Service, (usize, usize)),
    Pointer(IpAddr),
    /// A pod by its address.
    Pod(IpAddr),
}

impl Zone {
    /// The zone before the first state.
    pub(crate) fn empty(settings: Arc<Settings>) -> Self {
        Self {
            serial: None,
            soa: soa(&settings, 0),
            settings,
            snapshot: Arc::new(Snapshot::empty()),
            synced: false,
            is_stale: false,
            namespaces: Arc::default(),
            services: SharedMap::default(),
            numbered: SharedMap::default(),
            next_number: 0,
            reverse: Reverse::default(),
        }
    }

    /// The zone of the next snapshot. Examines changed Services only. Calls `triggered` for every changed
    /// slice of a Service, with the time of the change.
    pub(crate) fn next(
        &self,
        snapshot: &Arc<Snapshot>,
        triggered: &mut dyn FnMut(&Arc<ServiceEntry>, SystemTime),
    ) -> Self {
        let before = &self.snapshot;
        let mut zone = self.clone();
        zone.snapshot = Arc::clone(snapshot);
        zone.synced = snapshot.synced;
        zone.is_stale = snapshot.is_stale();
        let mut has_changed = snapshot.synced != before.synced;
        let names = &self.settings.names;
        if !Arc::ptr_eq(&snapshot.namespaces, &before.namespaces) {
            let exposed = snapshot.namespaces.iter().filter(|namespace| names.has_namespace(namespace));
            zone.namespaces = Arc::new(exposed.filter_map(|namespace| labels(&[namespace])).collect());
        }
        for name in snapshot.removed_since(before) {
            has_changed = true;
            zone.replace(name, None);
        }
        let changed = snapshot.changed_since(before);
        for entry in changed.filter(|entry| names.has_namespace(&entry.service.name.namespace)) {
            let name = &entry.service.name;
            let slices = entry.slices_since(before.service(name)).filter(|_| self.synced);
            slices.filter_map(|slice| slice.triggered_at).for_each(|at| triggered(entry, at));
            has_changed = true;
            zone.replace(name, Some(entry));
        }
        if has_changed {
            let serial = next_serial(self.serial, snapshot.changed_at);
            zone.serial = Some(serial);
            zone.soa = soa(&zone.settings, serial);
        }
        zone
    }

    /// Replaces or removes the Service of that name.
    fn replace(&mut self, name: &NamespacedName, entry: Option<&Arc<ServiceEntry>>) {
        // Names that are too long for a label cannot be queried.
        let Some(key) = labels(&[&name.name, &name.namespace]) else { return };
        let old = self.services.remove(&*key);
        let number = old.as_ref().map_or_else(|| self.free_number(), |old| old.number);
        let new = entry.and_then(|entry| Service::new(entry, number, &self.settings)).map(Arc::new);
        let addresses = |service: Option<&Arc<Service>>| -> HashSet<IpAddr> {
            service.into_iter().flat_map(|service| service.addresses()).collect()
        };
        let (before, after) = (addresses(old.as_ref()), addresses(new.as_ref()));
        for removed in before.difference(&after) {
            self.reverse.remove(*removed, number);
        }
        for added in after.difference(&before) {
            self.reverse.insert(*added, number);
        }
        match new {
            Some(new) => {
                self.services.insert(key.into(), Arc::clone(&new));
                self.numbered.insert(number, new);
            }
            None => _ = self.numbered.remove(&number),
        }
    }

    fn free_number(&mut self) -> u32 {
        while self.numbered.get(&self.next_number).is_some() {
            self.next_number = self.next_number.wrapping_add(1);
        }
        self.next_number
    }

    /// Looks up a name. `lower` is the name in lower case.
    pub(crate) fn find<'z>(&'z self, lower: Name<'z>) -> Found<'z> {
        let wire = lower.wire();
        let domain = self.settings.domain.as_name().wire();
        let Some(below) = wire.strip_suffix(domain).filter(|below| is_whole(wire, below.len())) else {
            return self.find_reverse(lower);
        };
        if !self.synced {
            return Found::NotReady;
        }
        match self.node(below) {
            Some(node) => Found::Here(node, domain.len()),
            None => Found::Missing(domain.len()),
        }
    }

    /// The name below the cluster's domain, without the root.
    fn node<'z>(&'z self, below: &'z [u8]) -> Option<Node<'z>> {
        let mut found: [&[u8]; MAX_LABELS] = [&[]; MAX_LABELS];
        let mut count = 0;
        let mut rest = below;
        while let Some((&length, behind)) = rest.split_first() {
            let (label, next) = behind.split_at_checked(usize::from(length))?;
            *found.get_mut(count)? = label;
            count += 1;
            rest = next;
        }
        let is_namespace = |label: &[u8]| {
            let from = below.len() - label.len() - 5;
            below.get(from..below.len() - 4).is_some_and(|label| self.namespaces.contains(label))
        };
        match &found[..count] {
            [] => Some(Node::Apex),
            [b"dns-version"] => Some(Node::Version),
            [b"dns"] if self.settings.names.is_coredns() => None,
            [b"dns"] | [b"svc" | b"pod"] => Some(Node::Empty),
            [b"ns", b"dns"] => Some(Node::NameServer),
            [namespace, b"svc" | b"pod"] => is_namespace(namespace).then_some(Node::Empty),
            [label, namespace, b"pod"] if is_namespace(namespace) => {
                self.pod(label, namespace).map(Node::Pod)
            }
            [before @ .., service, namespace, b"svc"] => {
                // The two labels of the Service are adjacent before `svc`.
                let end = below.len() - 4;
                let key = below.get(end - service.len() - namespace.len() - 2..end)?;
                self.services.get(key)?.node(before)
            }
            _ => None,
        }
    }

    /// The address in a pod's name, if pods have names and this one exists.
    fn pod(&self, label: &[u8], namespace: &[u8]) -> Option<IpAddr> {
        let ip = target::address_of(std::str::from_utf8(label).ok()?)?;
        let is_there = match self.settings.names.pods {
            names::Pods::Disabled => false,
            names::Pods::Insecure => true,
            names::Pods::Verified => {
                self.snapshot.pods.get(&ip)?.iter().any(|found| found.as_bytes() == namespace)
            }
        };
        is_there.then_some(ip)
    }

    fn find_reverse(&self, lower: Name<'_>) -> Found<'_> {
        let Some(reverse_name) = ReverseName::parse(lower) else { return Found::Elsewhere };
        let mut cidrs = self.settings.service_cidrs.iter().chain(self.snapshot.service_cidrs.iter());
        let cidr = cidrs.find(|cidr| reverse_name.is_within(cidr));
        let known = reverse_name.address().filter(|ip| self.reverse.contains(*ip));
        if !self.synced && (cidr.is_some() || reverse_name.address().is_some()) {
            // Before the first state, an address may be that of an endpoint.
            return Found::NotReady;
        }
        let apex = cidr.map_or_else(|| lower.wire().len(), |cidr| reverse::apex_length(cidr, lower));
        match (known, cidr) {
            (Some(ip), _) => Found::Here(Node::Pointer(ip), apex),
            (None, None) => Found::Elsewhere,
            (None, Some(_)) if !self.settings.names.is_coredns() && reverse_name.exists(&self.reverse) => {
                Found::Here(Node::Empty, apex)
            }
            (None, Some(_)) => Found::Missing(apex),
        }
    }

    /// Calls `each` with every record of a type, from a random one on: the RDATA and the addresses of the
    /// name in it. Stops if `each` returns false.
    pub(crate) fn visit(&self, node: Node<'_>, kind: u16, each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool) {
        match (node, kind) {
            (Node::Apex, kind::SOA) => _ = each(&self.soa, &[]),
            (Node::Apex, kind::NS) => _ = each(self.name_server().as_name().wire(), &[]),
            (Node::Version, kind::TXT) => _ = each(SPECIFICATION, &[]),
            (Node::NameServer, kind::A | kind::AAAA) => {
                let mut addresses: Vec<IpAddr> = self.settings.listen.iter().map(SocketAddr::ip).collect();
                addresses.sort_unstable();
                addresses.dedup();
                for address in addresses.into_iter().filter(|ip| !ip.is_unspecified()) {
                    match address {
                        IpAddr::V4(ip) if kind == kind::A => _ = each(&ip.octets(), &[]),
                        IpAddr::V6(ip) if kind == kind::AAAA => _ = each(&ip.octets(), &[]),
                        _ => {}
                    }
                }
            }
            (Node::Service(service), kind) => service.visit(kind, each),
            (Node::Port(service, [port, protocol]), kind::SRV) => {
                service.visit_ports(Some((port, protocol)), each);
            }
            (Node::Endpoint(service, range), kind) => service.visit_endpoint(range, kind, each),
            (Node::Pod(IpAddr::V4(ip)), kind::A) => _ = each(&ip.octets(), &[]),
            (Node::Pod(IpAddr::V6(ip)), kind::AAAA) => _ = each(&ip.octets(), &[]),
            (Node::Pointer(ip), kind::PTR) => {
                let mut names: Vec<NameBuf> = Vec::new();
                for service in self.reverse.get(ip).filter_map(|number| self.numbered.get(&number)) {
                    service.names_of(ip, &mut names);
                }
                names.sort_unstable();
                names.dedup();
                names.iter().all(|name| each(name.as_name().wire(), &[]));
            }
            _ => {}
        }
    }

    fn name_server(&self) -> NameBuf {
        let mut name = NameBuf::default();
        let fits = name.push_label(b"ns").and_then(|()| name.push_label(b"dns"));
        match fits.and_then(|()| name.push_name(self.settings.domain.as_name())) {
            Ok(()) => name,
            Err(_too_long) => self.settings.domain.clone(),
        }
    }
}

/// Whether a label of the name begins at this offset.
fn is_whole(wire: &[u8], offset: usize) -> bool {
    let mut at = 0;
    while at < offset {
        at += wire.get(at).map_or(offset, |length| usize::from(*length)) + 1;
    }
    at == offset
}

/// Adjacent labels in lower case; `None` if one is too long.
fn labels(texts: &[&str]) -> Option<Box<[u8]>> {
    let mut name = NameBuf::default();
    for text in texts {
        if text.is_empty() {
            return None;
        }
        name.push_label(text.as_bytes()).ok()?;
    }
    name.make_lower();
    Some(name.as_name().wire().into())
}

/// The time as a serial, or the next number if that is not later: secondaries look for an increased serial
/// (RFC 1982, RFC 1996 §4.3), also for several changes within a second or a clock that was set back.
fn next_serial(last: Option<u32>, at: SystemTime) -> u32 {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default();
    let Some(last) = last else { return now };
    let is_later = (1..1 << 31).contains(&now.wrapping_sub(last));
    if is_later { now } else { last.wrapping_add(1) }
}

/// Encoded once per state: most answers are negative and contain it.
fn soa(settings: &Settings, serial: u32) -> Box<[u8]> {
    let domain = settings.domain.as_name().wire();
    // Seconds for secondaries only: refresh, retry, expire; then the TTL of negative answers.
    let numbers = [serial, 7200, 1800, 86_400, settings.ttl];
    let names = [b"\x02ns\x03dns".as_slice(), domain, b"\x0ahostmaster", domain].concat();
    names.into_iter().chain(numbers.into_iter().flat_map(u32::to_be_bytes)).collect()
}

#[cfg(test)]
mod tests;
