//! Events of the proxy, as `kubectl` shows them.

use super::*;

const BALANCED: &str = ", type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32123";

/// Returns type, reason, count, controller and note of each Event about an object.
fn events(fixture: &Fixture, regarding: &str) -> Result<String> {
    let columns = "custom-columns=:.type,:.reason,:.series.count,:.reportingController,:.note";
    let selector = format!("--field-selector=regarding.name={regarding}");
    fixture
        .control_plane
        .kubectl(&["get", "events.v1.events.k8s.io", "--no-headers", "-A", "-o", columns, &selector], "")
}

fn expect(fixture: &Fixture, regarding: &str, texts: &[&str]) {
    wait(&format!("Events about {regarding} with {texts:?}"), fixture, || {
        let found = events(fixture, regarding)?;
        ensure!(texts.iter().all(|text| found.contains(text)), "{found}");
        Ok(())
    });
}

#[test]
fn events_of_kube_proxy_are_recorded() {
    let fixture = Fixture::new();
    expect(&fixture, "node-1", &["Normal", "Starting", "portolan-proxy"]);
    let described = |kind: &str, name: &str| fixture.control_plane.kubectl(&["describe", kind, name], "");
    fixture.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n\
        status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}\n",
    );
    let node = described("node", "node-1").unwrap();
    assert!(node.contains("Starting"), "{node}");

    // A port that another program uses.
    let flags = ["httpd", "-f", "-p", "192.0.2.2:32123"];
    let log = fixture.cluster.directory().join("httpd.log");
    let busybox = std::path::Path::new("/bin/busybox");
    let mut taken = testbed::Program::start(&fixture.cluster.node, busybox, &flags, &log).unwrap();
    wait("the other program", &fixture, || fixture.cluster.node.shell("ss -Hltn sport = :32123 | grep ."));
    fixture.apply(&service("web", BALANCED));
    let note =
        "node node-1 failed to start healthcheck \"default/web\" on port 32123: listen on 192.0.2.2:32123";
    expect(&fixture, "web", &["Warning", "FailedToStartServiceHealthcheck", note]);
    let service_description = described("service", "web").unwrap();
    assert!(service_description.contains("FailedToStartServiceHealthcheck"), "{service_description}");

    // A repeated failure increases the count: the port is released and requested again.
    let release = "{\"spec\": {\"externalTrafficPolicy\": \"Cluster\", \"healthCheckNodePort\": 0}}";
    wait("the count", &fixture, || {
        fixture.control_plane.kubectl(&["patch", "service", "web", "-p", release], "")?;
        std::thread::sleep(Duration::from_millis(500));
        fixture.control_plane.apply(&service("web", BALANCED))?;
        std::thread::sleep(Duration::from_millis(500));
        let found = events(&fixture, "web")?;
        let count = found.split_whitespace().nth(2).and_then(|count| count.parse::<u32>().ok());
        ensure!(found.lines().count() == 1 && count >= Some(2), "{found}");
        Ok(())
    });

    // Retries record no further Event.
    taken.kill();
    wait("the health check", &fixture, || {
        let answer = fixture.page("192.0.2.2:32123")?;
        ensure!(answer.contains("localEndpoints"), "{answer}");
        Ok(())
    });
    assert_eq!(events(&fixture, "web").unwrap().lines().count(), 1);
}

/// The proxy does not depend on the permission.
#[test]
fn proxy_without_permission_for_events_serves() {
    let mut fixture = Fixture::new();
    let forbid = "[{\"op\": \"remove\", \"path\": \"/rules/2\"}]";
    fixture
        .control_plane
        .kubectl(&["patch", "clusterrole", "portolan-proxy", "--type=json", "-p", forbid], "")
        .unwrap();
    fixture.cluster.restart_proxy().unwrap();
    let (pod, _server) = fixture.replica("web-1");
    fixture.apply(&(service("web", "") + &slice("web", &[&pod.ip])));
    fixture.expect("web", "web-1");
    wait("the refusal", &fixture, || {
        let log = std::fs::read_to_string(fixture.cluster.directory().join("proxy-again-1.log"))?;
        ensure!(log.contains("no Event is recorded") && log.contains("forbidden"), "{log}");
        Ok(())
    });
}
