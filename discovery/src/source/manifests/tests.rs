use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::event::Object;
use crate::model::{ProxyClass, Service, ServiceKind, TrafficRules};

fn event(manifests: &mut Manifests, file: &str, contents: &[u8]) -> Event {
    let changed = vec![(PathBuf::from(file), Ok(contents.to_vec()))];
    manifests.events(Ok(Changes { changed, removed: Vec::new() })).remove(0)
}

fn read(manifests: &mut Manifests, text: &str) -> (Option<Vec<String>>, Vec<String>) {
    let event = event(manifests, "web.yaml", text.as_bytes());
    let Event::Replace { objects, problems, .. } = event else { panic!("{event:?}") };
    let name = |object: &Object| match object {
        Object::Service(service) => format!("Service {} {:?}", service.name, service.ports[0].port),
        Object::EndpointSlice(slice) => format!("EndpointSlice {}", slice.name),
        Object::Pod(pod) => format!("Pod {}", pod.name),
        Object::Node(node) => format!("Node {}", node.name),
        Object::Namespace(namespace) => format!("Namespace {}", namespace.name),
        Object::ServiceCidr(cidr) => format!("ServiceCIDR {}", cidr.name),
        Object::Attachment(_) => unreachable!(),
    };
    let objects = objects.map(|objects| objects.iter().map(|sourced| name(&sourced.object)).collect());
    (objects, problems.iter().map(|problem| format!("{}: {problem}", problem.severity)).collect())
}

fn once(text: &str) -> (Option<Vec<String>>, Vec<String>) {
    read(&mut Manifests::new("/nowhere".into()), text)
}

fn problems(text: &str) -> Vec<String> {
    once(text).1
}

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: 80\n";

#[test]
fn documents_lists_and_json_are_read_alike() {
    let many = format!(
        "# a comment only\n---\n{WEB}---\n\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n"
    );
    let expected = Some(vec!["Service default/web 80".to_owned(), "Namespace shop".to_owned()]);
    assert_eq!(once(&many), (expected.clone(), vec![]));
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}]}"#;
    assert_eq!(once(list), (expected, vec![]));
    let typed =
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: web}\n  spec: {ports: [{port: 80}]}\n";
    assert_eq!(once(typed), (Some(vec!["Service default/web 80".to_owned()]), vec![]));
    assert_eq!(once(""), (Some(vec![]), vec![]));
}

#[test]
fn error_has_file_line_field_and_value() {
    let text = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - {name: a, port: 80}\n  - name: b\n    port: 70000\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ok}\n";
    assert_eq!(
        once(text),
        (
            Some(vec!["Namespace ok".to_owned()]),
            vec![
                "error: web.yaml:9 (document 1): Service default/web: spec.ports[1].port: 70000 is not a port (1-65535)"
                    .to_owned()
            ]
        )
    );
}

#[test]
fn all_errors_of_a_service_are_reported_at_once() {
    let text =
        "apiVersion: v1\nkind: Service\nmetadata: {name: Web}\nspec:\n  type: Magic\n  ipFamilies: [IPv5]\n";
    assert!(problems(text)[0].contains("metadata.name: \"Web\" is not a DNS label"), "{:?}", problems(text));
    assert!(problems(text)[1].contains("spec.type: \"Magic\" is not ClusterIP"), "{:?}", problems(text));
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: fd00::1\n  ipFamilies: [IPv4]\n  ports:\n  - port: 80\n    protocol: HTTP\n  - port: 81\n    targetPort: 0x1ffff\n";
    let found = problems(text).join("\n");
    for expected in [
        "web.yaml:5: Service default/web: spec.clusterIP: fd00::1 is IPv6, but spec.ipFamilies[0] is IPv4",
        "web.yaml:8: Service default/web: spec.ports[0].name: is missing",
        "web.yaml:9: Service default/web: spec.ports[0].protocol: \"HTTP\" is not TCP, UDP or SCTP",
        "web.yaml:11: Service default/web: spec.ports[1].targetPort: 131071 is not a port (1-65535)",
    ] {
        assert!(found.contains(expected), "{expected}\nin\n{found}");
    }
}

#[test]
fn field_of_a_wrong_type_is_refused_as_by_the_api_server() {
    let text = WEB.replace("port: 80", "port: \"80\"");
    assert!(
        problems(&text)[0]
            .starts_with("error: web.yaml:6: Service default/web: spec.ports[0].port: invalid type: string"),
        "{:?}",
        problems(&text)
    );
}

#[test]
fn address_of_another_family_is_skipped_and_a_node_with_host_bits_is_refused() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {kubernetes.io/service-name: web}\naddressType: IPv4\nendpoints:\n- addresses: [\"fd00::1\"]\n";
    assert_eq!(
        problems(slice),
        [
            "warning: web.yaml:8: EndpointSlice default/web-1: endpoints[0].addresses[0]: fd00::1 is not an IPv4 address, as addressType says; it is left out"
        ]
    );
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec:\n  podCIDRs: [10.22.0.1/24]\n";
    assert_eq!(
        problems(node),
        [
            "error: web.yaml:5: Node n1: spec.podCIDRs[0]: \"10.22.0.1/24\" has host bits set; the range is 10.22.0.0/24"
        ]
    );
}

fn services(text: &str) -> (Vec<Arc<Service>>, Vec<String>) {
    let event = event(&mut Manifests::new("/nowhere".into()), "web.yaml", text.as_bytes());
    let Event::Replace { objects, problems, .. } = event else { panic!("{event:?}") };
    let service = |sourced: Sourced| match sourced.object {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    };
    let services = objects.unwrap().into_iter().map(service).collect();
    (services, problems.iter().map(|problem| format!("{}: {}", problem.severity, problem.message)).collect())
}

#[test]
fn addresses_and_ranges_are_accepted_as_by_the_api_server() {
    let text = format!(
        "{WEB}  type: LoadBalancer\n  clusterIP: 010.096.000.009\n  externalIPs: [192.000.002.009]\n  \
         loadBalancerSourceRanges: [192.12.2.8/24, '010.1.0.0/16', ' fd00::1/64']\n"
    );
    let (services, problems) = services(&text);
    let [service] = &services[..] else { panic!("{problems:?}") };
    let ServiceKind::ClusterIp { requested, .. } = &service.kind else { panic!("{service:?}") };
    assert_eq!(*requested, ["10.96.0.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(service.rules.external_ips, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    let ranges: Vec<String> = service.rules.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["192.12.2.0/24", "10.1.0.0/16", "fd00::/64"]);
    assert_eq!(
        problems,
        [
            "warning: spec.loadBalancerSourceRanges[0]: \"192.12.2.8/24\" has host bits set; the range is 192.12.2.0/24",
            "warning: spec.loadBalancerSourceRanges[2]: \"fd00::1/64\" has host bits set; the range is fd00::/64"
        ]
    );
}

#[test]
fn error_in_a_field_that_no_api_server_validates_ignores_the_field_only() {
    let text = format!("{WEB}  externalIPs: [192.0.2.9]\n").replacen(
        "metadata: {",
        "metadata: {annotations: {portolan.dev/balancer: best, portolan.dev/max-connections: many, portolan.dev/proxy-protocol: v1}, ",
        1,
    );
    let (services, problems) = services(&text);
    let [service] = &services[..] else { panic!("{problems:?}") };
    let external_ips = vec!["192.0.2.9".parse().unwrap()];
    assert_eq!(service.rules, TrafficRules { external_ips, ..TrafficRules::default() });
    assert_eq!(problems.len(), 3, "{problems:#?}");
    let is_so = |problem: &String| problem.starts_with("warning: ") && problem.ends_with("; ignored");
    assert!(problems.iter().all(is_so), "{problems:#?}");
}

#[test]
fn fields_without_effect_here_warn_and_irrelevant_ones_do_not() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\napiVersion: x/v1\nkind: Gadget\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  trafficDistribution: PreferFar\n  ports: [{port: 80}]\n";
    let found = problems(text);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].starts_with("warning: web.yaml:1 (document 1): Deployment web: creates no pods here"),
        "{found:?}"
    );
    assert!(found[1].starts_with("warning: web.yaml:10 (document 3): unknown kind \"Gadget\""), "{found:?}");
    assert!(
        found[2]
            .starts_with("warning: web.yaml:16 (document 4): Service default/web: spec.trafficDistribution"),
        "{found:?}"
    );
}

#[test]
fn broken_file_and_broken_object_keep_their_last_good_state() {
    let mut manifests = Manifests::new("/nowhere".into());
    let good = Some(vec!["Service default/web 80".to_owned()]);
    assert_eq!(read(&mut manifests, WEB), (good.clone(), vec![]));
    let (objects, problems) = read(&mut manifests, "a: [b\nc: d");
    assert_eq!(objects, None);
    assert!(
        problems[0].contains("web.yaml:2: is not YAML")
            && problems[0].ends_with("; its last good content stays"),
        "{problems:?}"
    );
    assert_eq!(read(&mut manifests, &WEB.replace("80", "0")).0, good);
    // A second error keeps the same last good object. An object that is deleted from the file is deleted.
    assert_eq!(read(&mut manifests, &WEB.replace("80", "-1")).0, good);
    assert_eq!(read(&mut manifests, "# nothing").0, Some(vec![]));
}

#[test]
fn document_that_is_not_yaml_affects_no_other() {
    let mut manifests = Manifests::new("/nowhere".into());
    let other = WEB.replace("web", "api");
    let whole = format!("{WEB}---\n{other}---\n{}", WEB.replace("web", "removed"));
    read(&mut manifests, &whole);
    // The second is not YAML, the third has an error of its own, and the first is unchanged.
    let broken = format!(
        "{}---\na: [b\n---\n{}",
        WEB.replace("80", "81"),
        WEB.replace("web", "removed").replace("80", "0")
    );
    let (objects, problems) = read(&mut manifests, &broken);
    let names = ["Service default/web 81", "Service default/api 80", "Service default/removed 80"];
    assert_eq!(objects, Some(names.map(str::to_owned).into()));
    assert!(problems[0].starts_with("error: web.yaml:9: is not YAML"), "{problems:?}");
    assert!(
        problems[1].starts_with("error: web.yaml:15"),
        "lines count from the start of the file: {problems:?}"
    );
    assert_eq!(problems.len(), 2);
    // Repaired, the file applies as written.
    assert_eq!(read(&mut manifests, WEB), (Some(vec!["Service default/web 80".to_owned()]), vec![]));
}

#[test]
fn value_nested_too_deeply_affects_no_other() {
    let deep = "{a: ".repeat(200) + &"}".repeat(200);
    let fields = format!("metadata: {{name: web, managedFields: [{{fieldsV1: {deep}}}]}}");
    let (objects, problems) = once(&WEB.replace("metadata: {name: web}", &fields));
    assert_eq!(objects, Some(vec!["Service default/web 80".to_owned()]));
    assert_eq!(
        problems,
        ["warning: web.yaml:3: is nested more than 100 levels deep; what is deeper is left out"]
    );
}

#[test]
fn hostile_input_is_an_error_and_nothing_worse() {
    let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let deep = "[".repeat(20_000);
    for text in [laughs, "\t\tx: 1", "{", "kind: [Service]", "- 1", "42", "kind: Service", deep.as_str()] {
        assert!(!problems(text).is_empty(), "{:.40}", text);
    }
    let event = event(&mut Manifests::new("/nowhere".into()), "x.yaml", b"a: b\nc: \xff");
    let Event::Replace { problems, .. } = event else { panic!() };
    assert_eq!(problems[0].to_string(), "x.yaml:2: is not UTF-8 text");
}

#[test]
fn invalid_external_address_does_not_remove_the_routes_of_the_node() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.22.0.0/24]}\nstatus: {addresses: [{type: ExternalIP, address: n1.test}]}\n";
    let event = event(&mut Manifests::new("/nowhere".into()), "node.yaml", text.as_bytes());
    let Event::Replace { objects, problems, .. } = event else { panic!("{event:?}") };
    assert!(matches!(objects.unwrap()[..], [Sourced { object: Object::Node(_), .. }]));
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert!(problem.to_string().ends_with("\"n1.test\" is not an IP address; ignored"), "{problem}");
}

#[test]
fn nesting_is_bounded_in_every_notation() {
    let too_deep = "web.yaml:1: is nested more than 100 levels deep; what is deeper is left out";
    let wide = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    for text in ["- ".repeat(100_000), "? ".repeat(100_000), "- ".repeat(101), wide(101)] {
        let found = problems(&text);
        assert_eq!(found[0], format!("warning: {too_deep}"), "{:.40}", text);
        assert!(found[1].starts_with("error: web.yaml:1: the document "), "{found:?}");
    }
    // An alias is as deep as its anchor.
    let towers = |levels: usize| {
        let floor = |n: usize| format!("- &a{n} [[[[[[[[[*a{}]]]]]]]]]\n", n - 1);
        format!("- &a0 x\n{}", (1..=levels).map(floor).collect::<String>())
    };
    let of_towers = problems(&towers(40));
    assert!(of_towers[0].contains("is nested more than 100 levels deep"), "{of_towers:?}");
    for text in ["- ".repeat(100), wide(100), towers(11)] {
        assert!(problems(&text)[0].contains("is not a mapping"), "{:?}", problems(&text));
    }
    let twice = "a: &a 1\n---\nb: *a\n";
    assert!(
        problems(twice)[0].contains("is not YAML"),
        "an anchor ends with its document: {:?}",
        problems(twice)
    );
}

#[test]
fn labels_select_the_proxy_and_an_annotation_has_the_trigger_time() {
    let read = |metadata: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\n\
             metadata:\n  name: web-1\n  labels: {{kubernetes.io/service-name: web{metadata}\n"
        );
        let event = event(&mut Manifests::new("/nowhere".into()), "web.yaml", text.as_bytes());
        let Event::Replace { objects: Some(mut objects), .. } = event else { panic!("{event:?}") };
        let Object::EndpointSlice(slice) = objects.remove(0).object else { panic!() };
        (slice.proxy_class.clone(), slice.triggered_at)
    };
    let proxy_name = "service.kubernetes.io/service-proxy-name";
    assert_eq!(read("}"), (ProxyClass::Default, None));
    assert_eq!(read(&format!(", {proxy_name}: other}}")).0, ProxyClass::Named("other".into()));
    assert_eq!(
        read(&format!(", {proxy_name}: other, service.kubernetes.io/headless: ''}}")).0,
        ProxyClass::None
    );
    let at = "}\n  annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2026-01-02T03:04:05.5Z'}";
    let since = read(at).1.unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(since.as_millis(), 1_767_323_045_500);
}

#[test]
fn node_about_to_be_removed_is_marked() {
    let read = |text: &str| {
        let text = format!("apiVersion: v1\nkind: Node\n{text}\n");
        let event = event(&mut Manifests::new("/nowhere".into()), "node.yaml", text.as_bytes());
        let Event::Replace { objects: Some(mut objects), .. } = event else { panic!("{event:?}") };
        let Object::Node(node) = objects.remove(0).object else { panic!() };
        node.leaving
    };
    assert!(!read("metadata: {name: n1}\nspec: {taints: [{key: other, effect: NoSchedule}]}"));
    assert!(read(
        "metadata: {name: n1}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}"
    ));
    assert!(read("metadata: {name: n1, deletionTimestamp: '2026-01-02T03:04:05Z'}"));
}

#[test]
fn many_files_give_the_same_result_as_each_file_alone() {
    let padding = "#".repeat(20 * 1024);
    let service = |number: usize| {
        let metadata = format!("metadata: {{name: s{number}}}\nspec: {{ports: [{{port: 80}}]}}");
        format!("apiVersion: v1\nkind: Service\n{metadata}\n{padding}").into_bytes()
    };
    let contents = |number: usize| match number % 3 {
        0 => Ok(service(number)),
        1 => Ok(b"{".to_vec()),
        _ => Err(io::ErrorKind::PermissionDenied.into()),
    };
    let events = |numbers: std::ops::Range<usize>| {
        let changed =
            numbers.map(|number| (PathBuf::from(format!("{number:03}.yaml")), contents(number))).collect();
        Manifests::new("/nowhere".into()).events(Ok(Changes { changed, removed: Vec::new() }))
    };
    let shown = |events: &[Event]| events.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>();
    // Two full batches and a small one.
    let number = 3 * (2 * BATCH / padding.len()) + 9;
    let alone: Vec<_> = (0..number).map(|one| events(one..one + 1).remove(0)).collect();
    assert_eq!(shown(&events(0..number)[..number]), shown(&alone));
}

/// KEP-5311: names are labels as in RFC 1123.
#[test]
fn service_names_may_begin_with_a_digit() {
    for name in ["1web", "8080", "0"] {
        let (objects, problems) = once(&WEB.replace("name: web", &format!("name: '{name}'")));
        assert_eq!((objects, problems), (Some(vec![format!("Service default/{name} 80")]), vec![]));
    }
}

#[test]
fn service_cidr_is_read_and_host_bits_are_refused() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.200.0.0/24]}\n";
    assert_eq!(once(text), (Some(vec!["ServiceCIDR more".to_owned()]), vec![]));
    let problems = problems(&text.replace("10.200.0.0", "10.200.0.1"));
    assert!(problems[0].contains("spec.cidrs[0]: \"10.200.0.1/24\" has host bits set"), "{problems:?}");
}

/// Go writes `null` for an absent value.
#[test]
fn null_is_an_absent_field() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: null, creationTimestamp: null}\nspec:\n  ports: [{port: 80, name: null, targetPort: null}]\n  selector: null\n  externalIPs: null\nstatus: {loadBalancer: null, conditions: [{lastTransitionTime: null}]}\n";
    assert_eq!(once(text), (Some(vec!["Service default/web 80".to_owned()]), vec![]));
}
