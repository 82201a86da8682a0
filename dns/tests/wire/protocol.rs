//! DNS on the wire: EDNS, truncation, unusual queries, changes, failing upstream servers.

use crate::server::Server;

fn large(count: usize) -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: large}\nspec: {clusterIP: None}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: large-1, labels: {kubernetes.io/service-name: large}}\naddressType: IPv4\nendpoints:\n".to_owned();
    for n in 0..count {
        text += &format!("- {{addresses: [10.4.{}.{}]}}\n", n / 250, n % 250 + 1);
    }
    text
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

/// Complaint 5, RFC 6891, RFC 2181 §9
#[test]
fn complaint_5_large_answer_is_truncated_over_udp_with_opt_and_complete_over_tcp() {
    let server = Server::start(&[("large.yaml", &large(600))], &[]);
    let question = "large.default.svc.cluster.local A";
    for (options, most) in [("+noedns +ignore", 30), ("+bufsize=4096 +ignore", 76)] {
        let reply = server.dig(&format!("{options} {question}"));
        assert!(reply.contains("flags: qr aa tc rd ra"), "{reply}");
        let answers = reply.lines().filter(|line| line.starts_with("large.")).count();
        assert!((20..=most).contains(&answers), "{answers} answers with {options}");
        assert_eq!(reply.contains("EDNS: version: 0"), !options.contains("noedns"), "{reply}");
    }
    assert_eq!(server.dig(&format!("+tcp +short {question}")).lines().count(), 600);
}

/// Complaint 5: a client that never uses TCP reaches all endpoints in time, and not always the same few.
#[test]
fn complaint_5_each_truncated_answer_has_another_part_of_the_whole() {
    let server = Server::start(&[("large.yaml", &large(60))], &[]);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let reply = server.dig("+noedns +ignore +short large.default.svc.cluster.local A");
        seen.extend(reply.lines().filter(|line| !line.starts_with(';')).map(str::to_owned));
        if seen.len() == 60 {
            return;
        }
    }
    panic!("only {} of 60 endpoints in 200 answers", seen.len());
}

/// RFC 8906 §8
#[test]
fn unusual_queries_get_the_right_code_and_always_a_reply() {
    let server = Server::start(&[("web.yaml", &service("web", "10.96.0.9"))], &[]);
    let name = "web.default.svc.cluster.local";
    for (question, status) in [
        (format!("{name} TYPE1000"), "NOERROR"),
        (format!("{name} A +edns=1 +noednsneg"), "BADVERS"),
        (format!("{name} A +ednsopt=100"), "NOERROR"),
        (format!("{name} A +ednsflags=0x80"), "NOERROR"),
        (format!("{name} A +cd +ad +zflag +norec"), "NOERROR"),
        (format!("{name} A -c CH"), "REFUSED"),
        (format!("{name} A +opcode=15"), "NOTIMP"),
        ("cluster.local SOA".to_owned(), "NOERROR"),
        ("cluster.local NS".to_owned(), "NOERROR"),
    ] {
        assert_eq!(server.status(&question), status, "{question}");
    }
    let any = server.dig(&format!("+noall +answer {name} ANY"));
    assert!(any.contains("HINFO") && any.lines().count() == 1, "RFC 8482: {any}");
    assert!(server.dig("cluster.local AXFR").contains("Transfer failed"));
    // RFC 9619: one question per message, and no crash on a wrong count.
    let mut message = b"\x12\x34\x01\x00\xff\xff\x00\x00\x00\x00\x00\x00".to_vec();
    message.extend(b"\x03web\x00\x00\x01\x00\x01");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    socket.send_to(&message, server.address).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).unwrap();
    assert!(length >= 12 && reply[3] & 15 == 1, "FORMERR");
    assert_eq!(server.status(&format!("{name} A")), "NOERROR");
}

/// Complaint 3: new Services stayed hidden behind caches for 5 to 30 s.
#[test]
fn complaint_3_query_after_a_change_gets_the_new_state() {
    let server = Server::start(&[("web.yaml", &service("web", "10.96.0.9"))], &[]);
    for n in 10..30 {
        server.apply("web.yaml", &service("web", &format!("10.96.0.{n}")));
        testbed::wait_for("the new address", || {
            let answer = server.dig("+short web.default.svc.cluster.local A");
            anyhow::ensure!(answer.trim() == format!("10.96.0.{n}"), "{answer}");
            Ok(())
        })
        .unwrap();
    }
    // A broken file changes nothing.
    server.apply("web.yaml", "a: [");
    server.apply("api.yaml", &service("api", "10.96.0.50"));
    testbed::wait_for("the next service", || {
        anyhow::ensure!(server.dig("+short api.default.svc.cluster.local A").trim() == "10.96.0.50");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.dig("+short web.default.svc.cluster.local A").trim(), "10.96.0.29");
}

#[test]
fn dead_upstream_is_skipped_and_without_any_the_answer_is_servfail_with_a_reason() {
    let upstream = Server::start(&[("large.yaml", &large(600))], &["--cluster-domain=example.org"]);
    let two = format!("--upstream=127.0.0.1:1,{}", upstream.address);
    let server = Server::start(&[], &[&two]);
    // Too large for UDP, so it is received from upstream over TCP as well.
    assert_eq!(server.dig("+tcp +short large.default.svc.example.org A").lines().count(), 600);
    assert_eq!(server.status("none.default.svc.example.org A"), "NXDOMAIN");
    let alone = Server::start(&[], &["--upstream=127.0.0.1:1"]);
    let reply = alone.dig("+edns www.example.org A");
    assert!(reply.contains("status: SERVFAIL") && reply.contains("EDE: 23"), "{reply}");
    // Upstream failures do not affect the cluster's own names.
    assert_eq!(alone.status("dns-version.cluster.local TXT"), "NOERROR");
}

#[test]
fn upstream_that_is_the_server_itself_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_portolan-dns"))
        .arg("--manifests")
        .arg(directory.path())
        .args(["--listen=127.0.0.1:5399", "--upstream=127.0.0.1:5399"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("it would query itself in a loop"), "{stderr}");
}

#[test]
fn check_config_reports_errors_and_exits() {
    let directory = tempfile::tempdir().unwrap();
    let check = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portolan-dns"));
        command.arg("--manifests").arg(directory.path()).arg("--check-config").output().unwrap()
    };
    std::fs::write(directory.path().join("web.yaml"), service("web", "10.96.0.9")).unwrap();
    assert!(check().status.success());
    std::fs::write(directory.path().join("bad.yaml"), service("web", "10.96.0.300")).unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(64));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.contains(
            "bad.yaml:4: Service default/web: spec.clusterIP: \"10.96.0.300\" is not an IP address"
        ),
        "{stdout}"
    );
}
