//! Hot restarts of the proxy: no request is lost, and no state remains.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{Binaries, Cluster, HostnameServer, Pod, Program, wait_for};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\n\
    metadata: {name: web-1, labels: {app: web}}\nspec: {containers: []}\n";

/// Number of hot restarts, and the minimum number of connections of each proxy before the next restart.
const PROXIES: u32 = 8;
const REQUESTS: f64 = 50.0;

/// Minimum interval of a client's requests.
const INTERVAL: Duration = Duration::from_millis(4);

#[test]
fn no_request_is_lost_during_repeated_hot_restarts() {
    let mut cluster = Cluster::start_with(&["--workers", "2"]).unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    client.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap()).unwrap();
    let _server = HostnameServer::start(&server, 8080).unwrap();
    let node_port = WEB
        .replace("spec: {sel", "spec: {type: NodePort, sel")
        .replace("{port: 80", "{nodePort: 30080, port: 80");
    cluster.apply("web.yaml", &node_port).unwrap();
    let addresses =
        [format!("{}:80", cluster.virtual_ip("web").unwrap()), format!("{}:30080", cluster.node.address())];
    for address in &addresses {
        wait_for("the service", || client.ask(address)).unwrap();
    }

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..4)
            .map(|number| {
                let (address, client, done) = (&addresses[number % 2], &client, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let next = Instant::now() + INTERVAL;
                        let answer = client.ask(address);
                        assert_eq!(answer.unwrap(), "web-1", "from {address}");
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                })
            })
            .collect();
        // On failure the clients must end too, so that the scope ends.
        let outcome = (0..PROXIES).try_for_each(|_| {
            let mut old = cluster.hot_restart_proxy()?;
            ensure!(old.wait()?.success(), "the old proxy exits after its last connection");
            wait_for("requests through the next proxy", || {
                let opened = cluster.proxy_metric("portolan_proxy_connections_opened_total")?;
                ensure!(opened >= REQUESTS, "{opened}");
                Ok(())
            })
        });
        done.store(true, Ordering::Relaxed);
        for client in requests {
            client.join().expect("no request is lost");
        }
        outcome.unwrap();
    });
    cluster.proxy.terminate().unwrap();
    let left =
        cluster.node.shell("ip rule; ip route show table all; nft list ruleset; ls /run/portolan").unwrap();
    assert!(!left.contains("7061") && !left.contains("portolan-proxy"), "{left}");
}

/// A client, a listener of the test, and its Service.
fn web(cluster: &Cluster) -> Result<(Pod, TcpListener, String)> {
    let (client, server) = (cluster.add_pod("client")?, cluster.add_pod("web-1")?);
    let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 8080)))??;
    cluster.apply("web.yaml", WEB)?;
    Ok((client, listener, format!("{}:80", cluster.virtual_ip("web")?)))
}

#[test]
fn open_connection_survives_a_hot_restart() {
    let mut cluster = Cluster::start().unwrap();
    let (client, listener, address) = web(&cluster).unwrap();
    let connect = || Ok(client.netns.run(|| TcpStream::connect(&address))??);
    let mut stream: TcpStream = wait_for("the service", connect).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut old = cluster.hot_restart_proxy().unwrap();
    let mut buffer = [0; 5];
    for _ in 0..20 {
        stream.write_all(b"still").unwrap();
        accepted.read_exact(&mut buffer).unwrap();
        accepted.write_all(b"there").unwrap();
        stream.read_exact(&mut buffer).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop((stream, accepted));
    assert!(old.wait().unwrap().success());
}

#[test]
fn running_proxy_keeps_its_state_until_the_next_one_is_synced() {
    let cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    let _server = HostnameServer::start(&server, 8080).unwrap();
    cluster.apply("web.yaml", &WEB.replace("spec: {sel", "spec: {externalIPs: [203.0.113.10], sel")).unwrap();
    wait_for("the service", || client.ask("203.0.113.10:80")).unwrap();
    let log = cluster.directory().join("next.log");
    let flags = ["--manifests", "/nonexistent"];
    let binary = Binaries::find().unwrap().path("portolan-proxy");
    let mut next = Program::start(&cluster.node, &binary, &flags, &log).unwrap();
    wait_for("the start of the next proxy", || {
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("virtual IPs are local to this node"), "{log}");
        Ok(())
    })
    .unwrap();
    let state = || {
        cluster.node.shell("ip rule; ip route show table 7061; nft list table inet portolan-proxy").unwrap()
    };
    let before = state();
    // Both proxies answer here. Neither is ready, or a kubelet would stop the running one too early.
    let ready = || cluster.node.shell("curl -sS -m 2 http://127.0.0.1:10256/readyz");
    for _ in 0..20 {
        let answer = ready().unwrap();
        assert!(answer.contains("readyz check failed"), "{answer}");
    }
    for second in [false, true] {
        for _ in 0..50 {
            client.ask("203.0.113.10:80").unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        if !second {
            // Its termination removes nothing either.
            assert!(next.terminate().unwrap().success());
            assert_eq!(state(), before);
        }
    }
    wait_for("the running proxy to be ready again", || {
        let answer = ready()?;
        ensure!(answer == "ok\n", "{answer}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn handover_waits_until_the_kernel_accepts_the_rules() {
    let mut cluster = Cluster::start().unwrap();
    // A table with an owner can only be changed by the owner, and is removed with it.
    let mut owner = cluster
        .node
        .run(|| std::process::Command::new("nft").arg("-i").stdin(std::process::Stdio::piped()).spawn())
        .unwrap();
    let command = b"delete table inet portolan-proxy; add table inet portolan-proxy { flags owner; }\n";
    owner.stdin.as_mut().unwrap().write_all(command).unwrap();
    wait_for("the table to be owned", || {
        let tables = cluster.node.shell("nft list tables; nft -a list table inet portolan-proxy")?;
        ensure!(tables.contains("flags owner"), "{tables}");
        Ok(())
    })
    .unwrap();
    let old = cluster.proxy.id();
    let log = cluster.directory().join("next.log");
    let flags = ["--manifests", &cluster.manifests().display().to_string()];
    let binary = Binaries::find().unwrap().path("portolan-proxy");
    let next = Program::start(&cluster.node, &binary, &flags, &log).unwrap();
    wait_for("the kernel to refuse", || {
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("cannot intercept connections"), "{log}");
        Ok(())
    })
    .unwrap();
    for _ in 0..50 {
        assert_eq!(cluster.node.serving_proxy().unwrap(), old);
        std::thread::sleep(Duration::from_millis(20));
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(
        cluster.proxy.wait().unwrap().success(),
        "the previous proxy exits once the next one has its rules"
    );
    wait_for("the next proxy to serve", || {
        ensure!(cluster.node.serving_proxy()? == next.id());
        Ok(())
    })
    .unwrap();
    cluster.node.shell("nft list chain inet portolan-proxy prerouting").unwrap();
}

#[test]
fn draining_proxy_keeps_the_rules_of_the_next_one() {
    let mut cluster = Cluster::start().unwrap();
    let (client, listener, address) = web(&cluster).unwrap();
    let connect = || Ok(client.netns.run(|| TcpStream::connect(&address))??);
    let stream: TcpStream = wait_for("the service", connect).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    cluster.node.shell(&format!("kill {}", cluster.proxy.id())).unwrap();
    wait_for("the drain", || {
        ensure!(cluster.logs().contains("draining: no new connections"), "{}", cluster.logs());
        Ok(())
    })
    .unwrap();
    let mut old = cluster.hot_restart_proxy().unwrap();
    drop((stream, accepted));
    assert!(old.wait().unwrap().success());
    let state = || {
        let rules = cluster.node.shell("ip rule; ip route show table 7061; ip route show table local")?;
        ensure!(rules.contains("fwmark 0x1000") && rules.contains("local default dev lo"), "{rules}");
        ensure!(rules.contains("local 10.96.0.0"), "{rules}");
        cluster.node.shell("nft list chain inet portolan-proxy prerouting")
    };
    state().unwrap();
    let _stream: TcpStream = connect().unwrap();
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), client.ip);
}

#[test]
fn deleted_routes_and_rules_are_restored() {
    let cluster = Cluster::start().unwrap();
    let state = "ip rule; ip route show table 7061; ip route show table local proto 112";
    let before = cluster.node.shell(state).unwrap();
    cluster
        .node
        .shell("ip rule del pref 100; ip route flush table 7061; ip route flush table local proto 112")
        .unwrap();
    assert_ne!(cluster.node.shell(state).unwrap(), before);
    wait_for("the routes", || {
        let now = cluster.node.shell(state)?;
        ensure!(now == before, "{now} is not {before}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn cleanup_is_refused_while_a_proxy_runs() {
    let cluster = Cluster::start().unwrap();
    let binary = Binaries::find().unwrap().path("portolan-proxy");
    for limited in ["", "setpriv --bounding-set=-all,+net_admin --inh-caps=-all "] {
        let refused =
            cluster.node.shell(&format!("{limited}{} --cleanup 2>&1", binary.display())).unwrap_err();
        assert!(format!("{refused:#}").contains("a proxy runs on this node"), "{refused:#}");
        cluster
            .node
            .shell("ip route show table local | grep 10.96; nft list table inet portolan-proxy")
            .unwrap();
    }
}
