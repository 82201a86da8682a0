//! What the proxy says about objects, as `kubectl` shows it.

use super::*;

const BALANCED: &str = ", type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32123";

/// Type, reason, note and count of each Event about an object.
fn events(ground: &Ground, regarding: &str) -> Result<String> {
    let columns = "custom-columns=:.type,:.reason,:.series.count,:.reportingController,:.note";
    let selector = format!("--field-selector=regarding.name={regarding}");
    ground
        .control_plane
        .kubectl(&["get", "events.v1.events.k8s.io", "--no-headers", "-A", "-o", columns, &selector], "")
}

fn expect(ground: &Ground, regarding: &str, texts: &[&str]) {
    wait(&format!("Events about {regarding} that say {texts:?}"), ground, || {
        let said = events(ground, regarding)?;
        ensure!(texts.iter().all(|text| said.contains(text)), "{said}");
        Ok(())
    });
}

#[test]
fn what_kube_proxy_records_is_recorded() {
    let ground = Ground::new();
    expect(&ground, "node-1", &["Normal", "Starting", "portolan-proxy"]);
    let described = |kind: &str, name: &str| ground.control_plane.kubectl(&["describe", kind, name], "");
    ground.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.2}]}\n");
    let node = described("node", "node-1").unwrap();
    assert!(node.contains("Starting"), "{node}");

    // A port that another program has.
    let flags = ["httpd", "-f", "-p", "192.0.2.2:32123"];
    let log = ground.cluster.directory().join("httpd.log");
    let busybox = std::path::Path::new("/bin/busybox");
    let mut taken = testbed::Program::start(&ground.cluster.node, busybox, &flags, &log).unwrap();
    wait("the other program", &ground, || ground.cluster.node.shell("ss -Hltn sport = :32123 | grep ."));
    ground.apply(&service("web", BALANCED));
    let note =
        "node node-1 failed to start healthcheck \"default/web\" on port 32123: listen on 192.0.2.2:32123";
    expect(&ground, "web", &["Warning", "FailedToStartServiceHealthcheck", note]);
    let service_said = described("service", "web").unwrap();
    assert!(service_said.contains("FailedToStartServiceHealthcheck"), "{service_said}");

    // The same once more counts it up: the port is given up and wanted again.
    let give_up = "{\"spec\": {\"externalTrafficPolicy\": \"Cluster\", \"healthCheckNodePort\": 0}}";
    wait("the count", &ground, || {
        ground.control_plane.kubectl(&["patch", "service", "web", "-p", give_up], "")?;
        std::thread::sleep(Duration::from_millis(500));
        ground.control_plane.apply(&service("web", BALANCED))?;
        std::thread::sleep(Duration::from_millis(500));
        let said = events(&ground, "web")?;
        let count = said.split_whitespace().nth(2).and_then(|count| count.parse::<u32>().ok());
        ensure!(said.lines().count() == 1 && count >= Some(2), "{said}");
        Ok(())
    });

    // It is tried again all the time, and said no more.
    taken.kill();
    wait("the health check", &ground, || {
        let answer = ground.page("192.0.2.2:32123")?;
        ensure!(answer.contains("localEndpoints"), "{answer}");
        Ok(())
    });
    assert_eq!(events(&ground, "web").unwrap().lines().count(), 1);
}

/// Its own rights are not what the proxy's work depends on.
#[test]
fn a_proxy_that_may_not_record_events_serves_all_the_same() {
    let mut ground = Ground::new();
    let forbid = "[{\"op\": \"remove\", \"path\": \"/rules/2\"}]";
    ground
        .control_plane
        .kubectl(&["patch", "clusterrole", "portolan-proxy", "--type=json", "-p", forbid], "")
        .unwrap();
    ground.cluster.restart_proxy().unwrap();
    let (pod, _server) = ground.replica("web-1");
    ground.apply(&(service("web", "") + &slice("web", &[&pod.ip])));
    ground.expect("web", "web-1");
    wait("the refusal", &ground, || {
        let log = std::fs::read_to_string(ground.cluster.directory().join("proxy-again-1.log"))?;
        ensure!(log.contains("no Event is recorded") && log.contains("forbidden"), "{log}");
        Ok(())
    });
}
