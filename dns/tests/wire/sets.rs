//! Record sets: no duplicates, the source of each, and the choice among very many.

use crate::server::Server;

/// RFC 2181 §5
#[test]
fn port_with_two_protocols_has_one_srv_record_at_the_name_of_its_service() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec:\n  clusterIP: 10.96.0.5\n  ports:\n  \
                - {name: dns, port: 53, protocol: UDP}\n  - {name: dns-tcp, port: 53, protocol: TCP}\n  \
                - {name: metrics, port: 9153}\n";
    let server = Server::start(&[("dns.yaml", text)], &[]);
    let all = server.dig("+short dns.default.svc.cluster.local SRV");
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    let target = "dns.default.svc.cluster.local.";
    assert_eq!(lines, [format!("0 100 53 {target}"), format!("0 100 9153 {target}")]);
    for port in ["_dns._udp", "_dns-tcp._tcp"] {
        let one = server.dig(&format!("+short {port}.dns.default.svc.cluster.local SRV"));
        assert_eq!(one.trim(), format!("0 100 53 {target}"));
    }
}

/// RFC 2181 §5
#[test]
fn duplicate_hosts_line_gives_one_record() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hosts");
    std::fs::write(&file, "192.0.2.9 printer printer\n192.0.2.9 printer\n").unwrap();
    let flag = format!("--hosts={}", file.display());
    let server = Server::start(&[], &[&flag]);
    assert_eq!(server.dig("+short printer A").trim(), "192.0.2.9");
    assert_eq!(server.dig("+short -x 192.0.2.9").trim(), "printer.");
}

/// Like CoreDNS's plugin hosts before kubernetes, and a server block below the cluster's.
#[test]
fn hosts_entries_and_stub_domains_below_the_cluster_domain_are_honoured() {
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hosts");
    std::fs::write(&file, "192.0.2.9 vm.default.svc.cluster.local\n").unwrap();
    let hosts = format!("--hosts={}", file.display());
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stub = format!("--stub=corp.cluster.local={closed}");
    let server = Server::start(&[("web.yaml", web)], &[&hosts, &stub]);
    assert_eq!(server.dig("+short vm.default.svc.cluster.local A").trim(), "192.0.2.9");
    assert_eq!(server.dig("+short web.default.svc.cluster.local A").trim(), "10.96.0.9");
    assert_eq!(server.status("none.default.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(
        server.status("www.corp.cluster.local A"),
        "SERVFAIL",
        "its server is queried, and does not answer"
    );
}

/// 65,535 bytes contain 4,092 of 5,200 addresses.
#[test]
fn answer_that_does_not_fit_tcp_has_tc_and_always_the_same_records() {
    let endpoints: String = (0..5200_u16)
        .map(u16::to_be_bytes)
        .map(|[high, low]| format!("- {{addresses: [10.22.{high}.{low}], conditions: {{ready: true}}}}\n"))
        .collect();
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: huge}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: huge-1\n  \
         labels: {{kubernetes.io/service-name: huge}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n{endpoints}"
    );
    let server = Server::start(&[("huge.yaml", &text)], &[]);
    let ask = || server.dig("+tcp huge.default.svc.cluster.local A");
    let addresses = |reply: &str| -> Vec<String> {
        let lines = reply.lines().filter(|line| line.starts_with("huge."));
        lines.filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect()
    };
    let (first, second) = (ask(), ask());
    assert!(first.contains("flags: qr aa tc rd ra"), "{}", &first[..500]);
    assert!(addresses(&first).len() > 4000);
    assert_eq!(addresses(&first), addresses(&second));
}
