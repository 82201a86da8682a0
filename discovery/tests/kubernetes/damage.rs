//! Unusual and damaged objects among good ones.

use serde_json::{Value, json};

use super::*;

/// Placeholders for JSON values that the library cannot represent.
const DEEP: &str = "DEEP";

/// 10,000 levels: a recursive parser overflows its stack.
fn text(object: &Value) -> String {
    let deep = "{\"f:a\":".repeat(10_000) + "1" + &"}".repeat(10_000);
    object
        .to_string()
        .replace(&format!("\"{DEEP}\""), &deep)
        .replace("\"HUGE NUMBER\"", &format!("1{}", "0".repeat(400)))
}

fn set(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    *object.pointer_mut(path).unwrap() = value;
    object
}

/// The object with that number under another name.
fn odd(resource: Resource, number: u8) -> Value {
    good(resource, number)
}

/// Values that tenants and conformance tests have put into fields that Portolan does not use.
#[tokio::test]
async fn unusual_value_in_an_unused_field_changes_nothing() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    let values = [
        json!(null),
        json!("-0001-12-31T23:00:00Z"),
        json!("10000-01-01T00:00:00Z"),
        json!(17),
        json!({"a": []}),
        json!(DEEP),
        json!("HUGE NUMBER"),
        json!("x".repeat(1_000_000)),
    ];
    let mut number = 2;
    for value in values {
        for resource in ALL {
            let mut object = odd(resource, number);
            for path in [
                "/metadata/creationTimestamp",
                "/metadata/managedFields/0/time",
                "/metadata/managedFields/0/fieldsV1",
            ] {
                object = set(&object, path, value.clone());
            }
            for path in ["/status/conditions/0/lastTransitionTime", "/status/conditions/0/lastHeartbeatTime"]
            {
                if object.pointer(path).is_some() {
                    object = set(&object, path, value.clone());
                }
            }
            object["metadata"]["ownerReferences"] = value.clone();
            object["unknown"] = value.clone();
            server.put(resource, &format!("good-{number}"), &text(&object));
        }
        let last = fixture.until("the odd objects", |snapshot| has_all(snapshot, &[1, number])).await;
        assert_eq!(errors(&last), [""; 0]);
        number += 1;
    }
    for resource in ALL {
        assert_eq!(server.watches(resource), 1, "one watch of {resource:?} has seen all of it");
    }
    let numbers: Vec<u8> = (1..number).collect();
    let again = discovery(&fixture.access, &Recorder::default());
    until(&again, "all of it after a restart", |snapshot| has_all(snapshot, &numbers)).await;
}

/// Go writes `null` for an absent value, in any field.
#[tokio::test]
async fn null_is_an_absent_field() {
    let server = Server::start();
    let fixture = Fixture::start(&server);
    let mut object = good(Resource::Services, 1);
    for field in [
        "externalIPs",
        "loadBalancerSourceRanges",
        "sessionAffinityConfig",
        "healthCheckNodePort",
        "externalName",
        "publishNotReadyAddresses",
        "trafficDistribution",
        "internalTrafficPolicy",
        "selector",
        "ipFamilies",
        "clusterIPs",
    ] {
        object["spec"][field] = Value::Null;
    }
    object["spec"]["ports"][0]["targetPort"] = Value::Null;
    object["metadata"]["annotations"] = Value::Null;
    server.put(Resource::Services, "good-1", &object.to_string());
    let mut object = good(Resource::EndpointSlices, 1);
    for field in ["conditions", "nodeName", "zone", "targetRef", "hints", "hostname"] {
        object["endpoints"][0][field] = Value::Null;
    }
    server.put(Resource::EndpointSlices, "good-1", &object.to_string());
    server.put(
        Resource::EndpointSlices,
        "empty",
        &set(&set(&object, "/endpoints", json!(null)), "/metadata/name", json!("empty")).to_string(),
    );
    let object = set(&good(Resource::Nodes, 1), "/spec/taints", Value::Null);
    server.put(Resource::Nodes, "good-1", &set(&object, "/metadata/labels", Value::Null).to_string());
    let last = fixture.until("objects with nulls", |snapshot| {
        [Resource::Services, Resource::EndpointSlices, Resource::Nodes]
            .iter()
            .all(|resource| has(snapshot, *resource, 1))
    });
    let last = last.await;
    assert_eq!(errors(&last), [""; 0]);
}

/// A field of each kind that is used, set to a wrong type.
const USED: [(Resource, &str); 6] = [
    (Resource::Services, "/spec/ports/0/port"),
    (Resource::EndpointSlices, "/endpoints/0/addresses"),
    (Resource::Nodes, "/status/addresses"),
    (Resource::Namespaces, "/metadata/labels"),
    (Resource::Pods, "/status/podIPs"),
    (Resource::ServiceCidrs, "/spec/cidrs"),
];

#[tokio::test]
async fn unreadable_object_keeps_its_last_good_state_and_affects_no_other() {
    let server = Server::start();
    [1, 2].iter().for_each(|number| put_good(&server, *number));
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1, 2])).await;
    for (resource, path) in USED {
        server.put(resource, "good-2", &set(&good(resource, 2), path, json!("wrong")).to_string());
        let mut never = good(resource, 9);
        never["metadata"]["name"] = json!("never-good");
        server.put(resource, "never-good", &set(&never, path, json!({"a": 1})).to_string());
    }
    put_good(&server, 3);
    let is_reported = |snapshot: &Snapshot| {
        USED.iter().all(|(resource, _)| {
            let name = |name: &str| {
                if is_namespaced(*resource) { format!("default/{name}") } else { name.to_owned() }
            };
            ["good-2", "never-good"].iter().all(|object| {
                let prefix = format!("Kubernetes API: {} {}: ", resource.kind(), name(object));
                errors(snapshot).iter().any(|error| error.starts_with(&prefix))
            }) && snapshot.sources[resource.source()].invalid == 2
        })
    };
    let is_so =
        |snapshot: &Snapshot| has_all(snapshot, &[1, 2, 3]) && is_reported(snapshot) && !snapshot.is_stale();
    fixture.until("the last good state, and the reports", is_so).await;
    ALL.iter().for_each(|resource| assert_eq!(server.watches(*resource), 1));

    // A daemon that starts now has no last good state of these two, but all others.
    let again = discovery(&fixture.access, &Recorder::default());
    until(&again, "the others after a restart", |s| has_all(s, &[1, 3]) && is_reported(s)).await;

    // Repaired, and deleted.
    put_good(&server, 2);
    USED.iter().for_each(|(resource, _)| server.delete(*resource, "never-good"));
    let is_so = |snapshot: &Snapshot| has_all(snapshot, &[1, 2, 3]) && errors(snapshot).is_empty();
    fixture.until("no more errors", is_so).await;
    until(&again, "no more errors after a restart", is_so).await;
}

#[tokio::test]
async fn line_that_is_no_event_affects_no_other() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    for (number, line) in
        (2..).zip(["nonsense", "{\"type\":\"NEW\",\"object\":{}}", "{\"type\":\"ADDED\"}", "[]", "{}"])
    {
        for resource in ALL {
            let mut state = server.state();
            state.version += 1;
            server.say(state, resource, line.to_owned());
        }
        put_good(&server, number);
        fixture.until(line, |snapshot| has_all(snapshot, &[1, number]) && !snapshot.is_stale()).await;
    }
}

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| paths(value, &format!("{at}/{}", key.replace('/', "~1")), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| paths(item, &format!("{at}/{index}"), found))
        }
        _ => {}
    }
}

/// An object with some fields missing, `null`, of another type, huge, or deep. The name stays.
fn damaged(random: &mut Random, resource: Resource, number: u8) -> String {
    let mut object = good(resource, number);
    for _ in 0..=random.below(3) {
        let mut all = Vec::new();
        paths(&object, "", &mut all);
        let path = all.swap_remove(random.below(all.len()));
        let is_kept = ["", "/metadata", "/metadata/name", "/metadata/namespace", "/metadata/resourceVersion"];
        let Some((parent, key)) = path.rsplit_once('/').filter(|_| !is_kept.contains(&path.as_str())) else {
            continue;
        };
        let value = match random.below(9) {
            0 => json!(null),
            1 => json!(-1),
            2 => json!("x"),
            3 => json!("y".repeat(200_000)),
            4 => json!(DEEP),
            5 => json!([null, 1, "x", {}]),
            6 => json!("HUGE NUMBER"),
            7 => json!(vec![json!({"port": 1, "addresses": ["x"]}); 5_000]),
            _ => {
                match object.pointer_mut(parent).unwrap() {
                    Value::Object(fields) => {
                        fields.remove(&key.replace("~1", "/"));
                    }
                    Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                    _ => unreachable!(),
                }
                continue;
            }
        };
        *object.pointer_mut(&path).unwrap() = value;
    }
    text(&object)
}

#[tokio::test]
async fn fuzz_good_objects_are_always_served_among_random_damaged_ones() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    let mut random = Random(15);
    for round in 2..12 {
        for _ in 0..20 {
            let resource = ALL[random.below(ALL.len())];
            // Names and numbers that no good object has.
            let number = 200 + u8::try_from(random.below(20)).unwrap();
            let json = damaged(&mut random, resource, number);
            server.put(resource, &format!("good-{number}"), &json);
        }
        put_good(&server, round);
        let numbers: BTreeSet<u8> = (1..=round).collect();
        let numbers: Vec<u8> = numbers.into_iter().collect();
        fixture.until("good objects among damaged ones", |snapshot| has_all(snapshot, &numbers)).await;
        let again = discovery(&fixture.access, &Recorder::default());
        until(&again, "the same after a restart", |snapshot| has_all(snapshot, &numbers)).await;
    }
    ALL.iter()
        .for_each(|resource| assert_eq!(server.watches(*resource), 1 + 10, "{resource:?} was listed again"));
}

/// The proxy records an Event about the object.
#[tokio::test]
async fn object_that_cannot_be_used_has_an_event() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let access = server.access(directory.path());
    let mut tasks = JoinSet::new();
    let recorder =
        Recorder::start(&ControlPlane::Kubernetes(access.clone()), "portolan-proxy", "node-1", &mut tasks);
    let _discovery = discovery(&access, &recorder);
    for (resource, path) in USED {
        let damaged = set(&good(resource, 1), path, json!("wrong"));
        server.put(resource, "good-1", &damaged.to_string());
    }
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    loop {
        let events = server.state().events.clone();
        let is_about = |resource: Resource| {
            events.iter().any(|event| {
                event["regarding"]["kind"] == resource.kind()
                    && event["regarding"]["name"] == "good-1"
                    && event["regarding"]["uid"] == "uid-good-1"
                    && event["reason"] == "InvalidObject"
                    && event["note"].as_str().is_some_and(|note| note.contains("invalid type"))
            })
        };
        if USED.iter().all(|(resource, _)| is_about(*resource)) {
            assert_eq!(events.len(), USED.len(), "one for each: {events:#?}");
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{events:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
