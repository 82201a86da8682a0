//! One proxy after another: nothing is lost, and nothing is left.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testbed::{Cluster, NameServer, wait_for};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\nspec: {containers: []}\n";

/// How long requests go on while proxies follow each other, one a second.
const LENGTH: Duration = Duration::from_secs(10);

/// A thousand requests a second.
const INTERVAL: Duration = Duration::from_millis(1);

#[test]
fn no_request_is_lost_while_proxies_follow_each_other() {
    let mut cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    client.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap()).unwrap();
    let _server = NameServer::start(&server, 8080).unwrap();
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = 0_u32;
                    while !done.load(Ordering::Relaxed) {
                        let next = Instant::now() + INTERVAL * 4;
                        assert_eq!(client.ask(&address).unwrap(), "web-1", "request {count}");
                        count += 1;
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    count
                })
            })
            .collect();
        let end = Instant::now() + LENGTH;
        while Instant::now() < end {
            let mut old = cluster.succeed_proxy().unwrap();
            assert!(old.wait().unwrap().success(), "the old proxy ends when its connections have");
            std::thread::sleep(Duration::from_millis(700));
        }
        done.store(true, Ordering::Relaxed);
        let total: u32 = requests.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(total > 5000, "only {total} requests in {LENGTH:?}");
    });
    cluster.proxy.terminate().unwrap();
    let left =
        cluster.node.shell("ip rule; ip route show table all; nft list ruleset; ls /run/portolan").unwrap();
    assert!(
        !left.contains("7061") && !left.contains("portolan-proxy") && !left.contains("proxy.pid"),
        "{left}"
    );
}

#[test]
fn an_open_connection_outlives_the_proxy_that_has_it() {
    let mut cluster = Cluster::start().unwrap();
    let (client, server) = (cluster.add_pod("client").unwrap(), cluster.add_pod("web-1").unwrap());
    let listener = server.netns.run(|| TcpListener::bind((server.ip.as_str(), 8080))).unwrap().unwrap();
    cluster.apply("web.yaml", WEB).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let connect = || Ok(client.netns.run(|| TcpStream::connect(&address))??);
    let mut stream: TcpStream = wait_for("the service", connect).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut old = cluster.succeed_proxy().unwrap();
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
fn a_cleanup_beside_a_running_proxy_is_refused_also_with_fewer_powers() {
    let cluster = Cluster::start().unwrap();
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
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
