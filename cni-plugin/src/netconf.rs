//! The network configuration: first as written, then validated.

mod bandwidth;
mod bridge;
mod config;
mod ports;
mod route;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use attachment::PortMapping;
use ipnetwork::IpNetwork;
use serde::Deserialize as _;
use serde_json::Value;

use crate::args::is_valid_id;
use crate::error::{Code, Error, Result};
use crate::ipam::{RangeSet, Store};
use crate::role::Role;

pub(crate) use bandwidth::{Bandwidth, Limit};
pub(crate) use bridge::Bridge;
pub(crate) use config::Config;
pub(crate) use route::{Route, RouteOptions};
pub(crate) use wire::WireRange;
use wire::{Wire, lower_field_names, without_nulls};

/// Default directory of the state of one boot: addresses, records, the networks' notes.
pub(crate) const DEFAULT_STATE_DIR: &str = "/run/portolan";

/// Default cooldown of an address in seconds: the lifetime of stale conntrack entries and DNS caches.
const DEFAULT_COOLDOWN: u32 = 30;

/// Longest network name in bytes: names of files and of nft sets contain it, and both are limited to 255.
const MAX_NAME: usize = 240;

/// What every command needs. DEL and GC need nothing else, so they work with a configuration that is no
/// longer valid.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) role: Role,
    pub(crate) cni_version: Option<String>,
    pub(crate) name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) ipam_dir: PathBuf,
    /// Type of a delegated IPAM plugin.
    pub(crate) delegate: Option<String>,
    /// Cooldown of an address in seconds.
    pub(crate) cooldown: u32,
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct NetConf {
    pub(crate) header: Header,
    pub(crate) version: String,
    /// The bridge of the pods; `None` in mode `routed`.
    pub(crate) bridge: Option<Bridge>,
    /// `None`: the MTU of the uplink.
    pub(crate) mtu: Option<u32>,
    /// Whether traffic to destinations outside the pod networks is masqueraded.
    pub(crate) masquerade: bool,
    /// Destinations that see the pod's own address even with masquerading.
    pub(crate) exclusions: Vec<IpNetwork>,
    pub(crate) ranges: Vec<RangeSet>,
    /// Routes of the pod in place of the default route.
    pub(crate) routes: Vec<Route>,
    /// A resolv.conf file for the settings that `dns` does not have.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Requested addresses, at most one per range set.
    pub(crate) requested: Vec<IpAddr>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) dns: Value,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) port_mappings: Vec<PortMapping>,
    pub(crate) bandwidth: Bandwidth,
    /// The proxy's health endpoint, if STATUS should check it.
    pub(crate) service_proxy: Option<SocketAddr>,
    pub(crate) prev_result: Option<Value>,
}

impl Header {
    pub(crate) fn parse(role: Role, raw: &Value) -> Result<Self> {
        let cni_version = match &raw["cniVersion"] {
            Value::Null => None,
            Value::String(version) => Some(version.clone()),
            other => return Err(Error::new(Code::Decode, format!("cniVersion: {other} is not a string"))),
        };
        let name = raw["name"].as_str().unwrap_or_default().to_owned();
        if !is_valid_id(&name) {
            let rule = "a network's name begins with a letter or digit and continues with letters, digits, _, . or -";
            return Err(invalid(format!("name: {}: {rule}", raw["name"])));
        }
        let directory = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from);
        let state_dir = directory(&raw["stateDir"]).unwrap_or_else(|| DEFAULT_STATE_DIR.into());
        let delegate = raw["ipam"]["type"].as_str().filter(|kind| !kind.is_empty() && *kind != "portolan");
        let delegate = delegate.filter(|_| role != Role::HostLocal);
        // Reservations of delegated plugins have their own directory: the plugin may be this one under
        // another name.
        let own = state_dir.join(if delegate.is_some() { "delegated" } else { "ipam" });
        let data_dir = directory(&raw["ipam"]["dataDir"]).filter(|_| delegate.is_none());
        let ipam_dir = data_dir.unwrap_or(own).join(&name);
        let cooldown = match &raw["ipam"]["cooldown"] {
            // The reference plugin has no cooldown.
            Value::Null if role == Role::HostLocal => 0,
            Value::Null => DEFAULT_COOLDOWN,
            // An invalid value is an error when the whole configuration is parsed. DEL and GC ignore it.
            value => value.as_u64().and_then(|s| u32::try_from(s).ok()).unwrap_or(DEFAULT_COOLDOWN),
        };
        let delegate = delegate.map(str::to_owned);
        Ok(Self { role, cni_version, name, state_dir, ipam_dir, delegate, cooldown })
    }

    /// Whether the network cannot have pods of any version, because its name is too long for a file.
    pub(crate) fn has_impossible_name(&self) -> bool {
        self.name.len() + ".json".len() > 255
    }

    /// The store of the reservations.
    pub(crate) fn reservations(&self) -> Store {
        Store::new(self.ipam_dir.clone(), self.cooldown)
    }

    /// The stores of earlier configurations: with another `ipam.type`, or another `ipam.dataDir` (`noted`).
    pub(crate) fn former_reservations(&self, noted: &[PathBuf]) -> Vec<Store> {
        let own = ["ipam", "delegated"].map(|kind| self.state_dir.join(kind).join(&self.name));
        let mut directories: Vec<&PathBuf> = own.iter().chain(noted).collect();
        directories.retain(|directory| **directory != self.ipam_dir);
        directories.sort();
        directories.dedup();
        directories.into_iter().map(|directory| Store::new(directory.clone(), self.cooldown)).collect()
    }

    /// The records that ADD writes for the daemons.
    pub(crate) fn attachments(&self) -> attachment::Store {
        attachment::Store::new(self.state_dir.join("attachments"))
    }
}

impl NetConf {
    pub(crate) fn parse(header: &Header, config: &Config, version: &str) -> Result<Self> {
        if header.name.len() > MAX_NAME {
            return Err(invalid(format!("name: {:?} has more than {MAX_NAME} bytes", header.name)));
        }
        let mut written = without_nulls(&config.value);
        if let Some(runtime_config) = written.get_mut("runtimeConfig") {
            lower_field_names(runtime_config);
        }
        let wire = Wire::deserialize(&written).map_err(|e| invalid(format!("network configuration: {e}")))?;
        let bridge = bridge(header, wire.mode.as_deref(), &written)?;
        if let Some(mtu) = wire.mtu
            && mtu != 0
            && !(68..=65_535).contains(&mtu)
        {
            return Err(invalid(format!("mtu: {mtu} is not between 68 and 65535")));
        }
        if let Some(bridge) = &bridge
            && bridge.disable_container_interface
            && (header.delegate.is_some() || written["ipam"].as_object().is_some_and(|ipam| !ipam.is_empty()))
        {
            return Err(invalid("disableContainerInterface: an interface that is down has no use for ipam"));
        }
        let ranges =
            if header.delegate.is_some() { Vec::new() } else { ranges(header, bridge.is_some(), &wire)? };
        let mut exclusions = Vec::new();
        for (index, text) in wire.non_masquerade_cidrs.iter().enumerate() {
            exclusions.push(parse_cidr(&format!("nonMasqueradeCIDRs[{index}]"), text)?);
        }
        exclusions.extend(ranges.iter().flat_map(RangeSet::subnets));
        let mac = [&wire.runtime_config.mac, &wire.args.cni.mac].into_iter().flatten();
        let mac = mac.map(String::as_str).find(|mac| !mac.is_empty()).map(parse_mac).transpose()?;
        let requested = requested(&wire)?;
        let prev_result = written.get("prevResult").cloned();
        if prev_result.as_ref().is_some_and(|previous| !previous.is_object()) {
            return Err(Error::new(Code::Decode, "prevResult is not a result object"));
        }
        Ok(Self {
            version: version.to_owned(),
            mtu: wire.mtu.filter(|mtu| *mtu != 0),
            // The defaults of the reference plugins, when called as one of them.
            masquerade: wire.ip_masq.unwrap_or_else(|| bridge.is_none() && header.role == Role::Portolan),
            bridge,
            header: header.clone(),
            exclusions,
            ranges,
            requested,
            mac,
            dns: dns(&wire),
            labels: wire.args.cni.labels.into_iter().map(|label| (label.key, label.value)).collect(),
            port_mappings: ports::parse(config.port_mappings.as_deref())?,
            bandwidth: Bandwidth::parse(wire.runtime_config.bandwidth.as_ref())?,
            routes: wire.ipam.routes,
            resolv_conf: wire.ipam.resolv_conf.filter(|path| !path.as_os_str().is_empty()),
            service_proxy: service_proxy(wire.service_proxy.as_deref())?,
            prev_result,
        })
    }
}

impl NetConf {
    /// Whether frames from another MAC address than the pod's are dropped.
    pub(crate) fn checks_mac(&self) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.mac_spoof_check)
    }
}

fn bridge(header: &Header, written: Option<&str>, raw: &Value) -> Result<Option<Bridge>> {
    // `mode` and `bridge` may be keys of the main plugin if this one does IPAM only: macvlan has a `bridge`
    // too.
    let is_bridge = match written.filter(|_| header.role != Role::HostLocal) {
        Some("bridge") => true,
        Some("routed") => false,
        Some(other) => return Err(invalid(format!("mode: {other:?} is not \"routed\" or \"bridge\""))),
        None => header.role == Role::Bridge || (header.role == Role::Portolan && Bridge::is_meant(raw)),
    };
    is_bridge.then(|| Bridge::parse(raw)).transpose()
}

fn ranges(header: &Header, is_bridged: bool, wire: &Wire) -> Result<Vec<RangeSet>> {
    let mut sets = Vec::new();
    for (index, set) in wire.runtime_config.ip_ranges.iter().enumerate() {
        sets.push(RangeSet::parse(&format!("runtimeConfig.ipRanges[{index}]"), set)?);
    }
    if wire.ipam.single.subnet.is_some() {
        sets.push(RangeSet::parse("ipam", std::slice::from_ref(&wire.ipam.single))?);
    }
    for (index, set) in wire.ipam.ranges.iter().enumerate() {
        sets.push(RangeSet::parse(&format!("ipam.ranges[{index}]"), set)?);
    }
    if sets.is_empty() && is_bridged {
        // A bridge without addresses.
        return Ok(sets);
    }
    if sets.is_empty() {
        return Err(invalid(
            "ipam.ranges is missing: name at least one subnet, such as [[{\"subnet\": \"10.22.0.0/16\"}]]",
        ));
    }
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..index].iter().find(|other| other.overlaps(set)) {
            return Err(invalid(format!("ipam.ranges: {set} overlaps {other}")));
        }
    }
    if is_bridged || header.role == Role::HostLocal {
        sets = sets.into_iter().map(RangeSet::with_gateways).collect();
    }
    Ok(sets)
}

fn requested(wire: &Wire) -> Result<Vec<IpAddr>> {
    let of_runtime = wire.runtime_config.ips.iter().map(|ip| ("runtimeConfig.ips", ip));
    let of_args = wire.args.cni.ips.iter().map(|ip| ("args.cni.ips", ip));
    let mut requested = Vec::new();
    for (field, text) in of_runtime.chain(of_args) {
        let address = parse_requested(field, text)?;
        // The same address requested in two ways is one request.
        if !requested.contains(&address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

/// A requested address, with or without a prefix length.
pub(crate) fn parse_requested(field: &str, text: &str) -> Result<IpAddr> {
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_e| invalid(format!("{field}: {text:?} is not an IP address")))
}

/// The proxy's health endpoint, if it is configured.
fn service_proxy(text: Option<&str>) -> Result<Option<SocketAddr>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = |_| {
        let message = format!("serviceProxy: {text:?} is not ADDRESS:PORT, such as 127.0.0.1:10256");
        Error::new(Code::InvalidConfig, message)
    };
    text.parse().map(Some).map_err(wrong)
}

/// The pod's DNS settings. Those of the runtime take precedence.
fn dns(wire: &Wire) -> Value {
    let (servers, search, options) = match &wire.runtime_config.dns {
        Some(dns) => (&dns.servers, &dns.searches, &dns.options),
        None => (&wire.dns.nameservers, &wire.dns.search, &wire.dns.options),
    };
    let mut dns = serde_json::Map::new();
    for (key, values) in [("nameservers", servers), ("search", search), ("options", options)] {
        if !values.is_empty() {
            dns.insert(key.to_owned(), values.clone().into());
        }
    }
    if let Some(domain) = &wire.dns.domain {
        dns.insert("domain".to_owned(), domain.clone().into());
    }
    Value::Object(dns)
}

pub(crate) fn parse_cidr(field: &str, text: &str) -> Result<IpNetwork> {
    let parsed: Option<IpNetwork> = text.parse().ok().filter(|_| text.contains('/'));
    let Some(cidr) = parsed else {
        return Err(invalid(format!("{field}: {text:?} is not a range of addresses such as 10.22.0.0/16")));
    };
    if cidr.ip() != cidr.network() {
        let right = format!("{}/{}", cidr.network(), cidr.prefix());
        return Err(invalid(format!("{field}: {text:?} has host bits set; the range is {right}")));
    }
    Ok(cidr)
}

/// A unicast MAC address, six bytes in hexadecimal.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split([':', '-']).map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    let mac = mac.filter(|mac| mac[0] & 1 == 0);
    mac.ok_or_else(|| invalid(format!("{text:?} is not a unicast MAC address such as c2:11:22:33:44:55")))
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, message)
}

#[cfg(test)]
mod tests;
