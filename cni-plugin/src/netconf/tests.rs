//! How configurations are interpreted.

use serde_json::json;

use super::*;

/// A configuration with every known key.
fn full(more: Value) -> Value {
    let range = json!({
        "subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9", "rangeEnd": "10.22.0.99", "gateway": "10.22.0.1",
    });
    let route = json!({
        "dst": "10.9.0.0/16", "gw": "10.22.0.1", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 7, "scope": 0,
    });
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "portolan-cni", "mtu": 1400, "ipMasq": false,
        "nonMasqueradeCIDRs": ["10.0.0.0/8"], "serviceProxy": "127.0.0.1:10256", "stateDir": "/run/other",
        "ipam": {
            "type": "portolan", "dataDir": "/run/kept", "cooldown": 7, "resolvConf": "/etc/resolv.conf",
            "routes": [route],
            "ranges": [[range]],
            "subnet": "10.23.0.0/24", "rangeStart": "10.23.0.9", "rangeEnd": "10.23.0.99", "gateway": "10.23.0.1",
        },
        "dns": {
            "nameservers": ["10.96.0.10"], "domain": "example.org", "search": ["a.example"],
            "options": ["ndots:5"],
        },
        "args": { "cni": {
            "labels": [{ "key": "app", "value": "web" }], "ips": ["10.22.0.10"], "mac": "02:00:00:00:00:07",
        } },
        "runtimeConfig": {
            "portMappings": [
                { "hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.2" },
            ],
            "ips": ["10.23.0.10/24"], "mac": "02:00:00:00:00:08",
            "ipRanges": [[{ "subnet": "10.24.0.0/24" }]],
            "dns": { "servers": ["10.96.0.11"], "searches": ["b.example"], "options": ["edns0"] },
            "bandwidth": {
                "ingressRate": 8000, "ingressBurst": 80000, "egressRate": 8000, "egressBurst": 80000,
            },
        },
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": "/x" }],
            "ips": [{ "address": "10.25.0.1/24", "gateway": "10.25.0.2", "interface": 0 }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.25.0.2" }], "dns": {},
        },
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn meaning(role: Role, raw: &Value) -> std::result::Result<String, String> {
    let header = Header::parse(role, raw);
    let conf = header.and_then(|header| NetConf::parse(&header, &Config::parse(raw.to_string())?, "1.1.0"));
    conf.map(|conf| format!("{conf:?}")).map_err(|e| e.message)
}

/// The JSON pointers of every key of every object in `value`.
fn keys(value: &Value, at: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            found.push((at.to_owned(), key.clone()));
            keys(value, &format!("{at}/{key}"), found);
        }),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| keys(item, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

#[test]
fn null_value_of_any_key_means_the_key_is_absent() {
    let bridge = json!({
        "mode": "bridge", "bridge": "br0", "isGateway": true, "isDefaultGateway": true, "forceAddress": true,
        "hairpinMode": true,
        "promiscMode": false, "macspoofchk": true, "enabledad": true, "portIsolation": true,
        "disableContainerInterface": false,
        "vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true,
    });
    for (role, config) in [
        (Role::Portolan, full(json!({}))),
        (Role::Portolan, full(bridge.clone())),
        (Role::Bridge, full(bridge)),
        (Role::HostLocal, full(json!({}))),
    ] {
        let mut all = Vec::new();
        keys(&config, "", &mut all);
        assert!(all.len() > 60, "{}", all.len());
        for (at, key) in all {
            let (mut null, mut removed) = (config.clone(), config.clone());
            null.pointer_mut(&at).unwrap()[&key] = Value::Null;
            removed.pointer_mut(&at).unwrap().as_object_mut().unwrap().remove(&key);
            assert_eq!(meaning(role, &null), meaning(role, &removed), "{role:?} {at}/{key}");
        }
    }
}

#[test]
fn requests_by_several_ways_are_combined_and_equal_ones_count_once() {
    let requested = |more: Value| {
        let raw = full(more);
        let header = Header::parse(Role::Portolan, &raw).unwrap();
        let config = Config::parse(raw.to_string()).unwrap();
        let conf = NetConf::parse(&header, &config, "1.1.0").unwrap();
        (conf.requested.iter().map(IpAddr::to_string).collect::<Vec<_>>(), conf.mac)
    };
    let args = json!({ "cni": { "ips": ["10.23.0.10"], "mac": "02:00:00:00:00:07" } });
    let (ips, mac) = requested(json!({ "args": args }));
    assert_eq!((ips, mac.unwrap()[5]), (vec!["10.23.0.10".to_owned()], 8));
    let (ips, mac) = requested(json!({ "args": args, "runtimeConfig": { "mac": "", "ips": [] } }));
    assert_eq!((ips, mac.unwrap()[5]), (vec!["10.23.0.10".to_owned()], 7));
    let (_, mac) = requested(json!({ "args": { "cni": { "mac": "" } }, "runtimeConfig": {} }));
    assert_eq!(mac, None);
}

#[test]
fn port_0_is_refused() {
    for (port, name) in [
        (json!({ "hostPort": 0, "containerPort": 80 }), "hostPort"),
        (json!({ "hostPort": 80, "containerPort": 0 }), "containerPort"),
    ] {
        let error = meaning(Role::Portolan, &full(json!({ "runtimeConfig": { "portMappings": [port] } })));
        assert_eq!(error.unwrap_err(), format!("runtimeConfig.portMappings[0].{name}: 0 is not a port"));
    }
}
