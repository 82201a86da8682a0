//! Random and damaged objects among good ones, from a fixed seed. The good ones must always be served.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::*;
use crate::index::Index;
use crate::model::{IpFamily, NamespacedName};
use crate::snapshot::Snapshot;

const SEEDS: u64 = 60;

/// The number of ways in which a good Service `good-N` gets its endpoint.
const WAYS: usize = 2;

fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "shop", "labels": {"a": "b"}, "annotations": {"portolan.dev/balancer": "random"},
            "creationTimestamp": "2026-11-30T12:00:00Z",
            "managedFields": [{"manager": "m", "time": "2026-11-30T12:00:00Z", "fieldsV1": {"f:spec": {"f:ports": {}}}}],
        },
        "spec": {
            "type": "LoadBalancer", "selector": selector, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "externalTrafficPolicy": "Cluster", "sessionAffinity": "None", "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
        "status": {
            "loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}]},
            "conditions": [{"type": "T", "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-11-30T12:00:00Z"}],
        },
    })
}

fn slice(name: &str, service: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": ["10.22.0.9"], "conditions": {"ready": true}, "nodeName": "n1", "zone": "z1",
            "hints": {"forZones": [{"name": "z1"}]}, "targetRef": {"kind": "Pod", "name": "p"},
        }],
    })
}

fn pod(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {
            "nodeName": "n1", "hostname": "h", "subdomain": "s", "readinessGates": [],
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
        },
        "status": {
            "podIP": "10.22.0.9", "podIPs": [{"ip": "10.22.0.9"}], "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-30T12:00:00Z"}],
        },
    })
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.23.0.0/24", "podCIDRs": ["10.23.0.0/24"], "taints": [{"key": "k", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]},
    })
}

/// The objects of one good Service.
fn good(number: usize) -> Vec<Value> {
    let name = format!("good-{number}");
    match number % WAYS {
        0 => vec![service(&name, json!({"app": name})), pod(&format!("{name}-pod"), &name)],
        _ => vec![slice(&format!("{name}-slice"), &name), service(&name, Value::Null)],
    }
}

/// An object with one to four damaged fields.
fn bad(number: usize) -> Value {
    let name = format!("bad-{number}");
    let mut object = match fastrand::u8(..5) {
        0 => service(&name, json!({"app": name})),
        1 => slice(&name, &name),
        2 => pod(&name, &name),
        3 => node(&name),
        _ => json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
    };
    for _ in 0..fastrand::usize(1..5) {
        let mut paths = Vec::new();
        collect(&object, &mut String::new(), &mut paths);
        let Some(path) = fastrand::choice(&paths) else { break };
        if fastrand::u8(..4) == 0 {
            remove(&mut object, path);
        } else if let Some(field) = object.pointer_mut(path) {
            *field = damage();
        }
    }
    object
}

/// The path of every value below the root.
fn collect(value: &Value, at: &mut String, paths: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let length = at.len();
        at.push('/');
        at.push_str(&key.replace('~', "~0").replace('/', "~1"));
        paths.push(at.clone());
        // A value as deep as this is a damage.
        if at.len() < 200 {
            collect(value, at, paths);
        }
        at.truncate(length);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| below(&index.to_string(), item))
        }
        _ => {}
    }
}

fn remove(object: &mut Value, path: &str) {
    let Some((parent, key)) = path.rsplit_once('/') else { return };
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.remove(&key.replace("~1", "/").replace("~0", "~"));
        }
        Some(Value::Array(items)) => drop(items.pop()),
        _ => {}
    }
}

fn damage() -> Value {
    let deep = |levels: usize| {
        let wrap = |inner: Value, level: usize| match level % 2 {
            0 => Value::Array(vec![inner]),
            _ => Value::Object(Map::from_iter([("f:x".to_owned(), inner)])),
        };
        (0..levels).fold(Value::Null, wrap)
    };
    match fastrand::u8(..14) {
        0 => Value::Null,
        1 => json!(fastrand::bool()),
        2 => json!(*fastrand::choice(&[i64::MIN, -1, 0, 1, 70_000, i64::MAX]).unwrap()),
        3 => json!(1e300),
        4 => json!(""),
        5 => json!("x".repeat(fastrand::usize(1..20_000))),
        6 => json!("-0001-12-31T23:00:00Z"),
        7 => json!("10000-01-01T00:00:00Z"),
        8 => json!("\u{feff}\u{202e} \u{1f4a9} ---"),
        9 => json!([]),
        10 => json!([null, null]),
        11 => json!({}),
        12 => json!({"": null, "a": {"b": [1, "2", {}]}}),
        _ => deep(fastrand::usize(1..240)),
    }
}

/// The text of a file with these objects, in a random format. Damaged documents may be among them.
fn file(objects: &[Value]) -> String {
    if fastrand::u8(..3) == 0 {
        return json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    }
    let nonsense =
        ["a: [b", "\t\tx: 1", "{", "- 1", "42", "%&!", "kind: [Service]", "\"open", "a: *b", "? ? ?"];
    let mut text = String::new();
    for object in objects {
        text += &format!("---\n{object}\n");
        if fastrand::u8(..4) == 0 {
            text += &format!("---\n{}\n", fastrand::choice(&nonsense).unwrap());
        }
        if fastrand::u8(..16) == 0 {
            text += &format!("---\n{}\n", "[".repeat(fastrand::usize(1..5_000)));
        }
    }
    text
}

fn check(snapshot: &Snapshot, number: usize, at: &str) {
    let name = NamespacedName::new("shop", format!("good-{number}"));
    let entry = snapshot.service(&name).unwrap_or_else(|| panic!("{at}: no Service {name}"));
    assert_eq!(entry.cluster_ips.len(), 1, "{at}: {name}");
    let found = entry.endpoints(&entry.service.ports[0], IpFamily::V4, None, |_| false);
    let found: Vec<String> = found.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(found, ["10.22.0.9:8080"], "{at}: {name}");
}

#[test]
fn damaged_objects_do_not_affect_good_ones() {
    for seed in 0..SEEDS {
        fastrand::seed(seed);
        let mut manifests = Manifests::new("/nowhere".into());
        let mut index = Index::new(vec!["10.96.0.0/12".parse().unwrap()]);
        index.expect_source(MANIFESTS);
        // Write some files again, with other damage.
        for round in 0..2 {
            let mut files: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
            for number in 0..6 {
                files.entry(number % 3).or_default().extend(good(number));
            }
            for number in 0..12 {
                files.entry(fastrand::usize(..4)).or_default().push(bad(number));
            }
            let write = |(number, mut objects): (usize, Vec<Value>)| {
                fastrand::shuffle(&mut objects);
                (PathBuf::from(format!("{number}.yaml")), Ok(file(&objects).into_bytes()))
            };
            let changed = files.into_iter().map(write).collect();
            manifests
                .events(Ok(Changes { changed, removed: Vec::new() }))
                .into_iter()
                .for_each(|event| index.apply(event));
            index.publish();
            let snapshot = index.snapshot();
            for number in 0..6 {
                check(&snapshot, number, &format!("seed {seed}, round {round}"));
            }
        }
    }
}
