//! Applied objects are served.

use super::*;

#[test]
fn applied_service_is_reachable_by_name_through_its_virtual_ip() {
    let fixture = Fixture::new();
    let (pod, _server) = fixture.replica("web-1");
    fixture.apply(&(service("web", "") + &slice("web", &[&pod.ip])));
    fixture.expect("web", "web-1");
    // The API server's own Service: its endpoint is the node itself.
    let script = "curl -sk -m 2 -o /dev/null -w '%{http_code}' https://kubernetes/livez";
    assert_eq!(fixture.client.shell(&fixture.cluster.node, script).unwrap(), "200");
    // Change and removal.
    let (other, _other) = fixture.replica("web-2");
    fixture.apply(&slice("web", &[&other.ip]));
    fixture.expect("web", "web-2");
    let ip = fixture.cluster.virtual_ip("web").unwrap();
    fixture.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    fixture.expect_refusal(&format!("{ip}:80"));
    assert!(fixture.ask("web").is_err());
}

#[test]
fn roles_in_deploy_are_sufficient_and_read_only_except_for_events() {
    let fixture = Fixture::new();
    for user in ["portolan-proxy", "portolan-dns"] {
        let permissions =
            fixture.control_plane.kubectl_as(user, &["auth", "can-i", "--list", "--no-headers"], "").unwrap();
        let permissions: Vec<&str> =
            permissions.lines().filter(|line| line.contains('.') || line.contains("services")).collect();
        for line in &permissions {
            let is_event = line.starts_with("events.events.k8s.io") && user == "portolan-proxy";
            let harmless = ["selfsubject", "[list watch]", "[get]"].iter().any(|verbs| line.contains(verbs))
                || (is_event && line.contains("[create patch]"));
            assert!(harmless && !line.contains("secrets"), "{user}: {line}");
        }
        assert!(permissions.iter().any(|line| line.starts_with("endpointslices")), "{user}: {permissions:?}");
    }
    // Without the role the error names the missing permission.
    fixture.control_plane.kubectl(&["delete", "clusterrolebinding", "portolan-proxy"], "").unwrap();
    let kubeconfig = fixture.control_plane.kubeconfig("portolan-proxy").unwrap();
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
    let check = format!("{} --check-config --kubeconfig {}", binary.display(), kubeconfig.display());
    let error = fixture.cluster.node.shell(&check).unwrap_err().to_string();
    assert!(error.contains("kubernetes/services") && error.contains("forbidden"), "{error}");
}

#[test]
fn controller_slices_are_used_and_labels_exclude_a_service() {
    let mut fixture = Fixture::new();
    fixture.control_plane.start_controllers().unwrap();
    let (pod, _server) = fixture.replica("web-1");
    fixture.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n");
    wait("the service account of pods", &fixture, || {
        fixture.control_plane.kubectl(&["get", "serviceaccount", "default"], "").map(|_output| ())
    });
    fixture.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\n\
         spec: {nodeName: node-1, containers: [{name: c, image: none}]}\n",
    );
    let status = format!(
        "{{\"status\": {{\"phase\": \"Running\", \"podIP\": \"{0}\", \"podIPs\": \
         [{{\"ip\": \"{0}\"}}], \"conditions\": [{{\"type\": \"Ready\", \"status\": \"True\"}}]}}}}",
        pod.ip
    );
    fixture
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", &status], "")
        .unwrap();
    let selecting = ", selector: {app: web}".to_owned();
    fixture.apply(&service("web", &selecting).replace("port: 80", "port: 80, targetPort: 8080"));
    fixture.expect("web", "web-1");
    let ip = fixture.cluster.virtual_ip("web").unwrap();
    for label in ["service.kubernetes.io/service-proxy-name=other", "service.kubernetes.io/headless="] {
        fixture.control_plane.kubectl(&["label", "service", "web", label], "").unwrap();
        fixture.expect_refusal(&format!("{ip}:80"));
        let (key, _) = label.split_once('=').unwrap();
        fixture.control_plane.kubectl(&["label", "service", "web", &format!("{key}-")], "").unwrap();
        fixture.expect("web", "web-1");
    }
    // A pod that is not ready is no endpoint, although the CNI plugin has attached it.
    let status = status.replace("True", "False");
    fixture
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", &status], "")
        .unwrap();
    fixture.expect_refusal(&format!("{ip}:80"));
}

/// Asserts that each change is served, and prints the times.
#[test]
#[expect(clippy::print_stdout, reason = "the times are for the log of the run")]
fn changes_are_served_after_they_are_applied() {
    let fixture = Fixture::new();
    let replicas = ["web-1", "web-2"].map(|name| fixture.replica(name));
    fixture.apply(&(service("web", "") + &slice("web", &[&replicas[0].0.ip])));
    fixture.expect("web", "web-1");
    let address = format!("{}:80", fixture.cluster.virtual_ip("web").unwrap());
    let mut times = Vec::new();
    for round in 0..100 {
        let (pod, _) = &replicas[(round + 1) % 2];
        let patch = format!(
            "[{{\"op\": \"replace\", \"path\": \"/endpoints\", \"value\": [{{\"addresses\": \
             [\"{}\"], \"conditions\": {{\"ready\": true}}}}]}}]",
            pod.ip
        );
        fixture
            .control_plane
            .kubectl(&["patch", "endpointslice", "web-1", "--type=json", "-p", &patch], "")
            .unwrap();
        let applied = Instant::now();
        wait("the change", &fixture, || {
            let answer = fixture.client.ask(&address)?;
            ensure!(answer == pod.name, "{answer}");
            Ok(())
        });
        times.push(applied.elapsed());
    }
    times.sort();
    println!("from kubectl's exit to the new endpoint: median {:?}, p99 {:?}", times[50], times[98]);
}

/// The daemons watch ServiceCIDRs: the whole range is local and has a reverse zone.
#[test]
fn service_in_an_added_service_cidr_is_served() {
    let fixture = Fixture::new();
    let (pod, _server) = fixture.replica("web-1");
    fixture.apply(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\n\
        spec: {cidrs: [10.200.0.0/24]}\n",
    );
    wait("the range", &fixture, || {
        fixture.control_plane.apply(&(service("web", ", clusterIP: 10.200.0.7") + &slice("web", &[&pod.ip])))
    });
    fixture.expect("web", "web-1");
    assert_eq!(fixture.client.ask("10.200.0.7:80").unwrap(), "web-1");
    let name = fixture.cluster.node.shell("dig +short @10.96.0.10 -x 10.200.0.7").unwrap();
    assert_eq!(name.trim(), "web.default.svc.cluster.local.");
    wait("one route for the range", &fixture, || {
        let routes = fixture.cluster.node.shell("ip route show table local")?;
        ensure!(routes.contains("10.200.0.0/24") && !routes.contains("10.200.0.7"), "{routes}");
        Ok(())
    });
    // Other addresses of the range are refused and have no name, as in any service range.
    fixture.expect_refusal("10.200.0.8:80");
    let answer = fixture.cluster.node.shell("dig @10.96.0.10 -x 10.200.0.8").unwrap();
    assert!(answer.contains("status: NXDOMAIN") && answer.contains("200.10.in-addr.arpa."), "{answer}");
    fixture.control_plane.kubectl(&["delete", "service", "web"], "").unwrap();
    fixture.control_plane.kubectl(&["delete", "servicecidr", "more", "--wait=false"], "").unwrap();
    let finalize = r#"{"metadata": {"finalizers": null}}"#;
    // The API server may have deleted it already.
    let _ = fixture.control_plane.kubectl(&["patch", "servicecidr", "more", "-p", finalize], "");
    wait("the removal of the routes", &fixture, || {
        let routes = fixture.cluster.node.shell("ip route show table local")?;
        ensure!(!routes.contains("10.200.0."), "{routes}");
        Ok(())
    });
}
