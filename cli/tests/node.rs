//! `portolan status`, `trace` and `doctor` on a node with both daemons.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::{Command, Output};

use anyhow::ensure;
use serde_json::Value;
use testbed::{Binaries, Cluster, HostnameServer, Node, Program, wait_for};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\n\
    metadata: {name: web-1, labels: {app: web}}\nspec: {containers: []}\n---\napiVersion: v1\n\
    kind: Service\nmetadata: {name: empty}\nspec: {selector: {app: missing}, ports: [{port: 80}]}\n";

/// Runs the command in the node.
fn portolan(node: &Node, arguments: &[&str]) -> Output {
    node.run(|| Command::new(env!("CARGO_BIN_EXE_portolan")).args(arguments).output()).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(node: &Node, arguments: &[&str]) -> (bool, Value) {
    let output = portolan(node, &[arguments, &["--json"]].concat());
    let parsed = serde_json::from_slice(&output.stdout);
    (output.status.success(), parsed.unwrap_or_else(|error| panic!("{error}: {}", text(&output))))
}

/// Returns the findings of a check that are not ok.
fn findings<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap().iter();
    all.filter(|finding| finding["check"] == check && finding["level"] != "ok").collect()
}

#[test]
fn status_shows_daemons_services_and_endpoints() {
    let mut cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    let _server = HostnameServer::start(&server, 8080).unwrap();
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();

    let (is_healthy, status) = json(&cluster.node, &["status"]);
    assert!(is_healthy, "{status:#}");
    let [proxy, dns] = &status["programs"].as_array().unwrap()[..] else { panic!("{status:#}") };
    assert_eq!((&proxy["name"], &proxy["state"]), (&"portolan-proxy".into(), &"ready".into()));
    assert_eq!(proxy["pids"], serde_json::json!([cluster.proxy.id()]));
    assert_eq!(proxy["version"], env!("CARGO_PKG_VERSION"));
    assert!(proxy["traffic"]["connections"].as_u64() >= Some(1), "{proxy:#}");
    assert!(proxy["conditions"].to_string().contains("manifests: 1 files"), "{proxy:#}");
    assert_eq!(dns["state"], "ready");
    assert!(dns["traffic"]["queries"].as_u64() >= Some(1), "{dns:#}");
    assert_eq!(status["pods"], 2);
    let [empty, web] = &status["services"].as_array().unwrap()[..] else { panic!("{status:#}") };
    assert_eq!((&empty["name"], &empty["frontends"]), (&"default/empty".into(), &serde_json::json!([])));
    assert_eq!(web["frontends"][0]["endpoints"][0]["pod"], "default/web-1");

    let table = text(&portolan(&cluster.node, &["status", "web"]));
    assert!(table.contains("default/web") && !table.contains("empty"), "{table}");

    cluster.dns.terminate().unwrap();
    let (is_healthy, status) = json(&cluster.node, &["status"]);
    assert!(!is_healthy && status["programs"][1]["state"] == "stopped", "{status:#}");
}

#[test]
fn trace_shows_the_steps_of_a_request_and_the_failing_one() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    let listening = HostnameServer::start(&server, 8080).unwrap();
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();

    let (reached, trace) = json(&cluster.node, &["trace", "web:80", "--from", "client"]);
    assert!(reached, "{trace:#}");
    let steps: Vec<&str> =
        trace["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["client", "name", "name", "route", "frontend", "endpoint", "request"], "{trace:#}");
    let text_of_trace = trace.to_string();
    for part in [
        "pod default/client",
        "web.default.svc.cluster.local. A: ",
        "local to this node",
        "pod default/web-1) accepts",
    ] {
        assert!(text_of_trace.contains(part), "{part}: {trace:#}");
    }
    // From the node itself, to all ports.
    assert!(portolan(&cluster.node, &["trace", "web.default.svc.cluster.local"]).status.success());

    for (target, expected) in [
        ("web:81", "port 81 is not one of the Service's"),
        ("empty:80", "is Service default/empty, which has no ready endpoint"),
        ("nothing", "no address by the name nothing"),
    ] {
        let output = portolan(&cluster.node, &["trace", target, "--from", "default/client"]);
        assert_eq!(output.status.code(), Some(1), "{target}");
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    drop(listening);
    let refused = text(&portolan(&cluster.node, &["trace", "web:80"]));
    assert!(refused.contains("(pod default/web-1) does not accept: Connection refused"), "{refused}");

    let unknown = text(&portolan(&cluster.node, &["trace", "web", "--from", "missing"]));
    assert!(unknown.contains("no pod \"missing\"") && unknown.contains("default/client"), "{unknown}");
}

#[test]
fn daemons_are_found_at_the_addresses_of_their_config_files_and_flags() {
    let node = Node::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("manifests")).unwrap();
    std::fs::write(path("manifests/web.yaml"), WEB).unwrap();
    let manifests = path("manifests").display().to_string();
    let config_text =
        format!("manifests: {manifests}\nportolan-proxy: {{metrics-bind-address: '127.0.0.1:20249'}}\n");
    std::fs::write(path("proxy.yaml"), config_text).unwrap();
    let defaults = "metrics-bind-address: 127.0.0.1:29153\nready-bind-address: 127.0.0.1:1\n";
    node.shell(&format!("mkdir -p /etc/portolan; printf '{defaults}' > /etc/portolan/config.yaml")).unwrap();
    // The default ports accept connections and do not answer.
    let silent = ["10249", "10262", "10264"].map(|port| {
        Program::start(&node, "/bin/busybox".as_ref(), &["nc", "-l", "-p", port], &path(port)).unwrap()
    });

    let start = |program: &str, flags: &[&str]| {
        let binary = Binaries::find().unwrap().path(program);
        Program::start(&node, &binary, flags, &path(program)).unwrap()
    };
    let config = path("proxy.yaml").display().to_string();
    let _proxy = start("portolan-proxy", &["--config", &config]);
    let ready = "--ready-bind-address=127.0.0.1:28181";
    let _dns =
        start("portolan-dns", &["--manifests", &manifests, "--upstream", node.outside_address(), ready]);

    let status = wait_for("both daemons", || {
        let (is_healthy, status) = json(&node, &["status"]);
        ensure!(is_healthy, "{status:#}");
        Ok(status)
    })
    .unwrap();
    assert!(status["programs"][1]["traffic"]["queries"].is_u64(), "metrics of portolan-dns: {status:#}");
    let trace = text(&portolan(&node, &["trace", "empty:80"]));
    assert!(trace.contains("is Service default/empty, which has no ready endpoint"), "{trace}");
    let (_, report) = json(&node, &["doctor"]);
    assert_eq!(findings(&report, "ports"), Vec::<&Value>::new());

    // A flag overrides the config file.
    let (is_healthy, status) = json(&node, &["status", "--dns-ready", "127.0.0.1:1"]);
    assert!(!is_healthy && status["programs"][1]["state"] == "silent", "{status:#}");
    drop(silent);
}

#[test]
fn trace_reports_that_proxy_and_dns_do_not_answer() {
    let node = Node::new().unwrap();
    let output = portolan(&node, &["trace", "web:80"]);
    assert_eq!(output.status.code(), Some(1));
    let output = text(&output);
    assert!(
        output.contains("no proxy answers") && output.contains("10.96.0.10:53 does not answer"),
        "{output}"
    );
}

#[test]
fn doctor_reports_no_problem_on_a_healthy_node() {
    let cluster = Cluster::start().unwrap();
    let _pod = cluster.add_pod("client").unwrap();
    let (is_healthy, report) = json(&cluster.node, &["doctor"]);
    assert!(is_healthy, "{report:#}");
    for check in ["kernel", "firewall", "conflicts", "ports", "MTU"] {
        assert_eq!(findings(&report, check), Vec::<&Value>::new(), "{check}");
    }
}

#[test]
fn doctor_finds_problems_and_its_fixes_work() {
    let node = Node::new().unwrap();
    node.shell("echo 0 > /proc/sys/net/ipv4/ip_forward; iptables -P FORWARD DROP").unwrap();
    node.shell("rm -f /etc/resolv.conf; echo nameserver 127.0.0.53 > /etc/resolv.conf").unwrap();
    node.shell("nft add table ip nat; nft add chain ip nat KUBE-SERVICES").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let port_owner =
        Program::start(&node, "/bin/busybox".as_ref(), &["nc", "-l", "-p", "10262"], log.path()).unwrap();
    node.shell(
        "mkdir -p /etc/cni/net.d; echo '{\"name\": \"other\", \"plugins\": []}' > \
        /etc/cni/net.d/05-other.conflist",
    )
    .unwrap();
    let ours = r#"{"name": "portolan", "plugins": [
        {"type": "portolan-cni", "mtu": 9000, "ipam": {"ranges": [[{"subnet": "192.0.2.0/25"}]]}}
    ]}"#;
    node.shell(&format!("echo '{ours}' > /etc/cni/net.d/10-portolan.conflist")).unwrap();

    let report = wait_for("the port to be taken", || {
        let (is_healthy, report) = json(&node, &["doctor"]);
        ensure!(!is_healthy && !findings(&report, "ports").is_empty(), "{report:#}");
        Ok(report)
    })
    .unwrap();
    for (check, seen) in [
        ("settings", "net.ipv4.ip_forward is 0"),
        ("firewall", "the policy of ip filter FORWARD is drop"),
        ("conflicts", "rules of kube-proxy are active: nat KUBE-SERVICES"),
        ("conflicts", "names only 127.0.0.53"),
        ("ports", "port 10262/tcp, which portolan-dns needs, is taken by busybox"),
        ("MTU", "pods send packets of up to 9000 bytes, uplink0 carries 1500"),
        ("ranges", "192.0.2.0/24 leads to uplink0"),
        ("runtime", "05-other.conflist comes before"),
        ("runtime", "portolan-proxy and portolan-dns not running"),
    ] {
        let found = findings(&report, check);
        assert!(
            found.iter().any(|finding| finding["seen"].as_str().unwrap().contains(seen)),
            "{seen}: {report:#}"
        );
        assert!(found.iter().all(|finding| finding["fix"].is_string()), "{report:#}");
    }
    // Run the fixes that are commands.
    for check in ["firewall", "settings"] {
        for finding in findings(&report, check) {
            let fix = finding["fix"].as_str().unwrap();
            let command = fix.rsplit_once("to keep it: ").map_or(fix, |(_, command)| command);
            node.shell(command).unwrap();
        }
    }
    drop(port_owner);
    let (_, report) = json(&node, &["doctor"]);
    for check in ["firewall", "settings", "ports"] {
        assert_eq!(findings(&report, check), Vec::<&Value>::new(), "{check}");
    }
}

#[test]
fn completion_and_manual_pages_cover_every_command() {
    let node = Node::new().unwrap();
    let script = text(&portolan(&node, &["completion", "bash"]));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("man1");
    assert!(portolan(&node, &["man", path.to_str().unwrap()]).status.success());
    for command in ["status", "doctor", "trace", "install", "uninstall", "completion", "man"] {
        assert!(script.contains(command), "{command}");
        let page = std::fs::read_to_string(path.join(format!("portolan-{command}.1"))).unwrap();
        assert!(page.contains(".TH"), "{command}: {page}");
    }
}
