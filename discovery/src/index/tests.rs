use std::net::IpAddr;
use std::path::PathBuf;

use attachment::Attachment;

use super::*;
use crate::event::{ATTACHMENTS, MANIFESTS};
use crate::model::{
    Conditions, Endpoint, EndpointPort, FamilyPolicy, Protocol, ServiceKind, ServicePort, TargetPort,
    TrafficRules,
};
use crate::problem::{Location, Severity};

fn location(file: &str) -> Location {
    Location::File { file: PathBuf::from(file), line: Some(1), document: None }
}

fn service(name: &str, cluster_ip: Option<&str>) -> Service {
    let requested = cluster_ip.map(|ip| ip.parse().unwrap()).into_iter().collect();
    Service {
        name: NamespacedName::new("default", name),
        kind: ServiceKind::ClusterIp { requested, families: FamilyPolicy(vec![crate::model::IpFamily::V4]) },
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target_port: TargetPort::Number(8080),
            node_port: None,
        }],
        selector: [("app".to_owned(), name.to_owned())].into(),
        publish_not_ready: false,
        rules: TrafficRules::default(),
    }
}

fn slice(name: &str, service: &str, address: &str) -> EndpointSlice {
    EndpointSlice {
        name: NamespacedName::new("default", name),
        service: NamespacedName::new("default", service),
        proxy_class: crate::model::ProxyClass::Default,
        triggered_at: None,
        family: crate::model::IpFamily::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint {
            address: address.parse().unwrap(),
            conditions: Conditions::READY,
            hostname: None,
            pod: None,
            node_name: None,
            zone: None,
            hints: None,
        }],
    }
}

fn pod(name: &str, app: &str, ip: Option<&str>) -> Pod {
    Pod {
        name: NamespacedName::new("default", name),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ports: vec![],
        ips: ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
        ready: true,
        terminating: false,
        finished: false,
        hostname: None,
        subdomain: None,
        node_name: Some("n1".into()),
    }
}

fn replace(file: &str, objects: Vec<Object>) -> Event {
    Event::Replace {
        origin: Origin::Manifest(file.into()),
        objects: Some(
            objects.into_iter().map(|object| Sourced { object, location: location(file) }).collect(),
        ),
        problems: Vec::new(),
    }
}

fn index() -> Index {
    let mut index = Index::new(vec!["10.96.0.0/12".parse().unwrap()]);
    index.expect_source(MANIFESTS);
    index.apply(Event::Synced(MANIFESTS));
    index
}

fn entry(index: &Index, name: &str) -> Arc<ServiceEntry> {
    Arc::clone(index.snapshot().service(&NamespacedName::new("default", name)).unwrap())
}

#[test]
fn unchanged_service_keeps_its_entry_and_a_repeated_event_changes_nothing() {
    let mut index = index();
    let web = || Object::Service(service("web", Some("10.96.0.20")).into());
    index.apply(replace("web.yaml", vec![web()]));
    index.apply(replace("api.yaml", vec![Object::Service(service("api", None).into())]));
    assert!(index.publish());
    let before = entry(&index, "web");
    index.apply(replace("web.yaml", vec![web()]));
    assert!(!index.publish(), "the same content again is no change");
    index.apply(replace("api.yaml", vec![]));
    assert!(index.publish());
    assert!(Arc::ptr_eq(&before, &entry(&index, "web")));
    assert!(index.snapshot().service(&NamespacedName::new("default", "api")).is_none());
}

#[test]
fn broken_file_keeps_its_last_good_content() {
    let mut index = index();
    index.apply(replace("web.yaml", vec![Object::Service(service("web", None).into())]));
    let problem = Problem {
        location: location("web.yaml"),
        severity: Severity::Error,
        object: None,
        message: "not YAML".into(),
    };
    let origin = Origin::Manifest("web.yaml".into());
    index.apply(Event::Replace { origin, objects: None, problems: vec![problem.clone()] });
    index.publish();
    entry(&index, "web");
    assert_eq!(index.snapshot().problems, [problem]);
}

#[test]
fn first_origin_by_name_owns_a_contested_name_and_address_whenever_it_was_read() {
    for order in [["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]] {
        let mut index = index();
        for file in order {
            let name = if file == "a.yaml" { "first" } else { "second" };
            let contested = service(name, Some("10.96.0.20"));
            index.apply(replace(file, vec![Object::Service(contested.into())]));
        }
        index.publish();
        assert_eq!(entry(&index, "first").cluster_ips, ["10.96.0.20".parse::<IpAddr>().unwrap()]);
        assert!(entry(&index, "second").cluster_ips.is_empty());
        assert_eq!(
            index.snapshot().problems[0].to_string(),
            "b.yaml:1: Service default/second: spec.clusterIP: 10.96.0.20 already belongs to Service \
             default/first (a.yaml:1); give it another address, or leave the field out to have one assigned"
        );
    }
}

#[test]
fn displaced_assigned_address_returns_when_the_other_service_is_deleted() {
    let mut index = index();
    let addresses = |index: &Index| entry(index, "web").cluster_ips.clone();
    index.apply(replace("web.yaml", vec![Object::Service(service("web", None).into())]));
    index.publish();
    let assigned = addresses(&index);
    let wanted = assigned[0].to_string();
    index.apply(replace("api.yaml", vec![Object::Service(service("api", Some(&wanted)).into())]));
    index.publish();
    assert_eq!(entry(&index, "api").cluster_ips, assigned);
    assert_ne!(addresses(&index), assigned);
    index.apply(replace("api.yaml", vec![]));
    index.publish();
    assert_eq!(addresses(&index), assigned);
}

#[test]
fn same_service_in_two_files_is_reported_at_the_second() {
    let mut index = index();
    index.apply(replace("b.yaml", vec![Object::Service(service("web", Some("10.96.0.21")).into())]));
    index.apply(replace("a.yaml", vec![Object::Service(service("web", Some("10.96.0.20")).into())]));
    index.publish();
    assert_eq!(entry(&index, "web").cluster_ips, ["10.96.0.20".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        index.snapshot().problems[0].to_string(),
        "b.yaml:1: Service default/web: is already defined at a.yaml:1; this definition is ignored"
    );
}

#[test]
fn slices_of_a_service_replace_its_selector_and_are_merged() {
    let mut index = index();
    let pod = pod("web-1", "web", Some("10.22.0.9"));
    index.apply(replace(
        "web.yaml",
        vec![Object::Service(service("web", None).into()), Object::Pod(pod.into())],
    ));
    index.publish();
    let endpoints = |index: &Index| -> Vec<String> {
        let entry = entry(index, "web");
        let found = entry.endpoints(&entry.service.ports[0], crate::model::IpFamily::V4, None, |_| false);
        found.iter().map(|(address, _)| address.to_string()).collect()
    };
    assert_eq!(endpoints(&index), ["10.22.0.9:8080"]);
    let slices =
        [slice("s1", "web", "10.22.0.2"), slice("s2", "web", "10.22.0.3"), slice("s3", "web", "10.22.0.2")];
    index.apply(replace("slices.yaml", slices.map(|s| Object::EndpointSlice(s.into())).into()));
    index.publish();
    assert_eq!(endpoints(&index), ["10.22.0.2:8080", "10.22.0.3:8080"]);
}

#[test]
fn best_entry_of_a_duplicate_address_counts_wherever_it_is() {
    let conditions = |ready, serving, terminating| Conditions { ready, serving, terminating };
    let worst_first = [
        conditions(false, false, true),
        conditions(false, false, false),
        conditions(false, true, true),
        conditions(false, true, false),
        conditions(true, true, true),
        Conditions::READY,
    ];
    for (one, other) in (0..6).flat_map(|one| (0..6).map(move |other| (one, other))) {
        // In one slice, and in two.
        for in_one in [true, false] {
            let mut first = slice("s1", "web", "10.22.0.2");
            first.endpoints[0].conditions = worst_first[one];
            let mut second = slice("s2", "web", "10.22.0.2");
            second.endpoints[0].conditions = worst_first[other];
            if in_one {
                first.endpoints.append(&mut second.endpoints);
            }
            let mut index = index();
            let objects = [Object::Service(service("web", None).into())].into_iter();
            let objects = objects.chain([first, second].map(|slice| Object::EndpointSlice(slice.into())));
            index.apply(replace("web.yaml", objects.collect()));
            index.publish();
            let entry = entry(&index, "web");
            let found = entry.endpoints(&entry.service.ports[0], crate::model::IpFamily::V4, None, |_| false);
            let found: Vec<_> = found.iter().map(|(_, endpoint)| endpoint.conditions).collect();
            assert_eq!(found, [worst_first[one.max(other)]], "{one}, {other}, in one slice: {in_one}");
        }
    }
}

#[test]
fn state_is_not_synced_before_every_source_was_read() {
    let mut index = index();
    index.expect_source(ATTACHMENTS);
    index.publish();
    assert!(!index.snapshot().synced);
    index.apply(Event::Synced(ATTACHMENTS));
    assert!(index.publish());
    assert!(index.snapshot().synced);
}

#[test]
fn namespace_exists_while_a_pod_of_it_is_attached() {
    let mut index = index();
    let record = |pod: Option<&str>| {
        let pod = pod.map(|namespace| attachment::Pod {
            namespace: namespace.into(),
            name: "web-0".into(),
            uid: None,
        });
        Object::Attachment(Attachment { pod, ..attachment("10.22.0.2") }.into())
    };
    let namespaces = |index: &mut Index| -> Vec<String> {
        index.publish();
        index.snapshot().namespaces.iter().map(|namespace| namespace.to_string()).collect()
    };
    index.apply(replace("a.json", vec![record(Some("shop"))]));
    index.apply(replace("b.json", vec![record(Some("shop"))]));
    assert_eq!(namespaces(&mut index), ["shop"]);
    index.apply(replace("a.json", vec![]));
    assert_eq!(namespaces(&mut index), ["shop"]);
    // A container without a pod counts for this namespace.
    index.apply(replace("b.json", vec![record(None)]));
    assert_eq!(namespaces(&mut index), ["default"]);
    index.apply(replace("b.json", vec![]));
    assert!(namespaces(&mut index).is_empty());
}

fn attachment(address: &str) -> Attachment {
    Attachment {
        network: "a".into(),
        container_id: "id".into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        ips: vec![address.parse().unwrap()],
        mac: String::new(),
        host_interface: String::new(),
        bridge: None,
        pod: None,
        labels: [].into(),
        port_mappings: vec![],
        reserved_ports: None,
    }
}

/// A few names, so that definitions conflict often.
fn any_object() -> Object {
    let pick = |names: &[&'static str]| *fastrand::choice(names).unwrap();
    let apps = ["web", "api", "db"];
    let address = format!("10.22.0.{}", fastrand::u8(2..5));
    match fastrand::u8(..6) {
        0 => {
            let cluster_ip = *fastrand::choice(&[
                None,
                Some("10.96.0.20"),
                Some("10.96.0.21"),
                Some("10.96.0.22"),
                Some("192.0.2.1"),
            ])
            .unwrap();
            Object::Service(service(pick(&apps), cluster_ip).into())
        }
        1 => Object::EndpointSlice(slice(pick(&["s1", "s2"]), pick(&apps), &address).into()),
        2 => {
            let ip = fastrand::bool().then_some(&*address);
            Object::Pod(pod(pick(&["p1", "p2"]), pick(&apps), ip).into())
        }
        3 => {
            let zone = ("topology.kubernetes.io/zone".to_owned(), pick(&["a", "b"]).to_owned());
            let name = pick(&["n1", "n2"]).into();
            Object::Node(
                Node {
                    name,
                    labels: [zone].into(),
                    addresses: vec![],
                    external_addresses: vec![],
                    pod_cidrs: vec![],
                    leaving: false,
                }
                .into(),
            )
        }
        4 => Object::Namespace(Namespace { name: pick(&["default", "other"]).into() }.into()),
        _ => {
            let namespace = pick(&["default", "other"]).into();
            let pod = attachment::Pod { namespace, name: pick(&["p1", "p2"]).into(), uid: None };
            let labels = [("app".to_owned(), pick(&apps).to_owned())].into();
            let network = pick(&["a", "b"]).into();
            let pod = fastrand::bool().then_some(pod);
            Object::Attachment(Attachment { network, pod, labels, ..attachment(&address) }.into())
        }
    }
}

#[test]
fn incremental_changes_lead_to_the_same_state_as_a_complete_computation() {
    for seed in 0..300 {
        fastrand::seed(seed);
        let mut index = index();
        let mut files: BTreeMap<&str, Event> = BTreeMap::new();
        for step in 0..30 {
            for _ in 0..fastrand::u8(1..3) {
                let file = *fastrand::choice(["a.yaml", "b.yaml", "c.yaml"].iter()).unwrap();
                let objects = (0..fastrand::u8(..4)).map(|_| any_object()).collect();
                let event = replace(file, objects);
                index.apply(event.clone());
                files.insert(file, event);
            }
            index.publish();
            let mut fresh = self::index();
            files.values().for_each(|event| fresh.apply(event.clone()));
            fresh.publish();
            let (one, other) = (index.snapshot(), fresh.snapshot());
            let at = format!("seed {seed}, step {step}");
            let services = |snapshot: &Snapshot| -> BTreeMap<NamespacedName, Arc<ServiceEntry>> {
                snapshot.services().map(|entry| (entry.service.name.clone(), Arc::clone(entry))).collect()
            };
            assert_eq!(services(&one), services(&other), "{at}");
            assert_eq!(index.addresses.owners, fresh.addresses.owners, "{at}");
            assert_eq!(one.problems, other.problems, "{at}");
            assert_eq!((&one.namespaces, &one.nodes), (&other.namespaces, &other.nodes), "{at}");
            assert_eq!((&one.local_pods, &one.sources), (&other.local_pods, &other.sources), "{at}");
        }
    }
}
