//! Operations: health, readiness, limits, the query log, the age of changes.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::message::Query;
use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
const NAME: &str = "web.default.svc.cluster.local";

/// The status and the text of a page.
fn page(address: &str, path: &str) -> (String, String) {
    let url = format!("http://{address}{path}");
    let output = Command::new("curl").args(["-sS", "-m2", "-w", "\n%{http_code}", &url]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.to_owned(), body.to_owned())
}

fn free() -> String {
    format!("127.0.0.1:{}", testbed::free_port().unwrap())
}

#[test]
fn lame_duck_is_unhealthy_and_serves_until_its_time_is_up() {
    let health = free();
    let mut server =
        Server::start(&[("web.yaml", WEB)], &["--lameduck=3", &format!("--health-bind-address={health}")]);
    assert_eq!(page(&health, "/health").0, "200");
    let stopped = Instant::now();
    server.tell_to_end();
    testbed::wait_for("bad health", || {
        let (status, _) = page(&health, "/health");
        anyhow::ensure!(status == "503", "{status}");
        Ok(())
    })
    .unwrap();
    let mut answers = 0;
    while server.is_running() {
        // Between the last answer and the exit both are possible.
        answers += u32::from(stopped.elapsed() < Duration::from_millis(2900));
        if stopped.elapsed() < Duration::from_millis(2900) {
            assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
        }
    }
    assert!(answers > 3 && stopped.elapsed() >= Duration::from_secs(3), "{answers}");
}

#[test]
fn ready_names_what_is_missing() {
    let ready = free();
    let server = Server::start_unready(&[&format!("--ready-bind-address={ready}")]);
    let (status, body) = page(&ready, "/ready");
    assert_eq!(status, "503");
    assert!(body.contains("[-]sources failed: ") && body.contains("create it"), "{body}");
    server.create_manifests();
    testbed::wait_for("readiness", || {
        let (status, body) = page(&ready, "/ready?verbose");
        anyhow::ensure!(status == "200" && body.contains("[+]sources ok: "), "{status} {body}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn client_that_is_not_allowed_is_refused_with_a_reason() {
    let ask = |server: &Server, kind| Query::new(NAME, kind).edns(1232, 0, 0).ask(server.address);
    for flag in ["--allow-from=192.0.2.0/24", "--block-from=127.0.0.0/8"] {
        let server = Server::start_refusing(&[flag]);
        let reply = ask(&server, 1);
        assert_eq!((reply.code(), reply.error().unwrap().0), (5, 18), "{flag}");
        let counted =
            || -> f64 { server.metric("portolan_dns_refused_total{reason=\"client\"}").parse().unwrap() };
        let before = counted();
        // Also a query with an unknown version of EDNS.
        assert_eq!(Query::new(NAME, 1).edns(1232, 1, 0).ask(server.address).code(), 5, "{flag}");
        assert_eq!(counted(), before + 1.0);
        assert!(server.dig(&format!("+tcp {NAME} A")).contains("REFUSED"));
        assert!(server.dig("cluster.local AXFR").contains("Transfer failed"));
    }
    let server = Server::start(&[("web.yaml", WEB)], &["--allow-from=127.0.0.0/8,192.0.2.0/24"]);
    assert_eq!(ask(&server, 1).code(), 0);
}

#[test]
fn client_beyond_its_rate_is_refused_until_the_next_second() {
    let server = Server::start(&[("web.yaml", WEB)], &["--rate-limit=20"]);
    let codes: Vec<u16> = (0..200).map(|_| Query::new(NAME, 1).ask(server.address).code()).collect();
    let refused = codes.iter().filter(|code| **code == 5).count();
    assert!(refused > 100 && codes.iter().all(|code| matches!(code, 0 | 5)), "{refused}");
    testbed::wait_for("an answer", || {
        anyhow::ensure!(Query::new(NAME, 1).ask(server.address).code() == 0);
        Ok(())
    })
    .unwrap();
    let counted: f64 = server.metric("portolan_dns_refused_total{reason=\"rate\"}").parse().unwrap();
    assert!(counted >= 100.0, "{counted}");
}

#[test]
fn one_of_a_number_of_queries_is_logged_if_enabled() {
    let server = Server::start(&[("web.yaml", WEB)], &["--log-queries=1"]);
    assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
    server.wait_for_log(&format!("proto=\"udp\" name=\"{NAME}.\" type=A rcode=NOERROR"));
    server.dig("+tcp none.example TYPE1000");
    server.wait_for_log("proto=\"tcp\" name=\"none.example.\" type=TYPE1000 rcode=SERVFAIL");
    let sampled = Server::start(&[("web.yaml", WEB)], &["--log-queries=10"]);
    for _ in 0..500 {
        assert_eq!(Query::new(NAME, 1).ask(sampled.address).code(), 0);
    }
    // 50 on average: less than 15 or more than 120 happens once in many million runs.
    let lines = sampled.log().matches("name=\"web").count();
    assert!((15..120).contains(&lines), "{lines}");
    let silent = Server::start(&[("web.yaml", WEB)], &[]);
    assert_eq!(silent.status(&format!("{NAME} A")), "NOERROR");
    assert!(!silent.log().contains("name=\"web"));
}

/// SLI of sig-scalability: from the trigger to the answer.
#[test]
fn programming_latency_counts_from_the_trigger_time() {
    let slice = |triggered_at: &str, address: &str| {
        format!(
            "{WEB}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {{kubernetes.io/service-name: web}}\n  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{triggered_at}\"}}\naddressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\n"
        )
    };
    let server = Server::start(&[("web.yaml", &slice("2020-01-01T00:00:00Z", "10.4.0.1"))], &[]);
    let metric = |part: &str| {
        server.metric(&format!(
            "coredns_kubernetes_dns_programming_duration_seconds_{part}{{service_kind=\"cluster_ip\"}}"
        ))
    };
    assert_eq!(metric("count"), "", "what was there at the start is no news");
    let now = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap().stdout;
    server.apply("web.yaml", &slice(String::from_utf8(now).unwrap().trim(), "10.4.0.2"));
    testbed::wait_for("the news to be counted", || {
        anyhow::ensure!(metric("count") == "1", "{}", metric("count"));
        Ok(())
    })
    .unwrap();
    // The trigger time has whole seconds, and the machine may be busy.
    assert!(metric("sum").parse::<f64>().unwrap() < 10.0, "{}", metric("sum"));
}
