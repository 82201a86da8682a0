//! The proxy's rules and routes while other programs and other proxies change them.

use super::*;
use crate::agnhost::Location;
use crate::proxy_loops::{NODE, manual, wait_until_served};

const PAGE: &str = "curl -fsS http://127.0.0.1:10249/debug/services";

/// Returns the sets that name the owner of the table.
fn owners(cluster: &Cluster) -> Result<String> {
    cluster.node.shell("nft list sets | grep -o 'set proxy-[0-9]*' || true")
}

/// Waits for the proxy's next check of the kernel state: it restores a deleted table.
pub(crate) fn wait_for_check(cluster: &Cluster) {
    cluster.node.shell("nft delete table inet portolan-virtual").unwrap();
    wait_for("the next check", || cluster.node.shell("nft list table inet portolan-virtual")).unwrap();
}

/// Returns the logs of all proxies.
fn logs(cluster: &Cluster) -> String {
    cluster.node.shell(&format!("cat {}/proxy*.log", cluster.directory().display())).unwrap()
}

#[test]
fn flushed_rules_are_written_again() {
    let (cluster, client) = cluster();
    let _web = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    for table in ["portolan-proxy", "portolan-proxy-replies"] {
        let list = || cluster.node.shell(&format!("nft -s list table inet {table}"));
        let before = list().unwrap();
        cluster.node.shell(&format!("nft flush table inet {table}")).unwrap();
        wait_for(table, || {
            let now = list()?;
            let rules = |text: &str| text.lines().filter(|line| line.contains("meta mark")).count();
            ensure!(rules(&now) == rules(&before), "{now}");
            Ok(())
        })
        .unwrap();
        expect_answers(&client, &address, &["web-1"]);
    }
}

#[test]
fn table_of_another_proxy_is_left_alone_while_that_one_listens() {
    let (cluster, client) = cluster();
    let _web = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    let other = cluster.node.run(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let owner = format!("proxy-{}", other.local_addr().unwrap().port());
    let table = format!(
        "delete table inet portolan-proxy; add table inet portolan-proxy; add set inet portolan-proxy \
         {owner} {{ type ipv4_addr; }}; add chain inet portolan-proxy prerouting {{ type filter hook \
         prerouting priority mangle; }}; add chain inet portolan-proxy intercept; add rule inet \
         portolan-proxy prerouting jump intercept"
    );
    cluster.node.shell(&format!("nft '{table}'")).unwrap();
    for name in ["one", "two"] {
        wait_for_check(&cluster);
        let changed = manual(name, "ports: [{port: 80}]", "192.0.2.1", 80);
        cluster.apply("changed.yaml", &changed).unwrap();
        wait_for("the change", || {
            let page = cluster.node.shell(PAGE)?;
            ensure!(page.contains(name), "{page}");
            Ok(())
        })
        .unwrap();
        assert_eq!(owners(&cluster).unwrap().trim(), format!("set {owner}"));
    }
    // The owner no longer listens: it died, or its table was restored from a file.
    drop(other);
    expect_answers(&client, &address, &["web-1"]);
}

/// A process of another user has the name by which proxies find each other: the next proxy does not find the
/// previous one, which continues with its checks and changes.
#[test]
fn previous_proxy_does_not_take_the_table_back() {
    let (mut cluster, client) = cluster();
    cluster.proxy.kill();
    let script = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0portolan-proxy'); s.listen(); time.sleep(600)";
    let arguments = ["--reuid=65534", "/usr/bin/python3", "-c", script];
    let log = cluster.directory().join("holder.log");
    let _holder = Program::start(&cluster.node, "/usr/bin/setpriv".as_ref(), &arguments, &log).unwrap();
    wait_for("the name to be held", || cluster.node.serving_proxy()).unwrap();
    cluster.start_new_proxy().unwrap();
    let _web = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    let previous = owners(&cluster).unwrap();
    let mut old = cluster.start_next_proxy().unwrap();
    let next = wait_for("the next proxy", || {
        let now = owners(&cluster)?;
        ensure!(now != previous, "{now}");
        Ok(now)
    })
    .unwrap();
    for name in ["one", "two"] {
        wait_for_check(&cluster);
        cluster.apply("changed.yaml", &manual(name, "ports: [{port: 80}]", "192.0.2.1", 80)).unwrap();
        wait_for("the change", || {
            let log = logs(&cluster);
            ensure!(log.matches(&format!("default/{name}")).count() >= 2, "{log}");
            Ok(())
        })
        .unwrap();
        assert_eq!(owners(&cluster).unwrap(), next);
    }
    old.terminate().unwrap();
    assert_eq!(owners(&cluster).unwrap(), next);
    expect_answers(&client, &address, &["web-1"]);
}

/// portmap and Docker translate ports of local addresses.
#[test]
fn cluster_ip_outside_of_the_service_ranges_is_kept_out_of_nat() {
    let (cluster, client) = cluster();
    let _web = replica(&cluster, "web-1", "web");
    let other = replica(&cluster, "other-1", "other");
    let spec = format!("  clusterIP: 10.200.0.7\n{PORT_80}");
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    expect_answers(&client, "10.200.0.7:80", &["web-1"]);
    let rule = format!("fib daddr type local tcp dport 80 dnat ip to {}:8080", other.pod.ip);
    cluster
        .node
        .shell(&format!(
            "nft 'add table ip published; add chain ip published p {{ type nat hook prerouting \
            priority dstnat; }}; add rule ip published p {rule}'"
        ))
        .unwrap();
    expect_answers(&client, &format!("{NODE}:80"), &["other-1"]);
    expect_answers(&client, "10.200.0.7:80", &["web-1"]);
    cluster.delete("web.yaml").unwrap();
    wait_for("the removal of the address", || {
        let table = cluster.node.shell("nft list table inet portolan-virtual; ip route show table local")?;
        ensure!(!table.contains("10.200.0.7"), "{table}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn service_range_of_one_address_keeps_its_route_over_a_kill() {
    let ranges = ["--service-cidr", "10.96.0.0/12", "--service-cidr", "10.201.0.7/32"];
    let mut cluster = Cluster::start_with(&ranges).unwrap();
    let route = "ip route show table local 10.201.0.7";
    assert!(cluster.node.shell(route).unwrap().contains("dev lo"));
    cluster.restart_proxy().unwrap();
    assert!(cluster.node.shell(route).unwrap().contains("dev lo"));
    assert!(!logs(&cluster).contains("deleted the route"), "{}", logs(&cluster));
}

#[test]
fn node_keeps_its_addresses_while_the_proxy_cannot_read_them() {
    let (cluster, client) = cluster();
    let _web = replica(&cluster, "web-1", "web");
    let port = "  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]";
    cluster.apply("web.yaml", &service(port)).unwrap();
    let address = format!("{NODE}:30080");
    expect_answers(&client, &address, &["web-1"]);
    let limit = |soft: &str| {
        cluster.node.shell(&format!("prlimit --pid {} --nofile={soft}:", cluster.proxy.id())).unwrap()
    };
    limit("3");
    wait_for("the failure", || {
        let log = logs(&cluster);
        ensure!(log.contains("cannot read the node's addresses") || log.contains("other addresses"), "{log}");
        Ok(())
    })
    .unwrap();
    limit("1000");
    expect_answers(&client, &address, &["web-1"]);
    let log = logs(&cluster);
    assert!(!log.contains("the node has other addresses now") && !log.contains("closed frontend"), "{log}");
}

#[test]
fn refusing_server_of_the_node_is_tried_once_without_a_source_to_preserve() {
    let cluster = Cluster::start_with(&["--source-address", "node"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster
        .apply("host.yaml", &manual("host", "clusterIP: 10.96.0.66, ports: [{port: 80}]", NODE, 8080))
        .unwrap();
    wait_until_served(&cluster, "10.96.0.66:80");
    let counter = "nft 'add table inet counted; add chain inet counted c { type filter hook output priority \
        0; }; add rule inet counted c tcp dport 8080 tcp flags syn counter'";
    cluster.node.shell(counter).unwrap();
    Location::Pod(&client).run(|| ask("10.96.0.66:80")).unwrap_err();
    let counted = cluster.node.shell("nft list table inet counted").unwrap();
    assert!(counted.contains("packets 1 "), "{counted}");
}
