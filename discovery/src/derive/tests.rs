use super::*;
use crate::model::{FamilyPolicy, PodPort, Protocol, ServiceKind, TrafficRules};

fn service(ports: Vec<ServicePort>) -> Service {
    Service {
        name: NamespacedName::new("shop", "db"),
        kind: ServiceKind::ClusterIp { requested: vec![], families: FamilyPolicy(vec![IpFamily::V4]) },
        ports,
        selector: [("app".to_owned(), "db".to_owned())].into(),
        publish_not_ready: false,
        rules: TrafficRules::default(),
    }
}

fn port(name: &str, target_port: TargetPort) -> ServicePort {
    ServicePort { name: name.into(), protocol: Protocol::Tcp, port: 80, target_port, node_port: None }
}

fn pod(name: &str, ips: &[&str]) -> Pod {
    Pod {
        name: NamespacedName::new("shop", name),
        labels: [("app".to_owned(), "db".to_owned()), ("tier".to_owned(), "data".to_owned())].into(),
        ports: vec![],
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ready: true,
        terminating: false,
        finished: false,
        hostname: None,
        subdomain: None,
        node_name: None,
    }
}

fn attachment(network: &str, pod: Option<&str>, ip: &str) -> Arc<Attachment> {
    Arc::new(Attachment {
        network: network.into(),
        container_id: format!("id-{ip}"),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        ips: vec![ip.parse().unwrap()],
        mac: String::new(),
        host_interface: String::new(),
        bridge: None,
        pod: pod.map(|name| attachment::Pod { namespace: "shop".into(), name: name.into(), uid: None }),
        labels: [("app".to_owned(), "db".to_owned())].into(),
        port_mappings: vec![],
        reserved_ports: None,
    })
}

fn addresses(slices: &[EndpointSlice]) -> Vec<String> {
    slices.iter().flat_map(|s| &s.endpoints).map(|e| e.address.to_string()).collect()
}

#[test]
fn manifest_gets_its_address_from_the_attachment_with_its_name() {
    let described = [Arc::new(pod("db-0", &[])), Arc::new(pod("db-1", &[]))];
    let attached = [attachment("b", Some("db-0"), "10.23.0.2"), attachment("a", Some("db-0"), "10.22.0.2")];
    let pods = described.each_ref().map(|pod| {
        let attached = attached.iter().filter(|attachment| pod_name(attachment) == pod.name);
        addressed_pod(&pod.name, Some(pod), attached).unwrap()
    });
    let service = service(vec![port("", TargetPort::Number(5432))]);
    let slices = slices(&service, pods.iter(), &BTreeMap::new());
    // db-1 has no attachment and is no endpoint. db-0 has two networks: the first one by name counts.
    assert_eq!(addresses(&slices), ["10.22.0.2"]);
}

#[test]
fn attachment_without_a_manifest_is_a_pod_with_its_own_labels() {
    let attached = [attachment("pods", None, "10.22.0.7")];
    let name = pod_name(&attached[0]);
    assert_eq!(name.to_string(), "default/id-10.22.0.7");
    let pod = addressed_pod(&name, None, attached.iter()).unwrap();
    assert_eq!(pod.ips, ["10.22.0.7".parse::<IpAddr>().unwrap()]);
    assert!(selects(&service(vec![]), &pod));
    assert!(addressed_pod(&name, None, [].iter()).is_none());
}

#[test]
fn named_target_ports_resolve_per_pod_and_split_the_slices() {
    let with_port = |name: &str, ip: &str, number: u16| {
        let mut pod = pod(name, &[ip]);
        pod.ports = vec![PodPort { name: "sql".into(), protocol: Protocol::Tcp, port: number }];
        pod
    };
    let pods =
        [with_port("a", "10.22.0.2", 5432), with_port("b", "10.22.0.3", 6543), pod("c", &["10.22.0.4"])];
    let slices =
        slices(&service(vec![port("sql", TargetPort::Name("sql".into()))]), pods.iter(), &BTreeMap::new());
    let ports: Vec<Vec<u16>> = slices.iter().map(|s| s.ports.iter().map(|p| p.port).collect()).collect();
    assert_eq!(ports, [vec![], vec![5432], vec![6543]]);
    assert_eq!(addresses(&slices), ["10.22.0.4", "10.22.0.2", "10.22.0.3"]);
}

#[test]
fn conditions_follow_readiness_and_deletion_unless_unready_addresses_are_published() {
    let mut unready = pod("a", &["10.22.0.2"]);
    unready.ready = false;
    let mut leaving = pod("b", &["10.22.0.3"]);
    leaving.terminating = true;
    let mut ended = pod("c", &["10.22.0.4"]);
    ended.finished = true;
    let pods = [unready, leaving, ended];
    let mut service = service(vec![]);
    let conditions = |service: &Service| -> Vec<(bool, bool, bool)> {
        let slices = slices(service, pods.iter(), &BTreeMap::new());
        let found = slices.iter().flat_map(|s| &s.endpoints).map(|e| e.conditions);
        found.map(|c| (c.ready, c.serving, c.terminating)).collect()
    };
    assert_eq!(conditions(&service), [(false, false, false), (false, true, true)]);
    service.publish_not_ready = true;
    assert_eq!(conditions(&service), [(true, true, false), (true, true, true)]);
}

#[test]
fn hostname_applies_only_below_the_service_named_as_subdomain() {
    let named = |subdomain: &str| {
        let mut pod = pod("db-0", &["10.22.0.2"]);
        (pod.hostname, pod.subdomain) = (Some("db-0".into()), Some(subdomain.into()));
        slices(&service(vec![]), [pod].iter(), &BTreeMap::new())[0].endpoints[0].hostname.clone()
    };
    assert_eq!(named("db").as_deref(), Some("db-0"));
    assert_eq!(named("other"), None);
}

#[test]
fn dual_stack_pod_is_in_a_slice_of_each_family_with_its_zone() {
    let mut pod = pod("a", &["fd00::2", "10.22.0.2"]);
    pod.node_name = Some("n1".into());
    let node = Node {
        name: "n1".into(),
        labels: [(ZONE_LABEL.to_owned(), "z1".to_owned())].into(),
        addresses: vec![],
        external_addresses: vec![],
        pod_cidrs: vec![],
        leaving: false,
    };
    let nodes = BTreeMap::from([(Arc::from("n1"), Arc::new(node))]);
    let slices = slices(&service(vec![port("", TargetPort::Number(1))]), [pod].iter(), &nodes);
    assert_eq!(slices.iter().map(|s| s.family).collect::<Vec<_>>(), [IpFamily::V4, IpFamily::V6]);
    assert!(slices.iter().all(|s| s.endpoints[0].zone.as_deref() == Some("z1")));
}
