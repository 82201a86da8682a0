//! Creation, change and deletion of Services and endpoints.

use super::*;

#[test]
fn should_be_able_to_change_the_type_between_clusterip_externalname_and_nodeport() {
    let (cluster, client) = cluster();
    let _replica = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    cluster.apply("web.yaml", &service("  type: ExternalName\n  externalName: example.com")).unwrap();
    expect_refusal(&client, &address);
    let node_port = "  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]";
    cluster.apply("web.yaml", &service(node_port)).unwrap();
    expect_answers(&client, &address, &["web-1"]);
    expect_answers(&client, "192.0.2.2:30081", &["web-1"]);
    cluster.apply("web.yaml", &service("  type: ExternalName\n  externalName: example.com")).unwrap();
    expect_refusal(&client, &address);
    expect_refusal(&client, "192.0.2.2:30081");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    expect_answers(&client, &address, &["web-1"]);
}

#[test]
fn should_be_able_to_up_and_down_services_and_work_after_one_has_been_recreated() {
    let (cluster, client) = cluster();
    let _replicas = ["web-1", "other-1"].map(|name| replica(&cluster, name, name.split('-').next().unwrap()));
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    cluster.apply("other.yaml", &service(PORT_80).replace("web", "other")).unwrap();
    let web = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let other = format!("{}:80", cluster.virtual_ip("other").unwrap());
    expect_answers(&client, &web, &["web-1"]);
    expect_answers(&client, &other, &["other-1"]);
    cluster.delete("web.yaml").unwrap();
    expect_refusal(&client, &web);
    expect_answers(&client, &other, &["other-1"]);
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    expect_answers(&client, &web, &["web-1"]);
}

#[test]
fn should_be_rejected_when_no_endpoints_exist_and_for_evicted_pods() {
    let (cluster, client) = cluster();
    cluster
        .apply(
            "web.yaml",
            &service("  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30082}]"),
        )
        .unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_refusal(&client, &address);
    expect_refusal(&client, "192.0.2.2:30082");
    let _replica = replica(&cluster, "web-1", "web");
    expect_answers(&client, &address, &["web-1"]);
    cluster
        .apply("pod-web-1.yaml", &pod_manifest("web-1", "web", "status: {phase: Failed, reason: Evicted}\n"))
        .unwrap();
    expect_refusal(&client, &address);
    expect_refusal(&client, "192.0.2.2:30082");
}

#[test]
fn should_implement_service_kubernetes_io_headless_and_service_proxy_name() {
    let (cluster, client) = cluster();
    let _replica = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    for label in ["service.kubernetes.io/headless: ''", "service.kubernetes.io/service-proxy-name: other"] {
        let labelled =
            service(PORT_80).replace("{name: web}", &format!("{{name: web, labels: {{{label}}}}}"));
        cluster.apply("web.yaml", &labelled).unwrap();
        expect_refusal(&client, &address);
        cluster.apply("web.yaml", &service(PORT_80)).unwrap();
        expect_answers(&client, &address, &["web-1"]);
    }
}

#[test]
fn proxy_with_a_name_serves_services_and_slices_with_its_label() {
    let cluster = Cluster::start_with(&["--service-proxy-name", "other"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let (selected, unlabelled) = (replica(&cluster, "web-1", "none"), replica(&cluster, "web-2", "none"));
    let label = "service.kubernetes.io/service-proxy-name: other";
    let labelled = service(PORT_80).replace("{name: web}", &format!("{{name: web, labels: {{{label}}}}}"));
    cluster.apply("web.yaml", &labelled).unwrap();
    // The slices of two controllers, one for each proxy.
    cluster.apply("selected.yaml", &slice("selected", &selected.pod.ip, label)).unwrap();
    cluster.apply("unlabelled.yaml", &slice("unlabelled", &unlabelled.pod.ip, "other: label")).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    expect_refusal(&client, &address);
}

fn slice(name: &str, ip: &str, label: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: web, {label}}}}}\naddressType: IPv4\n\
         endpoints: [{{addresses: [{ip}]}}]\nports: [{{port: 8080}}]\n"
    )
}

#[test]
fn should_work_after_restarting_the_proxy() {
    let (mut cluster, client) = cluster();
    let _replica = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(&format!("  externalIPs: [203.0.113.30]\n{PORT_80}"))).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answers(&client, &address, &["web-1"]);
    expect_answers(&client, "203.0.113.30:80", &["web-1"]);
    cluster.node.shell(&format!("kill -KILL {}", cluster.proxy.id())).unwrap();
    cluster.restart_proxy().unwrap();
    expect_answers(&client, &address, &["web-1"]);
    expect_answers(&client, "203.0.113.30:80", &["web-1"]);
    // Local addresses of a killed proxy are removed when the next one syncs without them.
    cluster.node.shell(&format!("kill -KILL {}", cluster.proxy.id())).unwrap();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    cluster.restart_proxy().unwrap();
    wait_for("the removal of the address", || {
        let routes = cluster.node.shell("ip route show table local")?;
        ensure!(!routes.contains("203.0.113.30"), "{routes}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn should_allow_pods_to_hairpin_back_to_themselves_through_services() {
    let (cluster, _client) = cluster();
    let server = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    expect_answers(&server.pod, &format!("{}:80", cluster.virtual_ip("web").unwrap()), &["web-1"]);
}

#[test]
fn debug_page_shows_services_and_endpoints() {
    let (cluster, client) = cluster();
    let server = replica(&cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    expect_answers(&client, &format!("{vip}:80"), &["web-1"]);
    let page = |query: &str| {
        cluster.node.shell(&format!("curl -fsS http://127.0.0.1:10249/debug/services{query}")).unwrap()
    };
    let table = page("");
    assert!(table.contains(&format!("{vip}:80/tcp")) && table.contains("default/web"), "{table}");
    assert!(table.contains(&format!("{}:8080", server.pod.ip)), "{table}");
    let json: serde_json::Value = serde_json::from_str(&page("?format=json")).unwrap();
    assert_eq!(json["frontends"][0]["service"], "default/web");
    assert_eq!(json["frontends"][0]["endpoints"][0]["ejected"], false);
    assert_eq!(json["failures"], serde_json::json!([]));
}

#[test]
fn endpoint_that_never_accepts_is_ejected_without_failed_requests() {
    let (cluster, client) = cluster();
    let _replicas = ["web-1", "web-2"].map(|name| replica(&cluster, name, "web"));
    // A pod of the Service that does not listen.
    let _dead = cluster.add_pod("web-3").unwrap();
    cluster.apply("pod-web-3.yaml", &pod_manifest("web-3", "web", "")).unwrap();
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    wait_for("the service", || client.ask(&address)).unwrap();
    for _ in 0..100 {
        client.ask(&address).unwrap();
    }
    let retries = cluster.proxy_metric("portolan_proxy_connect_retries_total").unwrap();
    assert!((1.0..=5.0).contains(&retries), "{retries} retries: the endpoint was not ejected");
    let page = cluster.node.shell("curl -fsS http://127.0.0.1:10249/debug/services").unwrap();
    assert!(page.contains("ejected"), "{page}");
}
