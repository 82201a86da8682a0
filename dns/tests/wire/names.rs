//! Names that the specification leaves open: each of CoreDNS's options, and the differences from the RFCs.

use crate::message::{AA, Query};
use crate::server::Server;

const CLUSTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.22.0.7], targetRef: {kind: Pod, name: web-abc}}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints:
- {addresses: [10.22.0.8], targetRef: {kind: Pod, name: db-xyz}}
- {addresses: [10.22.0.9], hostname: db-0, targetRef: {kind: Pod, name: db-0-pod}}
---
apiVersion: v1
kind: Service
metadata: {name: idle}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: none.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: hidden}
spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-abc}
spec: {containers: []}
status: {podIP: 10.22.0.7, podIPs: [{ip: 10.22.0.7}, {ip: 'fd00::7'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec: {containers: []}
status: {podIP: 10.22.0.30, phase: Succeeded}
";

fn start(arguments: &[&str]) -> Server {
    Server::start(&[("cluster.yaml", CLUSTER)], arguments)
}

/// The code and the addresses.
fn answer(server: &Server, question: &str) -> (String, String) {
    let short = server.dig(&format!("+short {question}"));
    (server.status(question), short.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[track_caller]
fn expect(server: &Server, rows: &[(&str, &str, &str)]) {
    for (question, status, addresses) in rows {
        assert_eq!(answer(server, question), ((*status).to_owned(), (*addresses).to_owned()), "{question}");
    }
}

#[test]
fn pods_option_enables_names_of_any_or_of_existing_pods() {
    let name = |label: &str, kind: &str| format!("{label}.default.pod.cluster.local {kind}");
    expect(
        &start(&[]),
        &[(&name("10-22-0-7", "A"), "NXDOMAIN", ""), ("default.pod.cluster.local A", "NOERROR", "")],
    );
    expect(
        &start(&["--pods=insecure"]),
        &[
            (&name("10-22-0-7", "A"), "NOERROR", "10.22.0.7"),
            (&name("10-22-0-7", "AAAA"), "NOERROR", ""),
            (&name("192-0-2-1", "A"), "NOERROR", "192.0.2.1"),
            (&name("fd00--7", "AAAA"), "NOERROR", "fd00::7"),
            (&name("fd00-0-0-0-0-0-0-7", "AAAA"), "NOERROR", "fd00::7"),
            (&name("10-22-0", "A"), "NXDOMAIN", ""),
            (&name("web", "A"), "NXDOMAIN", ""),
            (&name("x.10-22-0-7", "A"), "NXDOMAIN", ""),
            ("10-22-0-7.nowhere.pod.cluster.local A", "NXDOMAIN", ""),
        ],
    );
    let server = start(&["--pods=verified"]);
    expect(
        &server,
        &[
            (&name("10-22-0-7", "A"), "NOERROR", "10.22.0.7"),
            (&name("fd00--7", "AAAA"), "NOERROR", "fd00::7"),
            (&name("10-22-0-8", "A"), "NXDOMAIN", ""),
            ("10-22-0-7.hidden.pod.cluster.local A", "NXDOMAIN", ""),
            (&name("10-22-0-30", "A"), "NXDOMAIN", ""),
        ],
    );
    let (before, after) =
        ("{podIP: 10.22.0.7, podIPs: [{ip: 10.22.0.7}", "{podIP: 10.22.0.77, podIPs: [{ip: 10.22.0.77}");
    server.apply("cluster.yaml", &CLUSTER.replace(before, after));
    testbed::wait_for("the pod's new address", || {
        anyhow::ensure!(server.status(&name("10-22-0-77", "A")) == "NOERROR");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.status(&name("10-22-0-7", "A")), "NXDOMAIN");
}

#[test]
fn endpoint_pod_names_option_names_endpoints_without_hostname_by_pod() {
    let server = start(&["--endpoint-pod-names"]);
    expect(
        &server,
        &[
            ("db-xyz.db.default.svc.cluster.local A", "NOERROR", "10.22.0.8"),
            ("10-22-0-8.db.default.svc.cluster.local A", "NXDOMAIN", ""),
            ("db-0.db.default.svc.cluster.local A", "NOERROR", "10.22.0.9"),
            ("db-0-pod.db.default.svc.cluster.local A", "NXDOMAIN", ""),
            ("-x 10.22.0.8", "NOERROR", "db-xyz.db.default.svc.cluster.local."),
        ],
    );
    let srv = server.dig("+short _sql._tcp.db.default.svc.cluster.local SRV");
    assert!(srv.contains("db-xyz.db.") && srv.contains("db-0.db."), "{srv}");
}

#[test]
fn ignore_empty_service_option_hides_services_without_endpoints() {
    let name = "idle.default.svc.cluster.local A";
    expect(&start(&[]), &[(name, "NOERROR", "10.96.0.10")]);
    let server = start(&["--ignore-empty-service"]);
    expect(
        &server,
        &[
            (name, "NXDOMAIN", ""),
            ("web.default.svc.cluster.local A", "NOERROR", "10.96.0.9"),
            ("-x 10.96.0.10", "NXDOMAIN", ""),
        ],
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: idle-1, labels: {kubernetes.io/service-name: idle}}\naddressType: IPv4\nendpoints: [{addresses: [10.22.0.40]}]\n";
    server.apply("idle.yaml", slice);
    testbed::wait_for("the Service with an endpoint", || {
        anyhow::ensure!(server.status(name) == "NOERROR");
        Ok(())
    })
    .unwrap();
}

#[test]
fn namespaces_that_are_not_served_do_not_exist_forward_or_reverse() {
    let hidden = ["web.hidden.svc.cluster.local A", "hidden.svc.cluster.local A", "-x 10.96.0.11"];
    let server = start(&["--namespaces=default,other"]);
    for question in hidden {
        assert_eq!(server.status(question), "NXDOMAIN", "{question}");
    }
    expect(&server, &[("web.default.svc.cluster.local A", "NOERROR", "10.96.0.9")]);
    for question in hidden {
        assert_eq!(start(&[]).status(question), "NOERROR", "{question}");
    }
}

/// Every row of the table in docs/dns.md.
#[test]
fn compat_coredns_differs_from_the_rfcs_in_six_places_and_no_other() {
    let (rfc, coredns) = (start(&[]), start(&["--compat=coredns"]));
    for (question, by_rfc, by_coredns) in [
        ("_tcp.web.default.svc.cluster.local A", "NOERROR", "NXDOMAIN"),
        ("dns.cluster.local A", "NOERROR", "NXDOMAIN"),
        ("0.96.10.in-addr.arpa PTR", "NOERROR", "NXDOMAIN"),
        ("away.default.svc.cluster.local A", "NXDOMAIN", "NOERROR"),
        ("svc.cluster.local A", "NOERROR", "NOERROR"),
        ("default.svc.cluster.local A", "NOERROR", "NOERROR"),
        ("none.default.svc.cluster.local A", "NXDOMAIN", "NXDOMAIN"),
        ("_http._tcp.web.default.svc.cluster.local SRV", "NOERROR", "NOERROR"),
    ] {
        assert_eq!(
            (rfc.status(question), coredns.status(question)),
            (by_rfc.to_owned(), by_coredns.to_owned()),
            "{question}"
        );
    }
    // By the specification an endpoint of a Service with a virtual IP has no PTR record.
    assert_eq!(rfc.status("-x 10.22.0.7"), "SERVFAIL", "for the upstream servers");
    expect(&coredns, &[("-x 10.22.0.7", "NOERROR", "10-22-0-7.web.default.svc.cluster.local.")]);
    let web = Query::new("web.default.svc.cluster.local", 1);
    let ra = 0x0080;
    assert_eq!(web.ask(rfc.address).flags & (AA | ra), AA | ra);
    assert_eq!(web.ask(coredns.address).flags & (AA | ra), AA);
    let any = Query::new("web.default.svc.cluster.local", 255);
    assert_eq!(any.ask(rfc.address).answers, [13]);
    assert!(any.ask(coredns.address).answers.is_empty());
}

/// The sorted lines of a zone as printed by kdig and dig, without TTLs.
fn records(output: &str) -> Vec<String> {
    let lines = output.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    let mut lines: Vec<String> = lines
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            words.remove(1);
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// RFC 5936
#[test]
fn zone_transfer_is_allowed_for_configured_clients_only() {
    let server = start(&["--transfer-to=127.0.0.0/8"]);
    let all = records(&server.dig("cluster.local AXFR"));
    assert_eq!(all.iter().filter(|line| line.contains(" SOA ")).count(), 2, "{all:#?}");
    for line in [
        "dns-version.cluster.local. IN TXT \"1.1.0\"",
        "web.default.svc.cluster.local. IN A 10.96.0.9",
        "web.hidden.svc.cluster.local. IN A 10.96.0.11",
        "_http._tcp.web.default.svc.cluster.local. IN SRV 0 100 80 web.default.svc.cluster.local.",
        "10-22-0-7.web.default.svc.cluster.local. IN A 10.22.0.7",
        "db-0.db.default.svc.cluster.local. IN A 10.22.0.9",
        "_sql._tcp.db.default.svc.cluster.local. IN SRV 0 50 5432 db-0.db.default.svc.cluster.local.",
        "away.default.svc.cluster.local. IN CNAME none.default.svc.cluster.local.",
    ] {
        assert!(all.iter().any(|found| found == line), "{line} in {all:#?}");
    }
    // Each record must be the answer to a query for it.
    for line in &all {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = records(&server.dig(&format!("+noall +answer +norec {} {}", words[0], words[2])));
        assert!(words[2] == "CNAME" || answer.contains(line), "{line} in {answer:#?}");
    }
    assert_eq!(records(&server.dig("cluster.local IXFR=1")).len(), all.len());
    for (question, why) in [("default.svc.cluster.local", "not an apex"), ("example.org", "not ours")] {
        assert!(server.dig(&format!("{question} AXFR")).contains("Transfer failed"), "{why}");
    }
    // Not over UDP, where the source address can be forged.
    let reply = Query::new("cluster.local", 252).edns(1232, 0, 0).ask(server.address);
    assert_eq!((reply.code(), reply.counts[1], reply.error().unwrap().0), (5, 0, 18));
    let other = start(&["--transfer-to=192.0.2.0/24"]);
    assert!(other.dig("cluster.local AXFR").contains("Transfer failed"));
}

/// RFC 5936 §2.2: more than one message.
#[test]
fn large_zone_is_transferred_completely() {
    let mut text = CLUSTER.to_owned();
    for n in 0..5000 {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{clusterIP: 10.100.{}.{}, ports: [{{port: 80}}]}}\n",
            n / 250,
            n % 250 + 1
        );
    }
    let server = Server::start(&[("cluster.yaml", &text)], &["--transfer-to=127.0.0.1/32"]);
    let transferred = server.dig("cluster.local AXFR");
    assert_eq!(records(&transferred).iter().filter(|line| line.contains(" IN A 10.100.")).count(), 5000);
    let messages = transferred.split("messages ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    assert!(messages.parse::<u32>().unwrap() > 5, "{messages}");
}

#[test]
fn transfer_of_many_messages_is_counted_and_logged_as_one_query() {
    let server = start(&["--transfer-to=127.0.0.1/32", "--log-queries=1"]);
    assert!(!records(&server.dig("cluster.local AXFR")).is_empty());
    server.wait_for_log("proto=\"tcp\" name=\"cluster.local.\" type=TYPE252 rcode=NOERROR");
    assert_eq!(server.metric("coredns_dns_requests_total{proto=\"tcp\",type=\"other\"}"), "1");
}
