//! From a snapshot to records (Kubernetes DNS-Based Service Discovery 1.1.0).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use discovery::model::{Endpoint, EndpointPort, Protocol, ServiceKind};
use discovery::{ServiceEntry, Snapshot};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, NS, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record};

use super::{Settings, Zone, key};

/// The version of the specification, which every cluster names at `dns-version`.
const SPECIFICATION: &str = "1.1.0";

/// Seconds of the SOA record that matter to secondaries only.
const REFRESH: i32 = 7200;
const RETRY: i32 = 1800;
const EXPIRE: i32 = 86_400;

struct Builder {
    settings: Arc<Settings>,
    names: HashMap<String, Vec<Record>>,
    pointers: HashMap<IpAddr, Vec<Name>>,
}

pub(super) fn build(snapshot: &Snapshot, settings: Arc<Settings>) -> Zone {
    let mut builder =
        Builder { settings: Arc::clone(&settings), names: HashMap::new(), pointers: HashMap::new() };
    let soa = builder.add_apex(snapshot);
    for namespace in &snapshot.namespaces {
        for part in ["svc", "pod"] {
            if let Some(name) = builder.name(&[namespace, part]) {
                builder.add_name(&name);
            }
        }
    }
    // By name, so that two servers with the same state give the same PTR first.
    let mut entries: Vec<_> = snapshot.services().collect();
    entries.sort_by(|a, b| a.service.name.cmp(&b.service.name));
    for entry in entries {
        let (namespace, service) = (&entry.service.name.namespace, &entry.service.name.name);
        // Names that fit no label or are too long in total cannot be asked for.
        let Some(name) = builder.name(&[service, namespace, "svc"]) else { continue };
        match &entry.service.kind {
            ServiceKind::ClusterIp { .. } => builder.add_cluster_ip(entry, &name),
            ServiceKind::Headless => builder.add_headless(entry, &name),
            ServiceKind::ExternalName(target) => builder.add_external_name(target, &name),
        }
    }
    Zone { names: builder.names, pointers: builder.pointers, soa, synced: snapshot.synced, settings }
}

impl Builder {
    /// `labels` below the cluster's domain.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|label| label.as_bytes()))
            .ok()?
            .append_domain(&self.settings.domain)
            .ok()
    }

    /// Makes a name exist, and with it every name between it and the apex.
    fn add_name(&mut self, name: &Name) {
        let mut name = name.clone();
        while self.settings.domain.zone_of(&name) && !self.names.contains_key(&key(&name)) {
            self.names.insert(key(&name), Vec::new());
            name = name.base_name();
        }
    }

    fn add(&mut self, name: &Name, data: RData) {
        self.add_name(name);
        let record = Record::from_rdata(name.clone(), self.settings.ttl, data);
        let records = self.names.entry(key(name)).or_default();
        if !records.contains(&record) {
            records.push(record);
        }
    }

    fn add_address(&mut self, name: &Name, ip: IpAddr) {
        self.add(
            name,
            match ip {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            },
        );
    }

    fn add_pointer(&mut self, ip: IpAddr, name: &Name) {
        let names = self.pointers.entry(ip).or_default();
        if !names.contains(name) {
            names.push(name.clone());
        }
    }

    fn add_apex(&mut self, snapshot: &Snapshot) -> Record {
        let domain = self.settings.domain.clone();
        let server = self.name(&["ns", "dns"]).unwrap_or_else(|| domain.clone());
        let contact = self.name(&["hostmaster"]).unwrap_or_else(|| domain.clone());
        let serial = snapshot.changed_at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        // Serials wrap around (RFC 1982).
        let serial = u32::try_from(serial & u64::from(u32::MAX)).unwrap_or_default();
        let ttl = self.settings.ttl;
        let soa = SOA::new(server.clone(), contact, serial, REFRESH, RETRY, EXPIRE, ttl);
        let soa = Record::from_rdata(domain.clone(), ttl, RData::SOA(soa));
        self.add_name(&domain);
        self.names.insert(key(&domain), vec![soa.clone()]);
        self.add(&domain, RData::NS(NS(server.clone())));
        for listen in self.settings.listen.clone() {
            if !listen.ip().is_unspecified() {
                self.add_address(&server, listen.ip());
            }
        }
        self.add_name(&server);
        if let Some(version) = self.name(&["dns-version"]) {
            self.add(&version, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()])));
        }
        for part in ["svc", "pod"] {
            if let Some(name) = self.name(&[part]) {
                self.add_name(&name);
            }
        }
        soa
    }

    fn add_cluster_ip(&mut self, entry: &ServiceEntry, name: &Name) {
        self.add_name(name);
        for &ip in &entry.cluster_ips {
            self.add_address(name, ip);
            self.add_pointer(ip, name);
        }
        for port in &entry.service.ports {
            self.add_srv(name, &port.name, port.protocol, port.port, name.clone(), 1);
        }
    }

    fn add_headless(&mut self, entry: &ServiceEntry, name: &Name) {
        let ready = || {
            entry.slices.iter().map(|slice| (slice, slice.endpoints.iter().filter(|e| e.conditions.ready)))
        };
        let count = ready().map(|(_, endpoints)| endpoints.count()).sum();
        for (slice, endpoints) in ready() {
            for endpoint in endpoints {
                self.add_endpoint(endpoint, &slice.ports, name, count);
            }
        }
    }

    fn add_endpoint(&mut self, endpoint: &Endpoint, ports: &[EndpointPort], service: &Name, count: usize) {
        let dashed = dashed(endpoint.address);
        let label = endpoint.hostname.as_deref().unwrap_or(&dashed);
        let Ok(name) = service.prepend_label(label) else { return };
        self.add_address(service, endpoint.address);
        self.add_address(&name, endpoint.address);
        self.add_pointer(endpoint.address, &name);
        for port in ports {
            self.add_srv(service, &port.name, port.protocol, port.port, name.clone(), count);
        }
    }

    /// `_port._protocol` below the Service, and at the Service itself; a port without a name has none.
    fn add_srv(
        &mut self,
        service: &Name,
        port: &str,
        protocol: Protocol,
        number: u16,
        target: Name,
        count: usize,
    ) {
        if port.is_empty() {
            return;
        }
        // Weights of all targets add up to about 100, as CoreDNS has them; none may be 0 (RFC 2782).
        let weight = u16::try_from(100 / count.max(1)).unwrap_or(1).max(1);
        let data = RData::SRV(SRV::new(0, weight, number, target));
        let below = service
            .prepend_label(format!("_{protocol}"))
            .and_then(|name| name.prepend_label(format!("_{port}")));
        if let Ok(below) = below {
            self.add(&below, data.clone());
        }
        self.add(service, data);
    }

    fn add_external_name(&mut self, target: &str, name: &Name) {
        let Ok(mut target) = Name::from_ascii(target) else { return };
        target.set_fqdn(true);
        self.add(name, RData::CNAME(CNAME(target)));
    }
}

/// An endpoint without a hostname goes by its address: `10-22-0-7`, `fd00-10-22--7` for `fd00:10:22::7`.
fn dashed(ip: IpAddr) -> String {
    let mut label = ip.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    if label.starts_with('-') {
        label.insert(0, '0');
    }
    label
}
