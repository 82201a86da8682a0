//! `sessionAffinity: ClientIP`.

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
        wait_for("all to be known", || {
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
    // The endpoint goes: the client gets another one at once, and keeps that.
    let gone = replicas.iter().find(|replica| replica.pod.name == stuck).unwrap();
    cluster.network.remove(&gone.pod).unwrap();
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
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();
    let mut seen = BTreeSet::new();
    // With three endpoints, eight fresh choices that are all the same come once in two thousand times.
    for _ in 0..8 {
        let first = client.ask(&address).unwrap();
        assert_eq!(client.ask(&address).unwrap(), first, "within the timeout");
        seen.insert(first);
        std::thread::sleep(Duration::from_millis(1100));
    }
    assert!(seen.len() > 1, "the timeout never came: {seen:?}");
}
