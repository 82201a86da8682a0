//! Whatever happens to the API server, Services go on, and changes are seen once it is back.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::Program;

use super::*;

const PROXY: &str = "127.0.0.1:10249";
const DNS: &str = "127.0.0.1:10262";

/// A cluster that serves `web`.
fn serving() -> (Ground, [(Pod, HostnameServer); 2]) {
    let ground = Ground::new();
    let replicas = ["web-1", "web-2"].map(|name| ground.replica(name));
    ground.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    ground.expect("web", "web-1");
    (ground, replicas)
}

fn log(ground: &Ground) -> String {
    ground.cluster.logs()
}

fn staleness(source: &str) -> String {
    format!("source_stale_seconds{{source=\"kubernetes/{source}\"}}")
}

#[test]
fn the_last_state_is_served_while_the_api_server_is_down_and_its_age_shows() {
    let (mut ground, replicas) = serving();
    ground.control_plane.stop_server();
    let stopped = Instant::now();
    for (address, name) in [
        (PROXY, format!("portolan_proxy_{}", staleness("services"))),
        (DNS, format!("portolan_dns_{}", staleness("endpointslices"))),
    ] {
        wait(&name, &ground, || {
            let seconds = ground.metric(address, &name)?;
            ensure!(seconds > 1.0, "{seconds}");
            Ok(())
        });
    }
    ground.expect("web", "web-1");
    // Ready all the same, and it says why it may be out of date.
    let page = ground.page("127.0.0.1:10256/readyz?verbose").unwrap();
    assert!(page.contains("readyz check passed") && page.contains("s old"), "{page}");
    assert!(page.contains("onnection refused") && page.contains("last known state stays in force"), "{page}");
    let dig = |name: &str| {
        ground.cluster.node.shell(&format!("dig +noall +comments +answer @10.96.0.10 {name}")).unwrap()
    };
    let answer = dig("web.default.svc.cluster.local");
    assert!(answer.contains("NOERROR") && answer.contains("EDE: 3 (Stale Answer)"), "{answer}");
    let answer = dig("none.default.svc.cluster.local");
    assert!(answer.contains("NXDOMAIN") && answer.contains("EDE: 19 (Stale NXDOMAIN Answer)"), "{answer}");
    // A daemon that starts now knows nothing, and says so rather than serve it.
    let _second = second_server(&ground, &ground.control_plane.kubeconfig("portolan-dns").unwrap());
    expect_second(&ground, &["readyz check failed", "kubernetes/services"]);
    let answer = ground
        .cluster
        .node
        .shell("dig +noall +comments @127.0.0.1 -p 5353 web.default.svc.cluster.local")
        .unwrap();
    assert!(answer.contains("SERVFAIL") && answer.contains("EDE: 14 (Not Ready)"), "{answer}");

    // A minute in all: by then the pauses between tries are as long as they get.
    std::thread::sleep(Duration::from_secs(60).saturating_sub(stopped.elapsed()));
    ground.expect("web", "web-1");
    let seconds = ground.metric(PROXY, &format!("portolan_proxy_{}", staleness("services"))).unwrap();
    assert!(seconds > 50.0, "{seconds}");

    ground.control_plane.start_server().unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    ground.expect("web", "web-2");
    wait("the age to be none", &ground, || {
        let seconds = ground.metric(PROXY, &format!("portolan_proxy_{}", staleness("services")))?;
        ensure!(seconds == 0.0, "{seconds}");
        Ok(())
    });
    wait("answers without a reservation", &ground, || {
        let answer = dig("web.default.svc.cluster.local");
        ensure!(!answer.contains("EDE"), "{answer}");
        Ok(())
    });
}

#[test]
fn a_version_that_etcd_has_forgotten_is_listed_again() {
    let (mut ground, replicas) = serving();
    ground.control_plane.stop_server();
    ground.control_plane.start_server().unwrap();
    ground.expect("web", "web-1");
    // The watch stops, the world goes on, and what happened meanwhile is forgotten.
    let daemons =
        [ground.cluster.proxy.id(), ground.cluster.dns.id()].map(|id| Pid::from_raw(id.try_into().unwrap()));
    daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
    ground.control_plane.stop_server();
    ground.control_plane.start_server().unwrap();
    ground.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    ground.apply(&(service("other", "") + &slice("other", &[&replicas[1].0.ip])));
    ground.control_plane.compact().unwrap();
    // The server's own memory of recent events goes with it.
    ground.control_plane.stop_server();
    ground.control_plane.start_server().unwrap();
    daemons.iter().for_each(|id| kill(*id, Signal::SIGCONT).unwrap());
    ground.expect("other", "web-2");
    wait("the deleted Service to go", &ground, || {
        ensure!(ground.ask("web").is_err());
        Ok(())
    });
    let log = log(&ground);
    assert!(log.contains("listing everything again"), "{log}");
}

#[test]
fn a_watch_whose_connection_is_half_open_is_noticed() {
    let (ground, replicas) = serving();
    // Packets of the connections there are vanish both ways; new ones get through.
    let ports = ground
        .cluster
        .node
        .shell(
            "ss -Htnp state established dport = :6443 | grep portolan- | awk '{ print $3 }' | sed 's/.*://'",
        )
        .unwrap();
    let ports = ports.split_whitespace().collect::<Vec<_>>().join(", ");
    let rules = format!(
        "table inet hole {{ chain in {{ type filter hook input priority -300; tcp sport 6443 tcp dport {{ {ports} }} drop; tcp dport 6443 tcp sport {{ {ports} }} drop; }}; }}"
    );
    ground.cluster.node.shell(&format!("nft '{rules}'")).unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    ground.expect("web", "web-2");
}

#[test]
fn certificates_that_are_rotated_are_read_again() {
    let (mut ground, replicas) = serving();
    ground.control_plane.rotate_certificates().unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    ground.expect("web", "web-2");
}

#[test]
fn a_service_recreated_with_the_same_address_while_nobody_watched_leads_to_its_new_endpoints() {
    let (mut ground, replicas) = serving();
    let at = |name: &str| service(name, ", clusterIP: 10.96.7.7");
    ground.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    ground.apply(&at("web"));
    ground.expect("web", "web-1");
    let daemons =
        [ground.cluster.proxy.id(), ground.cluster.dns.id()].map(|id| Pid::from_raw(id.try_into().unwrap()));
    daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
    // The same name and address with another endpoint, and then another name at that address.
    for name in ["web", "heir"] {
        ground.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
        ground.apply(&(at(name) + &slice(name, &[&replicas[1].0.ip])));
        ground.control_plane.stop_server();
        ground.control_plane.start_server().unwrap();
        daemons.iter().for_each(|id| kill(*id, Signal::SIGCONT).unwrap());
        ground.expect(name, "web-2");
        assert_eq!(ground.client.ask("10.96.7.7:80").unwrap(), "web-2");
        if name == "web" {
            daemons.iter().for_each(|id| kill(*id, Signal::SIGSTOP).unwrap());
        }
    }
    wait("the name that has gone", &ground, || {
        ensure!(ground.ask("web").is_err());
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_killed_serves_the_present_state_when_it_is_back() {
    let (mut ground, replicas) = serving();
    let pid = Pid::from_raw(ground.cluster.proxy.id().try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    ground.cluster.restart_proxy().unwrap();
    ground.expect("web", "web-2");
}

/// HAProxy in front of the API server, as a cluster with several has it. It passes everything on, or answers itself.
fn balancer(ground: &Ground, answer: &str) -> Program {
    let directory = ground.control_plane.directory();
    let certificate = ["crt", "key"].map(|kind| {
        let kubeconfig = ground.control_plane.kubeconfig("portolan-dns").unwrap();
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
    Program::start(&ground.cluster.node, binary, &arguments, &directory.join("balancer.log")).unwrap()
}

/// A DNS server beside the other, on port 5353.
fn second_server(ground: &Ground, kubeconfig: &Path) -> Program {
    let binary = testbed::Binaries::find().unwrap().path("portolan-dns");
    let flags = format!(
        "--kubeconfig={} --listen=127.0.0.1:5353 --upstream={} --metrics-bind-address=127.0.0.1:5354 \
         --health-bind-address=127.0.0.1:5355 --ready-bind-address=127.0.0.1:5356",
        kubeconfig.display(),
        ground.cluster.node.outside_address()
    );
    let flags: Vec<&str> = flags.split(' ').collect();
    let log = ground.cluster.directory().join("second.log");
    Program::start(&ground.cluster.node, &binary, &flags, &log).unwrap()
}

fn expect_second(ground: &Ground, texts: &[&str]) {
    wait(&format!("the second server to say {texts:?}"), ground, || {
        let page = ground.page("127.0.0.1:5356/ready?verbose")?;
        ensure!(texts.iter().all(|text| page.contains(text)), "{page}");
        Ok(())
    });
}

#[test]
fn refusals_and_errors_are_waited_out() {
    const TOO_MANY: &str = r#"http-request return status 429 content-type application/json string '{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too many requests", "reason": "TooManyRequests", "code": 429, "details": {"retryAfterSeconds": 1}}'"#;
    const ERROR: &str = "http-request deny deny_status 500";
    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts: [{name: it, context: {cluster: it, user: it}}]\n\
        clusters: [{name: it, cluster: {server: 'http://127.0.0.1:8001'}}]\nusers: [{name: it, user: {}}]\n";
    let (ground, _replicas) = serving();
    let mut front = balancer(&ground, TOO_MANY);
    let kubeconfig = ground.control_plane.directory().join("balanced.kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let _second = second_server(&ground, &kubeconfig);
    expect_second(&ground, &["readyz check failed", "too many requests (429)"]);
    for (answer, texts) in [
        (ERROR, ["readyz check failed", "(500)"]),
        ("", ["readyz check passed", "kubernetes/namespaces: 4 objects"]),
        // Once more, while there is a state to keep.
        (ERROR, ["readyz check passed", "(500); the last known state stays in force"]),
    ] {
        front.kill();
        front = balancer(&ground, answer);
        expect_second(&ground, &texts);
    }
    let resolve = "dig +short @127.0.0.1 -p 5353 web.default.svc.cluster.local";
    let known = ground.cluster.node.shell(resolve).unwrap();
    assert_eq!(known.trim(), ground.cluster.virtual_ip("web").unwrap());
    ground.apply(&service("late", ""));
    front.kill();
    let _front = balancer(&ground, "");
    wait("what was missed", &ground, || {
        ensure!(!ground.cluster.node.shell(&resolve.replace("web", "late"))?.is_empty());
        Ok(())
    });
}

#[test]
fn a_server_without_its_store_is_waited_for() {
    let (mut ground, replicas) = serving();
    ground.control_plane.stop_etcd();
    wait("the store to be missed", &ground, || {
        let asked = ground.control_plane.kubectl(&["get", "services", "--request-timeout=2s"], "");
        ensure!(asked.is_err());
        Ok(())
    });
    ground.expect("web", "web-1");
    ground.control_plane.start_etcd().unwrap();
    wait("the store to be back", &ground, || ground.control_plane.apply(&slice("web", &[&replicas[1].0.ip])));
    ground.expect("web", "web-2");
}

/// What happened after the backup has never been, and versions begin again at a number that the daemons have left behind.
#[test]
fn a_store_that_is_restored_from_a_backup_is_listed_again() {
    let (mut ground, replicas) = serving();
    ground.control_plane.stop_server();
    ground.control_plane.stop_etcd();
    ground.control_plane.back_up().unwrap();
    ground.control_plane.start_etcd().unwrap();
    ground.control_plane.start_server().unwrap();
    let fifty: String = (0..50).map(|number| service(&format!("never-{number}"), "")).collect();
    ground.apply(&(slice("web", &[&replicas[1].0.ip]) + &fifty));
    ground.expect("web", "web-2");
    let never = "dig +short @10.96.0.10 never-49.default.svc.cluster.local";
    wait("a Service that will never have been", &ground, || {
        ground.cluster.node.shell(&format!("{never} | grep ."))
    });
    ground.control_plane.stop_server();
    ground.control_plane.stop_etcd();
    ground.control_plane.restore().unwrap();
    ground.control_plane.start_etcd().unwrap();
    ground.control_plane.start_server().unwrap();
    ground.expect("web", "web-1");
    wait("the Services to go", &ground, || {
        // It has no endpoint, so that a connection to it would tell nothing.
        let addresses = ground.cluster.node.shell(never)?;
        ensure!(addresses.is_empty(), "{addresses}");
        Ok(())
    });
    // And it is followed from there on.
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    ground.expect("web", "web-2");
}

/// Endpoints of the list that takes long.
const MANY: usize = 150_000;

/// A slice as full as it may be.
fn many_endpoints(number: usize) -> serde_json::Value {
    let endpoint = |host: usize| serde_json::json!({ "addresses": [format!("10.77.{}.{}", host / 250, host % 250)], "conditions": { "ready": true } });
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("many-{number}"), "labels": { "kubernetes.io/service-name": "many" } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080 }],
        "endpoints": (0..1000).map(endpoint).collect::<Vec<_>>(),
    })
}

/// The server is given one part in ten of the time, so that its list takes long; before the list is complete nothing of it
/// is in force, and then all of it.
#[test]
fn a_slow_list_changes_nothing_before_it_is_complete() {
    let (mut ground, replicas) = serving();
    let slices: Vec<_> = (0..MANY / 1000).map(many_endpoints).collect();
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": slices });
    ground.control_plane.kubectl(&["create", "--validate=false", "-f", "-"], &list.to_string()).unwrap();
    ground.control_plane.stop_server();
    ground.control_plane.start_server().unwrap();
    ground.apply(&slice("web", &[&replicas[1].0.ip]));
    kill(Pid::from_raw(ground.cluster.proxy.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let server = Pid::from_raw(ground.control_plane.server().unwrap().id().try_into().unwrap());
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
        ground.cluster.replace_proxy().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let frontends = ground.metric(PROXY, "portolan_proxy_frontends").unwrap_or_default();
            let page = ground.page("127.0.0.1:10256/readyz?verbose").unwrap_or_default();
            let is_incomplete = page.contains("[-]sources");
            unready += u32::from(is_incomplete);
            early = frontends > 0.0 && is_incomplete;
            if early || page.contains("readyz check passed") || Instant::now() > deadline {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(!early, "something was served before the list was complete");
    assert!(unready > 0, "the page was never read before it was");
    ground.expect("web", "web-2");
    let objects =
        ground.metric(PROXY, "portolan_proxy_source_objects{source=\"kubernetes/endpointslices\"}").unwrap();
    assert!(objects >= 151.0, "{objects}: not all were there when the proxy said that it was ready");
}

#[test]
fn a_server_that_does_not_stream_lists_is_listed_in_pages() {
    let ground = Ground::with(&["--feature-gates=WatchList=false"]);
    let (pod, _server) = ground.replica("web-1");
    let many: String = (0..600).map(|number| service(&format!("other-{number}"), "")).collect();
    ground.apply(&(service("web", "") + &slice("web", &[&pod.ip]) + &many));
    ground.expect("web", "web-1");
    let Ground { mut cluster, client, control_plane } = ground;
    cluster.restart_proxy().unwrap();
    let ground = Ground { cluster, client, control_plane };
    ground.expect("web", "web-1");
    let objects =
        ground.metric(PROXY, "portolan_proxy_source_objects{source=\"kubernetes/services\"}").unwrap();
    assert_eq!(objects, 602.0, "with the API server's own");
    assert!(log(&ground).contains("listing in pages"), "{}", log(&ground));
}
