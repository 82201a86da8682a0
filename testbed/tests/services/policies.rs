//! Traffic policies, topology hints, terminating endpoints.

use super::*;

/// Starts a node named `here`. The slices assign one of its pods to another node.
fn policy_cluster() -> (Cluster, Pod, [Replica; 2]) {
    let cluster = Cluster::start_with(&["--node-name", "here"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: here, labels: {topology.kubernetes.io/zone: \
        a}}\nspec: {podCIDRs: [10.22.0.0/16]}\n";
    cluster.apply("node.yaml", node).unwrap();
    let replicas = ["local", "remote"].map(|name| replica(&cluster, name, "web"));
    (cluster, client, replicas)
}

fn apply_slice(cluster: &Cluster, replicas: &[Replica; 2], local: &str, remote: &str) {
    let [one, two] = [&replicas[0].pod.ip, &replicas[1].pod.ip];
    let local = format!("nodeName: here, {local}");
    let remote = format!("nodeName: elsewhere, {remote}");
    cluster
        .apply(
            "slice.yaml",
            &slice("web-1", &[(one.as_str(), local.as_str()), (two.as_str(), remote.as_str())]),
        )
        .unwrap();
}

const READY: &str = "conditions: {ready: true}";
const TERMINATING: &str = "conditions: {ready: false, serving: true, terminating: true}";
const TERMINATED: &str = "conditions: {ready: false, serving: false, terminating: true}";

#[test]
fn should_respect_internal_traffic_policy_local_and_fall_back_to_local_terminating_endpoints() {
    let (cluster, client, replicas) = policy_cluster();
    apply_slice(&cluster, &replicas, READY, READY);
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["local", "remote"]);
    cluster.apply("web.yaml", &service(&format!("  internalTrafficPolicy: Local\n{PORT_80}"))).unwrap();
    expect_answers(&client, &address, &["local"]);
    apply_slice(&cluster, &replicas, TERMINATING, READY);
    expect_answers(&client, &address, &["local"]);
    // No local endpoint serves. kube-proxy drops such packets; this proxy refuses the connection.
    apply_slice(&cluster, &replicas, TERMINATED, READY);
    expect_refusal(&client, &address);
}

#[test]
fn should_implement_external_traffic_policy_local_with_the_source_preserved() {
    let (cluster, client, replicas) = policy_cluster();
    apply_slice(&cluster, &replicas, READY, READY);
    let spec = "  type: NodePort\n  externalTrafficPolicy: Local\n  ports: [{port: 80, targetPort: 8080, \
        nodePort: 30084}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let address = "192.0.2.2:30084";
    // Clients of the cluster use any endpoint, clients from outside only local ones.
    expect_answers(&client, address, &["local", "remote"]);
    let outside = cluster.node.outside();
    let seen: BTreeSet<String> = (0..20).map(|_| outside.run(|| ask(address)).unwrap().unwrap()).collect();
    assert_eq!(seen, ["local".to_owned()].into());
    apply_slice(&cluster, &replicas, TERMINATING, READY);
    expect_answers(&client, address, &["remote"]);
    assert_eq!(outside.run(|| ask(address)).unwrap().unwrap(), "local", "terminating, but local");
    apply_slice(&cluster, &replicas, TERMINATED, READY);
    wait_for("the failure without local endpoints", || {
        ensure!(outside.run(|| ask(address))?.is_err());
        Ok(())
    })
    .unwrap();
    expect_answers(&client, address, &["remote"]);
}

#[test]
fn should_fall_back_to_terminating_endpoints_when_there_are_no_ready_ones() {
    let (cluster, client, replicas) = policy_cluster();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    apply_slice(&cluster, &replicas, TERMINATING, READY);
    expect_answers(&client, &address, &["remote"]);
    apply_slice(&cluster, &replicas, TERMINATING, TERMINATING);
    expect_answers(&client, &address, &["local", "remote"]);
    apply_slice(&cluster, &replicas, TERMINATED, TERMINATING);
    expect_answers(&client, &address, &["remote"]);
    apply_slice(&cluster, &replicas, TERMINATED, TERMINATED);
    expect_refusal(&client, &address);
}

#[test]
fn should_route_traffic_to_an_endpoint_in_the_same_zone_or_node_by_its_hints() {
    let (cluster, client, replicas) = policy_cluster();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let hint = |hints: &str| format!("{READY}, hints: {{{hints}}}");
    apply_slice(&cluster, &replicas, &hint("forZones: [{name: b}]"), &hint("forZones: [{name: a}]"));
    expect_answers(&client, &address, &["remote"]);
    apply_slice(&cluster, &replicas, &hint("forZones: [{name: b}]"), READY);
    expect_answers(&client, &address, &["local", "remote"]);
    let nodes = |node: &str| hint(&format!("forNodes: [{{name: {node}}}], forZones: [{{name: a}}]"));
    apply_slice(&cluster, &replicas, &nodes("here"), &nodes("elsewhere"));
    expect_answers(&client, &address, &["local"]);
    // After the node moves to another zone, its hints change.
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: here, labels: {topology.kubernetes.io/zone: b}}\n";
    cluster.apply("node.yaml", node).unwrap();
    apply_slice(&cluster, &replicas, &hint("forZones: [{name: b}]"), &hint("forZones: [{name: a}]"));
    expect_answers(&client, &address, &["local"]);
}

#[test]
fn should_fail_health_check_node_port_if_there_are_only_terminating_endpoints() {
    let (cluster, _client, replicas) = policy_cluster();
    apply_slice(&cluster, &replicas, READY, READY);
    let spec = "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000\n  \
        ports: [{port: 80, targetPort: 8080, nodePort: 30085}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let expect = |answer: &str| {
        wait_for(answer, || {
            let page =
                cluster.node.shell("curl -sS -m 2 -w '%{http_code}' http://192.0.2.2:32000/anything")?;
            ensure!(page.contains(answer), "{page}");
            Ok(page)
        })
        .unwrap()
    };
    let page = expect("\"localEndpoints\":1");
    assert!(
        page.ends_with("200") && page.contains(r#""service":{"name":"web","namespace":"default"}"#),
        "{page}"
    );
    apply_slice(&cluster, &replicas, TERMINATING, READY);
    assert!(expect("\"localEndpoints\":0").ends_with("503"));
    apply_slice(&cluster, &replicas, READY, READY);
    expect("\"localEndpoints\":1");
    cluster.apply("web.yaml", &service(&spec.replace("Policy: Local", "Policy: Cluster"))).unwrap();
    wait_for("the removal of the health check", || {
        ensure!(cluster.node.shell("curl -sS -m 2 http://192.0.2.2:32000/").is_err());
        Ok(())
    })
    .unwrap();
}
