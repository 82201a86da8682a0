//! The result of ADD, in the format of the requested version (CNI 1.1 §5).

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::ipam::Lease;
use crate::netconf::{NetConf, Route};

/// What ADD created.
pub(crate) struct Attached<'a> {
    /// In order. The pod's interface is the last.
    pub(crate) interfaces: Vec<Interface<'a>>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) routes: Vec<Route>,
    /// Addresses in the pod that the kernel's workers make usable.
    pub(crate) awaited: Vec<IpAddr>,
    /// The DNS settings of IPAM. Those of the configuration take precedence.
    pub(crate) dns: Value,
}

/// One interface.
pub(crate) struct Interface<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: String,
    pub(crate) mtu: u32,
    /// Empty for interfaces of the node.
    pub(crate) netns: &'a str,
}

/// Appends our result to that of the earlier plugins in the chain.
pub(crate) fn result(conf: &NetConf, attached: &Attached<'_>) -> Value {
    let previous = conf.prev_result.clone().unwrap_or_else(|| json!({}));
    let list = |key: &str| previous[key].as_array().cloned().unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    for Interface { name, mac, mtu, netns } in &attached.interfaces {
        let mut interface = json!({ "name": name, "mac": mac, "sandbox": netns });
        if conf.version == "1.1.0" {
            interface["mtu"] = (*mtu).into();
        }
        interfaces.push(interface);
    }
    let index = interfaces.len().saturating_sub(1);
    ips.extend(attached.leases.iter().map(|lease| ip(&conf.version, lease, Some(index))));
    routes.extend(attached.routes.iter().map(|new| route(&conf.version, new)));
    let is_empty = |dns: &Value| dns.as_object().is_none_or(serde_json::Map::is_empty);
    let sources = [&conf.dns, &attached.dns, &previous["dns"]];
    let dns = sources.into_iter().find(|dns| !is_empty(dns)).cloned().unwrap_or_else(|| json!({}));
    shaped(&conf.version, interfaces.into(), ips, routes, dns)
}

/// A result of that version. `interfaces` is null if only addresses are assigned.
pub(crate) fn shaped(
    version: &str,
    interfaces: Value,
    ips: Vec<Value>,
    routes: Vec<Value>,
    dns: Value,
) -> Value {
    if has_one_address_of_each_family(version) {
        let mut result = json!({ "cniVersion": version, "dns": dns });
        for (key, colon) in [("ip4", false), ("ip6", true)] {
            let is_of_family = |text: &Value| text.as_str().is_some_and(|text| text.contains(':') == colon);
            let Some(ip) = ips.iter().find(|ip| is_of_family(&ip["address"])) else { continue };
            let routes =
                routes.iter().filter(|route| is_of_family(&route["dst"])).cloned().collect::<Vec<_>>();
            result[key] = json!({ "ip": ip["address"], "gateway": ip["gateway"], "routes": routes });
        }
        return result;
    }
    let mut result = json!({ "cniVersion": version, "ips": ips, "routes": routes, "dns": dns });
    if !interfaces.is_null() {
        result["interfaces"] = interfaces;
    }
    result
}

/// CNI 0.1.0 and 0.2.0 have no interfaces, and one address per family.
fn has_one_address_of_each_family(version: &str) -> bool {
    ["0.1.0", "0.2.0"].contains(&version)
}

/// An item of `ips`, without an interface if only addresses are assigned.
pub(crate) fn ip(version: &str, lease: &Lease, interface: Option<usize>) -> Value {
    let mut ip = json!({ "address": lease.address });
    if let Some(gateway) = lease.gateway {
        ip["gateway"] = gateway.to_string().into();
    }
    if let Some(index) = interface {
        ip["interface"] = index.into();
    }
    if version.starts_with("0.") {
        ip["version"] = if lease.address.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

/// An item of `routes`. CNI 1.1 added the options.
pub(crate) fn route(version: &str, route: &Route) -> Value {
    match serde_json::to_value(route) {
        Ok(all) if version == "1.1.0" => all,
        _ => {
            let mut item = json!({ "dst": route.dst });
            if let Some(gateway) = route.gw {
                item["gw"] = gateway.to_string().into();
            }
            item
        }
    }
}
