//! The Kubernetes DNS specification 1.1.0 against the running server, over UDP and TCP, with dig.
//!
//! Row numbers (S1-S15) count its requirements in order.

use crate::message::Query;
use crate::server::Server;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: kubernetes}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:10:96::1"]
  ports: [{name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: single}
spec:
  clusterIP: 10.96.0.2
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ports: [{name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless-1, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: https, port: 8443}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.3.0.100], hostname: my-pet}
- {addresses: [10.3.0.101], hostname: my-pet}
- {addresses: [10.3.0.102]}
- {addresses: [10.3.0.103], hostname: sick, conditions: {ready: false}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless-2, labels: {kubernetes.io/service-name: headless}}
addressType: IPv6
ports: [{name: https, port: 8443}]
endpoints:
- {addresses: ["fd00::1:2"]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  clusterIP: None
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: v6only}
spec:
  clusterIP: None
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: v6only-1, labels: {kubernetes.io/service-name: v6only}}
addressType: IPv6
endpoints: [{addresses: ["fd00::3"]}]
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {type: ExternalName, externalName: kubernetes.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: eager}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: eager}
---
apiVersion: v1
kind: Pod
metadata: {name: eager-0, labels: {app: eager}}
spec: {containers: [], hostname: eager-0, subdomain: eager}
status: {podIP: 10.3.0.110, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: bare}
"#;

fn server() -> Server {
    Server::start(&[("all.yaml", MANIFESTS)], &[])
}

/// Queries over UDP and TCP; the sorted answers must be these.
fn expect(server: &Server, question: &str, expected: &[&str]) {
    for transport in ["+notcp", "+tcp"] {
        let answer = server.dig(&format!("{transport} +short {question}"));
        let mut lines: Vec<&str> = answer.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, expected, "{question} {transport}");
    }
}

#[test]
fn s1_the_version_of_the_schema() {
    expect(&server(), "dns-version.cluster.local TXT", &["\"1.1.0\""]);
}

#[test]
fn s2_s3_cluster_ips_of_both_families() {
    let server = server();
    expect(&server, "kubernetes.default.svc.cluster.local A", &["10.96.0.1"]);
    expect(&server, "kubernetes.default.svc.cluster.local AAAA", &["fd00:10:96::1"]);
}

#[test]
fn s4_s5_a_named_port_has_srv_records_and_an_unnamed_one_has_none() {
    let server = server();
    let target = "kubernetes.default.svc.cluster.local.";
    expect(&server, &format!("_https._tcp.{target} SRV"), &[&format!("0 100 443 {target}")]);
    expect(&server, &format!("_dns._udp.{target} SRV"), &[&format!("0 100 53 {target}")]);
    expect(&server, "_._tcp.single.default.svc.cluster.local SRV", &[]);
    expect(&server, "single.default.svc.cluster.local SRV", &[]);
    let additional = server.dig(&format!("_https._tcp.{target} SRV +noall +additional"));
    assert!(additional.contains("10.96.0.1") && additional.contains("fd00:10:96::1"), "{additional}");
}

/// RFC 2782: a target is not compressed, and a weight of 0 means no choice.
#[test]
fn targets_of_srv_records_are_whole_names() {
    let server = server();
    let reply = Query::new("_https._tcp.kubernetes.default.svc.cluster.local", 33).ask(server.address);
    let target = b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0";
    // Priority, weight, port, target.
    let whole = [&[0, 0, 0, 100, 1, 0xbb][..], target].concat();
    assert!(reply.wire.windows(whole.len()).any(|bytes| bytes == whole), "{reply:02x?}");
}

#[test]
fn s6_pointers_of_cluster_ips() {
    let server = server();
    expect(&server, "-x 10.96.0.1", &["kubernetes.default.svc.cluster.local."]);
    expect(&server, "-x fd00:10:96::1", &["kubernetes.default.svc.cluster.local."]);
}

#[test]
fn s7_headless_name_resolves_to_its_ready_endpoints() {
    let server = server();
    expect(&server, "headless.default.svc.cluster.local A", &["10.3.0.100", "10.3.0.101", "10.3.0.102"]);
    expect(&server, "headless.default.svc.cluster.local AAAA", &["fd00::1:2"]);
}

#[test]
fn s8_headless_name_without_ready_endpoints_does_not_exist() {
    assert_eq!(server().status("empty.default.svc.cluster.local A"), "NXDOMAIN");
}

#[test]
fn s9_s10_endpoints_are_named_by_hostname_or_address() {
    let server = server();
    expect(&server, "my-pet.headless.default.svc.cluster.local A", &["10.3.0.100", "10.3.0.101"]);
    expect(&server, "10-3-0-102.headless.default.svc.cluster.local A", &["10.3.0.102"]);
    expect(&server, "fd00--1-2.headless.default.svc.cluster.local AAAA", &["fd00::1:2"]);
    assert_eq!(server.status("sick.headless.default.svc.cluster.local A"), "NXDOMAIN");
}

#[test]
fn s11_srv_records_of_every_endpoint_and_named_port() {
    let server = server();
    let service = "headless.default.svc.cluster.local";
    expect(
        &server,
        &format!("_https._tcp.{service} SRV"),
        &[
            &format!("0 25 8443 10-3-0-102.{service}."),
            &format!("0 25 8443 fd00--1-2.{service}."),
            &format!("0 25 8443 my-pet.{service}."),
        ],
    );
    expect(
        &server,
        &format!("_dns._udp.{service} SRV"),
        &[&format!("0 25 5353 10-3-0-102.{service}."), &format!("0 25 5353 my-pet.{service}.")],
    );
}

#[test]
fn s12_pointers_of_endpoints() {
    let server = server();
    expect(&server, "-x 10.3.0.100", &["my-pet.headless.default.svc.cluster.local."]);
    expect(&server, "-x 10.3.0.102", &["10-3-0-102.headless.default.svc.cluster.local."]);
}

#[test]
fn s13_external_name_is_an_alias_whose_target_is_included() {
    let upstream = Server::start(
        &[(
            "up.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: www, namespace: x}\nspec: {clusterIP: 10.96.9.9, ports: [{port: 80}]}\n",
        )],
        &["--cluster-domain=example.org"],
    );
    let outside = MANIFESTS.replace("www.example.com", "www.x.svc.example.org");
    let server = Server::start(&[("all.yaml", &outside)], &[&format!("--upstream={}", upstream.address)]);
    let service = "kubernetes.default.svc.cluster.local.";
    expect(&server, "inside.default.svc.cluster.local A", &["10.96.0.1", service]);
    expect(&server, "outside.default.svc.cluster.local A", &["10.96.9.9", "www.x.svc.example.org."]);
    let first = server.dig("+short outside.default.svc.cluster.local A");
    assert!(first.starts_with("www.x.svc"), "the alias comes first: {first}");
    // Other names are forwarded as they are.
    expect(&server, "www.x.svc.example.org A", &["10.96.9.9"]);
}

#[test]
fn s14_names_are_case_insensitive_and_keep_the_spelling_of_the_query() {
    let server = server();
    expect(&server, "KuBeRnEtEs.DEFAULT.svc.cluster.LOCAL A", &["10.96.0.1"]);
    let answer = server.dig("+noall +answer KuBeRnEtEs.default.svc.cluster.local A");
    assert!(answer.starts_with("KuBeRnEtEs."), "{answer}");
}

#[test]
fn s15_ready_means_the_condition_or_publish_not_ready_addresses() {
    let server = server();
    expect(&server, "eager.default.svc.cluster.local A", &["10.3.0.110"]);
    expect(&server, "eager-0.eager.default.svc.cluster.local A", &["10.3.0.110"]);
}

#[test]
fn nxdomain_differs_from_nodata() {
    let server = server();
    for (question, status) in [
        ("cluster.local A", "NOERROR"),
        ("svc.cluster.local A", "NOERROR"),
        ("pod.cluster.local A", "NOERROR"),
        ("default.svc.cluster.local A", "NOERROR"),
        ("bare.svc.cluster.local A", "NOERROR"),
        ("nowhere.svc.cluster.local A", "NXDOMAIN"),
        ("none.default.svc.cluster.local A", "NXDOMAIN"),
        ("single.default.svc.cluster.local AAAA", "NOERROR"),
        ("single.default.svc.cluster.local TXT", "NOERROR"),
        ("single.default.svc.cluster.local TYPE65", "NOERROR"),
        ("v6only.default.svc.cluster.local A", "NOERROR"),
        ("_tcp.kubernetes.default.svc.cluster.local A", "NOERROR"),
        ("_http._tcp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN"),
        ("x.outside.default.svc.cluster.local A", "NXDOMAIN"),
        ("a.b.c.single.default.svc.cluster.local A", "NXDOMAIN"),
        ("-x 10.96.7.7", "NXDOMAIN"),
    ] {
        assert_eq!(server.status(question), status, "{question}");
        let authority = server.dig(&format!("+noall +authority {question}"));
        assert!(
            authority.contains("SOA\tns.dns.cluster.local. hostmaster.cluster.local."),
            "{question}: {authority}"
        );
        assert!(authority.contains("\t5\tIN\tSOA"), "the TTL is the SOA's minimum: {authority}");
    }
}
