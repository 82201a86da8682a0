//! Clusters of several nodes on one link and on two subnets: pods and Services across nodes.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use testbed::{Cluster, Fleet, HostnameServer, Node, Pod, Program, wait_for};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";

/// Starts a replica of `web` on a node. It answers with its name.
fn replica(fleet: &Fleet, index: usize, name: &str) -> (Pod, HostnameServer) {
    let pod = fleet.members[index].add_pod(name).unwrap();
    let server = HostnameServer::start(&pod, 8080).unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n\
         spec: {{nodeName: node-{}, containers: []}}\nstatus: {{podIP: {}}}\n",
        index + 1,
        pod.ip
    );
    fleet.members[index].apply(&format!("{name}.yaml"), &manifest).unwrap();
    (pod, server)
}

/// Returns the proxy's routes to other nodes, of both families.
fn routes(node: &Node) -> String {
    node.shell("ip -4 route show proto 113; ip -6 route show proto 113").unwrap()
}

fn expect_routes(node: &Node, expected: &[&str]) {
    wait_for("the routes to other nodes", || {
        let found = routes(node);
        let lines: Vec<&str> = found.lines().map(str::trim).collect();
        let all = expected.iter().all(|start| lines.iter().any(|line| line.starts_with(start)));
        ensure!(all && lines.len() == expected.len(), "{expected:?}: {found}");
        Ok(())
    })
    .unwrap();
}

/// Connects from every node to every replica, directly and through the Service, and checks the source
/// address.
fn expect_full_connectivity(fleet: &Fleet) {
    let count = fleet.members.len();
    let names: BTreeSet<String> = (0..count).map(|index| format!("web-{index}")).collect();
    let replicas: Vec<_> = (0..count).map(|index| replica(fleet, index, &format!("web-{index}"))).collect();
    fleet.members[0].apply("web.yaml", SERVICE).unwrap();
    for (index, member) in fleet.members.iter().enumerate() {
        let client = member.add_pod(&format!("client-{index}")).unwrap();
        for (pod, _) in &replicas {
            let ask = || client.ask(&format!("{}:8080", pod.ip));
            assert_eq!(wait_for("a pod of another node", ask).unwrap(), pod.name);
        }
        let address = format!("{}:80", member.virtual_ip("web").unwrap());
        wait_for("all replicas", || {
            let seen = (0..30).map(|_| client.ask(&address)).collect::<Result<BTreeSet<_>>>()?;
            ensure!(seen == names, "{seen:?}");
            Ok(())
        })
        .unwrap();
    }
    for (index, member) in fleet.members.iter().enumerate() {
        expect_source_address(
            member,
            &replicas[(index + 1) % count].0,
            &fleet.members[(index + 1) % count].node,
        );
    }
}

/// Checks that a pod sees the address of a client on another node, directly and through a Service with this
/// endpoint.
fn expect_source_address(member: &Cluster, server: &Pod, servers_node: &Node) {
    let name = format!("source-of-{}", server.name);
    let client = member.add_pod(&name).unwrap();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{ports: [{{port: 80, targetPort: 9090}}]}}\n---\napiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{port: 9090}}]\nendpoints: [{{addresses: [{}]}}]\n",
        server.ip
    );
    member.apply(&format!("{name}.yaml"), &service).unwrap();
    let vip = member.virtual_ip(&name).unwrap();
    let listener =
        server.netns.run(|| std::net::TcpListener::bind((server.ip.as_str(), 9090))).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    for target in [format!("{}:9090", server.ip), format!("{vip}:80")] {
        wait_for(&format!("a connection to {target}"), || {
            let _stream = client.netns.run(|| std::net::TcpStream::connect(&target))??;
            let (_, seen) = wait_for("the accepted connection", || Ok(listener.accept()?))?;
            ensure!(seen.ip().to_string() == client.ip, "{seen} instead of {} at {target}", client.ip);
            Ok(())
        })
        .map_err(|error| error.context(servers_node.shell("ip route").unwrap()))
        .unwrap();
    }
}

#[test]
fn nodes_on_one_link_route_directly_and_preserve_pod_addresses() {
    let mut fleet = Fleet::start(&[0, 0, 0]).unwrap();
    let to = |member: usize| {
        format!("10.22.{member}.0/24 via {} dev uplink0", fleet.members[member - 1].node.address())
    };
    expect_routes(&fleet.members[0].node, &[&to(2), &to(3)]);
    expect_routes(&fleet.members[2].node, &[&to(1), &to(2)]);
    expect_full_connectivity(&fleet);
    let remaining = to(2);

    // After a node is deleted, only the route to it is removed.
    fleet.members[0].delete("node-3.yaml").unwrap();
    fleet.members.pop();
    expect_routes(&fleet.members[0].node, &[&remaining]);
    let left = fleet.members[0].node.shell("ip link show portolan-vxlan 2>&1 || true").unwrap();
    assert!(left.contains("does not exist"), "no unnecessary tunnel: {left}");
}

#[test]
fn nodes_on_different_subnets_use_a_tunnel() {
    let fleet = Fleet::start(&[0, 0, 1]).unwrap();
    let nodes = [0, 1, 2].map(|index| &fleet.members[index].node);
    let tunnel =
        |member: usize| format!("10.22.{member}.0/24 via 10.22.{member}.0 dev portolan-vxlan onlink");
    let direct = format!("10.22.2.0/24 via {}", nodes[1].address());
    expect_routes(nodes[0], &[&direct, &tunnel(3)]);
    expect_routes(nodes[2], &[&tunnel(1), &tunnel(2)]);
    let link = nodes[0].shell("ip -d link show portolan-vxlan").unwrap();
    for word in ["mtu 1450", "vxlan id 1 ", "dstport 8472", "nolearning"] {
        assert!(link.contains(word), "{word}: {link}");
    }
    let forwarding = nodes[2].shell("bridge fdb show dev portolan-vxlan").unwrap();
    assert_eq!(forwarding.lines().count(), 2, "one entry a node: {forwarding}");
    expect_full_connectivity(&fleet);

    // The node itself reaches pods behind the tunnel, and they answer through it.
    let (server, _server) = replica(&fleet, 2, "from-node");
    let seen = nodes[0].shell(&format!("curl -sS -m 5 --http0.9 http://{}:8080", server.ip)).unwrap();
    assert_eq!(seen, "from-node");

    // The pod receives an ICMP error for a packet larger than the tunnel's MTU, so that TCP adapts.
    let client = fleet.members[0].add_pod("large").unwrap();
    let large = |size: u32| client.shell(nodes[0], &format!("ping -c1 -W2 -M do -s {size} {}", server.ip));
    large(1450 - 28).unwrap();
    large(1451 - 28).unwrap_err();
}

#[test]
fn deleted_routes_are_restored_and_foreign_routes_are_kept() {
    let fleet = Fleet::start(&[0, 0, 1]).unwrap();
    let node = &fleet.members[0].node;
    let direct = format!("10.22.2.0/24 via {}", fleet.members[1].node.address());
    let expected = [&*direct, "10.22.3.0/24 via 10.22.3.0 dev portolan-vxlan"];
    expect_routes(node, &expected);
    for sabotage in [
        "ip route del 10.22.2.0/24",
        "ip route flush proto 113",
        "ip link del portolan-vxlan",
        "ip link set portolan-vxlan down",
        "ip route replace 10.22.2.0/24 via 192.0.2.1 proto 113",
    ] {
        node.shell(sabotage).unwrap();
        expect_routes(node, &expected);
    }
    node.shell(
        "bridge fdb del $(bridge fdb show dev portolan-vxlan | cut -d' ' -f1) dev portolan-vxlan \
        dst 203.0.113.4",
    )
    .unwrap();
    node.shell("ip neighbour flush dev portolan-vxlan nud permanent").unwrap();
    wait_for("the route into the tunnel", || node.shell("ping -c1 -W1 10.22.3.0")).unwrap();

    // A foreign route for the range of a new node is kept, and the metric reports the conflict.
    node.shell("ip route add 10.22.9.0/24 via 192.0.2.1").unwrap();
    let manifest = "apiVersion: v1\nkind: Node\nmetadata: {name: node-9}\nspec: {podCIDRs: [10.22.9.0/24]}\n\
        status: {addresses: [{type: InternalIP, address: 192.0.2.99}]}\n";
    fleet.members[0].apply("node-9.yaml", manifest).unwrap();
    wait_for("the problem", || {
        let problems = fleet.members[0].proxy_metric("portolan_proxy_node_route_problems")?;
        ensure!(problems > 0.5, "{problems}");
        Ok(())
    })
    .unwrap();
    expect_routes(node, &expected);
    assert!(node.shell("ip route show 10.22.9.0/24").unwrap().contains("via 192.0.2.1"));
}

#[test]
fn routes_outlive_the_proxy_and_cleanup_removes_them() {
    let mut fleet = Fleet::start(&[0, 0, 1]).unwrap();
    let direct = format!("10.22.2.0/24 via {}", fleet.members[1].node.address());
    let tunnel = "10.22.3.0/24 via 10.22.3.0 dev portolan-vxlan";
    expect_routes(&fleet.members[0].node, &[&direct, tunnel]);
    let (server, _server) = replica(&fleet, 1, "web");
    let client = fleet.members[0].add_pod("client").unwrap();

    // Pods reach pods without a proxy.
    fleet.members[0].proxy.terminate().unwrap();
    assert_eq!(client.ask(&format!("{}:8080", server.ip)).unwrap(), "web");

    // Changes while the proxy was down are applied at its next start.
    fleet.members[0].delete("node-3.yaml").unwrap();
    fleet.members[0].restart_proxy().unwrap();
    expect_routes(&fleet.members[0].node, &[&direct]);
    fleet.members[0].proxy.kill();

    let member = &fleet.members[0];
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
    let log = member.directory().join("cleanup.log");
    let mut cleanup = Program::start(&member.node, &binary, &["--cleanup"], &log).unwrap();
    assert!(cleanup.wait().unwrap().success(), "{}", std::fs::read_to_string(&log).unwrap());
    assert_eq!(routes(&member.node), "");
    let left = "ip route show table local | grep 10.96 || true; ip rule | grep 7061 || true; nft list \
        tables | grep proxy || true; ip link show portolan-vxlan 2>/dev/null || true";
    assert_eq!(member.node.shell(left).unwrap(), "");
}

/// Returns the pod's addresses, one for each family.
fn addresses(pod: &Pod) -> Vec<std::net::IpAddr> {
    let given = pod.result["ips"].as_array().unwrap().iter();
    given.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// Connects from each pod to each other pod by every address, and checks the source address.
fn expect_source_addresses_between_pods(fleet: &Fleet, families: usize) {
    let add = |(index, member): (usize, &Cluster)| member.add_pod(&format!("pod-{index}")).unwrap();
    let pods: Vec<Pod> = fleet.members.iter().enumerate().map(add).collect();
    for server in &pods {
        for (family, address) in addresses(server).into_iter().enumerate() {
            let listen = std::net::SocketAddr::new(address, 9090);
            let listener = server.netns.run(|| std::net::TcpListener::bind(listen)).unwrap().unwrap();
            listener.set_nonblocking(true).unwrap();
            for client in pods.iter().filter(|client| client.name != server.name) {
                let own = addresses(client)[family];
                wait_for(&format!("{} to reach {listen}", client.name), || {
                    let timeout = std::time::Duration::from_secs(10);
                    let connect = || std::net::TcpStream::connect_timeout(&listen, timeout);
                    let _stream = client.netns.run(connect)??;
                    let (_, seen) = wait_for("the accepted connection", || Ok(listener.accept()?))?;
                    ensure!(seen.ip() == own, "{seen} instead of {own}");
                    Ok(())
                })
                .unwrap();
            }
        }
        assert_eq!(addresses(server).len(), families);
    }
}

#[test]
fn pods_of_both_families_reach_each_other_across_nodes() {
    let both = |index| vec![format!("10.22.{}.0/24", index + 1), format!("fd00:10:22:{}::/64", index + 1)];
    let fleet = Fleet::start_with_ranges(&[0, 0, 1], both).unwrap();
    expect_routes(
        &fleet.members[0].node,
        &[
            "10.22.2.0/24 via 192.0.2.3",
            "10.22.3.0/24 via 10.22.3.0 dev portolan-vxlan",
            "fd00:10:22:2::/64 via 2001:db8:1::3",
            "fd00:10:22:3::/64 via fd00:10:22:3:: dev portolan-vxlan",
        ],
    );
    expect_source_addresses_between_pods(&fleet, 2);
}

#[test]
fn pods_with_ipv6_alone_reach_each_other_across_nodes() {
    let ipv6 = |index| vec![format!("fd00:10:22:{}::/64", index + 1)];
    expect_source_addresses_between_pods(&Fleet::start_with_ranges(&[0, 1], ipv6).unwrap(), 1);
}
