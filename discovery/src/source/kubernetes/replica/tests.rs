use serde_json::{Value, json};

use super::*;
use crate::convert::wire::EndpointSlice;

fn slice(name: &str, endpoints: Value) -> Decoded<EndpointSlice> {
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    });
    serde_json::from_str(&object.to_string()).unwrap()
}

fn replica() -> Replica<EndpointSlice> {
    Replica::new(Recorder::default(), false)
}

fn endpoint(address: &str) -> Value {
    json!([{"addresses": [address], "nodeName": "node-1"}])
}

fn list(replica: &mut Replica<EndpointSlice>, slices: &[(&str, Value)]) -> Vec<Event> {
    let mut listing = Listing::default();
    slices.iter().for_each(|(name, endpoints)| replica.collect(&mut listing, slice(name, endpoints.clone())));
    replica.replace(listing)
}

/// `+name` for a change, `-name` for a deletion, `!name` for one with a problem.
fn changes(events: &[Event]) -> Vec<String> {
    let mut names: Vec<String> = events
        .iter()
        .map(|event| match event {
            Event::Replace { origin: Origin::Api(_, name), objects, problems } => {
                let sign = match objects.as_deref() {
                    _ if !problems.is_empty() => '!',
                    Some([]) => '-',
                    _ => '+',
                };
                format!("{sign}{}", name.name)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    names.sort();
    names
}

#[test]
fn list_yields_new_changed_and_deleted_objects_and_nothing_else() {
    let mut replica = replica();
    let first = list(&mut replica, &[("a", endpoint("10.0.0.1")), ("b", endpoint("10.0.0.2"))]);
    assert_eq!(changes(&first), ["+a", "+b"]);
    let second = list(&mut replica, &[("a", endpoint("10.0.0.1")), ("c", endpoint("10.0.0.3"))]);
    assert_eq!(changes(&second), ["+c", "-b"]);
    assert_eq!(
        changes(&list(&mut replica, &[("a", endpoint("10.0.0.9")), ("c", endpoint("10.0.0.3"))])),
        ["+a"]
    );
}

#[test]
fn list_that_ends_early_changes_nothing() {
    let mut replica = replica();
    list(&mut replica, &[("a", endpoint("10.0.0.1")), ("b", endpoint("10.0.0.2"))]);
    let mut broken = Listing::default();
    replica.collect(&mut broken, slice("a", endpoint("10.0.0.9")));
    drop(broken);
    let now = list(&mut replica, &[("a", endpoint("10.0.0.9")), ("b", endpoint("10.0.0.2"))]);
    assert_eq!(changes(&now), ["+a"], "the change was not lost with the incomplete list");
}

#[test]
fn unchanged_objects_are_stored_once() {
    let mut replica = replica();
    list(&mut replica, &[("a", endpoint("10.0.0.1"))]);
    let of = |replica: &Replica<EndpointSlice>| match &replica.known.values().next().unwrap().object {
        Some(Object::EndpointSlice(slice)) => std::sync::Arc::clone(slice),
        other => panic!("{other:?}"),
    };
    let before = of(&replica);
    list(&mut replica, &[("a", endpoint("10.0.0.1"))]);
    assert!(std::sync::Arc::ptr_eq(&before, &of(&replica)));
    assert!(replica.update(slice("a", endpoint("10.0.0.1"))).is_none(), "a heartbeat is no change");
    assert!(std::sync::Arc::ptr_eq(&before, &of(&replica)));
}

#[test]
fn error_is_reported_while_it_lasts_and_the_last_good_state_stays() {
    let mut replica = replica();
    let good = endpoint("10.0.0.1");
    list(&mut replica, &[("a", good.clone())]);
    let wrong = replica.update(slice("a", endpoint("nonsense"))).unwrap();
    assert!(
        matches!(&wrong, Event::Replace { objects: None, problems, .. } if problems.len() == 1),
        "{wrong:?}"
    );
    let mended = replica.update(slice("a", good)).unwrap();
    assert!(matches!(&mended, Event::Replace { objects: Some(_), problems, .. } if problems.is_empty()));
    assert!(replica.update(slice("a", json!([{"addresses": "wrong"}]))).is_some());
    assert!(replica.update(slice("a", json!([{"addresses": "wrong"}]))).is_none(), "reported already");
    assert_eq!(changes(&[replica.remove(&slice("a", json!([]))).unwrap()]), ["-a"]);
    assert!(replica.remove(&slice("a", json!([]))).is_none());
}
