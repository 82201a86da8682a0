//! Start of the daemons. Before the manifests are read, a daemon is not ready, and answers neither with data
//! nor with NXDOMAIN.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::ensure;
use tempfile::TempDir;
use testbed::{Binaries, Node, Program, wait_for};

#[test]
fn daemons_are_not_ready_and_answer_servfail_until_the_manifests_exist() {
    let node = Node::new().unwrap();
    let binaries = Binaries::find().unwrap();
    let directory = TempDir::new().unwrap();
    let manifests = directory.path().join("manifests");
    let arguments = ["--manifests", manifests.to_str().unwrap()];
    let log = |name: &str| directory.path().join(name);
    let _proxy =
        Program::start(&node, &binaries.path("portolan-proxy"), &arguments, &log("proxy.log")).unwrap();
    let arguments = [&arguments[..], &["--upstream", node.outside_address()]].concat();
    let _dns = Program::start(&node, &binaries.path("portolan-dns"), &arguments, &log("dns.log")).unwrap();

    let page = |url: &str| node.shell(&format!("curl -sS -m 2 -w ' %{{http_code}}' http://{url}"));
    let pages = ["127.0.0.1:10256/readyz?verbose", "127.0.0.1:10264/ready?verbose"];
    for url in pages {
        let page = wait_for(url, || {
            let text = page(url)?;
            ensure!(text.contains("No such file or directory"), "{text}");
            Ok(text)
        });
        assert!(page.unwrap().ends_with(" 503"), "{url}");
    }
    assert!(page("127.0.0.1:10256/livez").unwrap().ends_with(" 200"), "alive, but not ready");
    let name = "web.default.svc.cluster.local";
    let ask = || node.shell(&format!("dig @10.96.0.10 +tries=1 +time=2 {name}"));
    let answer = wait_for("an answer", ask).unwrap();
    assert!(answer.contains("status: SERVFAIL"), "{answer}");
    assert!(answer.contains("EDE: 14"), "{answer}");

    std::fs::create_dir(&manifests).unwrap();
    for url in pages {
        wait_for(url, || {
            let text = page(url)?;
            ensure!(text.ends_with(" 200"), "{text}");
            Ok(())
        })
        .unwrap();
    }
    let answer = ask().unwrap();
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
}

/// All HTTP endpoints of both daemons.
const PAGES: [&str; 5] = [
    "127.0.0.1:10249/metrics",
    "127.0.0.1:10256/readyz",
    "127.0.0.1:10262/metrics",
    "127.0.0.1:10263/health",
    "127.0.0.1:10264/ready",
];

/// Starts both daemons with a Service `web`.
fn both(node: &Node, directory: &Path) -> [Program; 2] {
    let manifests = directory.join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    std::fs::write(manifests.join("web.yaml"), service).unwrap();
    let manifests = manifests.to_str().unwrap();
    ["portolan-proxy", "portolan-dns"].map(|program| {
        let upstream = ["--upstream", node.outside_address()];
        let more = if program == "portolan-dns" { &upstream[..] } else { &[] };
        let arguments = [&["--manifests", manifests], more].concat();
        let log = directory.join(program);
        Program::start(node, &Binaries::find().unwrap().path(program), &arguments, &log).unwrap()
    })
}

fn serves_names(node: &Node) -> anyhow::Result<()> {
    let answer = node.shell("dig +short +time=1 +tries=1 @10.96.0.10 web.default.svc.cluster.local")?;
    ensure!(answer.starts_with("10."), "{answer}");
    Ok(())
}

#[test]
fn page_is_served_as_soon_as_its_port_is_free() {
    let node = Node::new().unwrap();
    let directory = TempDir::new().unwrap();
    let addresses = PAGES.map(|page| page.split('/').next().unwrap());
    let taken = node.run(|| addresses.map(|address| TcpListener::bind(address).unwrap()));
    let mut daemons = both(&node, directory.path());
    wait_for("an answer without any page", || serves_names(&node)).unwrap();
    for (program, flag) in
        [("portolan-proxy", "--healthz-bind-address"), ("portolan-dns", "--ready-bind-address")]
    {
        wait_for("the error in the log", || {
            let log = std::fs::read_to_string(directory.path().join(program))?;
            ensure!(log.contains("cannot serve a page") && log.contains(flag), "{log}");
            Ok(())
        })
        .unwrap();
    }
    drop(taken);
    for page in PAGES {
        wait_for(page, || node.shell(&format!("curl -fsS -m 2 http://{page}"))).unwrap();
    }
    for daemon in &mut daemons {
        assert!(daemon.terminate().unwrap().success());
    }
}

/// A published port of a container (`-p 8080:8080`) must be free.
#[test]
fn daemons_listen_only_on_their_documented_ports() {
    let node = Node::new().unwrap();
    let directory = TempDir::new().unwrap();
    let _daemons = both(&node, directory.path());
    for page in PAGES {
        wait_for(page, || node.shell(&format!("curl -fsS -m 2 http://{page}"))).unwrap();
    }
    wait_for("an answer", || serves_names(&node)).unwrap();
    let listening = node.shell("ss -ltnH").unwrap();
    let mut ports: Vec<u16> = listening
        .lines()
        .map(|line| line.split_whitespace().nth(3).unwrap().rsplit(':').next().unwrap().parse().unwrap())
        // Without the proxy's TPROXY listeners, which have ephemeral ports.
        .filter(|port| *port < 32_768)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports, [53, 10_249, 10_256, 10_262, 10_263, 10_264], "{listening}");
}

/// conntrack settings of kube-proxy.
const CONNTRACK: [&str; 5] = [
    "tcp_timeout_established",
    "tcp_timeout_close_wait",
    "tcp_be_liberal",
    "udp_timeout",
    "udp_timeout_stream",
];

/// Returns the kernel's values.
fn conntrack(node: &Node) -> Vec<String> {
    let files = CONNTRACK.map(|name| format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    let values = node.shell(&format!("cat {}", files.join(" "))).unwrap();
    values.lines().map(str::to_owned).collect()
}

/// Starts a proxy without Services and waits until it is ready.
fn proxy(node: &Node, directory: &Path, flags: &[&str]) -> Program {
    let binary = Binaries::find().unwrap().path("portolan-proxy");
    let arguments = [&["--manifests", directory.to_str().unwrap()], flags].concat();
    let proxy = Program::start(node, &binary, &arguments, &directory.join("proxy.log")).unwrap();
    wait_for("the proxy", || node.shell("curl -fsS http://127.0.0.1:10256/readyz")).unwrap();
    proxy
}

#[test]
fn conntrack_defaults_equal_those_of_kube_proxy() {
    let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
    let untouched = conntrack(&node);
    assert!(untouched[0] != "86400" && untouched[1] != "3600", "the kernel's defaults: {untouched:?}");
    let mut running = proxy(&node, directory.path(), &[]);
    let set = conntrack(&node);
    assert_eq!(set[..2], ["86400", "3600"]);
    assert_eq!(set[2..], untouched[2..], "unchanged");
    running.terminate().unwrap();
    assert_eq!(conntrack(&node), set, "kept after the shutdown, as with kube-proxy");
}

#[test]
fn conntrack_is_set_by_flags_and_keys_and_unchanged_by_zeros() {
    let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
    let untouched = conntrack(&node);
    let zeros = [
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0",
    ];
    let mut running = proxy(&node, directory.path(), &zeros);
    assert_eq!(conntrack(&node), untouched);
    running.terminate().unwrap();

    let config = directory.path().join("config");
    let keys = "conntrack-tcp-timeout-close-wait: 1h30m\n\
        portolan-proxy: {conntrack-tcp-be-liberal: true, conntrack-udp-timeout: 40}\n";
    std::fs::write(&config, keys).unwrap();
    let config = format!("--config={}", config.display());
    let flags = [&config, "--conntrack-tcp-timeout-established=1000", "--conntrack-udp-timeout-stream=2m0s"];
    let _proxy = proxy(&node, directory.path(), &flags);
    assert_eq!(conntrack(&node), ["1000", "5400", "1", "40", "120"]);
}

/// As in an unprivileged container, and in a systemd service with ProtectKernelTunables.
#[test]
fn conntrack_timeouts_are_set_with_read_only_proc_sys_and_other_failures_are_reported_once() {
    let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
    node.shell("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys").unwrap();
    let udp =
        ["--conntrack-udp-timeout=40", "--conntrack-udp-timeout-stream=130", "--conntrack-tcp-be-liberal"];
    let _proxy = proxy(&node, directory.path(), &udp);
    assert_eq!(conntrack(&node), ["86400", "3600", "0", "40", "130"]);
    let log = std::fs::read_to_string(directory.path().join("proxy.log")).unwrap();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("cannot set conntrack")).collect();
    assert!(matches!(warnings[..], [one] if one.contains("nf_conntrack_tcp_be_liberal")), "{log}");
}

/// The Kubernetes test of this name uses a connection from one node to a port of another.
#[test]
fn should_set_tcp_close_wait_timeout() {
    let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
    let _proxy = proxy(&node, directory.path(), &[]);
    node.shell(
        "nft 'add table ip x; add chain ip x y { type nat hook postrouting priority 100; }; add rule \
        ip x y masquerade'",
    )
    .unwrap();
    let listener = node.outside().run(|| TcpListener::bind((node.outside_address(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = node.run(|| TcpStream::connect(address)).unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the server has closed, the client has not");
    let entry = format!("grep dport={} /proc/net/nf_conntrack", address.port());
    wait_for("CLOSE_WAIT", || {
        let entry = node.shell(&entry)?;
        let fields: Vec<&str> = entry.split_whitespace().collect();
        ensure!(fields[5] == "CLOSE_WAIT", "{entry}");
        let seconds: u32 = fields[4].parse()?;
        ensure!((3540..=3600).contains(&seconds), "{entry}");
        Ok(())
    })
    .unwrap();
}
