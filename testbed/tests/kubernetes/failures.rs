//! Failures of the API server: Services keep working, and changes are applied after it recovers.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::Program;

use super::*;

const PROXY: &str = "127.0.0.1:10249";
const DNS: &str = "127.0.0.1:10262";

/// Starts a cluster that serves `web`.
fn serving() -> (Fixture, [(Pod, HostnameServer); 2]) {
    let fixture = Fixture::new();
    let replicas = ["web-1", "web-2"].map(|name| fixture.replica(name));
    fixture.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    fixture.expect("web", "web-1");
    (fixture, replicas)
}

fn log(fixture: &Fixture) -> String {
    fixture.cluster.logs()
}

fn staleness(source: &str) -> String {
    format!("source_stale_seconds{{source=\"kubernetes/{source}\"}}")
}

#[test]
fn last_state_is_served_and_reported_stale_while_the_api_server_is_down() {
    let (mut fixture, replicas) = serving();
    fixture.control_plane.stop_server();
    let stopped = Instant::now();
    for (address, name) in [
        (PROXY, format!("portolan_proxy_{}", staleness("services"))),
        (DNS, format!("portolan_dns_{}", staleness("endpointslices"))),
    ] {
        wait(&name, &fixture, || {
            let seconds = fixture.metric(address, &name)?;
            ensure!(seconds > 1.0, "{seconds}");
            Ok(())
        });
    }
    fixture.expect("web", "web-1");
    // The proxy is ready and reports why its state may be stale.
    let page = fixture.page("127.0.0.1:10256/readyz?verbose").unwrap();
    assert!(page.contains("readyz check passed") && page.contains("s old"), "{page}");
    assert!(page.contains("onnection refused") && page.contains("last known state stays applied"), "{page}");
    let dig = |name: &str| {
        fixture.cluster.node.shell(&format!("dig +noall +comments +answer @10.96.0.10 {name}")).unwrap()
    };
    let answer = dig("web.default.svc.cluster.local");
    assert!(answer.contains("NOERROR") && answer.contains("EDE: 3 (Stale Answer)"), "{answer}");
    let answer = dig("none.default.svc.cluster.local");
    assert!(answer.contains("NXDOMAIN") && answer.contains("EDE: 19 (Stale NXDOMAIN Answer)"), "{answer}");
    // A daemon that starts now has no state: it is not ready and answers SERVFAIL.
    let _second = second_server(&fixture, &fixture.control_plane.kubeconfig("portolan-dns").unwrap());
    expect_second(&fixture, &["readyz check failed", "kubernetes/services"]);
    let answer = fixture
        .cluster
        .node
        .shell("dig +noall +comments @127.0.0.1 -p 5353 web.default.svc.cluster.local")
        .unwrap();
    assert!(answer.contains("SERVFAIL") && answer.contains("EDE: 14 (Not Ready)"), "{answer}");

    // After a minute the back-off has reached its maximum.
    std::thread::sleep(Duration::from_secs(60).saturating_sub(stopped.elapsed()));
    fixture.expect("web", "web-1");
    let seconds = fixture.metric(PROXY, &format!("portolan_proxy_{}", staleness("services"))).unwrap();
    assert!(seconds > 50.0, "{seconds}");

    fixture.control_plane.start_server().unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    fixture.expect("web", "web-2");
    wait("the age to be zero", &fixture, || {
        let seconds = fixture.metric(PROXY, &format!("portolan_proxy_{}", staleness("services")))?;
        ensure!(seconds == 0.0, "{seconds}");
        Ok(())
    });
    wait("answers without an extended error", &fixture, || {
        let answer = dig("web.default.svc.cluster.local");
        ensure!(!answer.contains("EDE"), "{answer}");
        Ok(())
    });
}

#[test]
fn compacted_resource_version_causes_a_relist() {
    let (mut fixture, replicas) = serving();
    fixture.control_plane.stop_server();
    fixture.control_plane.start_server().unwrap();
    fixture.expect("web", "web-1");
    // The daemons are stopped while objects change and etcd is compacted.
    let daemons = [fixture.cluster.proxy.id(), fixture.cluster.dns.id()]
        .map(|id| Pid::from_raw(id.try_into().unwrap()));
    daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
    fixture.control_plane.stop_server();
    fixture.control_plane.start_server().unwrap();
    fixture.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    fixture.apply(&(service("other", "") + &slice("other", &[&replicas[1].0.ip])));
    fixture.control_plane.compact().unwrap();
    // A restart clears the API server's watch cache.
    fixture.control_plane.stop_server();
    fixture.control_plane.start_server().unwrap();
    daemons.iter().for_each(|id| kill(*id, Signal::SIGCONT).unwrap());
    fixture.expect("other", "web-2");
    wait("the removal of the deleted Service", &fixture, || {
        ensure!(fixture.ask("web").is_err());
        Ok(())
    });
    let log = log(&fixture);
    assert!(log.contains("listing everything again"), "{log}");
}

#[test]
fn half_open_watch_connection_is_detected() {
    let (fixture, replicas) = serving();
    // Packets of the existing connections are dropped in both directions; new connections work.
    let ports = fixture
        .cluster
        .node
        .shell(
            "ss -Htnp state established dport = :6443 | grep portolan- | awk '{ print $3 }' | sed 's/.*://'",
        )
        .unwrap();
    let ports = ports.split_whitespace().collect::<Vec<_>>().join(", ");
    let rules = format!(
        "table inet hole {{ chain in {{ type filter hook input priority -300; tcp sport 6443 tcp dport {{ \
         {ports} }} drop; tcp dport 6443 tcp sport {{ {ports} }} drop; }}; }}"
    );
    fixture.cluster.node.shell(&format!("nft '{rules}'")).unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    fixture.expect("web", "web-2");
}

#[test]
fn rotated_certificates_are_reloaded() {
    let (mut fixture, replicas) = serving();
    fixture.control_plane.rotate_certificates().unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    fixture.expect("web", "web-2");
}

#[test]
fn service_recreated_during_a_watch_gap_uses_its_new_endpoints() {
    let (mut fixture, replicas) = serving();
    let at = |name: &str| service(name, ", clusterIP: 10.96.7.7");
    fixture.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    fixture.apply(&at("web"));
    fixture.expect("web", "web-1");
    let daemons = [fixture.cluster.proxy.id(), fixture.cluster.dns.id()]
        .map(|id| Pid::from_raw(id.try_into().unwrap()));
    daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
    // First the same name and address with another endpoint, then another name at that address.
    for name in ["web", "heir"] {
        fixture.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
        fixture.apply(&(at(name) + &slice(name, &[&replicas[1].0.ip])));
        fixture.control_plane.stop_server();
        fixture.control_plane.start_server().unwrap();
        daemons.iter().for_each(|id| kill(*id, Signal::SIGCONT).unwrap());
        fixture.expect(name, "web-2");
        assert_eq!(fixture.client.ask("10.96.7.7:80").unwrap(), "web-2");
        if name == "web" {
            daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
        }
    }
    wait("the removal of the old name", &fixture, || {
        ensure!(fixture.ask("web").is_err());
        Ok(())
    });
}

#[test]
fn killed_proxy_serves_the_current_state_after_its_restart() {
    let (mut fixture, replicas) = serving();
    let pid = Pid::from_raw(fixture.cluster.proxy.id().try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    fixture.cluster.restart_proxy().unwrap();
    fixture.expect("web", "web-2");
}

/// Starts HAProxy in front of the API server. It forwards requests, or answers them itself.
fn balancer(fixture: &Fixture, answer: &str) -> Program {
    let directory = fixture.control_plane.directory();
    let certificate = ["crt", "key"].map(|kind| {
        let kubeconfig = fixture.control_plane.kubeconfig("portolan-dns").unwrap();
        std::fs::read_to_string(kubeconfig.with_file_name(format!("portolan-dns.{kind}"))).unwrap()
    });
    let pem = directory.join("balancer.pem");
    std::fs::write(&pem, certificate.concat()).unwrap();
    let config = format!(
        "defaults\n mode http\n timeout connect 2s\n timeout client 10m\n timeout server 10m\n\
         listen api\n bind 127.0.0.1:8001\n {answer}\n server api 192.0.2.2:6443 ssl verify none crt {}\n",
        pem.display()
    );
    let file = directory.join("balancer.cfg");
    std::fs::write(&file, config).unwrap();
    let arguments = ["-db", "-f", &file.to_string_lossy()];
    let binary = Path::new("/usr/sbin/haproxy");
    Program::start(&fixture.cluster.node, binary, &arguments, &directory.join("balancer.log")).unwrap()
}

/// Starts a second DNS server on port 5353.
fn second_server(fixture: &Fixture, kubeconfig: &Path) -> Program {
    let binary = testbed::Binaries::find().unwrap().path("portolan-dns");
    let flags = format!(
        "--kubeconfig={} --listen=127.0.0.1:5353 --upstream={} --metrics-bind-address=127.0.0.1:5354 \
         --health-bind-address=127.0.0.1:5355 --ready-bind-address=127.0.0.1:5356",
        kubeconfig.display(),
        fixture.cluster.node.outside_address()
    );
    let flags: Vec<&str> = flags.split(' ').collect();
    let log = fixture.cluster.directory().join("second.log");
    Program::start(&fixture.cluster.node, &binary, &flags, &log).unwrap()
}

fn expect_second(fixture: &Fixture, texts: &[&str]) {
    wait(&format!("{texts:?} on the second server's page"), fixture, || {
        let page = fixture.page("127.0.0.1:5356/ready?verbose")?;
        ensure!(texts.iter().all(|text| page.contains(text)), "{page}");
        Ok(())
    });
}

#[test]
fn api_errors_and_throttling_are_retried() {
    const TOO_MANY: &str = r#"http-request return status 429 content-type application/json string '{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too many requests", "reason": "TooManyRequests", "code": 429, "details": {"retryAfterSeconds": 1}}'"#;
    const ERROR: &str = "http-request deny deny_status 500";
    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
        contexts: [{name: it, context: {cluster: it, user: it}}]\n\
        clusters: [{name: it, cluster: {server: 'http://127.0.0.1:8001'}}]\nusers: [{name: it, user: {}}]\n";
    let (fixture, _replicas) = serving();
    let mut load_balancer = balancer(&fixture, TOO_MANY);
    let kubeconfig = fixture.control_plane.directory().join("balanced.kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let _second = second_server(&fixture, &kubeconfig);
    expect_second(&fixture, &["readyz check failed", "too many requests (429)"]);
    for (answer, texts) in [
        (ERROR, ["readyz check failed", "(500)"]),
        ("", ["readyz check passed", "kubernetes/namespaces: 4 objects"]),
        // Again, now with a known state.
        (ERROR, ["readyz check passed", "(500); the last known state stays applied"]),
    ] {
        load_balancer.kill();
        load_balancer = balancer(&fixture, answer);
        expect_second(&fixture, &texts);
    }
    let resolve = "dig +short @127.0.0.1 -p 5353 web.default.svc.cluster.local";
    let known = fixture.cluster.node.shell(resolve).unwrap();
    assert_eq!(known.trim(), fixture.cluster.virtual_ip("web").unwrap());
    fixture.apply(&service("late", ""));
    load_balancer.kill();
    let _load_balancer = balancer(&fixture, "");
    wait("the Service created during the outage", &fixture, || {
        ensure!(!fixture.cluster.node.shell(&resolve.replace("web", "late"))?.is_empty());
        Ok(())
    });
}

#[test]
fn api_server_without_etcd_is_retried() {
    let (mut fixture, replicas) = serving();
    fixture.control_plane.stop_etcd();
    wait("the API server's error without etcd", &fixture, || {
        let listed = fixture.control_plane.kubectl(&["get", "services", "--request-timeout=2s"], "");
        ensure!(listed.is_err());
        Ok(())
    });
    fixture.expect("web", "web-1");
    fixture.control_plane.start_etcd().unwrap();
    wait("the API server with etcd", &fixture, || {
        fixture.control_plane.apply(&slice("web", &[&replicas[1].0.ip]))
    });
    fixture.expect("web", "web-2");
}

/// The restore reverts changes after the backup, and resource versions restart below those that the daemons
/// have seen.
#[test]
fn etcd_restored_from_a_backup_causes_a_relist() {
    let (mut fixture, replicas) = serving();
    fixture.control_plane.stop_server();
    fixture.control_plane.stop_etcd();
    fixture.control_plane.back_up().unwrap();
    fixture.control_plane.start_etcd().unwrap();
    fixture.control_plane.start_server().unwrap();
    let fifty: String = (0..50).map(|number| service(&format!("never-{number}"), "")).collect();
    fixture.apply(&(slice("web", &[&replicas[1].0.ip]) + &fifty));
    fixture.expect("web", "web-2");
    let never = "dig +short @10.96.0.10 never-49.default.svc.cluster.local";
    wait("a Service that the restore removes", &fixture, || {
        fixture.cluster.node.shell(&format!("{never} | grep ."))
    });
    fixture.control_plane.stop_server();
    fixture.control_plane.stop_etcd();
    fixture.control_plane.restore().unwrap();
    fixture.control_plane.start_etcd().unwrap();
    fixture.control_plane.start_server().unwrap();
    fixture.expect("web", "web-1");
    wait("the removal of the Services", &fixture, || {
        // The Services have no endpoints, so DNS is checked instead of a connection.
        let addresses = fixture.cluster.node.shell(never)?;
        ensure!(addresses.is_empty(), "{addresses}");
        Ok(())
    });
    // The watch continues from the restored state.
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    fixture.expect("web", "web-2");
}

/// Number of endpoints in the slow list.
const MANY: usize = 150_000;

/// Returns a slice with the maximum of 1000 endpoints.
fn many_endpoints(number: usize) -> serde_json::Value {
    let endpoint = |host: usize| {
        let address = format!("10.77.{}.{}", host / 250, host % 250);
        serde_json::json!({ "addresses": [address], "conditions": { "ready": true } })
    };
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("many-{number}"), "labels": { "kubernetes.io/service-name": "many" } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080 }],
        "endpoints": (0..1000).map(endpoint).collect::<Vec<_>>(),
    })
}

/// The API server runs for a tenth of the time, so that its list is slow. The list is applied only once it is
/// complete.
#[test]
fn slow_list_is_applied_only_when_complete() {
    let (mut fixture, replicas) = serving();
    let slices: Vec<_> = (0..MANY / 1000).map(many_endpoints).collect();
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": slices });
    fixture.control_plane.kubectl(&["create", "--validate=false", "-f", "-"], &list.to_string()).unwrap();
    fixture.control_plane.stop_server();
    fixture.control_plane.start_server().unwrap();
    fixture.apply(&slice("web", &[&replicas[1].0.ip]));
    kill(Pid::from_raw(fixture.cluster.proxy.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let server = Pid::from_raw(fixture.control_plane.server().unwrap().id().try_into().unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut early, mut unready) = (false, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for (signal, time) in [(Signal::SIGSTOP, 90), (Signal::SIGCONT, 10)] {
                    kill(server, signal).unwrap();
                    std::thread::sleep(Duration::from_millis(time));
                }
            }
        });
        fixture.cluster.start_new_proxy().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let frontends = fixture.metric(PROXY, "portolan_proxy_frontends").unwrap_or_default();
            let page = fixture.page("127.0.0.1:10256/readyz?verbose").unwrap_or_default();
            let is_incomplete = page.contains("[-]sources");
            unready += u32::from(is_incomplete);
            early = frontends > 0.0 && is_incomplete;
            if early || page.contains("readyz check passed") || Instant::now() > deadline {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(!early, "frontends were served before the list was complete");
    assert!(unready > 0, "the page was never read before the list was complete");
    fixture.expect("web", "web-2");
    let objects =
        fixture.metric(PROXY, "portolan_proxy_source_objects{source=\"kubernetes/endpointslices\"}").unwrap();
    assert!(objects >= 151.0, "{objects}: the proxy was ready before it had all objects");
}

#[test]
fn server_without_streaming_lists_is_listed_in_pages() {
    let fixture = Fixture::with(&["--feature-gates=WatchList=false"]);
    let (pod, _server) = fixture.replica("web-1");
    let many: String = (0..600).map(|number| service(&format!("other-{number}"), "")).collect();
    fixture.apply(&(service("web", "") + &slice("web", &[&pod.ip]) + &many));
    fixture.expect("web", "web-1");
    let Fixture { mut cluster, client, control_plane } = fixture;
    cluster.restart_proxy().unwrap();
    let fixture = Fixture { cluster, client, control_plane };
    fixture.expect("web", "web-1");
    let objects =
        fixture.metric(PROXY, "portolan_proxy_source_objects{source=\"kubernetes/services\"}").unwrap();
    assert_eq!(objects, 602.0, "with the API server's own");
    assert!(log(&fixture).contains("listing in pages"), "{}", log(&fixture));
}
