//! CoreDNS's options of names, from an API server's pods.

use super::*;
use testbed::{Binaries, Program};

pub(super) const ROLES: &str = include_str!("../../../deploy/kubernetes/rbac.yaml");

/// Beside the one of the cluster.
const ADDRESS: &str = "127.0.0.1";
const PORT: &str = "5300";

pub(super) fn start(ground: &Ground, flags: &[&str]) -> Program {
    let kubeconfig = ground.control_plane.kubeconfig("portolan-dns").unwrap().display().to_string();
    let listen = format!("--listen={ADDRESS}:{PORT}");
    let own = [
        "--metrics-bind-address=127.0.0.1:9154",
        "--health-bind-address=127.0.0.1:8082",
        "--ready-bind-address=127.0.0.1:8182",
    ];
    let arguments = [&["--kubeconfig", &kubeconfig, &listen][..], &own, flags].concat();
    let binary = Binaries::find().unwrap().path("portolan-dns");
    let log = ground.control_plane.directory().join("names.log");
    Program::start(&ground.cluster.node, &binary, &arguments, &log).unwrap()
}

/// The code of the answer, and the addresses in it.
fn look_up(ground: &Ground, server: (&str, &str), name: &str) -> Result<(String, String)> {
    let (address, port) = server;
    let ask = format!("dig +time=1 +tries=1 @{address} -p {port} {name}.cluster.local A");
    let said = ground.cluster.node.shell(&ask)?;
    let code = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
    let record = |line: &str| match *line.split_whitespace().collect::<Vec<_>>() {
        [_, _, "IN", "A", address] => Some(address.to_owned()),
        _ => None,
    };
    let addresses: Vec<String> = said.lines().filter_map(record).collect();
    Ok((code.to_owned(), addresses.join(" ")))
}

pub(super) fn expect(ground: &Ground, name: &str, code: &str, address: &str) {
    wait(&format!("{name} to be {code} {address}"), ground, || {
        let found = look_up(ground, (ADDRESS, PORT), name)?;
        ensure!(found == (code.to_owned(), address.to_owned()), "{found:?}");
        Ok(())
    });
}

#[test]
fn pods_and_endpoints_by_their_pods_names_are_those_of_the_api_server() {
    // No controller makes the account that this would ask for.
    let ground = Ground::with(&["--disable-admission-plugins=ServiceAccount"]);
    let flags = ["--pods=verified", "--endpoint-pod-names"];
    // The role in deploy is not enough for it, and that is told.
    {
        let _without_leave = start(&ground, &flags);
        wait("word of the missing right", &ground, || {
            let page = ground.cluster.node.shell("curl -sS -m 2 'http://127.0.0.1:8182/ready?verbose'")?;
            ensure!(page.contains("pods") && page.contains("forbidden"), "{page}");
            Ok(())
        });
        let (code, _) = look_up(&ground, (ADDRESS, PORT), "kubernetes.default.svc").unwrap();
        assert_eq!(code, "SERVFAIL", "not all is known yet");
    }
    ground.apply(&ROLES.replace("[services, namespaces]", "[services, namespaces, pods]"));
    let _dns = start(&ground, &flags);
    expect(&ground, "kubernetes.default.svc", "NOERROR", "10.96.0.1");
    expect(&ground, "10-22-9-1.default.pod", "NXDOMAIN", "");
    ground.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\nspec: {nodeName: node-1, containers: [{name: c, image: none}]}\n");
    let status = "{\"status\": {\"phase\": \"Running\", \"podIP\": \"10.22.9.1\", \"podIPs\": [{\"ip\": \"10.22.9.1\"}]}}";
    ground
        .control_plane
        .kubectl(&["patch", "pod", "web-1", "--subresource=status", "-p", status], "")
        .unwrap();
    expect(&ground, "10-22-9-1.default.pod", "NOERROR", "10.22.9.1");
    expect(&ground, "10-22-9-1.kube-system.pod", "NXDOMAIN", "");
    expect(&ground, "10-22-9-2.default.pod", "NXDOMAIN", "");
    // Endpoints go by the names of their pods, here and nowhere else.
    let endpoint = "{addresses: [10.22.9.1], conditions: {ready: true}, targetRef: {kind: Pod, name: web-1, namespace: default}}";
    let slice = slice("web", &[]).replace("endpoints:\n", &format!("endpoints: [{endpoint}]\n"));
    ground.apply(&(service("web", ", clusterIP: None") + &slice));
    expect(&ground, "web-1.web.default.svc", "NOERROR", "10.22.9.1");
    expect(&ground, "10-22-9-1.web.default.svc", "NXDOMAIN", "");
    wait("the cluster's own server", &ground, || {
        let of_cluster = |name| look_up(&ground, ("10.96.0.10", "53"), name);
        let (code, address) = of_cluster("10-22-9-1.web.default.svc")?;
        ensure!((code.as_str(), address.as_str()) == ("NOERROR", "10.22.9.1"), "{code} {address}");
        let (code, _) = of_cluster("web-1.web.default.svc")?;
        ensure!(code == "NXDOMAIN", "{code}");
        Ok(())
    });
    ground.control_plane.kubectl(&["delete", "pod", "web-1", "--force", "--grace-period=0"], "").unwrap();
    expect(&ground, "10-22-9-1.default.pod", "NXDOMAIN", "");
}
