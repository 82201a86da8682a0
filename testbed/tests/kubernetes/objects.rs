//! Objects that an API server accepts, stores and serves, and that not every client can read: each costs itself, at most.

use serde_json::{Value, json};

use super::*;

/// What a user with the role `edit`, or a controller, may do to objects of each kind.
struct Odd {
    kind: &'static str,
    name: String,
    manifest: String,
}

fn odd_objects(round: usize) -> [Odd; 6] {
    let (name, labels) = (format!("ill-{round}"), "labels: {a: b}");
    let simple = |kind: &str, more: &str| {
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, {labels}}}\n{more}\n")
    };
    let object = |kind, name: &str, manifest| Odd { kind, name: name.to_owned(), manifest };
    [
        object("service", &name, service(&name, &format!(", clusterIP: 10.96.9.{round}"))),
        object("endpointslice", &format!("{name}-1"), slice(&name, &["10.77.0.1"])),
        object("node", &name, simple("Node", "")),
        object("namespace", &name, simple("Namespace", "")),
        object("pod", &name, simple("Pod", "spec: {nodeName: node-1, containers: [{name: c, image: none}]}")),
        object(
            "servicecidr",
            &name,
            simple("ServiceCIDR", &format!("spec: {{cidrs: [10.201.{round}.0/24]}}"))
                .replace("apiVersion: v1", "apiVersion: networking.k8s.io/v1"),
        ),
    ]
}

/// A patch of what a client may say of itself: a time that is none in RFC 3339, or fields nested 200 deep.
fn odd_patches() -> [(&'static str, Value, &'static str); 3] {
    let deep = (0..200).fold(json!({}), |inner, _| json!({ "f:a": inner }));
    [
        ("time", json!("0000-01-01T00:00:00+01:00"), "\"-0001-12-31T23:00:00Z\""),
        ("time", json!("9999-12-31T23:59:59-01:00"), "\"10000-01-01T00:59:59Z\""),
        ("fieldsV1", deep, "\"f:a\":{\"f:a\":{\"f:a\":"),
    ]
}

fn patch(ground: &Ground, odd: &Odd, (field, value, served): &(&str, Value, &str)) {
    // A change of something else, or the server takes the old fields for the new ones. It must not take away all that the manager has set.
    let (path, labels) = match odd.kind {
        "service" => ("/metadata/labels", json!({ "c": "d" })),
        _ => ("/metadata/labels/c", json!("d")),
    };
    let patch = json!([
        {"op": "replace", "path": format!("/metadata/managedFields/0/{field}"), "value": value},
        {"op": "add", "path": path, "value": labels},
    ]);
    let Odd { kind, name, .. } = odd;
    let arguments = ["patch", kind, name, "--field-manager=kubectl", "--type=json", "-p", &patch.to_string()];
    ground.control_plane.kubectl(&arguments, "").unwrap();
    let path = match *kind {
        "node" | "namespace" => format!("/api/v1/{kind}s/{name}"),
        "servicecidr" => format!("/apis/networking.k8s.io/v1/servicecidrs/{name}"),
        "endpointslice" => format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}"),
        _ => format!("/api/v1/namespaces/default/{kind}s/{name}"),
    };
    let stored = ground.control_plane.kubectl(&["get", "--raw", &path], "").unwrap();
    assert!(stored.contains(served), "{kind}: {served} is not what the server serves: {stored}");
}

/// All of it is served, nothing is stale, nothing is wrong.
fn expect_followed(ground: &Ground, replica: &str) {
    ground.expect("web", replica);
    let page = ground.page("127.0.0.1:10256/readyz?verbose").unwrap();
    assert!(
        page.contains("readyz check passed") && !page.contains("error:") && !page.contains("s old"),
        "{page}"
    );
    for source in ["services", "endpointslices", "nodes", "servicecidrs"] {
        for name in ["stale_seconds", "invalid_objects"] {
            let name = format!("portolan_proxy_source_{name}{{source=\"kubernetes/{source}\"}}");
            assert_eq!(ground.metric("127.0.0.1:10249", &name).unwrap(), 0.0, "{name}");
        }
    }
    assert!(!ground.cluster.logs().contains("the watch broke"), "{}", ground.cluster.logs());
}

/// "Services should complete a service status lifecycle" of the conformance tests leaves such a Service behind.
#[test]
fn service_condition_without_a_time_costs_nothing() {
    let mut ground = Ground::new();
    let replicas = ["web-1", "web-2"].map(|name| ground.replica(name));
    ground.apply(&service("ill", ", clusterIP: 10.96.9.9"));
    let status = json!({"status": {"conditions": [{"type": "A", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": null}]}});
    let arguments =
        ["patch", "service", "ill", "--subresource=status", "--type=merge", "-p", &status.to_string()];
    ground.control_plane.kubectl(&arguments, "").unwrap();
    let stored = ground
        .control_plane
        .kubectl(&["get", "--raw", "/api/v1/namespaces/default/services/ill"], "")
        .unwrap();
    assert!(stored.contains("\"lastTransitionTime\":null"), "{stored}");
    ground.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    expect_followed(&ground, "web-1");
    ground.cluster.restart_proxy().unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    expect_followed(&ground, "web-2");
    // It is no less a Service than the other one.
    ground.expect_refusal("10.96.9.9:80");
    let address = ground.cluster.node.shell("dig +short @10.96.0.10 ill.default.svc.cluster.local").unwrap();
    assert_eq!(address.trim(), "10.96.9.9");
}

#[test]
fn odd_managed_fields_of_any_kind_cost_nothing() {
    // No controller makes the account that a pod would ask for.
    let mut ground = Ground::with(&["--disable-admission-plugins=ServiceAccount"]);
    let replicas = ["web-1", "web-2"].map(|name| ground.replica(name));
    ground.apply(&names::ROLES.replace("[services, namespaces]", "[services, namespaces, pods]"));
    let dns = names::start(&ground, &["--pods=verified"]);
    for (number, odd_patch) in odd_patches().iter().enumerate() {
        for odd in odd_objects(number) {
            ground.apply(&odd.manifest);
            patch(&ground, &odd, odd_patch);
        }
        ground.apply(&(service("web", "") + &slice("web", &[&replicas[number % 2].0.ip])));
        expect_followed(&ground, &replicas[number % 2].0.name);
        names::expect(&ground, &format!("round-{number}.default.svc"), "NXDOMAIN", "");
        ground.apply(&service(&format!("round-{number}"), &format!(", clusterIP: 10.96.8.{number}")));
        names::expect(
            &ground,
            &format!("round-{number}.default.svc"),
            "NOERROR",
            &format!("10.96.8.{number}"),
        );
    }
    drop(dns);
    // And a daemon that starts now reads all of it.
    ground.cluster.restart_proxy().unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    expect_followed(&ground, "web-2");
    let _dns = names::start(&ground, &["--pods=verified"]);
    names::expect(&ground, "round-0.default.svc", "NOERROR", "10.96.8.0");
}

/// KEP-5311: names are labels as RFC 1123 has them.
#[test]
fn service_names_may_begin_with_a_digit() {
    let ground = Ground::new();
    let (pod, _server) = ground.replica("web-1");
    for name in ["1web", "8080", "2-0-0-10"] {
        let slice = slice(name, &[&pod.ip]);
        let slice = slice.replace(&format!("service-name: {name}"), &format!("service-name: '{name}'"));
        ground.apply(&(service(&format!("'{name}'"), "") + &slice));
        ground.expect(&format!("{name}.default.svc.cluster.local"), "web-1");
        let address = ground.cluster.virtual_ip(name).unwrap();
        assert_eq!(ground.client.ask(&format!("{address}:80")).unwrap(), "web-1");
    }
}
