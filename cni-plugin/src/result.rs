//! The result of ADD, in the shape of the version that was asked for (CNI 1.1 §5).

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::netconf::NetConf;
use crate::routed::{alone, gateway, pod_routes};

/// What ADD has made.
pub(crate) struct Attached<'a> {
    pub(crate) host_interface: &'a str,
    pub(crate) host_mac: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) mac: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) mtu: u32,
    pub(crate) addresses: &'a [IpAddr],
}

/// Our result behind what plugins before us in the chain have made.
pub(crate) fn result(conf: &NetConf, attached: &Attached<'_>) -> Value {
    let previous = conf.prev_result.clone().unwrap_or_else(|| json!({}));
    let list = |key: &str| previous[key].as_array().cloned().unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let index = interfaces.len() + 1;
    let has_mtu = conf.version == "1.1.0";
    let interface = |name: &str, mac: &str, sandbox: &str| {
        let mut interface = json!({ "name": name, "mac": mac, "sandbox": sandbox });
        if has_mtu {
            interface["mtu"] = attached.mtu.into();
        }
        interface
    };
    interfaces.push(interface(attached.host_interface, attached.host_mac, ""));
    interfaces.push(interface(attached.ifname, attached.mac, attached.netns));
    for address in attached.addresses {
        let mut ip = json!({ "address": alone(*address), "gateway": gateway(*address), "interface": index });
        if conf.version.starts_with("0.") {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ips.push(ip);
    }
    for (destination, gateway) in pod_routes(&conf.routes, attached.addresses) {
        routes.push(json!({ "dst": destination, "gw": gateway }));
    }
    let dns =
        if conf.dns.as_object().is_none_or(serde_json::Map::is_empty) { &previous["dns"] } else { &conf.dns };
    let dns = if dns.is_null() { json!({}) } else { dns.clone() };
    json!({ "cniVersion": conf.version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns })
}
