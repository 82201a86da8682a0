//! `sessionAffinity: ClientIP`.

use std::time::Instant;

use super::*;

fn spec(affinity: &str) -> String {
    service(&format!(
        "  type: NodePort\n{affinity}  ports: [{{port: 80, targetPort: 8080, nodePort: 30083}}]"
    ))
}

const CLIENT_IP: &str = "  sessionAffinity: ClientIP\n";

#[test]
fn should_be_able_to_switch_session_affinity_for_clusterip_and_nodeport_service() {
    let (cluster, client) = cluster();
    let replicas = ["web-1", "web-2", "web-3"].map(|name| replica(&cluster, name, "web"));
    cluster.apply("web.yaml", &spec(CLIENT_IP)).unwrap();
    let addresses = [format!("{}:80", cluster.virtual_ip("web").unwrap()), "192.0.2.2:30083".to_owned()];
    for address in &addresses {
        wait_for("the service with affinity", || {
            ensure!(answering(&client, address)?.len() == 1);
            Ok(())
        })
        .unwrap();
    }
    cluster.apply("web.yaml", &spec("")).unwrap();
    for address in &addresses {
        expect_answers(&client, address, &["web-1", "web-2", "web-3"]);
    }
    cluster.apply("web.yaml", &spec(CLIENT_IP)).unwrap();
    let stuck = wait_for("affinity again", || {
        let seen = answering(&client, &addresses[0])?;
        ensure!(seen.len() == 1, "{seen:?}");
        Ok(seen.into_iter().next().unwrap())
    })
    .unwrap();
    // After the endpoint is removed, the client gets another one at once, and stays with it.
    let removed = replicas.iter().find(|replica| replica.pod.name == stuck).unwrap();
    cluster.network.remove(&removed.pod).unwrap();
    cluster.delete(&format!("pod-{stuck}.yaml")).unwrap();
    let next = client.ask(&addresses[0]).unwrap();
    assert_ne!(next, stuck);
    assert_eq!(answering(&client, &addresses[0]).unwrap(), [next].into());
}

#[test]
fn should_have_session_affinity_timeout_work() {
    let (cluster, client) = cluster();
    let _replicas = ["web-1", "web-2", "web-3"].map(|name| replica(&cluster, name, "web"));
    let timeout = "  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}\n";
    cluster.apply("web.yaml", &spec(&format!("{CLIENT_IP}{timeout}"))).unwrap();
    let cluster_ip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&cluster_ip)).unwrap();
    // Another client for the node port, so that neither refreshes the other's timeout.
    let other = cluster.add_pod("other").unwrap();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    // With three endpoints, eight independent choices are all equal with a probability of 1 in 2000.
    for _ in 0..8 {
        for (seen, (pod, address)) in
            seen.iter_mut().zip([(&client, cluster_ip.as_str()), (&other, "192.0.2.2:30083")])
        {
            let began = Instant::now();
            let (first, second) = (pod.ask(address).unwrap(), pod.ask(address).unwrap());
            let is_late = began.elapsed() >= Duration::from_secs(1);
            assert!(first == second || is_late, "{first} and {second} within the timeout at {address}");
            seen.insert(first);
        }
        std::thread::sleep(Duration::from_millis(1100));
    }
    assert!(seen.iter().all(|seen| seen.len() > 1), "the affinity never expired: {seen:?}");
}

#[test]
fn should_have_session_affinity_work_for_loadbalancer_service_with_external_traffic_policy_local_and_cluster()
{
    for policy in ["Cluster", "Local"] {
        let (cluster, client) = cluster();
        let spec = spec(CLIENT_IP).replace("NodePort", "LoadBalancer");
        let status = "\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.60}]}}";
        cluster
            .apply(
                "web.yaml",
                &format!(
                    "{}{status}",
                    spec.replace(
                        "  sessionAffinity",
                        &format!("  externalTrafficPolicy: {policy}\n  sessionAffinity")
                    )
                ),
            )
            .unwrap();
        let _replicas = ["web-1", "web-2", "web-3"].map(|name| replica(&cluster, name, "web"));
        let outside = cluster.node.outside();
        let route = ["route", "add", "203.0.113.60", "via", "192.0.2.2"];
        outside.run(|| std::process::Command::new("ip").args(route).status()).unwrap().unwrap();
        let addresses = ["203.0.113.60:80".to_owned(), "192.0.2.2:30083".to_owned()];
        let from_outside = |address: &String| outside.run(|| ask(address))?;
        wait_for("the Service", || {
            addresses.iter().try_for_each(|address| from_outside(address).map(|_name| ()))
        })
        .unwrap();
        // All addresses of the port share the affinity, from outside and, for a pod, with the cluster IP too.
        let seen: Result<BTreeSet<_>> = (0..20).flat_map(|_| addresses.iter().map(from_outside)).collect();
        assert_eq!(seen.as_ref().unwrap().len(), 1, "{policy}: {seen:?}");
        let cluster_ip = format!("{}:80", cluster.virtual_ip("web").unwrap());
        let seen: Result<BTreeSet<_>> = (0..20)
            .flat_map(|_| addresses.iter().chain([&cluster_ip]).map(|address| client.ask(address)))
            .collect();
        assert_eq!(seen.as_ref().unwrap().len(), 1, "{policy}: {seen:?}");
    }
}
