//! The addresses that the built-in IPAM or another IPAM plugin assigns to a pod.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Delegated, InUse, delegate, resolv_conf};
use crate::error::{Code, Error, Result};
use crate::netconf::{NetConf, Route, parse_requested};
use crate::request::Request;
use crate::rollback::Rollback;

/// Addresses with routes and DNS.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Assignment {
    pub(crate) leases: Vec<Lease>,
    pub(crate) routes: Vec<Route>,
    /// As in a result: a JSON object.
    pub(crate) dns: Value,
}

/// One address with its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// With the prefix length of its subnet.
    pub(crate) address: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
}

impl Assignment {
    /// The addresses without prefix lengths.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.leases.iter().map(|lease| lease.address.ip()).collect()
    }

    /// Parses the result of an IPAM plugin or of ADD.
    pub(crate) fn parse(field: &str, result: &Value) -> Result<Self> {
        let items = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
        let (mut ips, mut routes) = (items(result, "ips"), items(result, "routes"));
        // CNI 0.1.0 and 0.2.0 have one address per family, each with its own routes.
        for old in [&result["ip4"], &result["ip6"]].into_iter().filter(|old| old.is_object()) {
            ips.push(json!({ "address": old["ip"], "gateway": old["gateway"] }));
            routes.extend(items(old, "routes"));
        }
        let leases = ips.iter().map(|ip| Lease::parse(field, ip)).collect::<Result<_>>()?;
        let wrong = |e| Error::new(Code::Decode, format!("{field}: routes: {e}"));
        let routes = serde_json::from_value(routes.into()).map_err(wrong)?;
        let dns = if result["dns"].is_object() { result["dns"].clone() } else { json!({}) };
        Ok(Self { leases, routes, dns })
    }
}

impl Lease {
    /// Parses an item of `ips`.
    pub(crate) fn parse(field: &str, ip: &Value) -> Result<Self> {
        let text = ip["address"].as_str().unwrap_or_default();
        let wrong =
            || Error::new(Code::Decode, format!("{field}: address {text:?} is not one with a prefix length"));
        let address: IpNetwork = text.parse().ok().filter(|_| text.contains('/')).ok_or_else(wrong)?;
        let gateway = ip["gateway"].as_str().map(|text| parse_requested(&format!("{field}: gateway"), text));
        Ok(Self { address, gateway: gateway.transpose()? })
    }
}

/// Reserves addresses. The rollback releases them if ADD fails.
pub(crate) fn assign<'a>(
    request: &'a Request,
    conf: &'a NetConf,
    in_use: InUse<'_>,
    rollback: &mut Rollback<'a>,
) -> Result<Assignment> {
    let Request { args, config, .. } = request;
    let owner = args.owner();
    let reservations = conf.header.reservations();
    if let Some(kind) = &conf.header.delegate {
        // Record the owner without addresses: GC then finds what a killed ADD left.
        reservations.reserve(&owner, &[], &[], in_use)?;
        rollback.push(move || {
            let _ = conf.header.reservations().release(&args.owner());
        });
        // Even a failed delegate may have reserved something (CNI 1.1 §4).
        rollback.push(move || {
            let _ = delegate(kind, "DEL", args, &config.text);
        });
        let result = delegate(kind, "ADD", args, &config.text)?.unwrap_or_default();
        let given = Assignment::parse(&format!("result of IPAM plugin {kind}"), &result)?;
        if given.leases.is_empty() {
            return Err(Error::new(Code::InvalidConfig, format!("IPAM plugin {kind} gave no address")));
        }
        let delegated = Delegated { kind: kind.clone(), config: config.complete(), result };
        reservations.record_delegated(&owner, delegated)?;
        return Ok(given);
    }
    let mut requested = conf.requested.clone();
    if let Some(ip) = args.extra.get("IP") {
        let address = parse_requested("CNI_ARGS IP", ip)?;
        if !requested.contains(&address) {
            requested.push(address);
        }
    }
    let addresses = reservations.reserve(&owner, &conf.ranges, &requested, in_use)?;
    rollback.push(move || {
        let _ = conf.header.reservations().release(&owner);
    });
    let lease = |address: &IpAddr| {
        let lease = conf.ranges.iter().find_map(|set| set.lease(*address));
        lease.expect("an address comes from one of the sets")
    };
    let dns = match &conf.resolv_conf {
        Some(path) => resolv_conf::read(path)?,
        None => json!({}),
    };
    Ok(Assignment { leases: addresses.iter().map(lease).collect(), routes: conf.routes.clone(), dns })
}
