//! EndpointSlices: several of one Service, overlapping, incomplete, and of other address types.

use super::*;
use crate::agnhost::{Agnhost, Location, Protocol};
use crate::granular_checks::{expect_hosts, expect_refused};

/// The node `here`, a Service `web` without a selector, and pods that slices can name.
struct Slices {
    cluster: Cluster,
    client: Pod,
    pods: [Pod; 2],
    _servers: [Agnhost; 2],
    address: String,
}

impl Slices {
    fn start() -> Self {
        let cluster = Cluster::start_with(&["--node-name", "here"]).unwrap();
        let client = cluster.add_pod("client").unwrap();
        let pods = ["web-1", "web-2"].map(|name| cluster.add_pod(name).unwrap());
        let servers = pods.each_ref().map(Agnhost::in_pod);
        cluster.apply("web.yaml", &service(PORT_80)).unwrap();
        let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
        Self { cluster, client, pods, _servers: servers, address }
    }

    fn apply(&self, name: &str, endpoints: &[(&str, &str)]) {
        self.cluster.apply(&format!("{name}.yaml"), &slice(name, endpoints)).unwrap();
    }

    fn expect(&self, names: &[&str]) {
        expect_hosts(Location::Pod(&self.client), Protocol::Http, &self.address, names);
    }

    fn request(&self) -> String {
        Location::Pod(&self.client).ask(Protocol::Http, &self.address, "hostname").unwrap()
    }

    fn ips(&self) -> [&str; 2] {
        self.pods.each_ref().map(|pod| pod.ip.as_str())
    }

    /// Waits until `/readyz?verbose` contains a text.
    fn expect_condition(&self, what: &str) {
        wait_for(what, || {
            let page = self.cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose")?;
            ensure!(page.contains(what), "{page}");
            Ok(())
        })
        .unwrap();
    }
}

const READY: &str = "conditions: {ready: true}";

#[test]
fn slices_of_a_service_are_merged_and_endpoints_can_move_between_them() {
    let test = Slices::start();
    let [one, two] = test.ips();
    test.apply("web-a", &[(one, READY)]);
    test.apply("web-b", &[(two, READY)]);
    test.expect(&["web-1", "web-2"]);
    // The only endpoint moves between the slices without an interruption.
    test.cluster.delete("web-b.yaml").unwrap();
    test.expect(&["web-1"]);
    for round in 0..10 {
        let (to, from) = if round % 2 == 0 { ("web-b", "web-a") } else { ("web-a", "web-b") };
        test.apply(to, &[(one, READY)]);
        assert_eq!(test.request(), "web-1");
        test.apply(from, &[]);
        for _ in 0..10 {
            assert_eq!(test.request(), "web-1", "round {round}");
        }
    }
}

#[test]
fn endpoint_in_two_slices_counts_once_and_is_local_if_one_slice_has_it_local() {
    let test = Slices::start();
    let [one, two] = test.ips();
    // The first slice by name has it on another node, the second on this node.
    test.apply("web-a", &[(one, "nodeName: elsewhere"), (two, "nodeName: elsewhere")]);
    test.apply("web-b", &[(one, "nodeName: here")]);
    test.expect(&["web-1", "web-2"]);
    let page = test.cluster.node.shell("curl -fsS http://127.0.0.1:10249/debug/services").unwrap();
    assert_eq!(page.matches(&format!("{one}:8080")).count(), 1, "{page}");
    test.cluster.apply("web.yaml", &service(&format!("  internalTrafficPolicy: Local\n{PORT_80}"))).unwrap();
    test.expect(&["web-1"]);
}

/// kubernetes#135266: a new pod has the address of a pod that is being deleted.
#[test]
fn duplicate_address_serves_if_one_entry_is_ready() {
    let test = Slices::start();
    let [one, _] = test.ips();
    const TERMINATED: &str = "conditions: {ready: false, serving: false, terminating: true}";
    let headless = service(&format!("  clusterIP: None\n{PORT_80}")).replace("{name: web}", "{name: names}");
    test.cluster.apply("names.yaml", &headless).unwrap();
    for (first, second) in [(READY, TERMINATED), (TERMINATED, READY)] {
        for (a, b) in [(vec![(one, first), (one, second)], vec![]), (vec![(one, first)], vec![(one, second)])]
        {
            test.apply("web-a", &a);
            test.apply("web-b", &b);
            for (name, endpoints) in [("names-a", &a), ("names-b", &b)] {
                let text = slice(name, endpoints).replace("service-name: web", "service-name: names");
                test.cluster.apply(&format!("{name}.yaml"), &text).unwrap();
            }
            test.expect(&["web-1"]);
            let name = "names.default.svc.cluster.local";
            wait_for(name, || {
                let found =
                    test.cluster.node.shell(&format!("dig +short +time=1 +tries=1 @10.96.0.10 {name}"))?;
                ensure!(found.trim() == one, "{found:?}");
                Ok(())
            })
            .unwrap();
            for name in ["web-a", "web-b", "names-a", "names-b"] {
                test.apply(name, &[]);
            }
            expect_refused(Location::Pod(&test.client), Protocol::Http, &test.address);
        }
    }
}

#[test]
fn missing_conditions_mean_ready_serving_and_not_terminating() {
    let test = Slices::start();
    let [one, two] = test.ips();
    test.apply("web-a", &[(one, "conditions: {}"), (two, "conditions: {ready: false}")]);
    test.expect(&["web-1"]);
    // `serving` defaults to `ready`, so the terminating endpoint is not serving.
    test.apply(
        "web-a",
        &[(one, "conditions: {terminating: false}"), (two, "conditions: {ready: false, terminating: true}")],
    );
    test.expect(&["web-1"]);
    test.apply("web-a", &[(two, "conditions: {ready: false, terminating: true}")]);
    expect_refused(Location::Pod(&test.client), Protocol::Http, &test.address);
    test.apply("web-a", &[(two, "nodeName: elsewhere")]);
    test.expect(&["web-2"]);
}

/// The API server stores a missing name as an empty one, and the proxy treats both alike.
#[test]
fn port_without_a_number_or_with_another_name_is_ignored() {
    let test = Slices::start();
    let [one, two] = test.ips();
    let with_ports = |name: &str, ip: &str, ports: &str| {
        let text = slice(name, &[(ip, READY)]).replace("ports: [{port: 8080}]", &format!("ports: [{ports}]"));
        test.cluster.apply(&format!("{name}.yaml"), &text).unwrap();
    };
    with_ports("web-a", one, "{port: 0}, {name: ''}, {name: other, port: 9}, {port: 8080}");
    with_ports("web-b", two, "{name: other, port: 8080}");
    test.expect(&["web-1"]);
    with_ports("web-b", two, "{name: '', port: 8080}");
    test.expect(&["web-1", "web-2"]);
}

#[test]
fn fqdn_slices_are_ignored_and_addresses_of_the_wrong_family_are_reported() {
    let test = Slices::start();
    let [one, _] = test.ips();
    test.apply("web-a", &[("\"fd00:10:22::7\"", READY), (one, READY)]);
    let names = slice("web-b", &[("web.example.com", READY)]).replace("IPv4", "FQDN");
    test.cluster.apply("web-b.yaml", &names).unwrap();
    test.expect(&["web-1"]);
    test.expect_condition("endpoints[0].addresses[0]: fd00:10:22::7 is not an IPv4 address");
    test.expect_condition("addressType: FQDN is not carried");
}

/// Only the first address of an endpoint counts, as the API specifies.
#[test]
fn only_the_first_address_counts_and_a_slice_can_have_a_thousand_endpoints() {
    let test = Slices::start();
    let [one, two] = test.ips();
    test.apply("web-a", &[(&format!("{one}, {two}"), READY)]);
    test.expect(&["web-1"]);
    let many: Vec<String> = (0..999).map(|n| format!("10.99.{}.{}", n / 250, n % 250 + 1)).collect();
    let unready = "conditions: {ready: false}";
    let mut endpoints: Vec<(&str, &str)> = many.iter().map(|ip| (ip.as_str(), unready)).collect();
    endpoints.push((two, READY));
    test.apply("web-a", &endpoints);
    test.expect(&["web-2"]);
}
