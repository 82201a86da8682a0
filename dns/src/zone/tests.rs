use std::collections::{BTreeMap, BTreeSet};

use clap::Parser as _;
use discovery::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, FamilyPolicy, IpFamily, Protocol, ProxyClass,
    ServiceKind, ServicePort, TargetPort, TrafficRules,
};
use discovery::{Event, Index, Location, Object, Origin, Sourced};

use super::*;

/// Few addresses of Services and endpoints, so that they collide often.
const ADDRESSES: [&str; 6] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.22.0.1", "10.22.0.2", "10.22.0.3"];

fn pick<T: Clone>(from: &[T]) -> T {
    fastrand::choice(from).cloned().expect("a choice")
}

fn any_name(names: &[&str]) -> NamespacedName {
    NamespacedName::new(pick(&["default", "other"]), pick(names))
}

fn any_service() -> Object {
    let requested = || vec![pick(&ADDRESSES[..3]).parse().unwrap()];
    let kind = match fastrand::u8(..3) {
        0 => ServiceKind::Headless,
        1 => ServiceKind::ExternalName("example.com".into()),
        _ => ServiceKind::ClusterIp { requested: requested(), families: FamilyPolicy(vec![IpFamily::V4]) },
    };
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        target_port: TargetPort::Number(8080),
        node_port: None,
    };
    let service = discovery::model::Service {
        name: any_name(&["web", "api", "db"]),
        kind,
        ports: vec![port],
        selector: BTreeMap::new(),
        publish_not_ready: false,
        rules: TrafficRules::default(),
    };
    Object::Service(service.into())
}

fn any_slice() -> Object {
    let name = any_name(&["s1", "s2", "s3"]);
    let endpoint = |address: &str| Endpoint {
        address: address.parse().unwrap(),
        conditions: Conditions { ready: fastrand::bool(), ..Conditions::READY },
        hostname: fastrand::bool().then(|| "one".into()),
        pod: None,
        node_name: None,
        zone: None,
        hints: None,
    };
    let slice = EndpointSlice {
        service: NamespacedName::new(Arc::clone(&name.namespace), pick(&["web", "api", "db"])),
        name,
        proxy_class: ProxyClass::Default,
        triggered_at: None,
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..fastrand::usize(..3)).map(|_| endpoint(pick(&ADDRESSES[3..]))).collect(),
    };
    Object::EndpointSlice(slice.into())
}

fn any_event() -> Event {
    let objects =
        (0..fastrand::usize(..4)).map(|_| if fastrand::bool() { any_service() } else { any_slice() });
    let location = || Location::File { file: "x.yaml".into(), line: None, document: None };
    let objects = objects.map(|object| Sourced { object, location: location() }).collect();
    let origin = Origin::Manifest(pick(&["a.yaml", "b.yaml", "c.yaml"]).into());
    Event::Replace { origin, objects: Some(objects), problems: Vec::new() }
}

/// Everything that can be queried.
#[derive(Debug, PartialEq)]
struct Picture {
    /// Owner, type, RDATA.
    records: BTreeSet<(Vec<u8>, u16, Vec<u8>)>,
    /// Names of each address.
    pointers: BTreeMap<&'static str, Vec<Vec<u8>>>,
    namespaces: BTreeSet<Box<[u8]>>,
}

fn picture(zone: &Zone) -> Picture {
    let mut records = BTreeSet::new();
    for service in zone.services.values() {
        service.records(&mut |owner, kind, content| {
            records.insert((owner.wire().to_vec(), kind, content.to_vec()));
        });
    }
    let pointers = |address: &&'static str| {
        let mut names = Vec::new();
        zone.visit(Node::Pointer(address.parse().unwrap()), kind::PTR, &mut |name, _| {
            names.push(name.to_vec());
            true
        });
        assert_eq!(zone.reverse.contains(address.parse().unwrap()), !names.is_empty(), "{address}");
        (*address, names)
    };
    let namespaces = zone.namespaces.iter().cloned().collect();
    Picture { records, pointers: ADDRESSES.iter().map(pointers).collect(), namespaces }
}

fn settings(flags: &[&str]) -> Settings {
    let arguments = ["portolan-dns", "--upstream", "192.0.2.1"].iter().chain(flags);
    let config = crate::Config::from(crate::Args::try_parse_from(arguments).unwrap());
    Settings {
        domain: NameBuf::from_text("cluster.local").unwrap(),
        ttl: 5,
        names: config.names,
        service_cidrs: config.discovery.service_cidrs,
        listen: Vec::new(),
    }
}

#[test]
fn incremental_changes_lead_to_the_same_zone_as_a_complete_computation() {
    for flags in [&[][..], &["--compat=coredns"], &["--ignore-empty-service"], &["--namespaces=default"]] {
        let settings = Arc::new(settings(flags));
        for seed in 0..100 {
            fastrand::seed(seed);
            let mut index = Index::new(settings.service_cidrs.clone());
            let mut zone = Zone::empty(Arc::clone(&settings));
            for step in 0..20 {
                // Some snapshots are skipped, as in a burst.
                for _ in 0..fastrand::u8(1..3) {
                    index.apply(any_event());
                    index.publish();
                }
                zone = zone.next(&index.snapshot(), &mut |_, _| {});
                let fresh = Zone::empty(Arc::clone(&settings)).next(&index.snapshot(), &mut |_, _| {});
                assert_eq!(picture(&zone), picture(&fresh), "{flags:?}, seed {seed}, step {step}");
                assert_eq!(zone.numbered.len(), zone.services.len());
            }
        }
    }
}

#[test]
fn serial_only_increases() {
    let at = |seconds: u64| UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    assert_eq!(next_serial(None, at(3_000_000_000)), 3_000_000_000);
    assert_eq!(next_serial(Some(1000), at(1007)), 1007);
    assert_eq!(next_serial(Some(1000), at(1000)), 1001, "twice within a second");
    assert_eq!(next_serial(Some(1000), at(900)), 1001, "a clock put back");
    // RFC 1982 §3.2: a 32-bit number is greater than the 2^31 before it.
    assert_eq!(next_serial(Some(u32::MAX), at((1 << 32) + 5)), 5);
    assert_eq!(next_serial(Some(u32::MAX), at(u64::from(u32::MAX))), 0);
}

#[test]
fn serial_changes_with_every_change_and_only_then() {
    let settings = Arc::new(settings(&[]));
    let mut index = Index::new(settings.service_cidrs.clone());
    let mut zone = Zone::empty(settings);
    let mut next = |event: Event| {
        index.apply(event);
        index.publish();
        zone = zone.next(&index.snapshot(), &mut |_, _| {});
        zone.serial
    };
    let replace = |objects: Vec<Object>| {
        let location = || Location::File { file: "x.yaml".into(), line: None, document: None };
        let objects = objects.into_iter().map(|object| Sourced { object, location: location() }).collect();
        Event::Replace { origin: Origin::Manifest("x.yaml".into()), objects: Some(objects), problems: vec![] }
    };
    let mut last = next(Event::Synced("manifests"));
    for _ in 0..10 {
        for objects in [vec![any_service()], vec![]] {
            let serial = next(replace(objects));
            assert!(serial > last, "{serial:?} after {last:?}");
            last = serial;
        }
    }
    assert_eq!(next(Event::Source { name: "manifests", failure: None }), last);
}
