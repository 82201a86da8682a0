//! All names of one Service (Kubernetes DNS-Based Service Discovery 1.1.0).

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use discovery::ServiceEntry;
use discovery::model::{Protocol, ServiceKind};

use super::target::{self, Target, parse_dashed};
use super::{Node, Settings};
use crate::message::{Malformed, Name, NameBuf, kind};

/// A Service with its records.
#[derive(Debug)]
pub(crate) struct Service {
    entry: Arc<ServiceEntry>,
    /// The number by which addresses refer to it.
    pub(super) number: u32,
    name: NameBuf,
    v4: Box<[[u8; 4]]>,
    v6: Box<[[u8; 16]]>,
    /// Virtual IPs; empty for a headless Service.
    cluster_ips: Box<[IpAddr]>,
    /// Ready endpoints, by label.
    targets: Box<[Target]>,
    /// The target of an ExternalName Service.
    alias: Option<NameBuf>,
    /// CoreDNS's behaviour: every endpoint has a PTR record, and empty non-terminals do not exist.
    is_coredns: bool,
}

impl Service {
    /// `None` if the name is too long to be queried, or a headless Service has no endpoint.
    pub(super) fn new(entry: &Arc<ServiceEntry>, number: u32, settings: &Settings) -> Option<Self> {
        let mut name = NameBuf::default();
        name.push_label(entry.service.name.name.as_bytes()).ok()?;
        name.push_label(entry.service.name.namespace.as_bytes()).ok()?;
        name.push_label(b"svc").ok()?;
        name.push_name(settings.domain.as_name()).ok()?;
        name.make_lower();
        let names = &settings.names;
        let is_headless = matches!(entry.service.kind, ServiceKind::Headless);
        let alias = match &entry.service.kind {
            ServiceKind::ExternalName(target) => Some(NameBuf::from_text(target).ok()?),
            _ => None,
        };
        let targets =
            if alias.is_some() { Vec::new() } else { target::ready(entry, names.endpoint_pod_names) };
        let is_virtual = matches!(entry.service.kind, ServiceKind::ClusterIp { .. });
        if names.ignore_empty_service && is_virtual && targets.is_empty() {
            return None;
        }
        let mut addresses: Vec<IpAddr> = if is_headless {
            targets.iter().map(|target| target.address).collect()
        } else {
            entry.cluster_ips.clone()
        };
        addresses.sort_unstable();
        addresses.dedup();
        if is_headless && addresses.is_empty() {
            return None;
        }
        let v4 = addresses.iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        });
        Some(Self {
            entry: Arc::clone(entry),
            number,
            name,
            v4: v4.collect(),
            v6: v6.collect(),
            cluster_ips: if is_headless { Box::default() } else { entry.cluster_ips.as_slice().into() },
            targets: targets.into(),
            alias,
            is_coredns: names.is_coredns(),
        })
    }

    /// The target of an ExternalName Service.
    pub(crate) fn alias(&self) -> Option<&NameBuf> {
        self.alias.as_ref()
    }

    fn is_headless(&self) -> bool {
        matches!(self.entry.service.kind, ServiceKind::Headless)
    }

    fn points_to_endpoints(&self) -> bool {
        self.is_headless() || self.is_coredns
    }

    /// All addresses with a PTR record to one of its names.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let endpoints =
            self.targets.iter().filter(|_| self.points_to_endpoints()).map(|target| target.address);
        self.cluster_ips.iter().copied().chain(endpoints)
    }

    /// The node for the labels before its name.
    pub(super) fn node<'z>(&'z self, before: &[&'z [u8]]) -> Option<Node<'z>> {
        match before {
            [] => Some(Node::Service(self)),
            _ if self.alias.is_some() => None,
            [protocol] if protocol.starts_with(b"_") => {
                let exists = self.ports().any(|port| is_label(port.1, protocol) && !port.0.is_empty());
                (exists && !self.is_coredns).then_some(Node::Empty)
            }
            [label] => self.endpoint(label).map(|range| Node::Endpoint(self, range)),
            [port, protocol] => {
                let exists = self.ports().any(|(name, of)| {
                    is_label(of, protocol)
                        && !name.is_empty()
                        && port.strip_prefix(b"_") == Some(name.as_bytes())
                });
                exists.then_some(Node::Port(self, [port, protocol]))
            }
            _ => None,
        }
    }

    /// Names and protocols of all ports with records.
    fn ports(&self) -> impl Iterator<Item = (&str, Protocol)> {
        let headless = self.entry.slices.iter().filter(|slice| {
            self.is_headless() && slice.endpoints.iter().any(|endpoint| endpoint.conditions.ready)
        });
        let headless = headless.flat_map(|slice| &slice.ports).map(|port| (&*port.name, port.protocol));
        let own = self.entry.service.ports.iter().filter(|_| !self.is_headless());
        own.map(|port| (&*port.name, port.protocol)).chain(headless)
    }

    fn endpoint(&self, label: &[u8]) -> Option<(usize, usize)> {
        let text = std::str::from_utf8(label).ok()?;
        let by_name = |target: &Target| target.hostname.as_deref().cmp(&Some(text));
        let start = self.targets.partition_point(|target| by_name(target) == Ordering::Less);
        let end = start + self.targets[start..].partition_point(|target| by_name(target) == Ordering::Equal);
        if start < end {
            return Some((start, end));
        }
        let address = parse_dashed(text)?;
        let key = |target: &Target| (target.hostname.is_some(), target.address).cmp(&(false, address));
        let start = self.targets.partition_point(|target| key(target) == Ordering::Less);
        let end = start + self.targets[start..].partition_point(|target| key(target) == Ordering::Equal);
        (start < end).then_some((start, end))
    }

    pub(super) fn visit(&self, kind: u16, each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool) {
        match kind {
            kind::A => visit_from_any(&self.v4, each),
            kind::AAAA => visit_from_any(&self.v6, each),
            kind::SRV => self.visit_ports(None, each),
            kind::CNAME => {
                if let Some(alias) = &self.alias {
                    each(alias.as_name().wire(), &[]);
                }
            }
            _ => {}
        }
    }

    pub(super) fn visit_endpoint(
        &self,
        (start, end): (usize, usize),
        kind: u16,
        each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool,
    ) {
        let targets = self.targets.get(start..end).unwrap_or_default();
        let mut last = None;
        for address in targets.iter().map(|target| target.address) {
            if last.replace(address) == Some(address) {
                continue;
            }
            let more = match address {
                IpAddr::V4(ip) if kind == kind::A => each(&ip.octets(), &[]),
                IpAddr::V6(ip) if kind == kind::AAAA => each(&ip.octets(), &[]),
                _ => true,
            };
            if !more {
                return;
            }
        }
    }

    /// SRV records: of one port, by its two labels, or of all named ports.
    pub(super) fn visit_ports(
        &self,
        only: Option<(&[u8], &[u8])>,
        each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool,
    ) {
        let is_wanted = |name: &str, protocol: Protocol| {
            !name.is_empty()
                && only.is_none_or(|(port, of)| {
                    is_label(protocol, of) && port.strip_prefix(b"_") == Some(name.as_bytes())
                })
        };
        if !self.is_headless() {
            let ports = &self.entry.service.ports;
            let wanted = ports.iter().filter(|port| is_wanted(&port.name, port.protocol));
            // A port with two protocols has one record at the Service's name (RFC 2181 §5).
            let mut numbers: Vec<u16> = Vec::new();
            for port in wanted {
                if numbers.contains(&port.port) {
                    continue;
                }
                numbers.push(port.port);
                if !each(&srv(1, port.port, None, &self.name), &self.cluster_ips) {
                    return;
                }
            }
            return;
        }
        let start = if self.targets.is_empty() { 0 } else { fastrand::usize(..self.targets.len()) };
        let (tail, head) = self.targets.split_at(start);
        // A group of endpoints with one label must not be split.
        let cut = head
            .iter()
            .take_while(|target| tail.last().is_some_and(|last| last.shares_label(target)))
            .count();
        let (tail, head) = self.targets.split_at(start + cut);
        for group in [head, tail].into_iter().flat_map(|half| half.chunk_by(Target::shares_label)) {
            let mut numbers: Vec<u16> = Vec::new();
            for target in group {
                let ports = self.entry.slices.get(target.slice as usize).map(|slice| &slice.ports);
                let ports = ports.into_iter().flatten().filter(|port| is_wanted(&port.name, port.protocol));
                numbers.extend(ports.map(|port| port.port));
            }
            numbers.sort_unstable();
            numbers.dedup();
            let Some(first) = group.first().filter(|_| !numbers.is_empty()) else { continue };
            let label = first.label();
            let addresses: Vec<IpAddr> = group.iter().map(|target| target.address).collect();
            for number in numbers {
                if !each(&srv(self.targets.len(), number, Some(&label), &self.name), &addresses) {
                    return;
                }
            }
        }
    }

    /// Every record with its owner.
    pub(super) fn records(&self, each: &mut dyn FnMut(Name<'_>, u16, &[u8])) {
        let name = self.name.as_name();
        for kind in [kind::A, kind::AAAA, kind::CNAME, kind::SRV] {
            self.visit(kind, &mut |content, _| {
                each(name, kind, content);
                true
            });
        }
        let mut ports: Vec<(&str, Protocol)> = self.ports().filter(|(port, _)| !port.is_empty()).collect();
        ports.sort_unstable_by_key(|(port, protocol)| (*port, protocol.as_str()));
        ports.dedup();
        for (port, protocol) in ports {
            let labels = [format!("_{port}"), format!("_{protocol}")];
            let Ok(owner) = below(&labels, name) else { continue };
            self.visit_ports(Some((labels[0].as_bytes(), labels[1].as_bytes())), &mut |content, _| {
                each(owner.as_name(), kind::SRV, content);
                true
            });
        }
        let mut start = 0;
        for group in self.targets.chunk_by(Target::shares_label) {
            let range = (start, start + group.len());
            start += group.len();
            let Some(Ok(owner)) = group.first().map(|target| below(&[target.label()], name)) else {
                continue;
            };
            for kind in [kind::A, kind::AAAA] {
                self.visit_endpoint(range, kind, &mut |content, _| {
                    each(owner.as_name(), kind, content);
                    true
                });
            }
        }
    }

    /// The names in the PTR records of an address.
    pub(super) fn names_of(&self, address: IpAddr, names: &mut Vec<NameBuf>) {
        if self.cluster_ips.contains(&address) {
            names.push(self.name.clone());
        }
        if !self.points_to_endpoints() {
            return;
        }
        for target in self.targets.iter().filter(|target| target.address == address) {
            let mut name = NameBuf::default();
            if name.push_label(target.label().as_bytes()).is_ok()
                && name.push_name(self.name.as_name()).is_ok()
            {
                names.push(name);
            }
        }
    }
}

fn below(labels: &[String], name: Name<'_>) -> Result<NameBuf, Malformed> {
    let mut found = NameBuf::default();
    for label in labels {
        found.push_label(label.as_bytes())?;
    }
    found.push_name(name)?;
    Ok(found)
}

/// Visits all, from a random one on: clients use the first, so it should vary.
fn visit_from_any<const N: usize>(addresses: &[[u8; N]], each: &mut dyn FnMut(&[u8], &[IpAddr]) -> bool) {
    let start = if addresses.len() > 1 { fastrand::usize(..addresses.len()) } else { 0 };
    let (tail, head) = addresses.split_at(start);
    head.iter().chain(tail).all(|address| each(address, &[]));
}

/// The weights of all targets add up to about 100, like in CoreDNS; none may be 0 (RFC 2782).
fn srv(count: usize, port: u16, label: Option<&str>, service: &NameBuf) -> Vec<u8> {
    let weight = u16::try_from(100 / count.max(1)).unwrap_or(1).max(1);
    let mut content = [[0, 0], weight.to_be_bytes(), port.to_be_bytes()].concat();
    if let Some(label) = label {
        content.push(u8::try_from(label.len()).unwrap_or_default());
        content.extend_from_slice(label.as_bytes());
    }
    content.extend_from_slice(service.as_name().wire());
    content
}

fn is_label(protocol: Protocol, label: &[u8]) -> bool {
    label.strip_prefix(b"_") == Some(protocol.as_str().as_bytes())
}
