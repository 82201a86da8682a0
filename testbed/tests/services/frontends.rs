//! Frontends: node ports, external IPs, load balancers, several ports.

use super::*;

const NODE: &str = "192.0.2.2";

#[test]
fn should_be_able_to_create_a_functioning_nodeport_service() {
    let (cluster, client) = cluster();
    cluster
        .apply(
            "web.yaml",
            &service("  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]"),
        )
        .unwrap();
    let replicas = ["web-1", "web-2"].map(|name| replica(&cluster, name, "web"));
    let address = format!("{NODE}:30080");
    expect_answers(&client, &address, &["web-1", "web-2"]);
    cluster.node.run(|| ask(&address)).unwrap();
    cluster.node.outside().run(|| ask(&address)).unwrap().unwrap();
    expect_answers(&client, &format!("{}:80", cluster.virtual_ip("web").unwrap()), &["web-1", "web-2"]);
    // "should release NodePorts on delete"; "should be able to change the type from NodePort to …".
    // As with kube-proxy, a node process can bind the port, but receives no connections.
    let taken = cluster.node.run(|| std::net::TcpListener::bind(&address)).unwrap();
    expect_answers(&client, &address, &["web-1", "web-2"]);
    drop(taken);
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    expect_refusal(&client, &address);
    cluster.node.run(|| std::net::TcpListener::bind(&address)).unwrap();
    drop(replicas);
}

#[test]
fn should_prevent_nodeport_collisions() {
    let (cluster, client) = cluster();
    let spec = "  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    expect_answers(&client, &format!("{NODE}:30080"), &["web-1"]);
    let _other = replica(&cluster, "other-1", "other");
    cluster.apply("z.yaml", &service(spec).replace("web", "other")).unwrap();
    let page = wait_for("the reported collision", || {
        let page = cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose")?;
        ensure!(page.contains("Service default/web has it, and comes first"), "{page}");
        Ok(page)
    });
    page.unwrap();
    expect_answers(&client, &format!("{NODE}:30080"), &["web-1"]);
    // After the first Service is deleted, the other one gets the port.
    cluster.delete("web.yaml").unwrap();
    expect_answers(&client, &format!("{NODE}:30080"), &["other-1"]);
}

/// Two Services request the same node port and external IP. The owner depends only on the objects.
#[test]
fn owner_of_a_contested_address_depends_only_on_the_objects() {
    let (mut cluster, client) = cluster();
    let spec = "  type: NodePort\n  externalIPs: [203.0.113.30]\n  ports: [{port: 80, targetPort: 8080, \
        nodePort: 30080}]";
    let both = [format!("{NODE}:30080"), "203.0.113.30:80".to_owned()];
    let expect = |name: &str| both.iter().for_each(|address| expect_answers(&client, address, &[name]));
    let _other = replica(&cluster, "other-1", "other");
    cluster.apply("z.yaml", &service(spec).replace("web", "other")).unwrap();
    expect("other-1");
    let _web = replica(&cluster, "web-1", "web");
    cluster.apply("b.yaml", &service(spec)).unwrap();
    expect("web-1");
    // Changes of endpoints do not matter, and neither does a restart.
    cluster.apply("pod-web-1.yaml", &pod_manifest("web-1", "none", "")).unwrap();
    both.iter().for_each(|address| expect_refusal(&client, address));
    cluster.restart_proxy().unwrap();
    both.iter().for_each(|address| expect_refusal(&client, address));
    cluster.apply("pod-web-1.yaml", &pod_manifest("web-1", "web", "")).unwrap();
    expect("web-1");
    assert_eq!(cluster.proxy_metric("portolan_proxy_frontend_failures").unwrap(), 2.0);
    cluster.delete("b.yaml").unwrap();
    expect("other-1");
    assert_eq!(cluster.proxy_metric("portolan_proxy_frontend_failures").unwrap(), 0.0);
}

/// Every author of Services can set external IPs.
#[test]
fn cluster_ip_has_precedence_over_an_older_external_ip() {
    let (cluster, client) = cluster();
    let _tenant = replica(&cluster, "tenant-1", "tenant");
    let tenant = service(&format!("  externalIPs: [10.96.7.7]\n{PORT_80}")).replace("web", "tenant");
    cluster.apply("a.yaml", &tenant).unwrap();
    expect_answers(&client, "10.96.7.7:80", &["tenant-1"]);
    let _web = replica(&cluster, "web-1", "web");
    cluster.apply("z.yaml", &service(&format!("  clusterIP: 10.96.7.7\n{PORT_80}"))).unwrap();
    expect_answers(&client, "10.96.7.7:80", &["web-1"]);
    let page = cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose").unwrap();
    let condition = "cannot serve 10.96.7.7:80/tcp of Service default/tenant: Service default/web has it, \
        and comes first";
    assert!(page.contains(condition), "{page}");
}

/// The health check of a load balancer reports the local endpoints of the Service that owns the port.
#[test]
fn contested_health_check_port_reports_the_first_service() {
    let (cluster, client) = cluster();
    let spec = "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30090\n  \
        ports: [{port: 80, targetPort: 8080}]";
    cluster.apply("z.yaml", &service(spec).replace("web", "other")).unwrap();
    let page = || client.shell(&cluster.node, &format!("curl -sS -m 2 http://{NODE}:30090/"));
    let expect = |name: &str, count: usize| {
        wait_for(name, || {
            let page = page()?;
            let is_expected = page.contains(&format!("\"name\":\"{name}\""))
                && page.contains(&format!("\"localEndpoints\":{count}"));
            ensure!(is_expected, "{page}");
            Ok(())
        })
        .unwrap();
    };
    expect("other", 0);
    cluster.apply("b.yaml", &service(spec)).unwrap();
    expect("web", 0);
    let _other = replica(&cluster, "other-1", "other");
    let _web = replica(&cluster, "web-1", "web");
    expect("web", 1);
    cluster.delete("b.yaml").unwrap();
    expect("other", 1);
}

#[test]
fn should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node() {
    let (cluster, client) = cluster();
    cluster.apply("web.yaml", &service(&format!("  externalIPs: [203.0.113.10]\n{PORT_80}"))).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    let address = "203.0.113.10:80";
    expect_answers(&client, address, &["web-1"]);
    cluster.node.run(|| ask(address)).unwrap();
    let outside = cluster.node.outside();
    outside
        .run(|| std::process::Command::new("ip").args(["route", "add", "203.0.113.10", "via", NODE]).status())
        .unwrap()
        .unwrap();
    outside.run(|| ask(address)).unwrap().unwrap();
    let routes = cluster.node.shell("ip route show table local").unwrap();
    assert!(!routes.contains("203.0.113.10"), "the address itself is not local: {routes}");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    wait_for("the removal of the address", || {
        let rules = cluster.node.shell("nft list table inet portolan-proxy")?;
        ensure!(!rules.contains("203.0.113.10"), "{rules}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn load_balancer_ip_accepts_only_its_source_ranges() {
    let (cluster, client) = cluster();
    let spec = format!(
        "  type: LoadBalancer\n  loadBalancerSourceRanges: [10.22.0.0/16]\n{PORT_80}\n\
         status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.20}}, {{ip: 203.0.113.21, ipMode: Proxy}}, \
         {{hostname: lb.example}}]}}}}"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    expect_answers(&client, "203.0.113.20:80", &["web-1"]);
    let rules = cluster.node.shell("nft list table inet portolan-proxy").unwrap();
    assert!(rules.contains("203.0.113.20"), "{rules}");
    assert!(!rules.contains("203.0.113.21"), "an address with ipMode Proxy is not intercepted: {rules}");
    let outside = cluster.node.outside();
    outside
        .run(|| std::process::Command::new("ip").args(["route", "add", "203.0.113.20", "via", NODE]).status())
        .unwrap()
        .unwrap();
    assert!(outside.run(|| ask("203.0.113.20:80")).unwrap().is_err(), "192.0.2.1 is not in the ranges");
    assert_eq!(cluster.proxy_metric("portolan_proxy_clients_refused_total").unwrap(), 1.0);
    cluster.apply("web.yaml", &service(&spec.replace("10.22.0.0/16", "192.0.2.0/24"))).unwrap();
    wait_for("the changed range", || outside.run(|| ask("203.0.113.20:80"))?).unwrap();
}

#[test]
fn should_serve_multiport_endpoints_and_be_updated_after_adding_or_deleting_ports() {
    let (cluster, client) = cluster();
    let ports = |ports: &str| service(&format!("  ports: [{ports}]"));
    let one = "{name: one, port: 80, targetPort: 8080}";
    let two = "{name: two, port: 81, targetPort: http}";
    cluster.apply("web.yaml", &ports(&format!("{one}, {two}"))).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    let vip = cluster.virtual_ip("web").unwrap();
    expect_answers(&client, &format!("{vip}:80"), &["web-1"]);
    expect_answers(&client, &format!("{vip}:81"), &["web-1"]);
    cluster.apply("web.yaml", &ports(one)).unwrap();
    expect_refusal(&client, &format!("{vip}:81"));
    cluster.apply("web.yaml", &ports(&format!("{one}, {}", two.replace("81", "82")))).unwrap();
    expect_answers(&client, &format!("{vip}:82"), &["web-1"]);
    expect_answers(&client, &format!("{vip}:80"), &["web-1"]);
}

#[test]
fn should_serve_endpoints_on_same_port_and_different_protocols() {
    let (cluster, client) = cluster();
    let both = "  ports: [{name: t, port: 80, targetPort: 8080}, {name: u, port: 80, targetPort: 8080, \
        protocol: UDP}]";
    cluster.apply("web.yaml", &service(both)).unwrap();
    let server = replica(&cluster, "web-1", "web");
    let datagrams =
        server.pod.netns.run(|| std::net::UdpSocket::bind((server.pod.ip.as_str(), 8080))).unwrap().unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    expect_answers(&client, &format!("{vip}:80"), &["web-1"]);
    let socket = client.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.connect((vip.as_str(), 80)).unwrap();
    socket.send(b"hello").unwrap();
    datagrams.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
    assert_eq!(from.ip().to_string(), client.ip, "the client's own address, for datagrams too");
    datagrams.send_to(b"hi", from).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 2);
}

/// As with k3s' ServiceLB, the status has the addresses of all nodes. Packets to other nodes must not be
/// intercepted.
#[test]
fn external_ip_of_another_node_is_not_intercepted() {
    let (cluster, client) = cluster();
    let address = cluster.node.outside_address().to_owned();
    let node = |kind: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: other}}\n\
             status: {{addresses: [{{type: {kind}, address: {address}}}]}}\n"
        )
    };
    let spec = format!(
        "  type: LoadBalancer\n  externalIPs: [{address}]\n{PORT_80}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {address}}}, {{ip: {NODE}}}]}}}}"
    );
    let taken = || cluster.node.shell("nft list table inet portolan-proxy").unwrap().contains(&address);
    let _replica = replica(&cluster, "web-1", "web");
    for kind in ["InternalIP", "ExternalIP"] {
        cluster.apply("node.yaml", &node(kind)).unwrap();
        cluster.apply("web.yaml", &service(&spec)).unwrap();
        expect_answers(&client, &format!("{NODE}:80"), &["web-1"]);
        assert!(!taken(), "{kind}");
        cluster.node.shell(&format!("ping -c1 -W2 {address}")).unwrap();
        cluster.delete("node.yaml").unwrap();
        wait_for("the interception without a Node", || {
            ensure!(taken());
            Ok(())
        })
        .unwrap();
        expect_answers(&client, &format!("{address}:80"), &["web-1"]);
        cluster.apply("node.yaml", &node(kind)).unwrap();
        wait_for("the release to the other node", || {
            ensure!(!taken());
            Ok(())
        })
        .unwrap();
        cluster.delete("web.yaml").unwrap();
        expect_refusal(&client, &format!("{NODE}:80"));
    }
}

/// tproxy rules intercept node port connections, so that all workers and the next proxy can accept them.
#[test]
fn node_port_connections_are_intercepted_by_tproxy() {
    let (cluster, client) = cluster();
    let spec = "  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    let address = format!("{NODE}:30080");
    expect_answers(&client, &address, &["web-1"]);
    let count = "nft 'add table inet seen; add chain inet seen in { type filter hook prerouting priority \
        -149; }; add rule inet seen in tcp dport 30080 tcp flags syn / syn,ack counter meta mark and 0x1000 \
        == 0x1000 counter'";
    cluster.node.shell(count).unwrap();
    for _ in 0..20 {
        client.ask(&address).unwrap();
    }
    let seen = cluster.node.shell("nft list table inet seen").unwrap();
    assert_eq!(seen.matches("counter packets 20 ").count(), 1, "all connections: {seen}");
    assert_eq!(
        seen.matches("counter packets 0 ").count(),
        1,
        "no connection matched an existing socket: {seen}"
    );
}
