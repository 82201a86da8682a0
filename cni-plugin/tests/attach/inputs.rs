//! Configurations that users write for the reference plugins, and what runtimes send.

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, config, merge};

fn call(fixture: &Fixture, id: &str, args: &str, config: &Value) -> Result<Value, Value> {
    let netns = fixture.netns(id);
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", netns.to_str().unwrap()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
    ];
    fixture.plugin.call(&variables, &config.to_string()).unwrap()
}

/// What containerd 1.6 sends for CoreDNS's own pod: in Go an empty list is null.
#[test]
fn null_values_as_written_by_go_are_accepted() {
    let fixture = Fixture::new();
    let sent = json!({
        "ipMasq": null, "mtu": null, "args": null, "nonMasqueradeCIDRs": null,
        "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24", "rangeStart": null, "gateway": null }]], "routes": null },
        "dns": { "nameservers": null, "search": null, "options": null },
        "runtimeConfig": {
            "portMappings": null, "bandwidth": null, "ipRanges": null, "ips": null, "mac": null, "aliases": null,
            "dns": { "Servers": ["10.96.0.10"], "Searches": ["a.example"], "Options": null },
        },
        "capabilities": null, "prevResult": null,
    });
    for (id, more) in
        [("routed", json!({})), ("bridged", json!({ "bridge": "br0", "isGateway": null, "vlan": null }))]
    {
        let config = merge(merge(config("1.1.0"), sent.clone()), more);
        let result = call(&fixture, id, "", &config).unwrap();
        assert_eq!(result["dns"], json!({ "nameservers": ["10.96.0.10"], "search": ["a.example"] }));
        let nulls =
            json!({ "interfaces": result["interfaces"], "ips": result["ips"], "routes": null, "dns": null });
        fixture.quiet("CHECK", id, &merge(config.clone(), json!({ "prevResult": nulls })));
        fixture.quiet("STATUS", id, &config);
        fixture.quiet("DEL", id, &config);
    }
    fixture.node().shell("ip link del br0").unwrap();
    let no_attachments = json!({ "cni.dev/valid-attachments": null, "ipam": null });
    fixture.quiet("GC", "x", &merge(config("1.1.0"), no_attachments));
    fixture.assert_nothing_left();
}

#[test]
fn arguments_without_a_value_are_absent_and_booleans_ignore_case() {
    let fixture = Fixture::new();
    let given =
        call(&fixture, "a", "IgnoreUnknown=True;IP=;MAC=;K8S_POD_NAME=;X=y", &config("1.1.0")).unwrap();
    assert_eq!(address(&given), "10.22.0.1");
    for (id, args) in [("b", "IgnoreUnknown=FALSE;X=y"), ("c", "IgnoreUnknown=yes")] {
        assert_eq!(call(&fixture, id, args, &config("1.1.0")).unwrap_err()["code"], 4);
    }
    // Two requests of one set, in different fields.
    let asking = merge(config("1.1.0"), json!({ "runtimeConfig": { "ips": ["10.22.0.8"] } }));
    let error = call(&fixture, "d", "IP=10.22.0.7", &asking).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("10.22.0.8 and 10.22.0.7 are requested"), "{error}");
    assert_eq!(address(&call(&fixture, "e", "IP=10.22.0.8/24", &asking).unwrap()), "10.22.0.8");
}

#[test]
fn mac_address_of_args_is_applied() {
    let fixture = Fixture::new();
    let args = json!({ "args": { "cni": { "mac": "02:00:00:00:00:17" } } });
    let capability = json!({ "runtimeConfig": { "mac": "02:00:00:00:00:18" } });
    for (number, more) in [json!({}), json!({ "bridge": "br0" })].into_iter().enumerate() {
        let config = merge(merge(config("1.1.0"), args.clone()), more);
        for (what, config, expected) in
            [("args", config.clone(), "17"), ("both", merge(config, capability.clone()), "18")]
        {
            let id = format!("{what}{number}");
            call(&fixture, &id, "MAC=02:00:00:00:00:16", &config).unwrap();
            let link = fixture.json(&format!("ip -n {id} -j link show eth0"));
            assert_eq!(link[0]["address"], format!("02:00:00:00:00:{expected}"));
            fixture.quiet("DEL", &id, &config);
        }
    }
}

#[test]
fn routes_have_the_options_of_cni_1_1_and_older_results_do_not() {
    let fixture = Fixture::new();
    let routes = json!([
        { "dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1300, "priority": 77 },
        { "dst": "10.9.0.0/16", "table": 99 },
        { "dst": "10.8.0.0/16", "scope": 253 },
    ]);
    for (id, more) in [("routed", json!({})), ("bridged", json!({ "bridge": "br0", "isGateway": true }))] {
        let ipam = json!({ "ranges": [[{ "subnet": "10.22.0.0/24" }]], "routes": routes, "cooldown": 0 });
        let config = merge(merge(config("1.1.0"), json!({ "ipam": ipam })), more);
        let result = call(&fixture, id, "", &config).unwrap();
        let shown_routes = &result["routes"];
        assert_eq!(
            (&shown_routes[0]["mtu"], &shown_routes[0]["advmss"], &shown_routes[0]["priority"]),
            (&json!(1400), &json!(1300), &json!(77))
        );
        assert_eq!((&shown_routes[1]["table"], &shown_routes[2]["scope"]), (&json!(99), &json!(253)));
        let shown = fixture.node().shell(&format!("ip -n {id} route show table all")).unwrap();
        let line =
            |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        let default = line("default");
        assert!(
            ["mtu 1400", "advmss 1300", "metric 77"].iter().all(|part| default.contains(part)),
            "{shown}"
        );
        assert!(line("10.9.0.0/16").contains("table 99"), "{shown}");
        assert!(
            line("10.8.0.0/16").contains("scope link") && !line("10.8.0.0/16").contains("via"),
            "{shown}"
        );
        fixture.quiet("CHECK", id, &merge(config.clone(), json!({ "prevResult": result })));
        let old = merge(config.clone(), json!({ "cniVersion": "1.0.0" }));
        let result = call(&fixture, &format!("{id}-old"), "", &old).unwrap();
        assert!(result["routes"][0].get("mtu").is_none(), "{result}");
    }
}
