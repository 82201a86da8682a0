//! Unusual objects that an API server accepts and that not every client can parse: they affect no other
//! object.

use serde_json::{Value, json};

use super::*;

/// An object to patch with unusual managed fields, as a user with the role `edit` or a controller may do.
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

/// Returns patches of managed fields: times that are invalid in RFC 3339, and fields nested 200 deep.
fn odd_patches() -> [(&'static str, Value, &'static str); 3] {
    let deep = (0..200).fold(json!({}), |inner, _| json!({ "f:a": inner }));
    [
        ("time", json!("0000-01-01T00:00:00+01:00"), "\"-0001-12-31T23:00:00Z\""),
        ("time", json!("9999-12-31T23:59:59-01:00"), "\"10000-01-01T00:59:59Z\""),
        ("fieldsV1", deep, "\"f:a\":{\"f:a\":{\"f:a\":"),
    ]
}

fn patch(fixture: &Fixture, odd: &Odd, (field, value, served): &(&str, Value, &str)) {
    // The patch also changes a label: otherwise the server keeps the old managed fields. It must not remove
    // all fields of the manager.
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
    fixture.control_plane.kubectl(&arguments, "").unwrap();
    let path = match *kind {
        "node" | "namespace" => format!("/api/v1/{kind}s/{name}"),
        "servicecidr" => format!("/apis/networking.k8s.io/v1/servicecidrs/{name}"),
        "endpointslice" => format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}"),
        _ => format!("/api/v1/namespaces/default/{kind}s/{name}"),
    };
    let stored = fixture.control_plane.kubectl(&["get", "--raw", &path], "").unwrap();
    assert!(stored.contains(served), "{kind}: {served} is not what the server serves: {stored}");
}

/// Checks that the Service is served, and that no source is stale or has invalid objects.
fn expect_in_sync(fixture: &Fixture, replica: &str) {
    fixture.expect("web", replica);
    let page = fixture.page("127.0.0.1:10256/readyz?verbose").unwrap();
    assert!(
        page.contains("readyz check passed") && !page.contains("error:") && !page.contains("s old"),
        "{page}"
    );
    for source in ["services", "endpointslices", "nodes", "servicecidrs"] {
        for name in ["stale_seconds", "invalid_objects"] {
            let name = format!("portolan_proxy_source_{name}{{source=\"kubernetes/{source}\"}}");
            assert_eq!(fixture.metric("127.0.0.1:10249", &name).unwrap(), 0.0, "{name}");
        }
    }
    assert!(!fixture.cluster.logs().contains("the watch broke"), "{}", fixture.cluster.logs());
}

/// "Services should complete a service status lifecycle" of the conformance tests leaves such a Service
/// behind.
#[test]
fn service_condition_without_a_time_is_accepted() {
    let mut fixture = Fixture::new();
    let replicas = ["web-1", "web-2"].map(|name| fixture.replica(name));
    fixture.apply(&service("ill", ", clusterIP: 10.96.9.9"));
    let status = json!({"status": {"conditions": [
        {"type": "A", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": null},
    ]}});
    let arguments =
        ["patch", "service", "ill", "--subresource=status", "--type=merge", "-p", &status.to_string()];
    fixture.control_plane.kubectl(&arguments, "").unwrap();
    let stored = fixture
        .control_plane
        .kubectl(&["get", "--raw", "/api/v1/namespaces/default/services/ill"], "")
        .unwrap();
    assert!(stored.contains("\"lastTransitionTime\":null"), "{stored}");
    fixture.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    expect_in_sync(&fixture, "web-1");
    fixture.cluster.restart_proxy().unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    expect_in_sync(&fixture, "web-2");
    // The Service itself is served too.
    fixture.expect_refusal("10.96.9.9:80");
    let address = fixture.cluster.node.shell("dig +short @10.96.0.10 ill.default.svc.cluster.local").unwrap();
    assert_eq!(address.trim(), "10.96.9.9");
}

#[test]
fn unusual_managed_fields_of_any_kind_are_accepted() {
    // No controller creates the service account that pods need.
    let mut fixture = Fixture::with(&["--disable-admission-plugins=ServiceAccount"]);
    let replicas = ["web-1", "web-2"].map(|name| fixture.replica(name));
    fixture.apply(&names::ROLES.replace("[services, namespaces]", "[services, namespaces, pods]"));
    let dns = names::start(&fixture, &["--pods=verified"]);
    for (number, odd_patch) in odd_patches().iter().enumerate() {
        for odd in odd_objects(number) {
            fixture.apply(&odd.manifest);
            patch(&fixture, &odd, odd_patch);
        }
        fixture.apply(&(service("web", "") + &slice("web", &[&replicas[number % 2].0.ip])));
        expect_in_sync(&fixture, &replicas[number % 2].0.name);
        names::expect(&fixture, &format!("round-{number}.default.svc"), "NXDOMAIN", "");
        fixture.apply(&service(&format!("round-{number}"), &format!(", clusterIP: 10.96.8.{number}")));
        names::expect(
            &fixture,
            &format!("round-{number}.default.svc"),
            "NOERROR",
            &format!("10.96.8.{number}"),
        );
    }
    drop(dns);
    // A restarted daemon reads all objects too.
    fixture.cluster.restart_proxy().unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    expect_in_sync(&fixture, "web-2");
    let _dns = names::start(&fixture, &["--pods=verified"]);
    names::expect(&fixture, "round-0.default.svc", "NOERROR", "10.96.8.0");
}

/// KEP-5311: names are RFC 1123 labels.
#[test]
fn service_names_may_begin_with_a_digit() {
    let fixture = Fixture::new();
    let (pod, _server) = fixture.replica("web-1");
    for name in ["1web", "8080", "2-0-0-10"] {
        let slice = slice(name, &[&pod.ip]);
        let slice = slice.replace(&format!("service-name: {name}"), &format!("service-name: '{name}'"));
        fixture.apply(&(service(&format!("'{name}'"), "") + &slice));
        fixture.expect(&format!("{name}.default.svc.cluster.local"), "web-1");
        let address = fixture.cluster.virtual_ip(name).unwrap();
        assert_eq!(fixture.client.ask(&format!("{address}:80")).unwrap(), "web-1");
    }
}
