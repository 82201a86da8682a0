//! The proxy's health checks, metrics and status page.

use super::*;

/// Returns status and body of a page, requested from the node.
fn page(cluster: &Cluster, url: &str) -> Result<(u16, String)> {
    let text = cluster.node.shell(&format!("curl -sS -w '\\n%{{http_code}}' {url}"))?;
    let (body, code) = text.trim_end().rsplit_once('\n').context("no status")?;
    Ok((code.parse()?, body.to_owned()))
}

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap()
}

const HEALTHZ: &str = "http://127.0.0.1:10256/healthz";

#[test]
fn healthz_fails_on_a_node_that_is_being_deleted() {
    let cluster = Cluster::start_with(&["--node-name", "n1"]).unwrap();
    let (code, body) = page(&cluster, HEALTHZ).unwrap();
    assert_eq!(code, 200);
    let body = json(&body);
    assert_eq!(body["nodeEligible"], true);
    for key in ["lastUpdated", "currentTime"] {
        assert!(body[key].as_str().is_some_and(|time| time.ends_with('Z')), "{body}");
    }
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    let marked =
        format!("{node}spec: {{taints: [{{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}}]}}\n");
    let leaving = node.replace("{name: n1}", "{name: n1, deletionTimestamp: '2026-01-02T03:04:05Z'}");
    for unschedulable in [&marked, &leaving] {
        for (manifest, expected) in [(unschedulable.as_str(), 503), (node, 200)] {
            cluster.apply("node.yaml", manifest).unwrap();
            wait_for(&format!("status {expected}"), || {
                let (code, body) = page(&cluster, HEALTHZ)?;
                ensure!(
                    code == expected && json(&body)["nodeEligible"] == (expected == 200),
                    "{code} {body}"
                );
                Ok(())
            })
            .unwrap();
            assert_eq!(page(&cluster, "http://127.0.0.1:10256/livez").unwrap().0, 200, "livez succeeds");
        }
    }
    assert!(cluster.proxy_metric(r#"kubeproxy_proxy_healthz_total{code="503"}"#).unwrap() >= 2.0);
}

#[test]
fn health_check_opens_as_soon_as_its_port_is_free() {
    let (cluster, _client) = cluster();
    let taken = cluster.node.run(|| std::net::TcpListener::bind("192.0.2.2:32100")).unwrap();
    let spec = format!(
        "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32100\n{PORT_80}"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let _replicas = ["web-1", "web-2"].map(|name| replica(&cluster, name, "web"));
    wait_for("the error in the log", || {
        let log = cluster.logs();
        ensure!(log.contains("no health check for the load balancer"), "{log}");
        Ok(())
    })
    .unwrap();
    drop(taken);
    wait_for("the health check", || {
        let answer = cluster.node.shell("curl -sSi http://192.0.2.2:32100/anything")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        ensure!(answer.contains("x-load-balancing-endpoint-weight: 2"), "{answer}");
        ensure!(answer.contains(r#""localEndpoints":2"#) && answer.contains(r#""serviceProxyHealthy":true"#));
        Ok(())
    })
    .unwrap();
}

#[test]
fn node_port_is_served_on_an_address_added_later() {
    let flags = ["--node-port-addresses", "192.0.2.0/24,198.18.0.0/24"];
    let cluster = Cluster::start_with(&flags).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let spec = "  type: NodePort\n  ports: [{port: 80, targetPort: 8080, nodePort: 30086}]";
    cluster.apply("web.yaml", &service(spec)).unwrap();
    let _replica = replica(&cluster, "web-1", "web");
    expect_answers(&client, "192.0.2.2:30086", &["web-1"]);
    cluster.node.shell("ip address add 198.18.0.9/24 dev lo").unwrap();
    expect_answers(&client, "198.18.0.9:30086", &["web-1"]);
    cluster.node.shell("ip address del 198.18.0.9/24 dev lo").unwrap();
    wait_for("the removal of the address", || {
        let page = cluster.node.shell("curl -sS http://127.0.0.1:10249/debug/services")?;
        ensure!(!page.contains("198.18.0.9"), "{page}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn status_shows_every_endpoint_and_only_to_local_clients() {
    let cluster = Cluster::start_with(&["--metrics-bind-address", "0.0.0.0:10249"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let ready = replica(&cluster, "web-1", "none");
    cluster.apply("web.yaml", &service("  ports: [{name: http, port: 80, targetPort: 8080}]")).unwrap();
    let endpoints = [
        (ready.pod.ip.as_str(), "nodeName: n1, zone: z1"),
        ("10.22.9.2", "conditions: {ready: false}"),
        ("10.22.9.3", "conditions: {ready: false, serving: true, terminating: true}"),
    ];
    let named = slice("web-a", &endpoints).replace("[{port: 8080}]", "[{name: http, port: 8080}]");
    cluster.apply("slice.yaml", &named).unwrap();
    let vip = cluster.virtual_ip("web").unwrap();
    expect_answers(&client, &format!("{vip}:80"), &["web-1"]);
    let status = |more: &str| {
        let program = testbed::Binaries::find().unwrap().path("portolan-proxy");
        cluster.node.shell(&format!("{} status {more}", program.display()))
    };
    let text = status("").unwrap();
    for expected in [
        format!("{vip}:80/tcp"),
        "default/web:http".to_owned(),
        "source manifests: ".to_owned(),
        "not ready".to_owned(),
        "terminating".to_owned(),
        "n1 z1".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert!(!status("default/other").unwrap().contains(&vip), "only the selected Service");
    let status_json = json(&status("default/web --json").unwrap());
    let endpoints = status_json["frontends"][0]["endpoints"].as_array().unwrap().clone();
    let states: BTreeSet<&str> = endpoints.iter().filter_map(|endpoint| endpoint["state"].as_str()).collect();
    assert_eq!(states, ["ready", "not ready", "terminating"].into());
    assert!(status_json["frontends"][0]["connectionsSoFar"].as_u64().unwrap() >= 20);
    let (code, _) = page(&cluster, "http://192.0.2.2:10249/debug/services").unwrap();
    assert_eq!(code, 403);
    let (code, _) = page(&cluster, "http://192.0.2.2:10249/metrics").unwrap();
    assert_eq!(code, 200);
    let refused = status("--metrics-bind-address 127.0.0.1:1").unwrap_err().to_string();
    assert!(refused.contains("no proxy answers on 127.0.0.1:1"), "{refused}");
}

#[test]
fn kube_proxy_metrics_have_their_original_names() {
    let cluster = Cluster::start_with(&["--node-name", "n1"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let replica = replica(&cluster, "web-1", "none");
    cluster.apply("web.yaml", &service(&format!("  internalTrafficPolicy: Local\n{PORT_80}"))).unwrap();
    let trigger = |seconds: i64| {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
        format!("annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{at}'}}, name: web-a")
    };
    let with = |place: &str, metadata: &str| {
        let slice = slice("web-a", &[(replica.pod.ip.as_str(), place)]).replace("name: web-a", metadata);
        cluster.apply("slice.yaml", &slice).unwrap();
    };
    with("nodeName: elsewhere", "name: web-a");
    let stranded =
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}"#;
    let expect_stranded = |number: f64| {
        wait_for("ports without endpoints by their policy", || {
            ensure!(cluster.proxy_metric(stranded)? == number);
            Ok(())
        })
        .unwrap();
    };
    expect_stranded(1.0);
    std::thread::sleep(Duration::from_secs(2));
    with("nodeName: n1", &trigger(1));
    expect_answers(&client, &format!("{}:80", cluster.virtual_ip("web").unwrap()), &["web-1"]);
    assert_eq!(cluster.proxy_metric(stranded).unwrap(), 0.0);
    assert_eq!(cluster.proxy_metric("kubeproxy_network_programming_duration_seconds_count").unwrap(), 1.0);
    let took = cluster.proxy_metric("kubeproxy_network_programming_duration_seconds_sum").unwrap();
    assert!((1.0..60.0).contains(&took), "{took}");
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    ] {
        assert!(cluster.proxy_metric(name).unwrap() > 0.0, "{name}");
    }
    let series = r#"portolan_proxy_service_connections_opened_total{namespace="default",port="",protocol="tcp",service="web"}"#;
    assert!(cluster.proxy_metric(series).unwrap() >= 20.0);
    cluster.delete("web.yaml").unwrap();
    wait_for("the removal of the Service's series", || {
        ensure!(cluster.proxy_metric(series).is_err());
        Ok(())
    })
    .unwrap();
    with("nodeName: elsewhere", "name: web-a");
    cluster.apply("web.yaml", &service(&format!("  internalTrafficPolicy: Local\n{PORT_80}"))).unwrap();
    expect_stranded(1.0);
    cluster.delete("web.yaml").unwrap();
    expect_stranded(0.0);
}

#[test]
fn draining_proxy_fails_its_checks_and_a_replaced_one_does_not_answer_them() {
    let (mut cluster, client) = cluster();
    let server = cluster.add_pod("web-1").unwrap();
    let listener =
        server.netns.run(|| std::net::TcpListener::bind((server.ip.as_str(), 8080))).unwrap().unwrap();
    let pod = pod_manifest("web-1", "web", "");
    cluster.apply("pod-web-1.yaml", &pod).unwrap();
    let spec = format!(
        "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32101\n{PORT_80}"
    );
    cluster.apply("web.yaml", &service(&spec)).unwrap();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let connect = || Ok(client.netns.run(|| TcpStream::connect(&address))??);
    let open = || {
        let stream: TcpStream = wait_for("the service", connect).unwrap();
        (stream, listener.accept().unwrap())
    };
    let first = open();
    let check = "http://192.0.2.2:32101/";
    wait_for("the health check", || {
        ensure!(page(&cluster, check)?.0 == 200);
        Ok(())
    })
    .unwrap();
    // The previous proxy drains an open connection and no longer applies changes.
    let mut old = cluster.hot_restart_proxy().unwrap();
    cluster.delete("pod-web-1.yaml").unwrap();
    wait_for("the health check without endpoints", || {
        ensure!(page(&cluster, check)?.0 == 503);
        Ok(())
    })
    .unwrap();
    for _ in 0..30 {
        assert_eq!(page(&cluster, check).unwrap().0, 503);
    }
    drop(first);
    assert!(old.wait().unwrap().success());
    cluster.apply("pod-web-1.yaml", &pod).unwrap();
    wait_for("the health check", || {
        ensure!(page(&cluster, check)?.0 == 200);
        Ok(())
    })
    .unwrap();
    let second = open();
    cluster.node.shell(&format!("kill {}", cluster.proxy.id())).unwrap();
    wait_for("the drain", || {
        ensure!(page(&cluster, HEALTHZ)?.0 == 503);
        Ok(())
    })
    .unwrap();
    assert_eq!(page(&cluster, "http://127.0.0.1:10256/readyz").unwrap().0, 503);
    assert_eq!(page(&cluster, "http://127.0.0.1:10256/livez").unwrap().0, 200, "livez succeeds");
    let (code, body) = page(&cluster, check).unwrap();
    assert_eq!((code, &json(&body)["localEndpoints"]), (503, &serde_json::json!(0)));
    drop(second);
    assert!(cluster.proxy.wait().unwrap().success());
}

#[test]
fn metrics_of_a_service_are_removed_when_it_is_no_longer_served() {
    let (cluster, client) = cluster();
    let _replica = replica(&cluster, "web-1", "web");
    let series = r#"portolan_proxy_service_connections_opened_total{namespace="default",port="",protocol="tcp",service="web"}"#;
    let other_proxy = service(PORT_80)
        .replace("{name: web}", "{name: web, labels: {service.kubernetes.io/service-proxy-name: other}}");
    let alias = service(&format!("  type: ExternalName\n  externalName: example.com\n{PORT_80}"));
    for changed in [other_proxy, alias] {
        cluster.apply("web.yaml", &service(PORT_80)).unwrap();
        expect_answers(&client, &format!("{}:80", cluster.virtual_ip("web").unwrap()), &["web-1"]);
        assert!(cluster.proxy_metric(series).unwrap() >= 20.0);
        cluster.apply("web.yaml", &changed).unwrap();
        wait_for("the removal of the series", || {
            ensure!(cluster.proxy_metric(series).is_err());
            Ok(())
        })
        .unwrap();
    }
}
