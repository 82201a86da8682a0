//! Names of pods and of endpoints by pod name, from an API server.

use super::*;
use testbed::{Binaries, Program};

pub(super) const ROLES: &str = include_str!("../../../deploy/kubernetes/rbac.yaml");

/// Address of a second DNS server.
const ADDRESS: &str = "127.0.0.1";
const PORT: &str = "5300";

pub(super) fn start(fixture: &Fixture, flags: &[&str]) -> Program {
    let kubeconfig = fixture.control_plane.kubeconfig("portolan-dns").unwrap().display().to_string();
    let listen = format!("--listen={ADDRESS}:{PORT}");
    let own = [
        "--metrics-bind-address=127.0.0.1:9154",
        "--health-bind-address=127.0.0.1:8082",
        "--ready-bind-address=127.0.0.1:8182",
    ];
    let arguments = [&["--kubeconfig", &kubeconfig, &listen][..], &own, flags].concat();
    let binary = Binaries::find().unwrap().path("portolan-dns");
    let log = fixture.control_plane.directory().join("names.log");
    Program::start(&fixture.cluster.node, &binary, &arguments, &log).unwrap()
}

/// Returns the response code and the addresses of an answer.
fn look_up(fixture: &Fixture, server: (&str, &str), name: &str) -> Result<(String, String)> {
    let (address, port) = server;
    let query = format!("dig +time=1 +tries=1 @{address} -p {port} {name}.cluster.local A");
    let answer = fixture.cluster.node.shell(&query)?;
    let code = answer.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
    let record = |line: &str| match *line.split_whitespace().collect::<Vec<_>>() {
        [_, _, "IN", "A", address] => Some(address.to_owned()),
        _ => None,
    };
    let addresses: Vec<String> = answer.lines().filter_map(record).collect();
    Ok((code.to_owned(), addresses.join(" ")))
}

pub(super) fn expect(fixture: &Fixture, name: &str, code: &str, address: &str) {
    wait(&format!("{name} to be {code} {address}"), fixture, || {
        let found = look_up(fixture, (ADDRESS, PORT), name)?;
        ensure!(found == (code.to_owned(), address.to_owned()), "{found:?}");
        Ok(())
    });
}

#[test]
fn pod_names_and_endpoint_pod_names_follow_the_api_server() {
    // No controller creates the service account that pods need.
    let fixture = Fixture::with(&["--disable-admission-plugins=ServiceAccount"]);
    let flags = ["--pods=verified", "--endpoint-pod-names"];
    // The role in deploy lacks the permission, which is reported.
    {
        let _without_permission = start(&fixture, &flags);
        wait("the missing permission in the page", &fixture, || {
            let page = fixture.cluster.node.shell("curl -sS -m 2 'http://127.0.0.1:8182/ready?verbose'")?;
            ensure!(page.contains("pods") && page.contains("forbidden"), "{page}");
            Ok(())
        });
        let (code, _) = look_up(&fixture, (ADDRESS, PORT), "kubernetes.default.svc").unwrap();
        assert_eq!(code, "SERVFAIL", "not synced yet");
    }
    fixture.apply(&ROLES.replace("[services, namespaces]", "[services, namespaces, pods]"));
    let _dns = start(&fixture, &flags);
    expect(&fixture, "kubernetes.default.svc", "NOERROR", "10.96.0.1");
    expect(&fixture, "10-22-9-1.default.pod", "NXDOMAIN", "");
    fixture.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\n\
        spec: {nodeName: node-1, containers: [{name: c, image: none}]}\n",
    );
    let status = "{\"status\": {\"phase\": \"Running\", \"podIP\": \"10.22.9.1\", \"podIPs\": \
        [{\"ip\": \"10.22.9.1\"}]}}";
    fixture
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", status], "")
        .unwrap();
    expect(&fixture, "10-22-9-1.default.pod", "NOERROR", "10.22.9.1");
    expect(&fixture, "10-22-9-1.kube-system.pod", "NXDOMAIN", "");
    expect(&fixture, "10-22-9-2.default.pod", "NXDOMAIN", "");
    // Endpoints have the names of their pods on this server, and not on the cluster's server.
    let endpoint = "{addresses: [10.22.9.1], conditions: {ready: true}, targetRef: {kind: Pod, name: web-1, \
        namespace: default}}";
    let slice = slice("web", &[]).replace("endpoints:\n", &format!("endpoints: [{endpoint}]\n"));
    fixture.apply(&(service("web", ", clusterIP: None") + &slice));
    expect(&fixture, "web-1.web.default.svc", "NOERROR", "10.22.9.1");
    expect(&fixture, "10-22-9-1.web.default.svc", "NXDOMAIN", "");
    wait("the cluster's own server", &fixture, || {
        let of_cluster = |name| look_up(&fixture, ("10.96.0.10", "53"), name);
        let (code, address) = of_cluster("10-22-9-1.web.default.svc")?;
        ensure!((code.as_str(), address.as_str()) == ("NOERROR", "10.22.9.1"), "{code} {address}");
        let (code, _) = of_cluster("web-1.web.default.svc")?;
        ensure!(code == "NXDOMAIN", "{code}");
        Ok(())
    });
    fixture.control_plane.kubectl(&["delete", "pod", "web-1", "--force", "--grace-period=0"], "").unwrap();
    expect(&fixture, "10-22-9-1.default.pod", "NXDOMAIN", "");
}
