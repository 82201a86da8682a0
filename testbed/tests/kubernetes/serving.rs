//! What is applied is served.

use super::*;

#[test]
fn what_kubectl_applies_is_reachable_by_name_through_the_virtual_ip() {
    let ground = Ground::new();
    let (pod, _server) = ground.replica("web-1");
    ground.apply(&(service("web", "") + &slice("web", &[&pod.ip])));
    ground.expect("web", "web-1");
    // The API server's own Service: its endpoint is the node itself.
    let script = "curl -sk -m 2 -o /dev/null -w '%{http_code}' https://kubernetes/livez";
    assert_eq!(ground.client.shell(&ground.cluster.node, script).unwrap(), "200");
    // Change and removal.
    let (other, _other) = ground.replica("web-2");
    ground.apply(&slice("web", &[&other.ip]));
    ground.expect("web", "web-2");
    let ip = ground.cluster.virtual_ip("web").unwrap();
    ground.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    ground.expect_refusal(&format!("{ip}:80"));
    assert!(ground.ask("web").is_err());
}

#[test]
fn the_roles_in_deploy_are_enough_and_allow_no_change_but_events() {
    let ground = Ground::new();
    for user in ["portolan-proxy", "portolan-dns"] {
        let may =
            ground.control_plane.kubectl_as(user, &["auth", "can-i", "--list", "--no-headers"], "").unwrap();
        let may: Vec<&str> =
            may.lines().filter(|line| line.contains('.') || line.contains("services")).collect();
        for line in &may {
            let is_event = line.starts_with("events.events.k8s.io") && user == "portolan-proxy";
            let harmless = ["selfsubject", "[list watch]", "[get]"].iter().any(|verbs| line.contains(verbs))
                || (is_event && line.contains("[create patch]"));
            assert!(harmless && !line.contains("secrets"), "{user}: {line}");
        }
        assert!(may.iter().any(|line| line.starts_with("endpointslices")), "{user}: {may:?}");
    }
    // Without leave: not ready, and it says what is missing.
    ground.control_plane.kubectl(&["delete", "clusterrolebinding", "portolan-proxy"], "").unwrap();
    let kubeconfig = ground.control_plane.kubeconfig("portolan-proxy").unwrap();
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
    let check = format!("{} --check-config --kubeconfig {}", binary.display(), kubeconfig.display());
    let error = ground.cluster.node.shell(&check).unwrap_err().to_string();
    assert!(error.contains("kubernetes/services") && error.contains("forbidden"), "{error}");
}

#[test]
fn the_controllers_slices_are_used_and_labels_hand_a_service_to_another_proxy() {
    let mut ground = Ground::new();
    ground.control_plane.start_controllers().unwrap();
    let (pod, _server) = ground.replica("web-1");
    ground.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n");
    wait("the account that pods need", &ground, || {
        ground.control_plane.kubectl(&["get", "serviceaccount", "default"], "").map(drop)
    });
    ground.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\nspec: {nodeName: node-1, containers: [{name: c, image: none}]}\n",
    );
    let status = format!(
        "{{\"status\": {{\"phase\": \"Running\", \"podIP\": \"{0}\", \"podIPs\": [{{\"ip\": \"{0}\"}}], \"conditions\": [{{\"type\": \"Ready\", \"status\": \"True\"}}]}}}}",
        pod.ip
    );
    ground
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", &status], "")
        .unwrap();
    let selecting = ", selector: {app: web}".to_owned();
    ground.apply(&service("web", &selecting).replace("port: 80", "port: 80, targetPort: 8080"));
    ground.expect("web", "web-1");
    let ip = ground.cluster.virtual_ip("web").unwrap();
    for label in ["service.kubernetes.io/service-proxy-name=other", "service.kubernetes.io/headless="] {
        ground.control_plane.kubectl(&["label", "service", "web", label], "").unwrap();
        ground.expect_refusal(&format!("{ip}:80"));
        let (key, _) = label.split_once('=').unwrap();
        ground.control_plane.kubectl(&["label", "service", "web", &format!("{key}-")], "").unwrap();
        ground.expect("web", "web-1");
    }
    // A pod that is not ready is none of the Service's endpoints, though the CNI plugin has attached it.
    let status = status.replace("True", "False");
    ground
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", &status], "")
        .unwrap();
    ground.expect_refusal(&format!("{ip}:80"));
}

/// What is asserted is that each change is seen.
#[test]
#[expect(clippy::print_stdout, reason = "how long it takes is for whoever looks")]
fn changes_are_served_soon_after_they_are_applied() {
    let ground = Ground::new();
    let replicas = ["web-1", "web-2"].map(|name| ground.replica(name));
    ground.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    ground.expect("web", "web-1");
    let address = format!("{}:80", ground.cluster.virtual_ip("web").unwrap());
    let mut times = Vec::new();
    for round in 0..100 {
        let (pod, _) = &replicas[(round + 1) % 2];
        let patch = format!(
            "[{{\"op\": \"replace\", \"path\": \"/endpoints\", \"value\": [{{\"addresses\": [\"{}\"], \"conditions\": {{\"ready\": true}}}}]}}]",
            pod.ip
        );
        ground
            .control_plane
            .kubectl(&["patch", "endpointslice", "web-1", "--type=json", "-p", &patch], "")
            .unwrap();
        let applied = Instant::now();
        wait("the change", &ground, || {
            let answer = ground.client.ask(&address)?;
            ensure!(answer == pod.name, "{answer}");
            Ok(())
        });
        times.push(applied.elapsed());
    }
    times.sort();
    println!("from kubectl's end to the new endpoint: median {:?}, p99 {:?}", times[50], times[98]);
}

/// The daemons follow the ServiceCIDR: the range is local as a whole, and has reverse names.
#[test]
fn a_service_in_a_range_that_was_added_to_the_cluster_is_served() {
    let ground = Ground::new();
    let (pod, _server) = ground.replica("web-1");
    ground.apply("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.200.0.0/24]}\n");
    wait("the range", &ground, || {
        ground.control_plane.apply(&(service("web", ", clusterIP: 10.200.0.7") + &slice("web", &[&pod.ip])))
    });
    ground.expect("web", "web-1");
    assert_eq!(ground.client.ask("10.200.0.7:80").unwrap(), "web-1");
    let name = ground.cluster.node.shell("dig +short @10.96.0.10 -x 10.200.0.7").unwrap();
    assert_eq!(name.trim(), "web.default.svc.cluster.local.");
    // Its other addresses are refused, and have no name, as in any service range.
    ground.expect_refusal("10.200.0.8:80");
    let answer = ground.cluster.node.shell("dig @10.96.0.10 -x 10.200.0.8").unwrap();
    assert!(answer.contains("status: NXDOMAIN") && answer.contains("200.10.in-addr.arpa."), "{answer}");
    ground.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    ground.control_plane.kubectl(&["delete", "servicecidr", "more", "--wait=false"], "").unwrap();
    let finalize = r#"{"metadata": {"finalizers": null}}"#;
    drop(ground.control_plane.kubectl(&["patch", "servicecidr", "more", "-p", finalize], ""));
    wait("the routes to go", &ground, || {
        let routes = ground.cluster.node.shell("ip route show table local")?;
        ensure!(!routes.contains("10.200.0."), "{routes}");
        Ok(())
    });
}
