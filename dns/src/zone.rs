//! The cluster's names at one moment, and the rules for finding them.
//!
//! Nothing is kept a name: a name is taken apart into namespace, Service and what stands before it, and the [`Service`]
//! answers for all names below it. So a change costs what the Service that changed costs, and every type of a name gets
//! the same verdict: not there is NXDOMAIN, there without such records is NODATA (RFC 2308 §2, RFC 8020).

mod reverse;
mod service;
mod target;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use discovery::{ServiceEntry, Snapshot};
use ipnetwork::IpNetwork;

use crate::message::{Name, NameBuf, kind};
use crate::names::{self, Names};
use reverse::{Asked, Reverse};
use service::Service;
pub(crate) use transfer::Transfer;

/// The version of the specification, which every cluster names at `dns-version`, as TXT has it.
const SPECIFICATION: &[u8] = b"\x051.1.0";

/// Labels below the cluster's domain that can mean something: `_port._proto.service.namespace.svc`.
const MAX_LABELS: usize = 5;

/// What does not change with the cluster's state.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// In lower case.
    pub(crate) domain: NameBuf,
    pub(crate) ttl: u32,
    pub(crate) names: Names,
    pub(crate) service_cidrs: Vec<IpNetwork>,
    pub(crate) listen: Vec<SocketAddr>,
}

/// All names of one snapshot. Parts that did not change are shared with the zone before.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub(crate) settings: Arc<Settings>,
    pub(crate) synced: bool,
    /// A source cannot be read any more: all this is as it was last seen.
    pub(crate) is_stale: bool,
    /// The content of the SOA record, names written out.
    pub(crate) soa: Box<[u8]>,
    /// As labels: length, then lower case.
    namespaces: Arc<HashSet<Box<[u8]>>>,
    /// Two labels, Service and namespace, to a place in `services`.
    places: Arc<HashMap<Box<[u8]>, u32>>,
    services: Vec<Option<Arc<Service>>>,
    free: Vec<u32>,
    reverse: Reverse,
    /// The namespaces of the pods at each address, if they are told of.
    pods: Arc<HashMap<IpAddr, Vec<Arc<str>>>>,
}

/// Where a name leads.
#[derive(Debug)]
pub(crate) enum Found<'z> {
    /// Not a name of ours.
    Elsewhere,
    /// Nothing may be concluded yet.
    NotReady,
    /// No such name; the SOA record is that of the last so many bytes of the name.
    Missing(usize),
    /// A name of ours.
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
    /// One or more endpoints that share a label: a range of the Service's targets.
    Endpoint(&'z Service, (usize, usize)),
    Pointer(IpAddr),
    /// A pod by its address.
    Pod(IpAddr),
}

impl Zone {
    /// Before anything was read.
    pub(crate) fn empty(settings: Arc<Settings>) -> Self {
        Self {
            soa: soa(&settings, 0),
            settings,
            synced: false,
            is_stale: false,
            namespaces: Arc::default(),
            places: Arc::default(),
            services: Vec::new(),
            free: Vec::new(),
            reverse: Reverse::default(),
            pods: Arc::default(),
        }
    }

    /// The zone of the next snapshot. Only Services that changed are looked at.
    /// `news` hears of every Service with endpoints that something has happened to since the zone before.
    pub(crate) fn next(
        &self,
        snapshot: &Snapshot,
        news: &mut dyn FnMut(&Arc<ServiceEntry>, SystemTime),
    ) -> Self {
        let mut zone = self.clone();
        zone.synced = snapshot.synced;
        zone.is_stale = snapshot.is_stale();
        let serial = snapshot.changed_at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        // Serials wrap around (RFC 1982).
        let serial = u32::try_from(serial & u64::from(u32::MAX)).unwrap_or_default();
        zone.soa = soa(&zone.settings, serial);
        zone.pods = Arc::clone(&snapshot.pods);
        let names = &self.settings.names;
        let exposed = snapshot.namespaces.iter().filter(|namespace| names.has_namespace(namespace));
        let namespaces: HashSet<Box<[u8]>> = exposed.filter_map(|namespace| labels(&[namespace])).collect();
        if namespaces != *zone.namespaces {
            zone.namespaces = Arc::new(namespaces);
        }
        let mut seen = vec![false; zone.services.len()];
        for entry in snapshot.services().filter(|entry| names.has_namespace(&entry.service.name.namespace)) {
            let name = &entry.service.name;
            // Names that fit no label cannot be asked for.
            let Some(key) = labels(&[&name.name, &name.namespace]) else { continue };
            let place = zone.place(&key);
            let index = place as usize;
            if seen.len() <= index {
                seen.resize(index + 1, false);
            }
            seen[index] = true;
            if zone.services[index].as_ref().is_some_and(|service| service.is_of(entry)) {
                continue;
            }
            let before = zone.services[index].as_ref().map(|service| service.entry());
            for slice in entry.slices.iter().filter(|_| self.synced) {
                let is_new =
                    !before.is_some_and(|before| before.slices.iter().any(|old| Arc::ptr_eq(old, slice)));
                if let Some(triggered_at) = slice.triggered_at.filter(|_| is_new) {
                    news(entry, triggered_at);
                }
            }
            let new = Service::new(entry, &key, &zone.settings).map(Arc::new);
            zone.replace(place, new);
        }
        for (index, seen) in seen.iter().enumerate() {
            let place = u32::try_from(index).unwrap_or(u32::MAX);
            if let Some(old) = zone.services[index].clone().filter(|_| !seen) {
                zone.replace(place, None);
                Arc::make_mut(&mut zone.places).remove(old.key());
                zone.free.push(place);
            }
        }
        zone
    }

    fn place(&mut self, key: &[u8]) -> u32 {
        if let Some(&place) = self.places.get(key) {
            return place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.services.push(None);
            u32::try_from(self.services.len() - 1).unwrap_or(u32::MAX)
        });
        Arc::make_mut(&mut self.places).insert(key.into(), place);
        place
    }

    fn replace(&mut self, place: u32, new: Option<Arc<Service>>) {
        let Some(slot) = self.services.get_mut(place as usize) else { return };
        let old = std::mem::replace(slot, new.clone());
        let addresses = |service: Option<&Arc<Service>>| -> HashSet<IpAddr> {
            service.into_iter().flat_map(|service| service.addresses()).collect()
        };
        let (before, after) = (addresses(old.as_ref()), addresses(new.as_ref()));
        for gone in before.difference(&after) {
            self.reverse.remove(*gone, place);
        }
        for added in after.difference(&before) {
            self.reverse.insert(*added, place);
        }
    }

    /// Looks a name up. `lower` is the name in lower case.
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

    /// The name below the cluster's domain, root-less.
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
                // The Service's two labels stand side by side before `svc`.
                let end = below.len() - 4;
                let key = below.get(end - service.len() - namespace.len() - 2..end)?;
                let place = *self.places.get(key)?;
                self.services.get(place as usize)?.as_deref()?.node(before)
            }
            _ => None,
        }
    }

    /// The address that a pod's name says, if pods have names and this one is there.
    fn pod(&self, label: &[u8], namespace: &[u8]) -> Option<IpAddr> {
        let ip = target::address_of(std::str::from_utf8(label).ok()?)?;
        let is_there = match self.settings.names.pods {
            names::Pods::Disabled => false,
            names::Pods::Insecure => true,
            names::Pods::Verified => self.pods.get(&ip)?.iter().any(|found| found.as_bytes() == namespace),
        };
        is_there.then_some(ip)
    }

    fn find_reverse(&self, lower: Name<'_>) -> Found<'_> {
        let Some(asked) = Asked::parse(lower) else { return Found::Elsewhere };
        let cidr = self.settings.service_cidrs.iter().find(|cidr| asked.is_within(cidr));
        let known = asked.address().filter(|ip| self.reverse.contains(*ip));
        if !self.synced && (cidr.is_some() || asked.address().is_some()) {
            // While nothing is known, an endpoint's address may be anybody's.
            return Found::NotReady;
        }
        let apex = cidr.map_or_else(|| lower.wire().len(), |cidr| reverse::apex_length(cidr, lower));
        match (known, cidr) {
            (Some(ip), _) => Found::Here(Node::Pointer(ip), apex),
            (None, None) => Found::Elsewhere,
            (None, Some(_)) if !self.settings.names.is_coredns() && asked.exists(&self.reverse) => {
                Found::Here(Node::Empty, apex)
            }
            (None, Some(_)) => Found::Missing(apex),
        }
    }

    /// Hands every record of a type to `each`, from a random one on, as content and the addresses of the name in it;
    /// ends early if `each` says so.
    pub(crate) fn visit(&self, node: Node<'_>, kind: u16, each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool) {
        match (node, kind) {
            (Node::Apex, kind::SOA) => drop(each(&self.soa, &[])),
            (Node::Apex, kind::NS) => drop(each(self.name_server().as_name().wire(), &[])),
            (Node::Version, kind::TXT) => drop(each(SPECIFICATION, &[])),
            (Node::NameServer, kind::A | kind::AAAA) => {
                for listen in self.settings.listen.iter().filter(|listen| !listen.ip().is_unspecified()) {
                    match listen.ip() {
                        IpAddr::V4(ip) if kind == kind::A => drop(each(&ip.octets(), &[])),
                        IpAddr::V6(ip) if kind == kind::AAAA => drop(each(&ip.octets(), &[])),
                        _ => {}
                    }
                }
            }
            (Node::Service(service), kind) => service.visit(kind, each),
            (Node::Port(service, [port, protocol]), kind::SRV) => {
                service.visit_ports(Some((port, protocol)), each);
            }
            (Node::Endpoint(service, range), kind) => service.visit_endpoint(range, kind, each),
            (Node::Pod(IpAddr::V4(ip)), kind::A) => drop(each(&ip.octets(), &[])),
            (Node::Pod(IpAddr::V6(ip)), kind::AAAA) => drop(each(&ip.octets(), &[])),
            (Node::Pointer(ip), kind::PTR) => {
                let mut names: Vec<NameBuf> = Vec::new();
                for place in self.reverse.get(ip) {
                    if let Some(Some(service)) = self.services.get(place as usize) {
                        service.names_of(ip, &mut names);
                    }
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

/// Labels side by side, in lower case; `None` if one fits no label.
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

/// Made with each state, not for each answer: most answers are negative, and carry it.
fn soa(settings: &Settings, serial: u32) -> Box<[u8]> {
    let domain = settings.domain.as_name().wire();
    // Seconds that matter to secondaries only: refresh, retry, expire; then what negative answers live.
    let numbers = [serial, 7200, 1800, 86_400, settings.ttl];
    let names = [b"\x02ns\x03dns".as_slice(), domain, b"\x0ahostmaster", domain].concat();
    names.into_iter().chain(numbers.into_iter().flat_map(u32::to_be_bytes)).collect()
}
